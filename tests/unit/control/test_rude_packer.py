"""The dispatcher holds the bounds itself, whatever a packer says."""

from __future__ import annotations

from cloister.control import policies
from cloister.control.dispatch import Dispatcher, Halt, Launch, Send
from cloister.control.packing.all_in_one import AllInOne
from cloister.control.packing.port import POOL, Decision, Start
from cloister.control.snapshot import Fleet, Model, Request, Snapshot, Stages


class Rude(AllInOne):
    """Starts ten instances for every request, and stops all that there are."""

    def place(self, snapshot: Snapshot, state: None, request: Request, now: float) -> tuple[Decision, None]:
        decision, _ = super().place(snapshot, state, request, now)
        starts = tuple(Start(POOL, (request.model,)) for _ in range(10))
        return Decision(decision.action, starts, snapshot.order), state

    def retire(self, snapshot: Snapshot, state: None, now: float) -> tuple[tuple[str, ...], None]:
        return snapshot.order, state


def test_never_more_instances_than_the_fleet_has_and_no_busy_one_is_stopped() -> None:
    fleet = Fleet(max_instances=3, memory_mb=100, concurrency=1)
    dispatcher = Dispatcher(fleet, Rude(), policies.balancer("least-outstanding"), policies.scaler("keep-alive"))
    dispatcher.add_model(Model("m", "owner", 10.0, Stages(sandbox_start=100, model_fetch=50, inference=5)))
    commands = dispatcher.arrive(0.0, Request("0", "m", "u", 0.0))
    launched = [command.instance for command in commands if isinstance(command, Launch)]
    assert len(launched) == 3
    busy: dict[str, str] = {}
    for step in range(1, 20):
        now = float(step)
        commands = []
        for name in launched:
            if name in dispatcher.snapshot.instances:
                commands += dispatcher.ready(now, name)
        launched = []
        commands += dispatcher.arrive(now, Request(str(step), "m", "u", now))
        commands += dispatcher.tick(now)
        for command in commands:
            if isinstance(command, Send):
                busy[command.instance] = command.request.id
            elif isinstance(command, Launch):
                launched.append(command.instance)
            elif isinstance(command, Halt):
                assert command.instance not in busy
        assert len(dispatcher.snapshot.order) <= 3
        if step % 3 == 0:
            for instance, request in list(busy.items()):
                dispatcher.finished(now, request, instance, 0.1)
                del busy[instance]

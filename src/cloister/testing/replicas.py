"""Several replicas of a KeyService in this process, and the network between them, which the test holds.

Replicas, witnesses and stores are the real ones; time passes, and replicas do something, only when the test says so.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, final

from cloister.base.errors import CloisterError, Unavailable
from cloister.base.limits import BLOCK_ENTRIES
from cloister.base.secret import SecretBytes
from cloister.crypto.sign import SigningKey
from cloister.keyservice.anchors.majority import MajorityAnchor
from cloister.keyservice.root import root_of
from cloister.testing.clock import FakeClock, ShiftedClock
from cloister.testing.embedded import EmbeddedKeyService
from cloister.testing.rows import MemoryDisk
from cloister.testing.tee import SimulatedTee
from cloister.testing.witness import LocalWitness, local_witnesses, witnessed

if TYPE_CHECKING:
    from cloister.keyservice.anchors.witnesses import WitnessAnchor

T = TypeVar("T")
SEED = b"r" * 32


@final
class LocalPeer:
    """Port ``Peer``: from one replica of a cluster to another, as far as the network lets it."""

    def __init__(self, cluster: Cluster, source: int, target: int) -> None:
        self._cluster = cluster
        self._ends = source, target

    @property
    def origin(self) -> str:
        """The target's number."""
        return f"http://replica-{self._ends[1]}"

    def exchange(self, request: bytes) -> bytes:
        """See the port."""
        return self._cluster.carry(*self._ends, request)


@final
class Cluster:
    """``count`` replicas and three witnesses, of which two must sign. Replica 0 made the log.

    :param patience_s: how long an entry waits for its confirmation. :param block_entries: of a block of their stores.
    :param settings: further ones of each, as ``EmbeddedKeyService`` takes them.
    :param ahead_s: by which the wall clocks of replicas, by number, are ahead of the world's.
    :ivar live: the replicas that run, by number. :ivar disks: what they left on their disks.
    :ivar cut: pairs (from, to) between which nothing passes.
    :ivar tap: every exchange passes through it: (from, to, request, answer) to the answer.
    """

    def __init__(
        self,
        folder: Path,
        *,
        count: int = 3,
        patience_s: float = 0.4,
        block_entries: int = BLOCK_ENTRIES,
        ahead_s: dict[int, float] | None = None,
        **settings: Any,
    ) -> None:
        self.clock = FakeClock()
        self.count = count
        self.patience_s = patience_s
        self.block_entries = block_entries
        self.bundle_key = SigningKey.generate()
        self._signed = FakeClock(
            self.clock.now() - 7200
        )  # when the trust bundle was, which is the same one at each start
        self.platform = SimulatedTee("runtime", clock=self.clock)
        self.log_key = root_of(SecretBytes(SEED)).log_key.public_key
        self.witnesses: list[LocalWitness] = local_witnesses(folder, self.clock, self.log_key, 3)
        self.disks = [MemoryDisk() for _ in range(count)]
        self.live: dict[int, EmbeddedKeyService] = {}
        self.cut: set[tuple[int, int]] = set()
        self.ahead_s = ahead_s or {}
        self.settings = settings
        self.tap: Callable[[int, int, bytes, bytes], bytes] = lambda _from, _to, _request, answer: answer
        for number in range(count):
            self.start(number)

    # --- processes ---

    def start(self, number: int, disk: MemoryDisk | None = None, **changes: Any) -> EmbeddedKeyService:
        """Start a replica on its disk, or on this one, which is its from now on."""
        if disk is not None:
            self.disks[number] = disk
        settings: dict[str, Any] = {"replicas": self.count, **witnessed(self.witnesses, 2)}
        settings["block_entries"] = self.block_entries
        settings |= {"empty": number != 0 or disk is not None, **self.settings, **changes}
        ks = EmbeddedKeyService(
            clock=ShiftedClock(self.clock, self.ahead_s.get(number, 0.0)),
            world=self._signed,
            disk=self.disks[number],
            runtime_tee=self.platform,
            bundle_key=self.bundle_key,
            seed=SEED,
            identity=bytes([number + 1]) * 16,
            peers=[LocalPeer(self, number, other) for other in range(self.count)],
            **settings,
        )
        ks.replica._jitter = lambda: 0.1 * number
        ks.replica._rest()
        self._hurry(ks)
        self.live[number] = ks
        return ks

    def _hurry(self, ks: EmbeddedKeyService) -> None:
        anchor = ks.assembled.ledger._anchor
        if not isinstance(anchor, MajorityAnchor):
            raise AssertionError  # noqa: TRY004  # no caller's fault
        anchor._patience = self.patience_s
        make = anchor._witnesses

        def hurried() -> WitnessAnchor:
            made = make()
            made._patience = self.patience_s
            return made

        anchor._witnesses = hurried

    def crash(self, number: int) -> None:
        """It is gone; what it had written stays."""
        ks = self.live.pop(number)
        with ks.assembled.ledger._lock:
            disk = ks.disk.copy()
        ks.disk.fail_before = 0  # nothing that is still under way reaches the disk
        ks.close()
        self.disks[number] = disk

    def close(self) -> None:
        """Stop all."""
        for number in tuple(self.live):
            self.crash(number)

    # --- network and time ---

    def carry(self, source: int, target: int, request: bytes) -> bytes:
        """One exchange, if the network lets it pass."""
        ks = self.live.get(target)
        if ks is None or (source, target) in self.cut:
            raise Unavailable("replica-away", f"replica {target} gives no answer")
        return self.tap(source, target, request, ks.replica.handle(request))

    def part(self, *sides: Sequence[int]) -> None:
        """Replicas of different sides do not reach each other; without sides all do."""
        self.cut = {(a, b) for one in sides for other in sides if one is not other for a in one for b in other}

    def step(self, numbers: Sequence[int] | None = None, seconds: float = 0.0) -> None:
        """Each does what is next, then time passes."""
        for number in self.live if numbers is None else numbers:
            if number in self.live:
                try:
                    self.live[number].replica.step(0.0)
                except CloisterError:
                    continue
        self.clock.advance(seconds)

    def until(self, good: Callable[[], bool], rounds: int = 800) -> None:
        """Let all go on until it is so.

        :raises AssertionError: it never was.
        """
        pause = threading.Event()
        for _ in range(rounds):
            if good():
                return
            self.step(seconds=0.25)
            pause.wait(0.005)  # witnesses answer on threads of their own
            for ks in self.live.values():
                ks.assembled.ledger._anchor.tick()
        raise AssertionError({number: ks.replica.role for number, ks in self.live.items()})

    def leader(self) -> EmbeddedKeyService:
        """The one that leads and is confirmed, once there is one."""
        self.until(lambda: bool(self.leading()))
        return self.leading()[0]

    def leading(self) -> list[EmbeddedKeyService]:
        """Those that lead and whose heads are confirmed."""
        return [
            ks for ks in self.live.values() if ks.replica.role == "leader" and ks.assembled.ledger._anchor.state().open
        ]

    def number(self, ks: EmbeddedKeyService) -> int:
        """Which one it is."""
        return next(number for number, other in self.live.items() if other is ks)

    def equal(self) -> bool:
        """Whether all that run hold the same log."""
        return len({ks.assembled.ledger.position() for ks in self.live.values()}) == 1

    def attempt(self, call: Callable[[], T], *, seconds: float = 0.0) -> T:
        """A call, while the replicas go on; raises what it raises."""
        found: list[T] = []
        errors: list[BaseException] = []

        def run() -> None:
            try:
                found.append(call())
            except BaseException as error:  # noqa: BLE001  # raised below
                errors.append(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        while thread.is_alive():
            self.step(seconds=seconds)
            thread.join(0.002)
        if errors:
            raise errors[0]
        return found[0]

"""S4 and S5 against real processes: both halves are needed; what is taken back ends, whatever the clocks say."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cloister.base.errors import CloisterError, Refused
from cloister.base.secret import SecretBytes
from cloister.client.keyring import RequestKey
from cloister.testing.hostile_clock import AVAILABLE, HostileClock
from cloister.testing.models import small
from cloister.testing.people import simulation_policy
from cloister.testing.scene import raised
from cloister.wire.statements import REQUEST_KEY, Validity

pytestmark = pytest.mark.xdist_group("claims")
needs_gcc = pytest.mark.skipif(not AVAILABLE, reason="no gcc here to build a host that lies about time")
LEASE_S = 3


def forge_key(world: Any, user: Any) -> None:
    """A request key that the KeyService never saw."""
    key = RequestKey(REQUEST_KEY, world.scene.cloud.runtime_policy().digest, None, SecretBytes(os.urandom(32)))
    user.account.keyring.put_request_key(str(world.model), key)
    user.keys.forget(world.model)


def terms(world: Any, user: Any, *, grant: Any = True, consent: Any = True) -> None:
    """``True``: as it should be; ``None``: none; a policy; or a validity."""
    policy, name, me = world.scene.cloud.runtime_policy(), world.model.name, user.account.identity.id
    if grant is not None:
        given = grant if isinstance(grant, Validity) else None
        world.owner.grant(name, me, grant if hasattr(grant, "rules") else policy, validity=given)
    if consent is not None:
        given = consent if isinstance(consent, Validity) else None
        user.consent(world.model, consent if hasattr(consent, "rules") else policy, validity=given)
    else:
        forge_key(world, user)


NOBODY = simulation_policy(b"\x01" * 48)
PAST, FUTURE = Validity(0, 1_000_000), Validity(4_000_000_000, 5_000_000_000)
DOORS: dict[str, tuple[dict[str, Any], set[str]]] = {
    "no grant": ({"grant": None}, {"refused-by-owner"}),
    "no consent": ({"consent": None}, {"consent-missing"}),
    "neither": ({"grant": None, "consent": None}, {"refused-by-owner", "consent-missing"}),
    "a grant that ended": ({"grant": PAST}, {"refused-by-owner"}),
    "a grant that has not begun": ({"grant": FUTURE}, {"refused-by-owner"}),
    "a consent that ended": ({"consent": PAST}, {"consent-not-valid"}),
    "a consent that has not begun": ({"consent": FUTURE}, {"consent-not-valid"}),
    "a grant for other code": ({"grant": NOBODY}, {"refused-by-owner"}),
    "a consent for other code": ({"consent": NOBODY}, {"measurement-not-allowed"}),
}


@pytest.mark.parametrize("name", DOORS)
def test_s4_each_half_missing_ended_not_begun_or_for_other_code(world: Any, name: str) -> None:
    how, codes = DOORS[name]
    user = world.scene.person("door-" + name.replace(" ", "-"))
    terms(world, user, **how)
    with pytest.raises(Refused) as caught:
        user.infer(world.model, {"x": world.row()}, deadline_s=20)
    assert caught.value.code in codes
    terms(world, user)
    world.check(user)


def test_s4_a_key_the_user_never_gave_opens_nothing(world: Any) -> None:
    user = world.scene.person("key-is-forged")
    terms(world, user)
    world.check(user)
    forge_key(world, user)
    with pytest.raises(Refused):
        user.infer(world.model, {"x": world.row()}, deadline_s=20)


def test_s4_nobody_grants_somebody_elses_model_nor_uses_it_under_his_own_name(world: Any) -> None:
    thief = world.scene.person("grants-himself")
    with pytest.raises(CloisterError):
        thief.grant(world.model.name, thief.account.identity.id, world.scene.cloud.runtime_policy())
    thief.consent(world.model, world.scene.cloud.runtime_policy())
    with pytest.raises(Refused, match="refused-by-owner"):
        thief.infer(world.model, {"x": world.row()}, deadline_s=20)


def served_until_refused(world: Any, client: Any, model: Any, limit_s: float) -> tuple[int, float]:
    """How often it was served, and for how long, before the first refusal."""
    start, served = time.monotonic(), 0
    while time.monotonic() - start < limit_s:
        try:
            client.infer(model, {"x": world.row()}, deadline_s=3)
            served += 1
        except CloisterError:
            return served, time.monotonic() - start
        time.sleep(0.05)
    raise AssertionError(f"still served after {limit_s} s")


@pytest.mark.parametrize("who", ["owner", "user"])
def test_s5_running_instances_stop_within_the_lease(world: Any, who: str) -> None:
    user = world.scene.person(f"revoked-by-{who}")
    terms(world, user)
    world.check(user)
    if who == "owner":
        world.owner.revoke(world.model.name, user.account.identity.id)
        _, after = served_until_refused(world, user, world.model, LEASE_S + 8)
    else:
        key = user.keys.consented(world.model)
        user.revoke_consent(world.model)
        user.account.keyring.put_request_key(str(world.model), key)
        _, after = served_until_refused(world, user, world.model, LEASE_S + 8)
    # A lease that began just before the revocation, and one request under way at its end; the machine may be slow.
    assert after < LEASE_S + 4


def test_s5_a_process_that_was_stopped_does_not_go_on_where_it_was(world: Any) -> None:
    user = world.scene.person("stopped")
    terms(world, user)
    runtime = world.scene.runtime()
    client = world.scene.at(user, runtime.address)
    world.check(client)
    world.owner.revoke(world.model.name, user.account.identity.id)
    runtime.process.send_signal(signal.SIGSTOP)
    time.sleep(LEASE_S + 0.5)
    runtime.process.send_signal(signal.SIGCONT)
    with pytest.raises(Refused, match="refused-by-owner"):
        client.infer(world.model, {"x": world.row()}, deadline_s=20)
    runtime.stop()


@pytest.fixture
def clock(tmp_path: Path) -> Iterator[HostileClock]:
    made = HostileClock(tmp_path)
    yield made
    made.close()


@needs_gcc
def test_s5_a_clock_set_back_prolongs_no_lease(world: Any, clock: HostileClock) -> None:
    user = world.scene.person("clock-set-back")
    terms(world, user)
    runtime = world.scene.runtime(environment=clock.environment)
    client = world.scene.at(user, runtime.address)
    world.check(client)
    world.owner.revoke(world.model.name, user.account.identity.id)
    clock.shift(-90)  # as far as requests still seem fresh
    _, after = served_until_refused(world, client, world.model, LEASE_S + 8)
    assert after < LEASE_S + 4
    runtime.stop()


@needs_gcc
@pytest.mark.parametrize("quota", [5, 9])
def test_s5_a_clock_that_stands_still_is_bounded_by_the_count(world: Any, clock: HostileClock, quota: int) -> None:
    user = world.scene.person(f"clock-stopped-{quota}")
    world.owner.grant(world.model.name, user.account.identity.id, world.scene.cloud.runtime_policy(), quota=quota)
    user.consent(world.model, world.scene.cloud.runtime_policy())
    runtime = world.scene.runtime(environment=clock.environment)
    client = world.scene.at(user, runtime.address)
    clock.stop(time.clock_gettime(time.CLOCK_MONOTONIC))
    world.check(client)
    world.owner.revoke(world.model.name, user.account.identity.id)
    served, _ = served_until_refused(world, client, world.model, 60)
    assert served + 1 <= quota
    clock.stop(0)
    runtime.stop()


@needs_gcc
def test_s5_the_keyservices_clock_set_back_revives_no_grant(tmp_path: Path, clock: HostileClock) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in clock.environment.items():
            patch.setenv(name, value)
        with raised(tmp_path / "scene", keyservice_settings={"lease_s": LEASE_S}) as scene:
            revive(scene, clock)


def revive(scene: Any, clock: HostileClock) -> None:
    owner, user = scene.person("owner"), scene.person("user")
    model = scene.offer(owner, "model", small.identity(), user)
    policy = scene.cloud.runtime_policy()
    end = int(user.clock.now()) + 60
    owner.grant("model", user.account.identity.id, policy, validity=Validity(0, end))
    row = {"x": np.ones((1, 3), np.float32)}
    user.infer(model, row)
    clock.shift(100)  # time passes, and somebody says something: it is in the log, with its time
    user.rotate_request_key(model)
    with pytest.raises(Refused):
        user.infer(model, row, deadline_s=20)
    for back in (0, -50, -100):
        clock.shift(back)
        user.rotate_request_key(model)
        with pytest.raises(Refused, match="refused-by-owner"):
            user.infer(model, row, deadline_s=20)
    clock.shift(0)  # the grant seems to hold again, to a process that just started
    scene.restart_keyservice()
    user.rotate_request_key(model)
    with pytest.raises(Refused, match="refused-by-owner"):
        user.infer(model, row, deadline_s=20)

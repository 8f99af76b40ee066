"""The simulated world under each policy."""

from __future__ import annotations

import pytest

from cloister.base.errors import InvalidInput
from cloister.control.policies import BALANCERS, PACKERS, SCALERS, balancer, packer, scaler
from cloister.control.simulator.profile import read_profile
from cloister.control.simulator.result import Result, summarise
from cloister.control.simulator.workload import Arrival, steady_and_interactive
from cloister.control.simulator.world import World


def simulate(
    name: str, arrivals: list[Arrival], *, scaling: str = "keep-alive", balancing: str = "tee-aware"
) -> Result:
    world = World(read_profile(None), packer(name), balancer(balancing), scaler(scaling), seed=3)
    return summarise(world.run(arrivals))


@pytest.mark.parametrize("name", PACKERS)
@pytest.mark.parametrize("scaling", SCALERS)
def test_every_request_is_answered_once(name: str, scaling: str) -> None:
    arrivals = steady_and_interactive(120.0, seed=5)
    result = simulate(name, arrivals, scaling=scaling)
    assert (result.requests, result.lost) == (len(arrivals), 0)
    assert result.cold + result.warm + result.hot == len(arrivals)
    assert 1 <= result.instances_max <= read_profile(None).instances
    assert result.gb_seconds > 0


@pytest.mark.parametrize("name", PACKERS)
@pytest.mark.parametrize("balancing", BALANCERS)
def test_the_same_seed_gives_the_same_figures(name: str, balancing: str) -> None:
    arrivals = steady_and_interactive(60.0, seed=6)
    assert simulate(name, arrivals, balancing=balancing) == simulate(name, arrivals, balancing=balancing)


def test_one_request_to_an_empty_fleet_pays_for_every_stage() -> None:
    result = simulate("one-to-one", [Arrival(0.0, "resnet", "u")])
    model = read_profile(None).model("resnet")
    alone = 1000 * (model.start_s + model.load_s + model.service_s)
    assert result.cold == 1
    assert result.mean_ms == pytest.approx(alone, rel=0.3)


def test_a_model_larger_than_an_instance_is_refused_by_name() -> None:
    profile = read_profile(None).with_caps(memory_mb=128)
    world = World(profile, packer("adaptive"), balancer("round-robin"), scaler("slo"))
    with pytest.raises(InvalidInput, match="resnet"):
        world.run([Arrival(0.0, "resnet", "u")])

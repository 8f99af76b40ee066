"""Whatever the claims are, appraisal accepts or refuses; it never breaks, and never accepts what the report denies."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.attest.appraise import appraisal_report, appraise
from cloister.attest.policy_observed import policy_for
from cloister.attest.types import TeeType
from cloister.base.errors import InvalidInput, Refused

_VALUES = (
    st.integers(-(2**70), 2**70)
    | st.booleans()
    | st.binary(max_size=64)
    | st.text(max_size=20)
    | st.lists(st.text(max_size=10), max_size=3).map(tuple)
)


@given(data=st.data(), tee=st.sampled_from(list(TeeType)))
def test_any_claims(data: Any, tee: TeeType, case_of: Any) -> None:
    case = case_of(tee)
    policy = case.policy()
    for part in (case.specific, case.measurements):
        for name in data.draw(st.lists(st.sampled_from(sorted(part)), max_size=3, unique=True)):
            if data.draw(st.booleans()):
                del part[name]
            else:
                part[name] = data.draw(_VALUES if part is case.specific else st.binary(max_size=64))
    case.report_data = data.draw(st.just(b"r" * 64) | st.binary(max_size=65))
    arguments: dict[str, Any] = {
        "configuration": case.configuration,
        "report_data": b"r" * 64,
        "policy": policy,
        "now": data.draw(st.floats(1.7e9, 1.9e9)),
    }
    report = appraisal_report(case.verified(), **arguments)
    if report.accepted_by is not None:
        assert appraise(case.verified(), **arguments).rule == report.accepted_by
        assert not report.failures
        return
    with pytest.raises(Refused) as caught:
        appraise(case.verified(), **arguments)
    assert caught.value.code == report.failures[0].code
    assert set(caught.value.details) == {"claim", "rule", "expected", "actual"}


@given(data=st.data(), tee=st.sampled_from(list(TeeType)))
def test_a_policy_from_any_claims(data: Any, tee: TeeType, case_of: Any) -> None:
    case = case_of(tee)
    for name in data.draw(st.lists(st.sampled_from(sorted(case.specific)), max_size=3, unique=True)):
        case.specific[name] = data.draw(_VALUES)
    try:
        policy = policy_for(case.verified().claims, case.configuration)
    except (InvalidInput, Refused):
        return
    assert len(policy.rules) == 1

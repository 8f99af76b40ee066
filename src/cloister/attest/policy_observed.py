"""Write a policy from what is seen: the narrowest rule that accepts given claims."""

from __future__ import annotations

from cloister.attest.policy import Policy, Rule
from cloister.attest.policy_fields import FIELDS
from cloister.attest.policy_kinds import Subject, wrong
from cloister.attest.types import Claims, Configuration
from cloister.base.errors import Refused


def policy_for(
    claims: Claims,
    configuration: Configuration | None,
    *,
    name: str = "observed",
    pin_platform: bool = False,
    insecure_debug: bool = False,
) -> Policy:
    """A policy of one rule that accepts evidence like this; to be read by a person before it is used.

    :param configuration: of the service whose claims these are; without one, any is accepted, by name.
    :param pin_platform: accept this very chip only.
    :param insecure_debug: must be set for evidence in debug mode: nothing opens that door by itself.
    :raises Refused: ``debug-not-allowed``.
    :raises InvalidInput: ``policy-observed`` for a claim that the evidence lacks and no rule can leave out.
    """
    if claims.debug and not insecure_debug:
        raise Refused("debug-not-allowed", "the evidence is of a TEE in debug mode, whose memory the host can read")
    subject = Subject(claims, configuration, now=0.0)
    plain: dict[str, object] = {}
    for field in FIELDS[claims.tee]:
        seen = field.kind.observe(field, subject)
        if field.name == "platforms" and not pin_platform:
            seen = None
        if field.optional and not (isinstance(seen, list) and field.name == "pcr8" and any(seen[0])):
            continue  # PCR8 is who signed the image; the other PCRs belong to one instance
        if seen is None:
            seen = field.left_out
        if seen is None:
            raise wrong("policy-observed", f"rule.{name}.{field.name}", "the evidence says nothing of it")
        plain[field.name] = seen
    return Policy((Rule.of(name, claims.tee, plain),))

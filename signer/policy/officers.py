"""Officers beside the policy: the registry names them, the policy must not have them sign."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from signer.model import Role
from signer.policy.rules import Policy


def officer_problems(policy: Policy, officers: Iterable[str]) -> list[str]:
    """Returns which officers are a facility's or a group's client: who decides signs nothing."""
    return [
        f"{who} is a client in the policy: who is an officer signs nothing"
        for who in sorted(officers)
        if Role.ISSUER in policy.roles.get(who, frozenset())
    ]


def with_officers(policy: Policy, officers: Iterable[str]) -> Policy:
    """Returns the policy with the role of these officers; they keep others that it gives them."""
    roles = dict(policy.roles)
    for who in officers:
        roles[who] = roles.get(who, frozenset()) | {Role.OFFICER}
    return replace(policy, roles=roles)

"""Officers and the policy: the registry names officers, and none may be a client."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from signer.model import Role
from signer.policy.rules import Policy


def officer_problems(policy: Policy, officers: Iterable[str]) -> list[str]:
    """Returns a problem for each officer that is a client of a facility or a group."""
    return [
        f"{who} is a client in the policy; officers must not be clients"
        for who in sorted(officers)
        if Role.ISSUER in policy.roles.get(who, frozenset())
    ]


def with_officers(policy: Policy, officers: Iterable[str]) -> Policy:
    """Returns the policy with these officers added to the roles that it gives."""
    roles = dict(policy.roles)
    for who in officers:
        roles[who] = roles.get(who, frozenset()) | {Role.OFFICER}
    return replace(policy, roles=roles)

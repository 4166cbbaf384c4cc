"""Who may sign what, and when. Pure: values in, a decision out.

What no rule allows is denied. A principal that is not a client of the facility gets the
same answer whatever it asks for, so that it cannot learn what exists.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from signer.algorithms import Algorithm
from signer.errors import Reason
from signer.model import Format, KeyName, Role
from signer.policy.rules import Policy, Terms
from signer.text import utc

DEFAULT_DENY = "default.deny"  # the rule of a denial that nothing in the policy states


@dataclass(frozen=True, slots=True)
class Decision:
    """What the policy says, and which rule says it, as a dotted path into the policy.

    Allowed: ``terms`` are the terms to sign under. Denied: ``reason`` and ``message`` are for
    the caller; ``retry_after`` is the number of seconds after which a retry can succeed.
    """

    terms: Terms | None
    rule: str
    reason: Reason | None = None
    message: str = ""
    retry_after: float | None = None

    @property
    def allowed(self) -> bool:
        """Whether no rule denies; then there are terms."""
        return self.reason is None


UNKNOWN = Decision(
    None, DEFAULT_DENY, Reason.PEER_UNKNOWN, "no rule of the policy names this principal"
)
FORBIDDEN = Decision(
    None,
    DEFAULT_DENY,
    Reason.POLICY_DENIED,
    "no rule of the policy lets this principal sign with this key",
)

_UNLISTED = (
    "this key has no format: its facility has HCERT, SHC or TIMESTAMP and others, which no key may"
    " combine; list the key under the facility's keys, with formats of its own"
)


def may_use(policy: Policy, principal: str, key: KeyName) -> Terms | None:
    """Returns the terms under which a principal may sign with a key, at any time.

    None if it may not, or if the facility does not exist.
    """
    right = _right(policy, principal, key)
    return right[0] if right else None


def visible_facilities(policy: Policy, principal: str) -> frozenset[str] | None:
    """Returns the facilities whose keys a principal may see; None: all.

    Officers, auditors and operators also see keys that the policy no longer names.
    """
    if policy.roles.get(principal, frozenset()) - {Role.ISSUER}:
        return None
    delegating = (policy.groups[name].facilities for name in policy.groups_of.get(principal, ()))
    return policy.facilities_of.get(principal, frozenset[str]()).union(*delegating)


def decide(policy: Policy, principal: str, key: KeyName, requested: Format, now: float) -> Decision:
    """Decides whether a principal may sign in a format with a key at ``now``.

    Not decided here: whether the key exists, its algorithm (check_algorithm), the size of
    the batch (Terms.max_batch_items) and the quotas (usage.Usage).
    """
    if principal not in policy.roles:
        return UNKNOWN
    right = _right(policy, principal, key)
    if right is None:
        return FORBIDDEN
    terms, rule = right
    if not terms.formats:
        return _denied(terms.rule("formats"), _UNLISTED)
    if requested not in terms.formats:
        denier = _denier(terms, "formats", lambda formats: requested not in formats)
        return _denied(denier, f"{requested} is not allowed with this key")
    return _not_now(terms, now) or Decision(terms, rule)


def check_algorithm(terms: Terms, requested: Format, algorithm: Algorithm) -> Decision | None:
    """Returns the denial of a key with this algorithm; None if it is allowed."""
    if algorithm in terms.algorithms:
        return None
    denier = _denier(terms, "algorithms", lambda algorithms: algorithm not in algorithms)
    return _denied(denier, f"{requested} is not allowed with a key for {algorithm}")


def _right(policy: Policy, principal: str, key: KeyName) -> tuple[Terms, str] | None:
    """Returns the terms, and the rule that makes the principal a client."""
    facility = policy.facilities.get(key.facility)
    if facility is None:
        return None
    terms = facility.keys.get(key.key, facility.terms)
    if principal in facility.clients:
        return terms, f"facilities.{key.facility}.clients"
    group = terms.group
    if terms.delegation and group is not None and principal in policy.groups[group].clients:
        return terms, f"groups.{group}.clients"
    return None


def _not_now(terms: Terms, now: float) -> Decision | None:
    """Returns the denial of a time outside of validity or opening hours."""
    if terms.valid_from is not None and now < terms.valid_from:
        denier = _denier(terms, "valid_from", lambda start: now < start)
        return _denied(denier, f"signing is allowed from {utc(terms.valid_from)} on")
    if terms.valid_until is not None and now >= terms.valid_until:
        denier = _denier(terms, "valid_until", lambda end: now >= end)
        return _denied(denier, f"signing was allowed until {utc(terms.valid_until)}")
    if terms.hours is not None and not terms.hours.is_open(now):
        opening = terms.hours.next_opening(now)
        return Decision(
            None,
            _denier(terms, "hours", lambda stated: not stated.hours().is_open(now)),
            Reason.CLOSED_HOURS,
            "closed now; signing is allowed again from"
            f" {terms.hours.local(opening)} ({terms.hours.zone.key}) on",
            retry_after=opening - now,
        )
    return None


def _denier(terms: Terms, name: str, denies: Callable[[Any], bool]) -> str:
    """Returns the path of the outermost statement of a rule that denies by itself."""
    stated = ((level.path, getattr(level.rules, name)) for level in terms.levels)
    return next(f"{path}.{name}" for path, rule in stated if rule is not None and denies(rule))


def _denied(rule: str, message: str) -> Decision:
    return Decision(None, rule, Reason.POLICY_DENIED, message)

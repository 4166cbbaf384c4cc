"""The policy in force, ready to decide: everything is worked out when it loads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from signer.model import Algorithm, ContentRules, Format, HcertTerms, KeyName, Role
from signer.policy.document import Rules
from signer.policy.values import Quota
from signer.policy.windows import Hours

WEIGHTS: Mapping[str, int] = {"low": 1, "normal": 2, "high": 4}
"""Priority classes and how fast each is served beside the others."""


@dataclass(frozen=True, slots=True)
class RuleLevel:
    """One place that states rules, by its dotted path: a profile, a facility, one of its keys."""

    path: str
    rules: Rules


@dataclass(frozen=True, slots=True)
class Terms:
    """What may be done with a key, after all narrowing.

    ``quotas`` are counted per facility and apply all at once. Times are seconds
    since the epoch: valid from the first, no longer at the second. ``levels``
    are the places that state these rules, from the profile inwards; they tell
    which rule denied. ``formats`` is empty for the keys that a facility does not
    list although it leaves them to choose (fit.of_unlisted_keys).
    """

    facility: str
    group: str | None
    formats: frozenset[Format]
    algorithms: frozenset[Algorithm]
    max_batch_items: int
    quotas: tuple[Quota, ...]
    hours: Hours | None
    valid_from: float | None
    valid_until: float | None
    delegation: bool
    priority: str
    check_every: int
    hcert: HcertTerms | None
    content: ContentRules
    levels: tuple[RuleLevel, ...]
    weight: int = field(init=False)

    def __post_init__(self) -> None:
        """Works out what the signing path asks for."""
        object.__setattr__(self, "weight", WEIGHTS[self.priority])

    def rule(self, name: str) -> str:
        """Dotted path of the innermost statement of a rule, ``default`` for none.

        Where there are no formats, the statement is that the key is not listed.
        """
        if name == "formats" and not self.formats:
            return f"facilities.{self.facility}.keys"
        for level in reversed(self.levels):
            if getattr(level.rules, name) is not None:
                return f"{level.path}.{name}"
        return f"default.{name}"


@dataclass(frozen=True, slots=True)
class Facility:
    """A facility: its clients, the terms of its ``keys`` that it lists, and of all others."""

    profile: str
    clients: frozenset[str]
    terms: Terms
    keys: Mapping[str, Terms]

    def terms_of(self, key: str) -> Terms:
        """Returns the terms of a key, whether or not the key exists."""
        return self.keys.get(key, self.terms)


@dataclass(frozen=True, slots=True)
class Group:
    """A province: its clients may sign for ``facilities``, those that delegate."""

    name: str
    clients: frozenset[str]
    facilities: frozenset[str]


@dataclass(frozen=True, slots=True)
class Policy:
    """One policy, whole.

    ``sha256`` names its texts (see config.load_policy); ``roles`` has every
    principal that any rule names; ``denied_certificates`` are serial numbers;
    ``facilities_of`` and ``groups_of`` lead from a client to where it is one.
    """

    sha256: str
    roles: Mapping[str, frozenset[Role]]
    denied_certificates: frozenset[int]
    groups: Mapping[str, Group]
    facilities: Mapping[str, Facility]
    facilities_of: Mapping[str, frozenset[str]]
    groups_of: Mapping[str, frozenset[str]]

    def terms_of(self, key: KeyName) -> Terms | None:
        """Returns the terms of a key, None where no facility has that name."""
        facility = self.facilities.get(key.facility)
        return facility.terms_of(key.key) if facility else None

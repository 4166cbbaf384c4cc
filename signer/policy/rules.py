"""The policy in force: plain values, all computed when it is loaded."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from signer.algorithms import Algorithm
from signer.format_terms import ContentRules, CosignTerms, HcertTerms, ShcTerms, TimestampTerms
from signer.model import Format, KeyName, Role
from signer.policy.document import Rules
from signer.policy.values import Quota
from signer.policy.windows import Hours

WEIGHTS: Mapping[str, int] = {"low": 1, "normal": 2, "high": 4}  # shares of the HSM


@dataclass(frozen=True, slots=True)
class RuleLevel:
    """A profile, a facility or a key that states rules, by its dotted path."""

    path: str
    rules: Rules


@dataclass(frozen=True, slots=True)
class Terms:
    """What may be done with a key, after all narrowing.

    ``quotas`` are counted per facility and all apply. ``lifetime_signatures`` is how many
    signatures each version of a key may make, ever; None: any number. Times are seconds since
    the epoch; ``valid_until`` is exclusive. ``levels`` state these rules, from the profile
    inwards, and show which one denies. ``formats`` is empty for a key that its facility must
    list but does not (fit.of_unlisted_keys). ``weight`` is the share of the HSM, see WEIGHTS.
    ``storage`` is that of keys that are made from now on, see ``signer.model.Storage``.
    """

    facility: str
    group: str | None
    formats: frozenset[Format]
    algorithms: frozenset[Algorithm]
    max_batch_items: int
    quotas: tuple[Quota, ...]
    lifetime_signatures: int | None
    hours: Hours | None
    valid_from: float | None
    valid_until: float | None
    delegation: bool
    priority: str
    check_every: int
    storage: str
    hcert: HcertTerms | None
    shc: ShcTerms | None
    timestamp: TimestampTerms | None
    cosigning: CosignTerms | None
    content: ContentRules
    levels: tuple[RuleLevel, ...]
    weight: int = field(init=False)

    def __post_init__(self) -> None:
        """Sets the weight of the priority once, not for each batch."""
        object.__setattr__(self, "weight", WEIGHTS[self.priority])

    def rule(self, name: str) -> str:
        """Returns the dotted path of the innermost statement of a rule, else ``default.NAME``.

        For a key without formats it is the list in which the key is missing.
        """
        if name == "formats" and not self.formats:
            return f"facilities.{self.facility}.keys"
        for level in reversed(self.levels):
            if getattr(level.rules, name) is not None:
                return f"{level.path}.{name}"
        return f"default.{name}"


@dataclass(frozen=True, slots=True)
class Facility:
    """A facility: its clients, the terms of the ``keys`` that it lists, and those of all others."""

    profile: str
    clients: frozenset[str]
    terms: Terms
    keys: Mapping[str, Terms]

    def terms_of(self, key: str) -> Terms:
        """Returns the terms of a key; the key need not exist."""
        return self.keys.get(key, self.terms)


@dataclass(frozen=True, slots=True)
class Group:
    """A province: its clients may sign for those ``facilities`` that delegate."""

    name: str
    clients: frozenset[str]
    facilities: frozenset[str]


@dataclass(frozen=True, slots=True)
class Policy:
    """A whole policy.

    ``sha256`` identifies its text (config.policy_documents); ``roles`` has every principal
    that a rule names; ``denied_certificates`` are serial numbers; ``facilities_of`` and
    ``groups_of`` list by client the facilities and groups that name it. ``cosigners`` are the
    profiles whose facilities' signed records count beside certificates of any key.
    """

    sha256: str
    roles: Mapping[str, frozenset[Role]]
    denied_certificates: frozenset[int]
    groups: Mapping[str, Group]
    facilities: Mapping[str, Facility]
    facilities_of: Mapping[str, frozenset[str]]
    groups_of: Mapping[str, frozenset[str]]
    cosigners: frozenset[str] = frozenset()

    def terms_of(self, key: KeyName) -> Terms | None:
        """Returns the terms of a key, None if no facility has that name."""
        facility = self.facilities.get(key.facility)
        return facility.terms_of(key.key) if facility else None

    def clients_of(self, terms: Terms) -> frozenset[str]:
        """Returns the clients that may sign under terms: with delegation, the group's too."""
        clients = self.facilities[terms.facility].clients
        if terms.delegation and terms.group is not None:
            clients |= self.groups[terms.group].clients
        return clients

    def officer_problems(self, officers: Iterable[str]) -> list[str]:
        """Returns a problem for each officer that is a client of a facility or a group."""
        return [
            f"{officer} is a client in the policy; officers must not be clients"
            for officer in sorted(officers)
            if Role.ISSUER in self.roles.get(officer, ())
        ]

    def with_officers(self, officers: Iterable[str]) -> "Policy":
        """Returns the policy with these officers added to the roles that it gives."""
        added = {who: self.roles.get(who, frozenset()) | {Role.OFFICER} for who in officers}
        return replace(self, roles={**self.roles, **added})

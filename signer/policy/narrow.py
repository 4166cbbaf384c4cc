"""The rules, one row each: how an inner statement narrows an outer value, default, and display.

A profile states rules, a facility narrows them, a key of it narrows them again. Nothing
widens. ``document`` reads what is stated; ``rules.Terms`` holds the values in force.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeVar

from signer.errors import Violation
from signer.format_terms import (
    ContentRules,
    ContentSchema,
    CosignTerms,
    HcertTerms,
    ShcTerms,
    TimestampTerms,
)
from signer.model import Storage
from signer.policy.document import (
    Content,
    CosigningRules,
    HcertRules,
    OpeningHours,
    Rules,
    ShcRules,
    TimestampRules,
)
from signer.policy.rules import WEIGHTS, RuleLevel, Terms
from signer.policy.values import Quota
from signer.policy.windows import DAY_SECONDS, Hours
from signer.text import utc

N = TypeVar("N", int, bool)


class Rule(NamedTuple):
    """One rule of a policy, under its name in documents and in Terms.

    ``narrow`` takes where the rule is stated, its name, the statement, and the outer value
    (None in a profile), and returns the value in force. ``default`` is the value of a
    profile that does not state the rule. ``show`` returns plain values for JSON and
    for people: None, [] or {} where nothing is restricted.
    """

    name: str
    narrow: "Callable[[Narrowing, str, Any, Any], object]"
    default: object = None
    show: Callable[[Any], object] = lambda value: value


@dataclass(frozen=True, slots=True)
class Narrowing:
    """Where rules are stated: their dotted path, and the terms around them if they narrow any."""

    path: str
    outer: Terms | None
    problems: list[Violation]
    schemas: Mapping[str, ContentSchema] = field(default_factory=dict)

    def wrong(self, name: str, text: str) -> None:
        self.problems.append(Violation(f"{self.path}.{name}", text))

    def wider(self, name: str, text: str) -> None:
        self.wrong(name, f"{text} {self.around(name)}, which may only be narrowed")

    def around(self, name: str) -> str:
        """Returns the dotted path of the rule that a statement narrows."""
        return self.outer.rule(name.partition(".")[0]) if self.outer else self.path


def profile_terms(
    path: str,
    rules: Rules,
    problems: list[Violation],
    schemas: Mapping[str, ContentSchema] | None = None,
) -> Terms:
    """Returns the terms that a profile gives, in a policy that has these schemas."""
    at = Narrowing(path, None, problems, schemas or {})
    values: dict[str, Any] = {}
    for rule in RULES:
        stated = getattr(rules, rule.name)
        values[rule.name] = (
            rule.default if stated is None else rule.narrow(at, rule.name, stated, None)
        )
    return Terms(facility="", group=None, levels=(RuleLevel(path, rules),), **values)


def narrow(outer: Terms, path: str, rules: Rules, problems: list[Violation]) -> Terms:
    """Returns what ``rules``, stated at ``path``, leave of the terms ``outer``.

    Where a rule would widen, a problem is added, and the result must not be used.
    """
    if not rules.model_fields_set & _NAMES:
        return outer
    at = Narrowing(path, outer, problems)
    values: dict[str, Any] = {
        rule.name: rule.narrow(at, rule.name, stated, getattr(outer, rule.name))
        for rule in RULES
        if (stated := getattr(rules, rule.name)) is not None
    }
    terms = replace(outer, levels=(*outer.levels, RuleLevel(path, rules)), **values)
    start, end = terms.valid_from, terms.valid_until
    if start is not None and end is not None and start >= end:
        name = "valid_until" if rules.valid_until is not None else "valid_from"
        at.wrong(name, "leaves no time between valid_from and valid_until")
    return terms


def shown(terms: Terms) -> dict[str, object]:
    """Returns the value of each rule, in plain values."""
    return {rule.name: rule.show(getattr(terms, rule.name)) for rule in RULES}


def in_words(value: object, nothing: str) -> str:
    """Returns a value of ``shown`` for people; ``nothing`` for one that is empty."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return "; ".join(f"{k}: {in_words(v, nothing)}" for k, v in value.items()) or nothing
    if isinstance(value, list):
        return ", ".join(value) or nothing
    return nothing if value is None else str(value)


def _subset(
    at: Narrowing, name: str, mine: frozenset[str], outer: frozenset[str] | None
) -> frozenset[str]:
    if outer is not None and (more := mine - outer):
        at.wider(name, f"{', '.join(sorted(more))} is not in")
    return mine


def _at_most(at: Narrowing, name: str, mine: N, outer: N | None) -> N:
    """For numbers, and for flags: false is narrower than true."""
    if outer is not None and mine > outer:
        at.wider(name, f"{str(mine).lower()} is more than {str(outer).lower()} of")
    return mine


def _priority(at: Narrowing, name: str, mine: str, outer: str | None) -> str:
    if outer is not None and WEIGHTS[mine] > WEIGHTS[outer]:
        at.wider(name, f"{mine} is above {outer} of")
    return mine


def _storage(at: Narrowing, name: str, mine: str, outer: str | None) -> str:
    """What stays in a token cannot leave it: that is narrower than wrapped."""
    if outer == Storage.TOKEN and mine != outer:
        at.wider(name, f"{mine} is more than {outer} of")
    return mine


def _latest(_place: Narrowing, _name: str, mine: float, outer: float | None) -> float:
    return mine if outer is None else max(mine, outer)


def _earliest(_place: Narrowing, _name: str, mine: float, outer: float | None) -> float:
    return mine if outer is None else min(mine, outer)


def _quotas(
    at: Narrowing, name: str, mine: tuple[Quota, ...], outer: tuple[Quota, ...] | None
) -> tuple[Quota, ...]:
    """All windows apply; of two quotas for one window, the inner one, which must be smaller."""
    by_window = {quota.window_seconds: quota for quota in outer or ()}
    for quota in mine:
        around = by_window.get(quota.window_seconds)
        if around is not None and quota.limit > around.limit:
            at.wider(name, f"{quota} is more than {around} of")
        by_window[quota.window_seconds] = quota
    return tuple(by_window[window] for window in sorted(by_window))


def _hours(at: Narrowing, name: str, mine: OpeningHours, outer: Hours | None) -> Hours | None:
    """It is open when both are. One time zone, so that the result is the plan of a week again."""
    if outer is None:
        return mine.hours()
    if mine.time_zone.key != outer.zone.key:
        text = f"should be {outer.zone.key}, as in {at.around(name)}"
        at.wrong(f"{name}.time_zone", text)
        return outer
    both = mine.hours().intersection(outer)
    if both is None:
        at.wrong(name, f"is never open at the same time as {at.around(name)}")
    return both


def _hcert(
    at: Narrowing, name: str, mine: HcertRules, outer: HcertTerms | None
) -> HcertTerms | None:
    """A profile states both members (see ``fit``), a facility or key may narrow the validity."""
    if outer is None:
        if mine.issuer is None or mine.validity_days is None:
            return None
        return HcertTerms(mine.issuer, mine.validity_days * DAY_SECONDS)
    if mine.issuer not in (None, outer.issuer):
        at.wrong(f"{name}.issuer", f"should be {outer.issuer}, as in the profile")
    if mine.validity_days is None:
        return outer
    days = _at_most(at, f"{name}.validity_days", mine.validity_days, outer.validity // DAY_SECONDS)
    return HcertTerms(outer.issuer, days * DAY_SECONDS)


def _shc(at: Narrowing, name: str, mine: ShcRules, outer: ShcTerms | None) -> ShcTerms | None:
    """A profile states the issuer (see ``fit``), a facility or key may narrow the types."""
    if outer is None:
        return None if mine.issuer is None else ShcTerms(mine.issuer, mine.types or frozenset())
    if mine.issuer not in (None, outer.issuer):
        at.wrong(f"{name}.issuer", f"should be {outer.issuer}, as in the profile")
    if mine.types is None:
        return outer
    return ShcTerms(outer.issuer, _subset(at, f"{name}.types", mine.types, outer.types))


def _timestamp(
    at: Narrowing, name: str, mine: TimestampRules, outer: TimestampTerms | None
) -> TimestampTerms | None:
    """A profile states both members (see ``fit``), a facility or key may claim less accuracy."""
    if outer is None:
        if mine.policy is None or mine.accuracy_seconds is None:
            return None
        return TimestampTerms(mine.policy, mine.accuracy_seconds)
    if mine.policy not in (None, outer.policy):
        at.wrong(f"{name}.policy", f"should be {outer.policy}, as in the profile")
    seconds = mine.accuracy_seconds or outer.accuracy
    if seconds < outer.accuracy:
        at.wider(f"{name}.accuracy_seconds", f"{seconds} is less than {outer.accuracy} of")
    return TimestampTerms(outer.policy, seconds)


def _cosigning(
    at: Narrowing, name: str, mine: CosigningRules, outer: CosignTerms | None
) -> CosignTerms | None:
    """A profile states both members (see ``fit``). Below fewer profiles count, more members."""
    rule = f"{at.path}.{name}"
    if outer is None:
        if mine.profiles is None or mine.members is None:
            return None
        return CosignTerms(mine.profiles, mine.members, rule)
    profiles, members = outer.profiles, {**outer.members, **(mine.members or {})}
    if mine.profiles is not None:
        profiles = _subset(at, f"{name}.profiles", mine.profiles, outer.profiles)
    for path in outer.members:
        if members[path] != outer.members[path]:
            at.wider(f"{name}.members.{path}", f"{members[path]} is another member than in")
    return CosignTerms(profiles, members, rule)


DEFAULT_CONTENT = ContentRules(dcc_schema=True, qr_level="Q")
_QR_LEVELS = "LMQH"  # from the one that holds the most


def _content(at: Narrowing, name: str, mine: Content, outer: ContentRules | None) -> ContentRules:
    outer = outer or DEFAULT_CONTENT
    prefix = mine.identifier_prefix or outer.identifier_prefix or ""
    if not prefix.startswith(outer.identifier_prefix or ""):
        at.wrong(f"{name}.identifier_prefix", f"should begin with {outer.identifier_prefix}")
    future_dates = outer.future_dates
    if mine.future_dates is not None:
        future_dates = _at_most(at, f"{name}.future_dates", mine.future_dates, future_dates)

    dcc_schema = outer.dcc_schema if mine.dcc_schema is None else mine.dcc_schema
    if at.outer and dcc_schema is False and outer.dcc_schema:
        at.wider(f"{name}.dcc_schema", "false is wider than")
    qr_level = mine.qr_level or outer.qr_level or "L"
    if at.outer and _QR_LEVELS.index(qr_level) < _QR_LEVELS.index(outer.qr_level or "L"):
        at.wider(f"{name}.qr_level", f"{qr_level} allows longer texts than {outer.qr_level} of")

    def among(member: str) -> frozenset[str]:
        stated, around = getattr(mine, member), getattr(outer, member)
        # None stated: inherited. An empty set around restricts nothing.
        return _subset(at, f"{name}.{member}", stated, around or None) if stated else around

    schema = outer.schema
    if mine.dvc_schema is not None and at.outer is None:
        schema = at.schemas.get(mine.dvc_schema)
        if schema is None:
            at.wrong(f"{name}.dvc_schema", f"{mine.dvc_schema} is not in schemas")
    elif mine.dvc_schema is not None and (schema is None or mine.dvc_schema != schema.name):
        at.wrong(f"{name}.dvc_schema", "should be that of the profile, or be left out")

    claims = mine.claims or outer.claims
    if at.outer is not None and (more := claims - outer.claims):
        at.wider(f"{name}.claims", f"{', '.join(sorted(more))} is not in")

    return ContentRules(
        countries=among("countries"),
        issuers=among("issuers"),
        certificate_types=among("certificate_types"),
        identifier_prefix=prefix or None,
        future_dates=future_dates,
        required_members=outer.required_members | (mine.required_members or frozenset()),
        dcc_schema=dcc_schema,
        qr_level=qr_level,
        claims=claims,
        link_hosts=among("link_hosts"),
        schema=schema,
        paths={**outer.paths, **dict(_paths(f"{at.path}.{name}", mine))},
    )


def _paths(path: str, stated: Content) -> Iterator[tuple[str, str]]:
    """Yields the dotted paths of what is stated, for errors: see ContentRules.paths."""
    for name in stated.model_fields_set:
        yield name, f"{path}.{name}"
    for member in stated.required_members or ():
        yield f"required_members.{member}", f"{path}.required_members"


def _show_hcert(terms: HcertTerms | None) -> dict[str, object] | None:
    if terms is None:
        return None
    return {"issuer": terms.issuer, "validity_days": terms.validity // DAY_SECONDS}


def _show_shc(terms: ShcTerms | None) -> dict[str, object] | None:
    return None if terms is None else {"issuer": terms.issuer, "types": sorted(terms.types)}


def _show_timestamp(terms: TimestampTerms | None) -> dict[str, object] | None:
    if terms is None:
        return None
    return {"policy": terms.policy, "accuracy_seconds": terms.accuracy}


def _show_cosigning(terms: CosignTerms | None) -> dict[str, object] | None:
    if terms is None:
        return None
    return {"profiles": sorted(terms.profiles), "members": dict(terms.members)}


def _show_content(content: ContentRules) -> dict[str, object]:
    members: Mapping[str, object] = {
        "countries": sorted(content.countries),
        "issuers": sorted(content.issuers),
        "certificate_types": sorted(content.certificate_types),
        "identifier_prefix": content.identifier_prefix,
        "required_members": sorted(content.required_members),
        "future_dates": None if content.future_dates else False,
        "dcc_schema": None if content.dcc_schema else False,
        "claims": [] if content.claims == DEFAULT_CONTENT.claims else sorted(content.claims),
        "link_hosts": sorted(content.link_hosts),
        "dvc_schema": content.schema and content.schema.name,
        "qr_level": None if content.qr_level == DEFAULT_CONTENT.qr_level else content.qr_level,
    }
    return {name: value for name, value in members.items() if value not in (None, [])}


def _show_time(time: float | None) -> str | None:
    return None if time is None else utc(time)


RULES = (
    Rule("formats", _subset, show=sorted),
    Rule("algorithms", _subset, show=sorted),
    Rule("max_batch_items", _at_most),
    Rule("quotas", _quotas, (), show=lambda quotas: list(map(str, quotas))),
    Rule("lifetime_signatures", _at_most),
    Rule("hours", _hours, show=lambda hours: str(hours) if hours else None),
    Rule("valid_from", _latest, show=_show_time),
    Rule("valid_until", _earliest, show=_show_time),
    Rule("delegation", _at_most, default=False),
    Rule("priority", _priority, "normal"),
    Rule("check_every", _at_most, 1),
    Rule("storage", _storage, str(Storage.TOKEN)),
    Rule("hcert", _hcert, show=_show_hcert),
    Rule("shc", _shc, show=_show_shc),
    Rule("timestamp", _timestamp, show=_show_timestamp),
    Rule("cosigning", _cosigning, show=_show_cosigning),
    Rule("content", _content, DEFAULT_CONTENT, show=_show_content),
)
_NAMES = frozenset(rule.name for rule in RULES)

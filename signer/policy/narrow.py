"""How rules narrow the terms that they are stated under. Nothing ever widens."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

from signer.errors import Violation
from signer.model import ContentRules, HcertTerms
from signer.policy.document import Content, Hcert, OpeningHours, Rules
from signer.policy.rules import WEIGHTS, Level, Terms
from signer.policy.values import Quota
from signer.policy.windows import DAY_SECONDS, Hours

T = TypeVar("T", bound=str)

_RULES = frozenset(Rules.model_fields)


def narrow(outer: Terms, path: str, rules: Rules, problems: list[Violation]) -> Terms:
    """Returns what ``rules``, stated at ``path``, leave of the terms ``outer``.

    Where a rule would widen, a problem is added; the result counts no longer.
    """
    if not rules.model_fields_set & _RULES:
        return outer
    under = _Under(outer, path, problems)
    valid_from, valid_until = under.validity(rules.valid_from, rules.valid_until)
    return replace(
        outer,
        formats=under.subset("formats", rules.formats, outer.formats),
        algorithms=under.subset("algorithms", rules.algorithms, outer.algorithms),
        max_batch_items=under.at_most(
            "max_batch_items", rules.max_batch_items, outer.max_batch_items
        ),
        quotas=under.quotas(rules.quotas or ()),
        hours=under.hours(rules.hours),
        valid_from=valid_from,
        valid_until=valid_until,
        delegation=under.delegation(rules.delegation),
        priority=under.priority(rules.priority),
        check_every=under.at_most("check_every", rules.check_every, outer.check_every),
        hcert=under.hcert(rules.hcert),
        content=under.content(rules.content),
        levels=(*outer.levels, Level(path, rules)),
    )


@dataclass(frozen=True, slots=True)
class _Under:
    """The terms around, where the rules stand that narrow them, and what is wrong there."""

    outer: Terms
    path: str
    problems: list[Violation]

    def subset(self, name: str, mine: frozenset[T] | None, theirs: frozenset[T]) -> frozenset[T]:
        if mine is None:
            return theirs
        if more := mine - theirs:
            self._wider(name, f"{', '.join(sorted(more))} is not in")
        return mine

    def at_most(self, name: str, mine: int | None, theirs: int) -> int:
        if mine is None:
            return theirs
        if mine > theirs:
            self._wider(name, f"{mine} is more than {theirs} of")
        return mine

    def priority(self, mine: str | None) -> str:
        if mine is None:
            return self.outer.priority
        if WEIGHTS[mine] > WEIGHTS[self.outer.priority]:
            self._wider("priority", f"{mine} is above {self.outer.priority} of")
        return mine

    def quotas(self, mine: tuple[Quota, ...]) -> tuple[Quota, ...]:
        """Of two quotas for one window the smaller one counts; all windows apply."""
        by_window = {quota.window_seconds: quota for quota in self.outer.quotas}
        for quota in mine:
            around = by_window.get(quota.window_seconds)
            if around is not None and quota.limit > around.limit:
                self._wider("quotas", f"{quota} is more than {around} of")
            by_window[quota.window_seconds] = quota
        return tuple(by_window[window] for window in sorted(by_window))

    def hours(self, mine: OpeningHours | None) -> Hours | None:
        """Open is when both are. One zone, so that this is a plan of a week again."""
        around = self.outer.hours
        if mine is None or around is None:
            return mine.hours() if mine else around
        if mine.time_zone.key != around.zone.key:
            rule = self.outer.rule("hours")
            self._wrong("hours.time_zone", f"should be {around.zone.key}, the one of {rule}")
            return around
        both = mine.hours().intersection(around)
        if both is None:
            self._wrong("hours", f"is never open together with {self.outer.rule('hours')}")
        return both

    def validity(
        self, valid_from: float | None, valid_until: float | None
    ) -> tuple[float | None, float | None]:
        begins = [time for time in (self.outer.valid_from, valid_from) if time is not None]
        ends = [time for time in (self.outer.valid_until, valid_until) if time is not None]
        start, end = max(begins, default=None), min(ends, default=None)
        if start is not None and end is not None and start >= end:
            name = "valid_until" if valid_until is not None else "valid_from"
            self._wrong(name, "leaves no time between valid_from and valid_until")
        return start, end

    def delegation(self, mine: bool | None) -> bool:
        if mine and not self.outer.delegation:
            self._wider("delegation", "true is more than")
        return self.outer.delegation if mine is None else mine

    def hcert(self, mine: Hcert | None) -> HcertTerms | None:
        around = self.outer.hcert
        if mine is None or around is None:  # None around: fit tells that HCERT is not in formats
            return around
        if mine.issuer not in (None, around.issuer):
            self._wrong("hcert.issuer", f"should be {around.issuer}, as in the profile")
        days = self.at_most(
            "hcert.validity_days", mine.validity_days, around.validity // DAY_SECONDS
        )
        return HcertTerms(around.issuer, days * DAY_SECONDS)

    def content(self, mine: Content | None) -> ContentRules:
        around = self.outer.content
        if mine is None:
            return around
        prefix = mine.identifier_prefix or around.identifier_prefix or ""
        if not prefix.startswith(around.identifier_prefix or ""):
            self._wrong(
                "content.identifier_prefix", f"should begin with {around.identifier_prefix}"
            )
        if mine.future_dates and not around.future_dates:
            self._wider("content.future_dates", "true is more than")
        return ContentRules(
            countries=self._among("countries", mine.countries, around.countries),
            issuers=self._among("issuers", mine.issuers, around.issuers),
            certificate_types=self._among(
                "certificate_types", mine.certificate_types, around.certificate_types
            ),
            identifier_prefix=prefix or None,
            future_dates=around.future_dates and mine.future_dates is not False,
            required_members=around.required_members | (mine.required_members or frozenset()),
        )

    def _among(
        self, name: str, mine: frozenset[str] | None, theirs: frozenset[str]
    ) -> frozenset[str]:
        """An empty set around restricts nothing (model.ContentRules)."""
        if not theirs:
            return mine or theirs
        return self.subset(f"content.{name}", mine, theirs)

    def _wider(self, name: str, text: str) -> None:
        rule = self.outer.rule(name.partition(".")[0])
        self._wrong(name, f"{text} {rule}, which may only be narrowed")

    def _wrong(self, name: str, text: str) -> None:
        self.problems.append(Violation(f"{self.path}.{name}", text))

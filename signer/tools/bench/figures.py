"""What is calculated from the slices of a case: medians, spreads, quantiles, what is judged."""

import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from signer.errors import OperatorError
from signer.tools.bench.cases import Case

LARGEST_SPREAD = 0.25
"""Of the plain loop: if it varies more, the machine was too busy to judge anything."""


class Slice(NamedTuple):
    """One appliance under load for a moment.

    ``rate`` (items a second) and ``latencies`` (of requests, µs) are those of the measured
    seconds. ``items`` and CPU seconds are those of the whole turn, with its warm-up and the
    answers that came after it. ``failures`` by reason. ``capacity`` is the rate before an
    overload, ``refused`` how long the calls took that it refused (µs).
    """

    rate: float
    items: int
    latencies: Sequence[int]
    front_cpu: float
    client_cpu: float
    failures: Mapping[str, int]
    capacity: float = 0.0
    refused: Sequence[int] = ()


class Round(NamedTuple):
    """Slices of one round: both loops (signatures a second), ours, and the other checkout's."""

    plain: float
    best: float
    ours: Slice
    theirs: Slice | None = None


@dataclass(frozen=True)
class Figures:
    """What one appliance did in all slices of a case; rate and CPU are medians of the slices."""

    rate: float
    p50_ms: float
    p99_ms: float
    front_cpu_us_per_item: float
    client_cpu_us_per_item: float
    failures: Mapping[str, int]


@dataclass(frozen=True)
class CaseRow:
    """The result of one case.

    ``rate`` is items a second, ``plain`` and ``best`` are signatures a second of the C loops:
    medians of the rounds. Ratios are medians of the rounds' ratios; ``spread`` is that of
    ``ratio_plain``, ``plain_spread`` that of ``plain``. The appliance checked one signature in
    ``checks``. ``p50_ms`` and ``p99_ms`` are times of requests; beside a flood they are those
    of the single items, and the rate is that of the flood. ``judged`` is False if the plain
    loop varied too much. Under an overload ``ratio_capacity`` is the part of the capacity that
    was answered in time, and ``refused_p99_ms`` how long a refusal took. ``against`` has the
    figures of the other checkout and the ratios of ours to them, or ``error``.
    """

    case: str
    format: str
    algorithm: str
    batch: int
    callers: int
    checks: int
    rate: float
    plain: float
    best: float
    ratio_plain: float
    ratio_best: float
    spread: float
    p50_ms: float
    p99_ms: float
    front_cpu_us_per_item: float
    client_cpu_us_per_item: float
    client: str
    plain_spread: float
    judged: bool
    failures: Mapping[str, int]
    against: Mapping[str, Any] | None = None
    ratio_capacity: float | None = None
    refused_p99_ms: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Returns the row for JSON, without what was not measured."""
        row: dict[str, Any] = _rounded(asdict(self))
        for name in ("against", "ratio_capacity", "refused_p99_ms"):
            if row[name] is None:
                del row[name]
        return row


def spread(values: Sequence[float]) -> float:
    """Returns how far values vary: from their 10th to their 90th percentile, by their median."""
    if len(values) < 2:
        return 0.0
    deciles = statistics.quantiles(values, n=10, method="inclusive")
    middle = statistics.median(values)
    return (deciles[-1] - deciles[0]) / middle if middle else 0.0


def quantile(values: Sequence[float], at: float) -> float:
    """Returns the value at a quantile from 0 to 1; 0 without values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(at * len(ordered)))] if ordered else 0.0


def figures(slices: Sequence[Slice]) -> Figures:
    """Returns the figures of one appliance. Raises OperatorError if nothing was answered."""
    latencies = [took for one in slices for took in one.latencies]
    failures: Counter[str] = Counter()
    for one in slices:
        failures.update(one.failures)
    if not latencies:
        why = ", ".join(f"{reason} {number} times" for reason, number in failures.items())
        raise OperatorError(f"no request was answered in time: {why or 'use a longer --slice'}")
    counted = [one for one in slices if one.items]
    return Figures(
        rate=statistics.median(one.rate for one in slices),
        p50_ms=quantile(latencies, 0.50) / 1000,
        p99_ms=quantile(latencies, 0.99) / 1000,
        front_cpu_us_per_item=statistics.median(one.front_cpu / one.items for one in counted) * 1e6,
        client_cpu_us_per_item=statistics.median(one.client_cpu / one.items for one in counted)
        * 1e6,
        failures=dict(failures),
    )


def row_of(
    case: Case,
    rounds: Sequence[Round],
    *,
    checks: int,
    client: str,
    against: Mapping[str, Any] | None = None,
) -> CaseRow:
    """Returns the row of a case. ``against``: see ``compared``. Raises OperatorError."""
    ours = figures([one.ours for one in rounds])
    plain = [one.plain for one in rounds]
    ratios = [one.ours.rate / one.plain for one in rounds]
    plain_spread = spread(plain)
    answered = [one.ours.rate / one.ours.capacity for one in rounds if one.ours.capacity]
    refused = [took for one in rounds for took in one.ours.refused]
    return CaseRow(
        case=case.name,
        format=case.format.value,
        algorithm=case.algorithm.value,
        batch=case.batch,
        callers=case.callers,
        checks=checks,
        plain=statistics.median(plain),
        best=statistics.median(one.best for one in rounds),
        ratio_plain=statistics.median(ratios),
        ratio_best=statistics.median(one.ours.rate / one.best for one in rounds),
        spread=spread(ratios),
        client=client,
        plain_spread=plain_spread,
        judged=plain_spread <= LARGEST_SPREAD,
        against=against,
        ratio_capacity=statistics.median(answered) if answered else None,
        refused_p99_ms=quantile(refused, 0.99) / 1000 if answered else None,
        **asdict(ours),
    )


def compared(name: str, rounds: Sequence[Round]) -> dict[str, Any]:
    """Returns the figures of the other checkout ``name`` and the ratios of ours to them."""
    pairs = [(one.ours, one.theirs) for one in rounds if one.theirs is not None]
    ours, theirs = figures([pair[0] for pair in pairs]), figures([pair[1] for pair in pairs])
    rates = [one.rate / other.rate for one, other in pairs if other.rate]

    def ratio(value: Callable[[Figures], float]) -> float:
        return value(ours) / value(theirs) if value(theirs) else 0.0

    return {
        "checkout": name,
        **asdict(theirs),
        "ratio_rate": statistics.median(rates) if rates else 0.0,
        "spread": spread(rates),
        "ratio_p50": ratio(lambda of: of.p50_ms),
        "ratio_p99": ratio(lambda of: of.p99_ms),
        "ratio_front_cpu": ratio(lambda of: of.front_cpu_us_per_item),
    }


def misses(case: Case, row: CaseRow) -> list[str]:
    """Returns the goals of the case that the row misses, in words; none if it is not judged."""
    missed = []
    for name, goal in case.goals.items() if row.judged else ():
        value: float = getattr(row, name)
        least = name.startswith("ratio")
        if value < goal if least else value > goal:
            missed.append(f"{name} {value:.2f}, goal {'at least' if least else 'at most'} {goal:g}")
    if case.never_refused and row.failures:
        missed.append(f"{sum(row.failures.values())} requests failed: {', '.join(row.failures)}")
    return missed


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _rounded(each) for name, each in value.items()}
    return round(value, 4) if isinstance(value, float) else value

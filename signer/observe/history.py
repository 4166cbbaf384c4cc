"""Rates and latencies of the last hour, for the status page."""

import itertools
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

EVERY_SECONDS = 10.0
SPAN_SECONDS = 3600.0


class Totals(NamedTuple):
    """Counts since the start: signed and failed items, and calls by duration.

    ``calls`` are cumulative: the number that took at most ``bounds`` seconds, and last all.
    """

    signed: float
    failed: float
    bounds: tuple[float, ...]
    calls: tuple[float, ...]


class Sample(NamedTuple):
    """The interval before ``time`` (monotonic seconds): items per second, and durations.

    ``p50`` and ``p99`` are seconds, None without calls.
    """

    time: float
    signed: float
    failed: float
    p50: float | None
    p99: float | None


class History:
    """The samples of the last hour. One thread adds, others read."""

    def __init__(self) -> None:
        self._samples: deque[Sample] = deque(maxlen=int(SPAN_SECONDS / EVERY_SECONDS))
        self._last: tuple[float, Totals] | None = None

    def due(self, now: float) -> bool:
        """Returns whether the next totals should be added."""
        return self._last is None or now - self._last[0] >= EVERY_SECONDS

    def add(self, now: float, totals: Totals) -> None:
        """Adds the totals at ``now`` (monotonic seconds)."""
        if self._last is not None:
            self._samples.append(sample(*self._last, now, totals))
        self._last = (now, totals)

    def samples(self) -> Sequence[Sample]:
        """Returns the samples, oldest first."""
        return tuple(self._samples)


def sample(before: float, old: Totals, now: float, new: Totals) -> Sample:
    """Returns the difference of the totals at two times."""
    seconds = now - before
    calls = [after - earlier for earlier, after in zip(old.calls, new.calls, strict=True)]
    return Sample(
        now,
        (new.signed - old.signed) / seconds,
        (new.failed - old.failed) / seconds,
        quantile(0.5, new.bounds, calls),
        quantile(0.99, new.bounds, calls),
    )


def quantile(part: float, bounds: Sequence[float], cumulative: Sequence[float]) -> float | None:
    """Estimates a quantile from cumulative buckets, linear within one, as Prometheus does.

    Values above the last finite bound count as that bound. Returns None without events.
    """
    rank = part * cumulative[-1]
    if not cumulative[-1]:
        return None
    lower, below = 0.0, 0.0
    for bound, count in itertools.zip_longest(bounds, cumulative, fillvalue=float("inf")):
        if count >= rank and count > below:
            if bound == float("inf"):
                return lower
            return lower + (bound - lower) * (rank - below) / (count - below)
        lower, below = bound, count
    return lower

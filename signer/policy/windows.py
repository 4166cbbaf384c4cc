"""Opening hours: weekly spans on the wall clock of a time zone.

A span never crosses midnight. A time is open when the wall clock shows an open time: an
hour that repeats when clocks are set back is open twice, and an hour that is skipped when
they are set forward does not open.
"""

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from zoneinfo import ZoneInfo

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
DAY_SECONDS = 86_400
WEEK_SECONDS = 7 * DAY_SECONDS

Span = tuple[int, int]  # seconds since Monday 00:00 on the wall clock; the end is exclusive


@dataclass(frozen=True, slots=True)
class Hours:
    """Weekly opening hours; ``spans`` are sorted, disjoint and at least one."""

    zone: ZoneInfo
    spans: tuple[Span, ...]

    def is_open(self, now: float) -> bool:
        """Whether ``now`` (seconds since the epoch) is in a span."""
        return self._wait(math.floor(now)) == 0

    def next_opening(self, now: float) -> float:
        """Returns ``now`` where it is open, else the first open second after it."""
        if self.is_open(now):
            return now
        at = math.floor(now)
        while (wait := self._wait(at)) > 0:
            # Until the clocks change, the wall clock advances like the clock. A step of
            # a day at most contains one change at most.
            at += self._until_change(at, min(wait, DAY_SECONDS))
        return float(at)

    def local(self, time: float) -> str:
        """Returns a time (seconds since the epoch) in the zone of the hours, with its offset."""
        return datetime.fromtimestamp(time, self.zone).isoformat(timespec="seconds")

    def intersection(self, other: "Hours") -> "Hours | None":
        """Returns when both are open, None for never. The zones must be the same."""
        spans = tuple(
            sorted(
                (max(mine[0], theirs[0]), min(mine[1], theirs[1]))
                for mine in self.spans
                for theirs in other.spans
                if max(mine[0], theirs[0]) < min(mine[1], theirs[1])
            )
        )
        return Hours(self.zone, spans) if spans else None

    def __str__(self) -> str:
        days: dict[str, list[int]] = {}
        for start, end in self.spans:
            day, start_of_day = divmod(start, DAY_SECONDS)
            times = f"{_clock(start_of_day)}-{_clock(end - day * DAY_SECONDS)}"
            days.setdefault(times, []).append(day)
        plan = "; ".join(f"{_days(open_on)} {times}" for times, open_on in days.items())
        return f"{plan} {self.zone.key}"

    def _wait(self, at: int) -> int:
        """Returns the seconds on the wall clock until it opens; 0 if it is open."""
        local = datetime.fromtimestamp(at, self.zone)
        wall = ((local.weekday() * 24 + local.hour) * 60 + local.minute) * 60 + local.second
        for start, end in self.spans:
            if wall < end:
                return max(0, start - wall)
        return self.spans[0][0] + WEEK_SECONDS - wall

    def _until_change(self, at: int, step: int) -> int:
        """Returns ``step``, or the seconds to a change of clocks if that comes first."""
        before = self._offset(at)
        if self._offset(at + step) == before:
            return step
        return bisect_left(range(step), True, key=lambda wait: self._offset(at + wait) != before)

    def _offset(self, at: int) -> float:
        offset = datetime.fromtimestamp(at, self.zone).utcoffset()
        return offset.total_seconds() if offset is not None else 0.0


def weekly(zone: ZoneInfo, openings: Iterable[tuple[Iterable[int], int, int]]) -> Hours:
    """Returns the hours of openings: days (0 is Monday), from and to in seconds of the day.

    Overlapping openings are joined. Raises ValueError if nothing is open.
    """
    spans: list[Span] = []
    for start, end in sorted(
        (day * DAY_SECONDS + start, day * DAY_SECONDS + end)
        for days, start, end in openings
        for day in days
    ):
        if spans and start < spans[-1][1]:
            spans[-1] = (spans[-1][0], max(end, spans[-1][1]))
        else:
            spans.append((start, end))
    if not spans:
        raise ValueError("nothing is open")
    return Hours(zone, tuple(spans))


def _days(days: Sequence[int]) -> str:
    if 1 < len(days) == days[-1] - days[0] + 1:
        return f"{DAYS[days[0]]}-{DAYS[days[-1]]}"
    return ",".join(DAYS[day] for day in days)


def _clock(seconds: int) -> str:
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}"

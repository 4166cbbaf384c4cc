"""Which facilities ask for the most now: items of the last minute and the last hour.

The counts since the log began say nothing about a flood of now. Here the totals are compared
every few seconds, so that no call has more to do. Time is monotonic seconds.
"""

import heapq
import threading
from collections import Counter, deque
from collections.abc import Mapping
from typing import NamedTuple

MINUTE, HOUR = 60.0, 3600.0
_SPAN = 600.0  # the hour is counted in parts of ten minutes


class Busy(NamedTuple):
    """Items that a facility has asked for: in the last minute, in the last hour, ever."""

    facility: str
    minute: int
    hour: int
    items: int


class RecentUsage:
    """The items of each facility in the last minute and hour. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._totals: Mapping[str, int] | None = None
        self._minute: deque[tuple[float, Mapping[str, int]]] = deque()
        self._hour: deque[tuple[float, Counter[str]]] = deque()

    def add(self, now: float, totals: Mapping[str, int]) -> None:
        """Adds the totals at a time; the first ones are where counting begins."""
        with self._lock:
            before, self._totals = self._totals, totals
            if before is None:
                return
            asked = {
                facility: items - before.get(facility, 0)
                for facility, items in totals.items()
                if items > before.get(facility, 0)
            }
            if not asked:
                return
            self._minute.append((now, asked))
            if not self._hour or now - self._hour[-1][0] >= _SPAN:
                self._hour.append((now, Counter()))
            self._hour[-1][1].update(asked)
            self._forget(now)

    def busiest(self, now: float, count: int) -> list[Busy]:
        """Returns up to ``count`` facilities, those that ask for the most now first."""
        with self._lock:
            self._forget(now)
            minute, hour = Counter[str](), Counter[str]()
            for _, asked in self._minute:
                minute.update(asked)
            for _, asked in self._hour:
                hour.update(asked)
            totals = dict(self._totals or {})
        found = (
            Busy(facility, minute[facility], hour[facility], items)
            for facility, items in totals.items()
            if items
        )
        return heapq.nsmallest(
            count, found, key=lambda one: (-one.minute, -one.hour, -one.items, one.facility)
        )

    def _forget(self, now: float) -> None:
        while self._minute and self._minute[0][0] <= now - MINUTE:
            self._minute.popleft()
        while self._hour and self._hour[0][0] <= now - HOUR:
            self._hour.popleft()

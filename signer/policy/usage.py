"""How much of its quotas each facility has used: counters in memory.

Windows are fixed and aligned to the epoch: a minute begins with second 0, a day is a day in
UTC. No more than the limit passes in one window; around the border of two windows, up to
twice the limit passes within the length of one. A restart loses nothing: ``restore`` takes
the sums of the audit log's intents.

Memory: an entry for each facility ever charged, with a counter for each window in use.
"""

import heapq
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from signer.policy.values import Quota


@dataclass(frozen=True, slots=True)
class QuotaRefusal:
    """The quota that a batch exceeds, and the seconds until it would fit.

    ``retry_after`` None: never, because the batch alone exceeds the limit.
    """

    quota: Quota
    retry_after: float | None


@dataclass(slots=True)
class _WindowEntry:
    """Items of one facility: ever, and by length the latest window's number and items."""

    total: int = 0
    windows: dict[int, tuple[int, int]] = field(default_factory=dict)

    def used(self, length: int, number: int) -> int:
        latest, items = self.windows.get(length, (number, 0))
        return items if latest == number else 0


class Usage:
    """Counts items by facility and window. Thread-safe.

    Time never goes back here: a clock that is set back continues the windows of the latest
    time seen, so that it refills no quota.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: dict[str, _WindowEntry] = {}
        self._latest = 0.0

    def restore(
        self, windows: Mapping[str, Mapping[int, tuple[int, int]]], totals: Mapping[str, int]
    ) -> None:
        """Replaces all counts by earlier ones, by facility.

        ``windows``: by length in seconds, the latest window's number, counted from the epoch,
        and its items. ``totals``: the items ever charged.
        """
        with self._lock:
            self._entries = {
                facility: _WindowEntry(totals.get(facility, 0), dict(windows.get(facility, {})))
                for facility in windows.keys() | totals.keys()
            }
            self._latest = max(
                (
                    float(number * length)
                    for by_length in windows.values()
                    for length, (number, _) in by_length.items()
                ),
                default=0.0,
            )

    def set_back(self, now: float) -> None:
        """Continues at ``now``, after a time that was later and wrong.

        What was used in a window of the wrong time counts in the present one.
        """
        with self._lock:
            self._latest = min(self._latest, now)
            for entry in self._entries.values():
                entry.windows = {
                    length: (min(number, int(now // length)), items)
                    for length, (number, items) in entry.windows.items()
                }

    def charge(
        self, facility: str, quotas: Sequence[Quota], items: int, now: float
    ) -> QuotaRefusal | None:
        """Counts ``items`` in the windows of all ``quotas``, or in none of them.

        Returns None if they fit, else the exceeded quota with the longest wait.
        """
        with self._lock:
            self._latest = latest = max(self._latest, now)
            for quota in quotas:
                if items > quota.limit:
                    return QuotaRefusal(quota, None)
            entry = self._entries.setdefault(facility, _WindowEntry())
            refusals = []
            charged = {}
            for quota in quotas:
                length = quota.window_seconds
                number = int(latest // length)
                total = entry.used(length, number) + items
                charged[length] = (number, total)
                if total > quota.limit:
                    refusals.append(QuotaRefusal(quota, (number + 1) * length - now))
            if refusals:
                return max(refusals, key=lambda refusal: refusal.retry_after or 0.0)
            entry.windows.update(charged)
            entry.total += items
            return None

    def remaining(self, facility: str, quotas: Sequence[Quota], now: float) -> tuple[int, ...]:
        """Returns the items left in the current window of each quota, in their order."""
        with self._lock:
            latest = max(self._latest, now)
            entry = self._entries.get(facility, _WindowEntry())
            return tuple(
                max(0, quota.limit - entry.used(quota.window_seconds, number))
                for quota in quotas
                for number in (int(latest // quota.window_seconds),)
            )

    def totals(self) -> dict[str, int]:
        """Returns the items ever charged, by facility."""
        with self._lock:
            return {name: entry.total for name, entry in self._entries.items() if entry.total}

    def busiest(self, count: int) -> list[tuple[str, int]]:
        """Returns up to ``count`` facilities with the most items ever, most first."""
        return heapq.nsmallest(count, self.totals().items(), key=lambda one: (-one[1], one[0]))

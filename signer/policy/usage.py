"""How much of its quotas each facility has used, and each key version of its lifetime.

Windows are fixed and aligned to the epoch: a minute begins with second 0, a day is a day in
UTC. No more than the limit passes in one window; around the border of two windows, up to
twice the limit passes within the length of one. A restart loses nothing: ``restore`` takes
the sums of the audit log's intents.

Memory: an entry for each facility ever charged, with a counter for each window in use and for
each key version that was asked to sign.
"""

import heapq
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from signer.policy.lifetime import KeyItems, LifetimeRefusal, VersionCharge
from signer.policy.values import Quota


@dataclass(frozen=True, slots=True)
class QuotaRefusal:
    """The quota that a batch exceeds, and the seconds until it would fit.

    ``retry_after`` None: never, because the batch alone exceeds the limit. ``used`` are the items
    of the present window.
    """

    quota: Quota
    retry_after: float | None
    used: int = 0


@dataclass(slots=True)
class _WindowEntry:
    """Items of one facility: ever, by length the latest window's number and items, and by key."""

    total: int = 0
    windows: dict[int, tuple[int, int]] = field(default_factory=dict)
    keys: dict[str, KeyItems] = field(default_factory=dict)

    def used(self, length: int, number: int) -> int:
        latest, items = self.windows.get(length, (number, 0))
        return items if latest == number else 0


class Usage:
    """Counts items by facility and window, and by key version. Thread-safe.

    Time never goes back here: a clock that is set back continues the windows of the latest
    time seen, so that it refills no quota.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: dict[str, _WindowEntry] = {}
        self._latest = 0.0

    def restore(
        self,
        windows: Mapping[str, Mapping[int, tuple[int, int]]],
        keys: Mapping[str, Mapping[str, KeyItems]],
    ) -> None:
        """Replaces all counts by earlier ones, by facility.

        ``windows``: by length in seconds, the latest window's number, counted from the epoch,
        and its items. ``keys``: the items ever charged, by key.
        """
        with self._lock:
            self._entries = {
                facility: _WindowEntry(
                    sum(items.total for items in keys.get(facility, {}).values()),
                    dict(windows.get(facility, {})),
                    {key: items.copy() for key, items in keys.get(facility, {}).items()},
                )
                for facility in windows.keys() | keys.keys()
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
        self,
        facility: str,
        quotas: Sequence[Quota],
        items: int,
        now: float,
        version: VersionCharge | None = None,
    ) -> QuotaRefusal | LifetimeRefusal | None:
        """Counts ``items`` in the windows of all ``quotas``, and those of ``version``, or nothing.

        Returns None if they fit; else the version's bound, if that is exceeded, or the exceeded
        quota with the longest wait.
        """
        with self._lock:
            self._latest = latest = max(self._latest, now)
            if version is not None and version.limit is not None:
                used = self._signed(facility, version.key, version.number)
                if used + version.items > version.limit:
                    return LifetimeRefusal(version.limit, used)
            for quota in quotas:
                if items > quota.limit:
                    return QuotaRefusal(quota, None)
            entry = self._entries.setdefault(facility, _WindowEntry())
            refusals = []
            charged = {}
            for quota in quotas:
                length = quota.window_seconds
                number = int(latest // length)
                used = entry.used(length, number)
                charged[length] = (number, used + items)
                if used + items > quota.limit:
                    refusals.append(QuotaRefusal(quota, (number + 1) * length - now, used))
            if refusals:
                return max(refusals, key=lambda refusal: refusal.retry_after or 0.0)
            entry.windows.update(charged)
            entry.total += items
            if version is not None:
                counted = entry.keys.setdefault(version.key, KeyItems())
                counted.add(version.number, version.items)
            return None

    def signed(self, facility: str, key: str, number: int) -> int:
        """Returns the items ever asked of a key version, as far as they went to the HSM.

        With a batch all its items count, also those whose payload was refused.
        """
        with self._lock:
            return self._signed(facility, key, number)

    def _signed(self, facility: str, key: str, number: int) -> int:
        entry = self._entries.get(facility)
        counted = entry.keys.get(key) if entry else None
        return counted.of(number) if counted else 0

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

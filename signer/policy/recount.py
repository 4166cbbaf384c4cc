"""Counts a log's items against quotas and lifetimes once more, as an auditor sees them.

The appliance charges a batch at some moment between the time that its intent names and the
time at which the intent is recorded, and its windows follow that moment. So a batch counts
in any one of the windows between the two: as early as there is room, which is the best that
an honest appliance can have done.
"""

import math
from collections import defaultdict

from signer.model import KeyName
from signer.policy.lifetime import KeyItems
from signer.policy.values import Quota

CALL_SECONDS = 300
"""How long before its record a batch may have been charged."""


class Recount:
    """Items by facility and window."""

    def __init__(self) -> None:
        # By facility and length in seconds: the items of each window by its number.
        self._used: defaultdict[tuple[str, int], dict[int, int]] = defaultdict(dict)

    def start(self, facility: str, length: int, number: int, items: int) -> None:
        """Takes what earlier records have used of a window, by its number from the epoch."""
        self._used[facility, length][number] = items

    def exceeded(
        self, facility: str, quota: Quota, items: int, *, now: float, recorded: float
    ) -> bool:
        """Charges a batch; returns whether no choice of windows keeps to the quota.

        ``now`` and ``recorded`` are seconds since the epoch; batches come in the order of
        ``recorded``.
        """
        length = quota.window_seconds
        windows = self._used[facility, length]
        last = int(recorded // length)
        first = min(last, max(int(now // length), last - CALL_SECONDS // length - 1))
        for number in [number for number in windows if number < last - CALL_SECONDS // length - 1]:
            del windows[number]
        left = items
        for number in range(first, last + 1):
            room = min(left, max(0, quota.limit - windows.get(number, 0)))
            if room:
                windows[number] = windows.get(number, 0) + room
                left -= room
        if left:  # later records are compared with what was really signed
            windows[last] = windows.get(last, 0) + left
        return left > 0


class LifetimeRecount:
    """Items by key version, and the bounds under which the latest of them were signed."""

    def __init__(self) -> None:
        self._items: defaultdict[KeyName, KeyItems] = defaultdict(KeyItems)
        # By version: each bound, and when an intent under it was last recorded.
        self._bounds: defaultdict[tuple[KeyName, int], dict[float, float]] = defaultdict(dict)

    def start(self, key: KeyName, items: KeyItems) -> None:
        """Takes what earlier records have asked of a key."""
        self._items[key] = items

    def exceeded(
        self, key: KeyName, number: int, items: int, *, limit: int | None, recorded: float
    ) -> bool:
        """Counts a batch; returns whether a version has now signed more than its bound.

        Batches are charged in another order than they are recorded. So after a policy with
        another bound came into force, the larger of both counts, as long as a batch may take.
        """
        counted, bounds = self._items[key], self._bounds[key, number]
        counted.add(number, items)
        bounds[math.inf if limit is None else limit] = recorded
        for bound in [b for b, last in bounds.items() if abs(recorded - last) > CALL_SECONDS]:
            del bounds[bound]
        return counted.of(number) > max(bounds)

"""Counts a log's items against quotas once more, as an auditor sees them.

The appliance charges a batch at some moment between the time that its intent names and the
time at which the intent is recorded, and its windows follow that moment. So a batch counts
in any one of the windows between the two: as early as there is room, which is the best that
an honest appliance can have done.
"""

from collections import defaultdict

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

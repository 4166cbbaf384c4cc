"""What items cost of an HSM's time, as its workers report it, and how much of that time is used."""

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from signer.clock import Clock
from signer.hsm.front.chunks import CHUNK_SECONDS, Kind

FORGET_SECONDS = 300.0
"""A cost that was last measured before that is forgotten."""
CHEAPEST = 1e-6  # seconds: no HSM signs faster, whatever a worker reports
_DEAREST = 1.0  # seconds: what a stall makes of one item at most
_DEAREST_BYTE = 1e-4
_SMALL_BYTES = 1024  # of messages whose length does not matter for what they cost
_FIRST_ITEMS = 16  # of the first chunk of a kind whose cost is unknown
_UNKNOWN = CHUNK_SECONDS / _FIRST_ITEMS
_MEASUREMENTS = 9  # the median of them bears four stalls
_PACE_LEARNT, _PACE_FORGOTTEN = 0.1, 0.02  # the weight of a look at it
_SLOWEST = 0.1


class Cost(NamedTuple):
    """Seconds of HSM time for an item, and for each byte of it; 0 if they are not known."""

    item: float
    byte: float = 0.0

    def of(self, items: int, size: int) -> float:
        """Returns the seconds of so many items with ``size`` bytes together."""
        return items * self.item + size * self.byte if self.byte else items * self.item


_NOT_KNOWN, _FIRST = Cost(0.0), Cost(_UNKNOWN)


class Amounts:
    """Items by their kind, and their bytes."""

    __slots__ = ("_amounts", "items")

    def __init__(self) -> None:
        self._amounts: dict[Kind, tuple[int, int]] = {}
        self.items = 0

    def add(self, kind: Kind, items: int, size: int) -> None:
        """Adds items, or takes them away."""
        had, bytes_had = self._amounts.get(kind, (0, 0))
        self._amounts[kind] = had + items, bytes_had + size
        self.items += items

    def seconds(self, cost: Callable[[Kind], Cost]) -> float:
        """Returns the HSM time of all items."""
        if not self.items:
            return 0.0
        seconds = 0.0
        for kind, (items, size) in self._amounts.items():
            seconds += cost(kind).of(items, size)
        return seconds


class _Measured:
    """What was measured of one kind lately, for an item and for a byte, and when."""

    __slots__ = ("at", "byte", "item")

    def __init__(self) -> None:
        self.at = 0.0  # monotonic seconds
        self.item: deque[float] = deque(maxlen=_MEASUREMENTS)
        self.byte: deque[float] = deque(maxlen=_MEASUREMENTS)


class Costs:
    """Seconds of HSM time for the items of each kind: medians of the latest chunks.

    Only EdDSA gets whole messages: what a byte costs is learnt from long ones, beyond what the
    item costs.
    """

    def __init__(self, clock: Clock) -> None:
        self._now = clock.monotonic
        self._costs: dict[Kind, Cost] = {}
        self._measured: dict[Kind, _Measured] = {}

    def measured(self, kind: Kind) -> Cost:
        """Returns what items cost; 0 if none was measured lately."""
        return self._costs.get(kind, _NOT_KNOWN)

    def estimate(self, kind: Kind) -> Cost:
        """Returns the measured cost, or one that makes a small first chunk.

        A slow HSM must finish that chunk before it seems to hang.
        """
        cost = self._costs.get(kind, _FIRST)
        return cost if cost.item else cost._replace(item=_UNKNOWN)

    def learn(self, kind: Kind, seconds: float, items: int = 1, size: int = 0) -> None:
        """Takes what items with ``size`` bytes together have cost into account."""
        measured = self._measured.setdefault(kind, _Measured())
        item, byte = self.measured(kind)
        if size <= items * _SMALL_BYTES:
            measured.item.append(min(max(seconds / items, CHEAPEST), _DEAREST))
            item = _median(measured.item)
        else:
            beyond = max(0.0, seconds - items * item)
            measured.byte.append(min(beyond / size, _DEAREST_BYTE))
            byte = _median(measured.byte)
        self._costs[kind] = Cost(item, byte)
        measured.at = self._now()

    def forget(self) -> None:
        """Forgets costs that were not measured lately; called regularly."""
        before = self._now() - FORGET_SECONDS
        for kind in [kind for kind, measured in self._measured.items() if measured.at <= before]:
            del self._costs[kind], self._measured[kind]


class Pace:
    """The part of the workers' time that becomes signatures, by the estimates, while work waits.

    It is less than 1 if costs vary, workers wait for frames, or others use the processors.
    """

    def __init__(self) -> None:
        self.value = 1.0
        self._done = 0.0

    def done(self, seconds: float) -> None:
        """Notes a chunk that took so much HSM time by its estimate."""
        self._done += seconds

    def look(self, seconds: float, *, busy: bool) -> None:
        """Takes the time of all workers since the last look into account; called regularly.

        ``busy``: work waited all the time. Otherwise what was learnt is forgotten little by little.
        """
        found = self._done / seconds if busy and seconds else 1.0
        weight = _PACE_LEARNT if busy else _PACE_FORGOTTEN
        self.value += weight * (min(1.0, max(_SLOWEST, found)) - self.value)
        self._done = 0.0


def _median(values: deque[float]) -> float:
    return sorted(values)[(len(values) - 1) // 2]

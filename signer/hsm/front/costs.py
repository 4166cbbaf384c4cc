"""What signing an item costs, learned from what workers report."""

from collections import deque

from signer.algorithms import Algorithm
from signer.clock import Clock
from signer.model import KeyVersion

Kind = tuple[Algorithm, int]
"""Items that cost the same: the algorithm and the length of the public key."""

CHUNK_SECONDS = 0.006
"""HSM time of one chunk: long enough to spread its overhead, short enough to wait for."""
FORGET_SECONDS = 300.0
"""A cost that was not measured for so long is not known any more."""
_CHEAPEST = 1e-6  # seconds: no HSM signs faster, whatever a worker reports
_DEAREST = 1.0  # seconds: what a stall makes of one item at most
_FIRST_ITEMS = 16  # of the first chunk of a kind whose cost is unknown
_UNKNOWN = CHUNK_SECONDS / _FIRST_ITEMS
_MEASUREMENTS = 9  # the median of them bears four stalls


def kind_of(version: KeyVersion) -> Kind:
    """Returns the kind of the items that a version signs."""
    return version.algorithm, len(version.spki)


class _Cost:
    __slots__ = ("median", "recent", "until")

    def __init__(self) -> None:
        self.recent: deque[float] = deque(maxlen=_MEASUREMENTS)
        self.median = 0.0
        self.until = 0.0


class Costs:
    """Seconds of HSM time for one item of each kind: the median of the latest chunks."""

    def __init__(self, clock: Clock) -> None:
        self._costs: dict[Kind, _Cost] = {}
        self._now = clock.monotonic

    def measured(self, kind: Kind) -> float:
        """Returns the cost of an item; 0 where none was measured lately."""
        cost = self._costs.get(kind)
        return cost.median if cost is not None and self._now() < cost.until else 0.0

    def estimate(self, kind: Kind) -> float:
        """Returns the measured cost, or one that makes a small first chunk.

        A slow HSM must finish that chunk before it seems to hang.
        """
        return self.measured(kind) or _UNKNOWN

    def learn(self, kind: Kind, seconds: float) -> None:
        """Takes the cost of an item in one chunk into account."""
        now = self._now()
        cost = self._costs.get(kind)
        if cost is None or now >= cost.until:
            cost = self._costs[kind] = _Cost()
        cost.recent.append(min(max(seconds, _CHEAPEST), _DEAREST))
        cost.median = sorted(cost.recent)[(len(cost.recent) - 1) // 2]
        cost.until = now + FORGET_SECONDS

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


class Costs:
    """Seconds of HSM time for one item of each kind: the median of the latest chunks."""

    def __init__(self, clock: Clock) -> None:
        self._now = clock.monotonic
        self._medians: dict[Kind, float] = {}
        self._recent: dict[Kind, deque[float]] = {}
        self._learned: dict[Kind, float] = {}  # when, in monotonic seconds

    def measured(self, kind: Kind) -> float:
        """Returns the cost of an item; 0 if none was measured lately."""
        return self._medians.get(kind, 0.0)

    def estimate(self, kind: Kind) -> float:
        """Returns the measured cost, or one that makes a small first chunk.

        A slow HSM must finish that chunk before it seems to hang.
        """
        return self._medians.get(kind, _UNKNOWN)

    def learn(self, kind: Kind, seconds: float) -> None:
        """Takes the cost of an item in one chunk into account."""
        recent = self._recent.get(kind)
        if recent is None:
            recent = self._recent[kind] = deque(maxlen=_MEASUREMENTS)
        recent.append(min(max(seconds, _CHEAPEST), _DEAREST))
        self._medians[kind] = sorted(recent)[(len(recent) - 1) // 2]
        self._learned[kind] = self._now()

    def forget(self) -> None:
        """Forgets what was not measured lately; called again and again."""
        before = self._now() - FORGET_SECONDS
        for kind in [kind for kind, learned in self._learned.items() if learned <= before]:
            del self._medians[kind], self._recent[kind], self._learned[kind]

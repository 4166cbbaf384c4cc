"""What waits for the workers of a token, what the next chunk has, and what an item costs.

The order is deficit round robin between owners (Shreedhar and Varghese, 1996). A chunk has a
few milliseconds of HSM time, and fewer while several owners use the token, so that one large
batch does not delay a single signature of another owner; it takes portions of several batches,
so that many small ones go together. In its turn an owner earns a quantum of HSM time, that of a
chunk, multiplied by its weight. Everything here is for the event loop.
"""

import math
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from signer.clock import Clock
from signer.hsm.frames import PART_BYTES
from signer.hsm.front.chunks import APPLIANCE, Batch, Chunk, Kind, Portion
from signer.model import KeyVersion

CHUNK_SECONDS = 0.006
"""HSM time of one chunk: long enough to spread its overhead, short enough to wait for."""
SHARED_CHUNK_SECONDS = 0.0025
"""The same while several owners use the token: a single item waits for the chunks that its
worker has, and for its own."""
SHARED_FOR = 10.0
"""Seconds after a batch of another owner for which chunks are short."""
FORGET_SECONDS = 300.0
"""A cost that was last measured before that is forgotten."""
_CHEAPEST = 1e-6  # seconds: no HSM signs faster, whatever a worker reports
_DEAREST = 1.0  # seconds: what a stall makes of one item at most
_FIRST_ITEMS = 16  # of the first chunk of a kind whose cost is unknown
_UNKNOWN = CHUNK_SECONDS / _FIRST_ITEMS
_MEASUREMENTS = 9  # the median of them bears four stalls
CHUNK_BYTES = 64 * 1024
"""Inputs and keys of one chunk, so that two of them fit into a worker's socket buffer."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """Items of one owner's batch that wait, and since when (monotonic seconds)."""

    owner: str
    items: int
    since: float


class _Line:
    """The batches of one owner, the time that it has earned, and its waiting items by kind."""

    __slots__ = ("batches", "deficit", "weight", "work")

    def __init__(self) -> None:
        self.batches: deque[Batch] = deque()
        self.deficit = 0.0
        self.weight = 0
        self.work: dict[Kind, int] = {}


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
        """Forgets costs that were not measured lately; called regularly."""
        before = self._now() - FORGET_SECONDS
        for kind in [kind for kind, learned in self._learned.items() if learned <= before]:
            del self._medians[kind], self._recent[kind], self._learned[kind]


class Scheduler:
    """The queue of one token."""

    def __init__(self, cost: Callable[[Kind], float]) -> None:
        """Takes ``cost``: the estimated HSM time of one item of a kind, in seconds.

        ``chunk_seconds`` is the HSM time of a chunk now.
        """
        self._cost = cost
        self._lines: OrderedDict[str, _Line] = OrderedDict()
        self._returned: deque[Chunk] = deque()
        self.items = 0  # that wait
        # Of them, without those that were returned: items by kind, and bytes.
        self._work: dict[Kind, int] = {}
        self._bytes = 0
        self._latest = ""  # the owner of the newest batch
        self._shared_until = -math.inf  # monotonic seconds
        self.chunk_seconds = CHUNK_SECONDS

    def add(self, batch: Batch) -> None:
        """Queues a batch behind those of its owner."""
        job = batch.job
        if job.owner not in {self._latest, APPLIANCE}:
            if self._latest:
                self._shared_until = batch.queued_at + SHARED_FOR
            self._latest = job.owner
        shared = batch.queued_at < self._shared_until
        self.chunk_seconds = SHARED_CHUNK_SECONDS if shared else CHUNK_SECONDS
        line = self._lines.get(job.owner)
        if line is None:
            line = self._lines[job.owner] = _Line()
            line.deficit = self.chunk_seconds * job.weight  # or it would wait for its second turn
        line.weight = job.weight
        line.batches.append(batch)
        self._count(line, batch, batch.next, len(job.inputs), 1)

    def give_back(self, chunk: Chunk) -> None:
        """Queues a chunk whose worker died, ahead of everything."""
        self._returned.append(chunk)
        self.items += chunk.items

    def take(self, most: int) -> Chunk | None:
        """Fills the next chunk with at most ``most`` items; returns None if nothing waits."""
        if self._returned:
            chunk = self._returned.popleft()
            self.items -= chunk.items
            return chunk
        chunk = Chunk()
        seconds, size = self.chunk_seconds, CHUNK_BYTES
        last: KeyVersion | None = None
        while most and self._lines:
            owner, line = next(iter(self._lines.items()))
            batch = line.batches[0]
            cost = self._cost(batch.kind)
            at_least = int(not chunk.items)
            wanted = min(most, batch.left, max(_whole(seconds / cost), at_least))
            if not wanted:
                break  # it has no time for another item
            affordable = _whole(line.deficit / cost)
            if not affordable:
                self._next_turn(owner, line, cost)
                continue
            version = batch.job.version
            if version is not last:
                size -= PART_BYTES + len(version.cka_id) + len(version.spki)
                last = version
            wanted = _fitting(batch, min(wanted, affordable), size) or at_least
            if not wanted:
                break  # it has no space for another item
            start, stop = batch.next, batch.next + wanted
            chunk.add(batch, start, stop)
            batch.next = stop
            most -= wanted
            seconds -= wanted * cost
            size -= self._count(line, batch, start, stop, -1)
            line.deficit -= wanted * cost
            if stop == len(batch.signatures):
                line.batches.popleft()
                self._end_empty(owner, line)
        return chunk if chunk.items else None

    def full(self) -> bool:
        """Returns whether the waiting items fill a chunk, or a chunk was returned."""
        if self._returned or self._bytes >= CHUNK_BYTES:
            return True
        return self.seconds() >= self.chunk_seconds

    def seconds(self) -> float:
        """Returns the HSM time of all waiting items, without returned chunks."""
        return self._seconds(self._work)

    def finish(self, owner: str, weight: int, seconds: float) -> float:
        """Returns the HSM time until an owner has done ``seconds`` more of work.

        That is its own line's, and what the others get meanwhile by their weight.
        """
        line = self._lines.get(owner)
        own = seconds + (self._seconds(line.work) if line else 0.0)
        each = own / weight
        time = own
        for name, other in self._lines.items():
            if name != owner:
                time += min(self._seconds(other.work), each * other.weight)
        return time

    def abandon(self, batch: Batch) -> None:
        """Removes the waiting items of a batch whose caller has left."""
        batch.abandoned = True
        if batch.left:
            line = self._lines[batch.job.owner]
            line.batches.remove(batch)
            self._count(line, batch, batch.next, len(batch.signatures), -1)
            batch.next = len(batch.signatures)
            self._end_empty(batch.job.owner, line)
        if self._returned and batch.remaining:
            self._remove_returned(lambda other: other is batch)

    def remove(self, wanted: Callable[[Batch], bool]) -> list[Portion]:
        """Removes all waiting items of the batches that are ``wanted``, in one pass."""
        removed = self._remove_returned(wanted)
        for owner, line in list(self._lines.items()):
            kept: deque[Batch] = deque()
            for batch in line.batches:
                if wanted(batch):
                    count = len(batch.signatures)
                    removed.append(Portion(batch, batch.next, count))
                    self._count(line, batch, batch.next, count, -1)
                    batch.next = count
                else:
                    kept.append(batch)
            line.batches = kept
            self._end_empty(owner, line)
        return removed

    def waiting(self) -> Iterator[Waiting]:
        """Yields the waiting items, batch by batch."""
        for chunk in self._returned:
            for portion in chunk.portions:
                batch = portion.batch
                yield Waiting(batch.job.owner, len(portion), batch.queued_at)
        for owner, line in self._lines.items():
            for batch in line.batches:
                yield Waiting(owner, batch.left, batch.queued_at)

    def _next_turn(self, owner: str, line: _Line, cost: float) -> None:
        """Ends an owner's turn, and gives it what it may spend in its next one."""
        line.deficit += self.chunk_seconds * line.weight
        self._lines.move_to_end(owner)
        if len(self._lines) == 1:  # no other owner waits
            line.deficit = max(line.deficit, cost)

    def _count(self, line: _Line, batch: Batch, start: int, stop: int, sign: int) -> int:
        """Counts items that come (1) or go (-1); returns their bytes."""
        size, kind = batch.size(start, stop), batch.kind
        change = sign * (stop - start)
        line.work[kind] = line.work.get(kind, 0) + change
        self._work[kind] = self._work.get(kind, 0) + change
        self.items += change
        self._bytes += sign * size
        return size

    def _end_empty(self, owner: str, line: _Line) -> None:
        """Removes a line in which nothing waits; it keeps no credit."""
        if not line.batches:
            del self._lines[owner]

    def _seconds(self, work: Mapping[Kind, int]) -> float:
        return sum(items * self._cost(kind) for kind, items in work.items() if items)

    def _remove_returned(self, wanted: Callable[[Batch], bool]) -> list[Portion]:
        """Removes portions from the chunks that were returned."""
        removed: list[Portion] = []
        kept: deque[Chunk] = deque()
        for chunk in self._returned:
            left: list[Portion] = []
            for portion in chunk.portions:
                (removed if wanted(portion.batch) else left).append(portion)
            if left:
                kept.append(Chunk(left, chunk.attempts, chunk.deaths))
        self._returned = kept
        self.items -= sum(map(len, removed))
        return removed


def _whole(number: float) -> int:
    """Rounds down, but for what rounding took from a whole number before."""
    return int(number + 1e-6)


def _fitting(batch: Batch, wanted: int, size: int) -> int:
    """Returns how many of the next items fit into ``size`` bytes."""
    if batch.width:
        return min(wanted, max(0, size) // batch.width)
    inputs, first = batch.job.inputs, batch.next
    for count in range(wanted):
        size -= len(inputs[first + count])
        if size < 0:
            return count
    return wanted

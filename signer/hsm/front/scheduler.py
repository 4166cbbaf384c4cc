"""Which chunk the HSM signs next: deficit round robin between owners. Pure, no threads.

Batches are cut into chunks of a few milliseconds of HSM time, so that one large
batch does not hold up a single signature of somebody else. An owner's turn earns
it a quantum of HSM time times its weight (Shreedhar and Varghese, 1996).
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from signer.algorithms import PROPERTIES
from signer.model import SignJob

CHUNK_SECONDS = 0.006
"""HSM time of one chunk: long enough to spread its overhead, short enough to wait for."""
CHUNK_BYTES = 64 * 1024
"""Inputs of one chunk, so that two of them fit into a worker's socket buffer."""


@dataclass(slots=True, eq=False)
class Pending:
    """A job on its way; ``next`` is its first item that no chunk has yet."""

    job: SignJob
    queued_at: float
    next: int = 0

    @property
    def left(self) -> int:
        """Items that no chunk has yet."""
        return len(self.job.inputs) - self.next


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """Items ``start`` to ``stop`` of a job.

    ``attempts`` counts the workers that lost it, ``deaths`` those that died over it.
    """

    pending: Pending
    start: int
    stop: int
    attempts: int = 0
    deaths: int = 0

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(slots=True)
class _Line:
    """What one owner waits for."""

    weight: int
    deficit: float = 0.0
    jobs: deque[Pending] = field(default_factory=deque)


class Scheduler:
    """The queue of one token. Not thread-safe: its pool holds a lock."""

    def __init__(self, cost: Callable[[SignJob], float]) -> None:
        """Takes ``cost``: seconds of HSM time that one item of a job is thought to need."""
        self._cost = cost
        self._lines: OrderedDict[str, _Line] = OrderedDict()
        self._returned: deque[Chunk] = deque()
        self.items = 0
        """Items that wait."""

    def add(self, pending: Pending) -> None:
        """Queues a job behind those of its owner."""
        job = pending.job
        line = self._lines.setdefault(job.owner, _Line(job.weight))
        line.weight = job.weight
        line.jobs.append(pending)
        self.items += pending.left

    def give_back(self, chunk: Chunk) -> None:
        """Queues a chunk whose worker died, ahead of everything."""
        self._returned.append(chunk)
        self.items += len(chunk)

    def take(self) -> Chunk | None:
        """Cuts the next chunk, or returns None where nothing waits."""
        if self._returned:
            chunk = self._returned.popleft()
            self.items -= len(chunk)
            return chunk
        while self._lines:
            owner, line = next(iter(self._lines.items()))
            pending = line.jobs[0]
            cost = self._cost(pending.job)
            count = _chunk_items(pending, cost)
            if line.deficit < count * cost:
                line.deficit += CHUNK_SECONDS * line.weight
                self._lines.move_to_end(owner)
                if line.deficit < count * cost and len(self._lines) == 1:
                    line.deficit = count * cost  # nobody else is there to be fair to
                continue
            line.deficit -= count * cost
            chunk = Chunk(pending, pending.next, pending.next + count)
            pending.next += count
            self.items -= count
            if not pending.left:
                line.jobs.popleft()
                if not line.jobs:
                    del self._lines[owner]
            return chunk
        return None

    def remove(self, wanted: Callable[[Pending], bool]) -> list[Chunk]:
        """Takes out all that waits of the jobs that ``wanted`` names, as chunks: in one pass."""
        removed: list[Chunk] = []
        returned: deque[Chunk] = deque()
        for chunk in self._returned:
            (removed if wanted(chunk.pending) else returned).append(chunk)
        self._returned = returned
        for owner, line in list(self._lines.items()):
            kept: deque[Pending] = deque()
            for pending in line.jobs:
                if wanted(pending):
                    removed.append(Chunk(pending, pending.next, len(pending.job.inputs)))
                    pending.next = len(pending.job.inputs)
                else:
                    kept.append(pending)
            line.jobs = kept
            if not kept:
                del self._lines[owner]
        self.items -= sum(map(len, removed))
        return removed

    def waiting(self) -> Iterator[tuple[Pending, int]]:
        """What waits: a job, and how many of its items."""
        for chunk in self._returned:
            yield chunk.pending, len(chunk)
        for line in self._lines.values():
            for pending in line.jobs:
                yield pending, pending.left


def _chunk_items(pending: Pending, cost: float) -> int:
    """How many items the next chunk has: at least one, at most a chunk's time and bytes."""
    wanted = max(1, min(pending.left, int(CHUNK_SECONDS / cost)))
    inputs, first = pending.job.inputs, pending.next
    hash_name = PROPERTIES[pending.job.version.algorithm].hash_name
    if len(inputs[first]) <= CHUNK_BYTES // wanted and hash_name:
        return wanted  # digests are all as short as the first
    size = 0
    for count in range(wanted):
        size += len(inputs[first + count])
        if size > CHUNK_BYTES:
            return max(1, count)
    return wanted

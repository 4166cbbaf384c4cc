"""What waits for the workers of a token, and what the next chunk has.

The order is deficit round robin between owners (Shreedhar and Varghese, 1996). A chunk has a
few milliseconds of HSM time, so that one large batch does not delay a single signature of
another owner; it takes portions of several batches, so that many small ones go together. In
its turn an owner earns a quantum of HSM time multiplied by its weight. Everything here is for
the event loop.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from signer.algorithms import PROPERTIES
from signer.errors import Failure
from signer.hsm.frames import PART_BYTES, SignFrame, SignPart
from signer.hsm.front.costs import CHUNK_SECONDS, Kind, kind_of
from signer.model import KeyVersion, SignJob

CHUNK_BYTES = 64 * 1024
"""Inputs and keys of one chunk, so that two of them fit into a worker's socket buffer."""


class Batch:
    """A job that is being signed: which items have no chunk yet, and the results so far.

    ``queued_at`` and ``begun``, when its first chunk went to a worker, are monotonic
    seconds. ``remaining`` items have neither a signature nor a failure; ``done`` gets its
    result when there are none. ``abandoned``: nobody waits for it any more.
    """

    __slots__ = (
        "abandoned",
        "attempts",
        "begun",
        "done",
        "failures",
        "job",
        "kind",
        "next",
        "queued_at",
        "remaining",
        "signatures",
        "width",
    )

    def __init__(self, job: SignJob, queued_at: float, done: asyncio.Future[None]) -> None:
        inputs = job.inputs
        count = len(inputs)
        algorithm = job.version.algorithm
        self.job = job
        self.kind = kind_of(job.version)
        self.width = len(inputs[0]) if PROPERTIES[algorithm].hash_name else 0  # 0: they differ
        self.queued_at = queued_at
        self.next = 0  # the first item that no chunk has yet
        self.begun = 0.0
        self.attempts = 0
        self.remaining = count
        self.signatures = [b""] * count
        self.failures: dict[int, Failure] = {}
        self.done = done
        self.abandoned = False

    @property
    def left(self) -> int:
        """Items that no chunk has yet."""
        return len(self.signatures) - self.next

    def size(self, start: int, stop: int) -> int:
        """Returns the size of these inputs."""
        if self.width:
            return self.width * (stop - start)
        return sum(map(len, self.job.inputs[start:stop]))

    def fail(self, start: int, stop: int, failure: Failure) -> None:
        """Gives these items a failure."""
        self.failures.update(dict.fromkeys(range(start, stop), failure))
        self._count(stop - start)

    def store(
        self, start: int, signatures: Sequence[bytes], failures: Mapping[int, Failure]
    ) -> None:
        """Stores signatures from the item ``start`` on, but those whose item has a failure."""
        count = len(signatures)
        self.signatures[start : start + count] = signatures
        for index, failure in failures.items():
            self.signatures[index] = b""
            self.failures[index] = failure
        self._count(count)

    def _count(self, items: int) -> None:
        self.remaining -= items
        if not self.remaining and not self.done.done():
            self.done.set_result(None)


class Portion:
    """Items ``start`` to ``stop`` of a batch, in one chunk."""

    __slots__ = ("batch", "start", "stop")

    def __init__(self, batch: Batch, start: int, stop: int) -> None:
        self.batch = batch
        self.start = start
        self.stop = stop

    def __len__(self) -> int:
        return self.stop - self.start

    def fail(self, failure: Failure) -> None:
        """Gives its items a failure."""
        self.batch.fail(self.start, self.stop, failure)


class Part:
    """Portions that one version signs, one after the other in a chunk: one part of a frame."""

    __slots__ = ("check_every", "items", "portions", "version")

    def __init__(self, first: Portion) -> None:
        self.version: KeyVersion = first.batch.job.version
        self.check_every = first.batch.job.check_every
        self.portions = [first]
        self.items = len(first)

    def packed(self) -> SignPart:
        """Returns the part for its frame."""
        inputs: list[bytes] = []
        for portion in self.portions:
            inputs += portion.batch.job.inputs[portion.start : portion.stop]
        version = self.version
        return SignPart(version.algorithm, self.check_every, version.cka_id, version.spki, inputs)


class Chunk:
    """What one worker signs at once.

    ``attempts`` counts the workers that lost it, ``deaths`` those that died over it.
    ``delivered``: a worker has got it.
    """

    __slots__ = ("attempts", "deaths", "delivered", "items", "parts", "portions")

    def __init__(
        self, portions: Iterable[Portion] = (), attempts: int = 0, deaths: int = 0
    ) -> None:
        self.portions = list(portions)
        self.items = sum(map(len, self.portions))
        self.parts: list[Part] = []  # once it has gone to a worker
        self.attempts = attempts
        self.deaths = deaths
        self.delivered = False

    def add(self, batch: Batch, start: int, stop: int) -> None:
        """Adds a portion, or to the last one where that ends here."""
        self.items += stop - start
        if self.portions and (last := self.portions[-1]).batch is batch and last.stop == start:
            last.stop = stop
        else:
            self.portions.append(Portion(batch, start, stop))

    def frame(self, number: int) -> SignFrame:
        """Returns the frame under this number; ``parts`` are what it has from now on."""
        parts: list[Part] = []
        part = None
        for portion in self.portions:
            job = portion.batch.job
            if part and part.version is job.version and part.check_every == job.check_every:
                part.portions.append(portion)
                part.items += portion.stop - portion.start
            else:
                part = Part(portion)
                parts.append(part)
        self.parts = parts
        return SignFrame(number, [part.packed() for part in parts])


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


class Scheduler:
    """The queue of one token."""

    def __init__(self, cost: Callable[[Kind], float]) -> None:
        """Takes ``cost``: the estimated HSM time of one item of a kind, in seconds."""
        self._cost = cost
        self._lines: OrderedDict[str, _Line] = OrderedDict()
        self._returned: deque[Chunk] = deque()
        self.items = 0  # that wait
        # Of them, without those that were returned: items by kind, and bytes.
        self._work: dict[Kind, int] = {}
        self._bytes = 0

    def add(self, batch: Batch) -> None:
        """Queues a batch behind those of its owner."""
        job = batch.job
        line = self._lines.get(job.owner)
        if line is None:
            line = self._lines[job.owner] = _Line()
            line.deficit = CHUNK_SECONDS * job.weight  # or it would wait for its second turn
        line.weight = job.weight
        line.batches.append(batch)
        self._count(line, batch, batch.next, len(job.inputs), 1)

    def give_back(self, chunk: Chunk) -> None:
        """Queues a chunk whose worker died, ahead of everything."""
        self._returned.append(chunk)
        self.items += chunk.items

    def take(self, most: int) -> Chunk | None:
        """Fills the next chunk with at most so many items; returns None if nothing waits."""
        if self._returned:
            chunk = self._returned.popleft()
            self.items -= chunk.items
            return chunk
        chunk = Chunk()
        seconds, size = CHUNK_SECONDS, CHUNK_BYTES
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
        """Returns whether what waits fills a chunk, or a chunk was returned."""
        if self._returned or self._bytes >= CHUNK_BYTES:
            return True
        return self.seconds() >= CHUNK_SECONDS

    def seconds(self) -> float:
        """Returns the HSM time of all that waits, without what was returned."""
        return self._seconds(self._work)

    def finish(self, owner: str, weight: int, seconds: float) -> float:
        """Returns the HSM time until an owner has more work of so many seconds done.

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
        """Removes what waits of a batch for which nobody waits any more."""
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
        """Yields what waits, batch by batch."""
        for chunk in self._returned:
            for portion in chunk.portions:
                batch = portion.batch
                yield Waiting(batch.job.owner, len(portion), batch.queued_at)
        for owner, line in self._lines.items():
            for batch in line.batches:
                yield Waiting(owner, batch.left, batch.queued_at)

    def _next_turn(self, owner: str, line: _Line, cost: float) -> None:
        """Ends an owner's turn, and gives it what it may spend in its next one."""
        line.deficit += CHUNK_SECONDS * line.weight
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
    """Returns how many of the next items fit into so many bytes."""
    if batch.width:
        return min(wanted, max(0, size) // batch.width)
    inputs, first = batch.job.inputs, batch.next
    for count in range(wanted):
        size -= len(inputs[first + count])
        if size < 0:
            return count
    return wanted

"""What waits for the workers of a token, and what the next chunk has.

The order is deficit round robin between owners (Shreedhar and Varghese, 1996). A chunk has a
few milliseconds of HSM time, and fewer while several owners use the token, so that one large
batch does not delay a single signature of another owner; it takes portions of several batches,
so that many small ones go together. In its turn an owner earns a quantum of HSM time, that of a
chunk, multiplied by its weight. Everything here is for the event loop.
"""

import math
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from signer.hsm.frames import PART_BYTES, wrapped_bytes
from signer.hsm.front.chunks import APPLIANCE, CHUNK_SECONDS, Batch, Chunk, Kind, Portion
from signer.hsm.front.costs import CHEAPEST, Amounts, Cost
from signer.model import KeyVersion

SHARED_CHUNK_SECONDS = 0.0025
"""CHUNK_SECONDS while several owners use the token: a single item waits for the chunks that its
worker has, and for its own."""
SHARED_FOR = 10.0
"""Seconds after a batch of another owner for which chunks are short."""
CHUNK_BYTES = 64 * 1024
"""Inputs and keys of one chunk, so that two of them fit into a worker's socket buffer."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """Items of one owner's batch that wait, and since when (monotonic seconds)."""

    owner: str
    items: int
    since: float


class _Line:
    """The batches of one owner that wait, and the time that it has earned."""

    __slots__ = ("batches", "deficit", "weight", "work")

    def __init__(self) -> None:
        self.batches: deque[Batch] = deque()
        self.deficit = 0.0
        self.weight = 0
        self.work = Amounts()


class Scheduler:
    """The queue of one token."""

    def __init__(self, cost: Callable[[Kind], Cost]) -> None:
        """Takes ``cost``: the estimated HSM time of the items of a kind.

        ``chunk_seconds`` is the HSM time of a chunk now.
        """
        self._cost = cost
        self._lines: OrderedDict[str, _Line] = OrderedDict()
        self._returned: deque[Chunk] = deque()
        self.items = 0  # that wait
        # Of them, without those that were returned.
        self._work = Amounts()
        self._bytes = 0
        # What is admitted and does not wait here yet, by owner and of all.
        self._promised: dict[str, Amounts] = {}
        self._all_promised = Amounts()
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
            if batch.deaths and chunk.items:
                break  # what has killed a worker of another token goes alone
            cost = self._cost(batch.kind)
            at_least = int(not chunk.items)
            one = cost.of(1, batch.size(batch.next, batch.next + 1))
            if not (at_least or _whole(seconds / one)):
                break  # it has no time for another item
            if not _whole(line.deficit / one):
                self._next_turn(owner, line, one)
                continue
            time = min(max(seconds, at_least * one), line.deficit)
            version = batch.job.version
            if version is not last:
                size -= PART_BYTES + len(version.cka_id) + len(version.spki)
                size -= wrapped_bytes(version.wrapped)
                last = version
            wanted = _fitting(batch, min(most, batch.left), size, time, cost) or at_least
            if not wanted:
                break  # it has no space for another item
            start, stop = batch.next, batch.next + wanted
            chunk.add(batch, start, stop)
            batch.next = stop
            most -= wanted
            taken = self._count(line, batch, start, stop, -1)
            size -= taken
            time = cost.of(wanted, taken)
            seconds -= time
            chunk.seconds += time
            line.deficit -= time
            if stop == len(batch.signatures):
                line.batches.popleft()
                self._end_empty(owner, line)
            if batch.deaths:
                break
        return chunk if chunk.items else None

    def full(self) -> bool:
        """Returns whether the waiting items fill a chunk, or a chunk was returned."""
        if self._returned or self._bytes >= CHUNK_BYTES:
            return True
        return self.seconds() >= self.chunk_seconds

    def seconds(self) -> float:
        """Returns the HSM time of all waiting items, without returned chunks."""
        return self._work.seconds(self._cost)

    # --- what is admitted, and when it will be done ----------------------------------------

    def promise(self, owner: str, kind: Kind, items: int, size: int) -> None:
        """Counts items that are admitted and do not wait here yet, or stops counting them."""
        self._all_promised.add(kind, items, size)
        promised = self._promised.setdefault(owner, Amounts())
        promised.add(kind, items, size)
        if not promised.items:
            del self._promised[owner]

    @property
    def admitted(self) -> int:
        """Items that wait or are promised."""
        return self.items + self._all_promised.items

    def admitted_of(self, owner: str) -> int:
        """Returns how many of them are those of one owner."""
        return sum(amounts.items for amounts in self._amounts_of(owner))

    def share(self, owner: str, of: int) -> int:
        """Returns the part of so many items that an owner has beside those who are here.

        As if one more came: each of them then finds room for as much.
        """
        owners = self._lines.keys() | self._promised.keys() | {owner}
        return of // (len(owners) + 1)

    def backlog(self) -> float:
        """Returns the HSM time of all that waits or is promised."""
        return self.seconds() + self._all_promised.seconds(self._cost)

    def finish(self, owner: str, weight: int, seconds: float) -> float:
        """Returns the HSM time until an owner has done ``seconds`` more of work.

        That is what it has here, and what the others get meanwhile by their weight.
        """
        own = seconds + sum(amounts.seconds(self._cost) for amounts in self._amounts_of(owner))
        each = own / weight
        time = own
        cost, promised = self._cost, self._promised
        for other, line in self._lines.items():
            if other != owner:
                has = line.work.seconds(cost)
                if other in promised:
                    has += promised[other].seconds(cost)
                time += min(has, each * line.weight)
        for other, work in promised.items():
            if other != owner and other not in self._lines:
                time += min(work.seconds(cost), each)
        return time

    def _amounts_of(self, owner: str) -> Iterator[Amounts]:
        """Yields what an owner has waiting, and what it is promised."""
        if (line := self._lines.get(owner)) is not None:
            yield line.work
        if (promised := self._promised.get(owner)) is not None:
            yield promised

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
        line.work.add(kind, change, sign * size)
        self._work.add(kind, change, sign * size)
        self.items += change
        self._bytes += sign * size
        return size

    def _end_empty(self, owner: str, line: _Line) -> None:
        """Removes a line in which nothing waits; it keeps no credit."""
        if not line.batches:
            del self._lines[owner]

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


def _fitting(batch: Batch, most: int, size: int, seconds: float, cost: Cost) -> int:
    """Returns how many of the next items fit into ``size`` bytes and ``seconds``."""
    if batch.width:
        return min(most, max(0, size) // batch.width, _whole(seconds / cost.item))
    inputs, first = batch.job.inputs, batch.next
    for count in range(most):
        length = len(inputs[first + count])
        size -= length
        seconds -= cost.of(1, length)
        if size < 0 or seconds < -CHEAPEST:
            return count
    return most

"""What waits for the workers of a token, what may not sign, and which chunk is next.

The order is deficit round robin between owners. Batches are cut into chunks of a few
milliseconds of HSM time, so that one large batch does not delay a single signature of
another owner. In its turn an owner earns a quantum of HSM time multiplied by its weight
(Shreedhar and Varghese, 1996). The lock of the pool guards everything here.
"""

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from signer.algorithms import PROPERTIES
from signer.errors import Failure
from signer.model import KeyVersion, SignJob, Suspended

CHUNK_SECONDS = 0.006
"""HSM time of one chunk: long enough to spread its overhead, short enough to wait for."""
CHUNK_BYTES = 64 * 1024
"""Inputs of one chunk, so that two of them fit into a worker's socket buffer."""
_CHEAPEST = 1e-6  # seconds: no HSM signs faster, whatever a worker reports
_FIRST_ITEMS = 16  # of the first chunks of a job whose cost is unknown
_WEIGHT = 0.1  # of the newest measurement of a cost


class Batch:
    """A job that is being signed: which items have no chunk yet, and the results so far.

    ``queued_at`` and ``begun``, when its first chunk went to a worker, are monotonic
    seconds. ``remaining`` items have neither a signature nor a failure.
    """

    def __init__(self, job: SignJob, queued_at: float) -> None:
        count = len(job.inputs)
        self.job = job
        self.queued_at = queued_at
        self.next = 0  # the first item that no chunk has yet
        self.begun = 0.0
        self.attempts = 0
        self.remaining = count
        self.signatures = [b""] * count
        self.failures: dict[int, Failure] = {}
        self.done = threading.Event()
        self.abandoned = False

    @property
    def left(self) -> int:
        """Items that no chunk has yet."""
        return len(self.job.inputs) - self.next

    def fail(self, chunk: "Chunk", failure: Failure) -> None:
        """Gives every item of a chunk this failure."""
        self.failures.update(dict.fromkeys(range(chunk.start, chunk.stop), failure))
        self._count(chunk)

    def store(
        self, chunk: "Chunk", signatures: Sequence[bytes], failures: Mapping[int, Failure]
    ) -> None:
        """Stores the signatures of a chunk but those whose index in it has a failure."""
        self.signatures[chunk.start : chunk.stop] = signatures
        for index, failure in failures.items():
            self.signatures[chunk.start + index] = b""
            self.failures[chunk.start + index] = failure
        self._count(chunk)

    def _count(self, chunk: "Chunk") -> None:
        self.remaining -= len(chunk)
        if not self.remaining:
            self.done.set()


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """Items ``start`` to ``stop`` of a batch.

    ``attempts`` counts the workers that lost it, ``deaths`` those that died over it.
    """

    batch: Batch
    start: int
    stop: int
    attempts: int = 0
    deaths: int = 0

    def __len__(self) -> int:
        return self.stop - self.start


class Costs:
    """Seconds of HSM time for one item, by algorithm and length of the key."""

    def __init__(self) -> None:
        self._seconds: dict[tuple[str, int], float] = {}

    def measured(self, job: SignJob) -> float:
        """Returns the cost of an item of this job, 0 before the first result of its kind."""
        return self._seconds.get(_kind(job), 0.0)

    def estimate(self, job: SignJob) -> float:
        """Returns the measured cost, or one that makes a small first chunk.

        A slow HSM must finish that chunk before it seems to hang.
        """
        return self._seconds.get(_kind(job), CHUNK_SECONDS / _FIRST_ITEMS)

    def learn(self, job: SignJob, seconds: float) -> None:
        """Takes a measurement into account; the first of a kind counts fully."""
        before = self._seconds.get(_kind(job), seconds)
        mean = (1 - _WEIGHT) * before + _WEIGHT * seconds
        self._seconds[_kind(job)] = max(_CHEAPEST, mean)


def _kind(job: SignJob) -> tuple[str, int]:
    return job.version.algorithm, len(job.version.spki)


class Stops:
    """The versions and facilities that may not sign on a token, with the reasons."""

    def __init__(self) -> None:
        self.suspended = Suspended()
        self.wrong: dict[bytes, str] = {}  # until the daemon ends
        self._inactive: dict[bytes, str] = {}  # according to the registry

    def reason(self, version: KeyVersion) -> str:
        """Returns why a version may not sign; empty where it may."""
        cka_id = version.cka_id
        return (
            self.wrong.get(cka_id)
            or self._inactive.get(cka_id)
            or self.suspended.reason(version.key.facility)
        )

    def stop(self, versions: Mapping[KeyVersion, str]) -> None:
        """Stops versions, each for its reason."""
        for version, text in versions.items():
            self._inactive[version.cka_id] = text or f"{version.name} is stopped"

    def resume(self, versions: Iterable[KeyVersion]) -> None:
        """Lets versions sign again; one with a wrong signature stays stopped."""
        for version in versions:
            self._inactive.pop(version.cka_id, None)

    def distrust(self, version: KeyVersion) -> None:
        """Stops a version until the daemon ends: the HSM returned a wrong signature of it."""
        text = f"{version.name} is stopped: the HSM returned a wrong signature"
        self.wrong[version.cka_id] = text


@dataclass(frozen=True, slots=True)
class Waiting:
    """Items of one owner's batch that wait, and since when (monotonic seconds)."""

    owner: str
    items: int
    since: float


@dataclass(slots=True)
class _OwnerQueue:
    weight: int
    deficit: float = 0.0
    batches: deque[Batch] = field(default_factory=deque)


class Scheduler:
    """The queue of one token. Not thread-safe."""

    def __init__(self, cost: Callable[[SignJob], float]) -> None:
        """Takes ``cost``: the estimated HSM time of one item of a job, in seconds."""
        self._cost = cost
        self._owners: OrderedDict[str, _OwnerQueue] = OrderedDict()
        self._returned: deque[Chunk] = deque()
        self.items = 0  # that wait

    def add(self, batch: Batch) -> None:
        """Queues a batch behind those of its owner."""
        job = batch.job
        queue = self._owners.setdefault(job.owner, _OwnerQueue(job.weight))
        queue.weight = job.weight
        queue.batches.append(batch)
        self.items += batch.left

    def give_back(self, chunk: Chunk) -> None:
        """Queues a chunk whose worker died, ahead of everything."""
        self._returned.append(chunk)
        self.items += len(chunk)

    def take(self) -> Chunk | None:
        """Cuts the next chunk; returns None if nothing waits."""
        if self._returned:
            chunk = self._returned.popleft()
            self.items -= len(chunk)
            return chunk
        while self._owners:
            owner, queue = next(iter(self._owners.items()))
            batch = queue.batches[0]
            cost = self._cost(batch.job)
            count = _chunk_items(batch, cost)
            if queue.deficit < count * cost:
                queue.deficit += CHUNK_SECONDS * queue.weight
                self._owners.move_to_end(owner)
                if queue.deficit < count * cost and len(self._owners) == 1:
                    queue.deficit = count * cost  # no other owner waits
                continue
            queue.deficit -= count * cost
            chunk = Chunk(batch, batch.next, batch.next + count)
            batch.next += count
            self.items -= count
            if not batch.left:
                queue.batches.popleft()
                if not queue.batches:
                    del self._owners[owner]
            return chunk
        return None

    def remove(self, wanted: Callable[[Batch], bool]) -> list[Chunk]:
        """Removes all waiting items of the batches that are ``wanted``, in one pass.

        Returns them as chunks.
        """
        removed = [chunk for chunk in self._returned if wanted(chunk.batch)]
        self._returned = deque(chunk for chunk in self._returned if not wanted(chunk.batch))
        for owner, queue in list(self._owners.items()):
            kept: deque[Batch] = deque()
            for batch in queue.batches:
                if wanted(batch):
                    removed.append(Chunk(batch, batch.next, len(batch.job.inputs)))
                    batch.next = len(batch.job.inputs)
                else:
                    kept.append(batch)
            queue.batches = kept
            if not kept:
                del self._owners[owner]
        self.items -= sum(map(len, removed))
        return removed

    def waiting(self) -> Iterator[Waiting]:
        """Yields what waits, batch by batch."""
        for chunk in self._returned:
            yield Waiting(chunk.batch.job.owner, len(chunk), chunk.batch.queued_at)
        for owner, queue in self._owners.items():
            for batch in queue.batches:
                yield Waiting(owner, batch.left, batch.queued_at)


def _chunk_items(batch: Batch, cost: float) -> int:
    """Returns the items of the next chunk: at least one, at most a chunk's time and bytes."""
    wanted = max(1, min(batch.left, int(CHUNK_SECONDS / cost)))
    inputs, first = batch.job.inputs, batch.next
    hash_name = PROPERTIES[batch.job.version.algorithm].hash_name
    if len(inputs[first]) <= CHUNK_BYTES // wanted and hash_name:
        return wanted  # digests are all as short as the first
    size = 0
    for count in range(wanted):
        size += len(inputs[first + count])
        if size > CHUNK_BYTES:
            return max(1, count)
    return wanted

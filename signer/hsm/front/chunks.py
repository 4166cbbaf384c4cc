"""What workers sign: the jobs of calls, cut into portions of batches, which chunks bring together.

A job is what a call asks for. While it is signed it is a batch; a chunk is what one worker signs
at once. For the event loop.
"""

import asyncio
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from signer.algorithms import PROPERTIES, Algorithm
from signer.errors import Failure, Reason
from signer.hsm.frames import SignFrame, SignPart, pack_wrapped
from signer.model import KeyVersion

CHUNK_SECONDS = 0.006
"""HSM time of one chunk: long enough to spread its overhead, short enough to wait for."""
APPLIANCE = ""
"""The owner of what the appliance signs for itself: the checkpoints of its log."""

Kind = tuple[Algorithm, int]
"""Items that cost the same: the algorithm and the length of the public key."""


def kind_of(version: KeyVersion) -> Kind:
    """Returns the kind of the items that a version signs."""
    return version.algorithm, len(version.spki)


class SignJob(NamedTuple):
    """One batch for the HSM layer, in columns.

    ``inputs``: digests of the key's hash, or messages for EdDSA. Owners (facilities, and
    APPLIANCE) share the HSM in proportion to their ``weight``. ``check_every``: one signature
    in this many is checked with the pinned public key (1: every one). ``deadline`` is in
    monotonic seconds. ``cuts`` are the indexes, but for 0, at which the items of another call
    begin; None if the batch is one call's.
    """

    version: KeyVersion
    inputs: Sequence[bytes]
    owner: str
    weight: int
    check_every: int
    deadline: float
    cuts: Sequence[int] | None = None

    def some(self, indexes: Sequence[int]) -> "SignJob":
        """Returns a job for these items, which are in ascending order."""
        inputs = [self.inputs[index] for index in indexes]
        if self.cuts is None:
            return self._replace(inputs=inputs)
        calls = [self.call_of(index) for index in indexes]
        cuts = [at for at in range(1, len(calls)) if calls[at] != calls[at - 1]]
        return self._replace(inputs=inputs, cuts=cuts)

    def call_of(self, index: int) -> int:
        """Returns to which of the calls an item belongs."""
        return bisect_right(self.cuts or (), index)

    def calls(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Yields the parts of these items that belong to one call each."""
        for cut in self.cuts or ():
            if start < cut < stop:
                yield start, cut
                start = cut
        yield start, stop


LATE = Failure(Reason.INTERNAL, "not signed within the deadline")
"""Marks such items of a job of several calls: their calls end with DEADLINE_TOO_SHORT.

A job of one call raises that at once.
"""


class Signed(NamedTuple):
    """Raw signatures in the order of the inputs, b"" if ``failures`` has the index.

    ``attempts``: the largest number of workers that the same item was sent to, one after
    the other; 0 if nothing reached an HSM.
    """

    signatures: list[bytes]
    failures: dict[int, Failure]
    attempts: int = 1

    @property
    def late(self) -> int:
        """How many items were not signed within the deadline."""
        return sum(failure is LATE for failure in self.failures.values())

    def some(self, start: int, stop: int) -> "Signed":
        """Returns what became of these items."""
        if stop - start == len(self.signatures):
            return self
        failures: dict[int, Failure] = {}
        if self.failures:
            asked = range(start, stop)
            failures = {i - start: self.failures[i] for i in asked if i in self.failures}
        return Signed(self.signatures[start:stop], failures, self.attempts)

    @classmethod
    def all_failed(cls, job: SignJob, failure: Failure) -> "Signed":
        """Returns a batch of which every item has failed in the same way."""
        count = len(job.inputs)
        return cls([b""] * count, dict.fromkeys(range(count), failure), 0)


class Batch:
    """A job that is being signed: which items have no chunk yet, and the results so far.

    ``queued_at`` and ``begun``, when its first chunk went to a worker, are monotonic
    seconds. ``remaining`` items have neither a signature nor a failure; ``done`` gets its
    result when there are none. ``abandoned``: its caller has left. ``elsewhere``: what this
    token loses of it goes to another one; ``deaths`` workers of others died over it.
    """

    __slots__ = (
        "abandoned",
        "attempts",
        "begun",
        "deaths",
        "done",
        "elsewhere",
        "failures",
        "job",
        "kind",
        "next",
        "queued_at",
        "remaining",
        "signatures",
        "width",
    )

    def __init__(
        self,
        job: SignJob,
        queued_at: float,
        done: asyncio.Future[None],
        *,
        elsewhere: bool = False,
        deaths: int = 0,
    ) -> None:
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
        self.elsewhere = elsewhere
        self.deaths = deaths

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

    def by_call(self) -> "Iterator[Portion]":
        """Yields a portion for each call that has items in this one."""
        for start, stop in self.batch.job.calls(self.start, self.stop):
            yield Portion(self.batch, start, stop)


class Part:
    """Portions that one version signs, one after the other in a chunk: one part of a frame."""

    __slots__ = ("check_every", "items", "portions", "version")

    def __init__(self, first: Portion) -> None:
        self.version: KeyVersion = first.batch.job.version
        self.check_every = first.batch.job.check_every
        self.portions = [first]
        self.items = len(first)

    def size(self) -> int:
        """Returns the size of its inputs; 0 of digests, whose length does not matter."""
        if PROPERTIES[self.version.algorithm].hash_name:
            return 0
        return sum(portion.batch.size(portion.start, portion.stop) for portion in self.portions)

    def packed(self, token: str) -> SignPart:
        """Returns the part for a frame to a worker of this token."""
        inputs: list[bytes] = []
        for portion in self.portions:
            inputs += portion.batch.job.inputs[portion.start : portion.stop]
        version = self.version
        cka_id = version.cka_id_on(token) or version.cka_id
        wrapped = pack_wrapped(version.wrapped)
        return SignPart(version.algorithm, self.check_every, cka_id, version.spki, inputs, wrapped)


class Chunk:
    """What one worker signs at once.

    ``attempts`` counts the workers that lost it, ``deaths`` those that died over it.
    ``delivered``: a worker has got it. ``seconds``: the HSM time that it takes, about.
    """

    __slots__ = ("attempts", "deaths", "delivered", "items", "parts", "portions", "seconds")

    def __init__(
        self, portions: Iterable[Portion] = (), attempts: int = 0, deaths: int = 0
    ) -> None:
        self.portions = list(portions)
        self.items = sum(map(len, self.portions))
        self.parts: list[Part] = []  # once it has gone to a worker
        self.attempts = attempts
        self.deaths = deaths
        self.delivered = False
        self.seconds = 0.0

    def add(self, batch: Batch, start: int, stop: int) -> None:
        """Adds a portion, or to the last one where that ends here."""
        self.items += stop - start
        if self.portions and (last := self.portions[-1]).batch is batch and last.stop == start:
            last.stop = stop
        else:
            self.portions.append(Portion(batch, start, stop))

    def frame(self, number: int, token: str) -> SignFrame:
        """Returns the frame under this number for a token; ``parts`` are what it has from now."""
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
        return SignFrame(number, [part.packed(token) for part in parts])

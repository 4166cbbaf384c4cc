"""A caller's batch and what has come back of it. Its pool's lock guards it."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from signer.errors import Failure
from signer.hsm.frames import SignFrame, pack_sign
from signer.hsm.front.failures import WRONG
from signer.hsm.front.scheduler import Chunk, Pending
from signer.model import Signed, SignJob


class Batch:
    """A job under way: ``remaining`` items have neither a signature nor a failure yet."""

    def __init__(self, job: SignJob, now: float) -> None:
        """Takes ``now`` in monotonic seconds."""
        count = len(job.inputs)
        self.pending = Pending(job, now)
        self.signed = Signed([b""] * count, {})
        self.attempts = 0
        self.begun = 0.0  # when its first chunk went to a worker, in monotonic seconds
        self.remaining = count
        self.done = threading.Event()

    def fail(self, chunk: Chunk, failure: Failure) -> None:
        """Gives every item of a chunk this failure."""
        self.signed.failures.update(dict.fromkeys(range(chunk.start, chunk.stop), failure))
        self.remaining -= len(chunk)

    def store(self, chunk: Chunk, signatures: Sequence[bytes], wrong: Sequence[int]) -> None:
        """Takes a chunk's signatures, but those at the indexes in ``wrong``."""
        self.signed.signatures[chunk.start : chunk.stop] = signatures
        for index in wrong:
            self.signed.signatures[chunk.start + index] = b""
            self.signed.failures[chunk.start + index] = WRONG
        self.remaining -= len(chunk)


def pack_chunk(number: int, chunk: Chunk) -> tuple[bytes, ...]:
    """Packs a chunk for a worker, which answers under this number."""
    job = chunk.pending.job
    version, inputs = job.version, job.inputs[chunk.start : chunk.stop]
    frame = SignFrame(
        number, version.algorithm, job.check_every, version.cka_id, version.spki, inputs
    )
    return pack_sign(frame)

"""The heartbeat, by which the front process sees that a worker goes on."""

import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager

_COUNTER_BYTES = 8


class Heartbeat:
    """A counter in shared memory that a worker raises between the calls of its module.

    PKCS#11 has no time-outs. If the counter does not move while the worker has work, one call
    does not return, however many calls the work takes.
    """

    def __init__(self, descriptor: int) -> None:
        """Maps the counter of an open file; the descriptor may be closed afterwards."""
        self.counter = memoryview(mmap.mmap(descriptor, _COUNTER_BYTES)).cast("Q")

    def beat(self) -> None:
        """Shows that a call has returned, or that there is another reason to wait."""
        self.counter[0] += 1

    @property
    def count(self) -> int:
        return self.counter[0]


@contextmanager
def shared_counter() -> Iterator[int]:
    """Yields the descriptor of a new counter, which a worker inherits in the block."""
    descriptor = os.memfd_create("signer-heartbeat")
    try:
        os.ftruncate(descriptor, _COUNTER_BYTES)
        yield descriptor
    finally:
        os.close(descriptor)

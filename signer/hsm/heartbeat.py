"""How the front process sees that a worker goes on: a counter in shared memory.

PKCS#11 has no time-outs. A worker raises the counter between the calls of its module. A
counter that does not move while the worker has work shows that one call does not return,
however many calls the work takes.
"""

import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager

_SIZE = 8


class Heartbeat:
    """One counter, mapped by the worker, which raises it, and by the front process."""

    def __init__(self, descriptor: int) -> None:
        """Maps the counter of an open file; the descriptor may be closed afterwards."""
        self.counter = memoryview(mmap.mmap(descriptor, _SIZE)).cast("Q")

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
        os.ftruncate(descriptor, _SIZE)
        yield descriptor
    finally:
        os.close(descriptor)

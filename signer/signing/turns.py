"""Who computes next on the event loop: slices of about a millisecond, principals in turn.

A batch of thousands of payloads is read, prepared and finished in slices. Between two slices
the loop serves what came meanwhile, and other principals have their turn: one client's large
or bad batches delay another's single item by slices, not by batches. For the event loop only.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from typing import TypeVar

from signer.clock import Clock

T = TypeVar("T")

SLICE_SECONDS = 0.001
SHARED_SECONDS = 0.00025
"""A slice while several principals have calls: a single call passes some twenty rounds of the
loop, and may meet another's slice in each."""
SHARED_FOR = 1.0
"""Seconds after a change of the principal for which slices are short."""
FIRST_ITEMS, MOST_ITEMS = 8, 64
"""Payloads of the first and of the largest part: the clock is read after each part."""
SMALL_SECONDS = SLICE_SECONDS / 8
"""What a call with up to FIRST_ITEMS payloads computes before it waits for others, about: so
several that wait go on in the same round, and share what follows (a commit, a frame)."""
PART_BYTES = 64 * 1024
"""The bytes of a part's payloads, unless one alone is longer."""


_Waiter = tuple[asyncio.Future[None], float]
"""One that waits for its turn, and the seconds that it will compute, about."""


class Turns:
    """Gives slices of the loop's time to principals in turn."""

    def __init__(self, clock: Clock) -> None:
        self._monotonic = clock.monotonic
        self._until = 0.0  # the end of the present slice
        self._latest, self._shared_until = "", 0.0
        self._fresh = True  # whether nothing has computed in this round of the loop
        self._waiting: OrderedDict[str, deque[_Waiter]] = OrderedDict()

    async def begin(self, principal: str, items: int = MOST_ITEMS) -> None:
        """Returns when a call with so many payloads may compute: mostly at once."""
        if self._fresh:
            self._fresh = False
            asyncio.get_running_loop().call_soon(self._round)
            if not self._waiting:
                self._until = self._end_of_slice(principal)
        if self._waiting or self._monotonic() >= self._until:
            waiter = asyncio.get_running_loop().create_future()
            seconds = SMALL_SECONDS if items <= FIRST_ITEMS else SLICE_SECONDS
            self._waiting.setdefault(principal, deque()).append((waiter, seconds))
            await waiter

    async def next(self, principal: str) -> None:
        """Returns at once while the present slice lasts, else in this principal's next turn."""
        if self._monotonic() >= self._until:
            await self.begin(principal)

    def _round(self) -> None:
        """Begins a round: the principals that wait for the longest time share a slice."""
        self._fresh, left = True, 0.0
        while self._waiting and (self._fresh or left > 0):
            principal, waiters = next(iter(self._waiting.items()))
            waiter, seconds = waiters.popleft()
            if waiters:
                self._waiting.move_to_end(principal)
            else:
                del self._waiting[principal]
            if waiter.done():  # its call was cancelled
                continue
            if self._fresh:
                self._fresh = False
                self._until = self._end_of_slice(principal)
                left = self._until - self._monotonic()
            left -= seconds
            waiter.set_result(None)
        if not self._fresh:  # behind those that compute now, or they would begin two slices
            asyncio.get_running_loop().call_soon(self._round)

    def _end_of_slice(self, principal: str) -> float:
        now = self._monotonic()
        if principal != self._latest:
            self._latest, self._shared_until = principal, now + SHARED_FOR
        return now + (SHARED_SECONDS if now < self._shared_until else SLICE_SECONDS)

    async def each(
        self, principal: str, items: Sequence[bytes], compute: Callable[[int, int], T]
    ) -> list[T]:
        """Calls ``compute(start, stop)`` for consecutive parts of the items.

        Parts are as large as a fraction of a slice allows, by what the part before took. Returns
        the results in their order.
        """
        if len(items) == 1:
            return [compute(0, 1)]
        results: list[T] = []
        start, size = 0, FIRST_ITEMS
        while start < len(items):
            began = self._monotonic()
            if start and began >= self._until:
                await self.begin(principal)
                began = self._monotonic()
            stop = _end(items, start, size)
            results.append(compute(start, stop))
            took = self._monotonic() - began
            if took < SLICE_SECONDS / 4:
                size = min(2 * size, MOST_ITEMS)
            elif took > SLICE_SECONDS / 2:
                size = max(1, size // 4)
            start = stop
        return results


def _end(items: Sequence[bytes], start: int, size: int) -> int:
    """Returns where a part of up to ``size`` items ends: one item, or PART_BYTES at most."""
    stop = min(start + size, len(items))
    while stop > start + 1 and sum(map(len, items[start:stop])) > PART_BYTES:
        stop = start + (stop - start) // 2
    return stop

"""Threads for the calls that may wait or compute for long: keys, operations, evidence, control."""

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import TypeVar

T = TypeVar("T")

THREADS = 16
THREADS_OF_ONE = 4
"""Threads that one principal's calls may hold; its others wait, and those of others do not."""


class Threads:
    """Runs calls in threads, a few of each principal at once. For the event loop only."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(THREADS, "call")
        self._running: Counter[str] = Counter()
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    async def run(self, principal: str, function: Callable[[], T]) -> T:
        """Returns what the function returns in a thread, or raises what it raises.

        A call that is cancelled while its thread works ends with its thread.
        """
        work = await self._begin(principal, function)
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            await asyncio.wait((work,))
            raise

    async def run_for(self, seconds: float, principal: str, function: Callable[[], T]) -> T:
        """Returns or raises the same; raises TimeoutError after ``seconds``.

        The thread, which cannot be stopped, then still counts until it has ended.
        """
        async with asyncio.timeout(seconds):
            return await asyncio.shield(await self._begin(principal, function))

    async def _begin(self, principal: str, function: Callable[[], T]) -> "asyncio.Future[T]":
        """Begins the function in a thread, once the principal may have one more."""
        loop = asyncio.get_running_loop()
        while self._running[principal] >= THREADS_OF_ONE:
            waiter = loop.create_future()
            self._waiting.setdefault(principal, deque()).append(waiter)
            try:
                await waiter
            except asyncio.CancelledError:
                self._wake(principal)  # this call may have been woken: another goes on instead
                raise
        self._running[principal] += 1
        work = loop.run_in_executor(self._pool, copy_context().run, function)
        work.add_done_callback(partial(self._ended, principal))
        return work

    def _ended(self, principal: str, work: "asyncio.Future[T]") -> None:
        if not work.cancelled():
            work.exception()  # which nobody may be waiting for any more
        self._running[principal] -= 1
        self._wake(principal)

    def _wake(self, principal: str) -> None:
        waiters = self._waiting.get(principal)
        while waiters:
            waiter = waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                break
        if not waiters:
            self._waiting.pop(principal, None)
            if not self._running[principal]:
                del self._running[principal]

    def close(self) -> None:
        """Ends the threads that do not work; the others end with their calls."""
        self._pool.shutdown(wait=False, cancel_futures=True)

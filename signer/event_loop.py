"""The event loop of the front process: one loop, in one thread; who computes on it, and beside it.

What runs on it never waits and never computes for much longer than a millisecond: everything
that could (SQL, files, other processes) runs in threads. Values that belong to the loop are
changed only there; other threads use ``call``.

A batch of thousands of payloads is read, prepared and finished in slices. Between two slices
the loop serves what came meanwhile, and other principals have their turn: one client's large
or bad batches delay another's single item by slices, not by batches. A payload that takes longer
than a slice cannot be cut: its principal then rests as long as it took, so that others pass all
rounds that they need. So does one whose payloads fail.
"""

import asyncio
import threading
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from typing import Any, ParamSpec, TypeVar

import uvloop

P = ParamSpec("P")
T = TypeVar("T")

GATHER_ROUNDS = 4
"""The most rounds for which an item waits for others."""
GATHER_ITEMS = 16
"""What is worth a commit or a frame of its own, and waits for nothing."""

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

THREADS = 16
THREADS_OF_ONE = 4
"""Threads that one principal's calls may hold; its others wait, and those of others do not."""

_Waiter = tuple[asyncio.Future[None], float]
"""One that waits for its turn, and the seconds that it will compute, about."""


class EventLoop:
    """Runs an event loop in a daemon thread until it is closed."""

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="event-loop", daemon=True)
        self._thread.start()

    @property
    def here(self) -> bool:
        """Whether the present thread is the loop's own."""
        return threading.current_thread() is self._thread

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Calls a function on the loop and returns its result, or raises what it raises.

        Waits for it, except on the loop itself, where this is a plain call. If the loop
        has ended, the function is called in the present thread: nothing else uses its values.
        """
        if self.here or not self._thread.is_alive():
            return function(*args, **kwargs)
        done = Future[T]()

        def run() -> None:
            try:
                done.set_result(function(*args, **kwargs))
            except BaseException as error:  # noqa: BLE001 - raised in the waiting thread
                done.set_exception(error)

        self.loop.call_soon_threadsafe(run)
        return done.result()

    def soon(self, function: Callable[P, object], *args: P.args, **_: P.kwargs) -> None:
        """Calls a function on the loop in its next round; does not wait. From any thread."""
        if self._thread.is_alive():
            with suppress(RuntimeError):  # it has ended meanwhile
                self.loop.call_soon_threadsafe(function, *args)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine on the loop and waits for its result; not for the loop itself."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result()

    def close(self) -> None:
        """Ends the loop; coroutines that are left on it are cancelled first."""
        if self._thread.is_alive():
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
            tasks = asyncio.all_tasks(self.loop)
            for task in tasks:
                task.cancel()
            if tasks:
                self.loop.run_until_complete(asyncio.wait(tasks, timeout=1.0))
        finally:
            self.loop.close()


class Gatherer:
    """Calls a function once for all that comes together; for the loop.

    That is what comes in one round of the loop, and in the next ones as long as each brings
    more: a commit of the log or a frame to a worker costs the same for one item as for many.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, count: Callable[[], int], act: Callable[[], object]
    ) -> None:
        """``count`` returns how much has come since ``act`` was called."""
        self._loop, self._count, self._act = loop, count, act
        self._seen = self._rounds = 0
        self._waiting = self._several = False

    def soon(self) -> None:
        """Calls the function soon, if that is not about to happen."""
        if not self._waiting:
            self._waiting = True
            self._loop.call_soon(self._look)

    def _look(self) -> None:
        count = self._count()
        more = self._seen < count < GATHER_ITEMS and (count > 1 or self._several)
        if more and self._rounds < GATHER_ROUNDS:
            self._seen, self._rounds = count, self._rounds + 1
            self._loop.call_soon(self._look)
            return
        self._several = count > 1  # one that comes alone does not wait
        self._seen = self._rounds = 0
        self._waiting = False
        self._act()


class Turns:
    """Gives slices of the loop's time to principals in turn."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._until = 0.0  # the end of the present slice
        self._latest, self._shared_until = "", 0.0
        self._length = SLICE_SECONDS  # of the present slice
        self._rests: dict[str, float] = {}  # until when principals do not compute
        self._fresh = True  # whether nothing has computed in this round of the loop
        self._waiting: OrderedDict[str, deque[_Waiter]] = OrderedDict()

    def others_wait(self, principal: str) -> bool:
        """Returns whether calls of other principals wait for their turns."""
        return len(self._waiting) > (principal in self._waiting)

    async def begin(self, principal: str, items: int = MOST_ITEMS) -> None:
        """Returns when a call with so many payloads may compute: mostly at once."""
        while (rest := self._rests.get(principal, 0.0) - self._monotonic()) > 0:  # noqa: ASYNC110 - a time
            await asyncio.sleep(rest)
        self._rests.pop(principal, None)
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
        self._length = SHARED_SECONDS if now < self._shared_until else SLICE_SECONDS
        return now + self._length

    def _took(self, principal: str, began: float, *, wasted: bool) -> float:
        """Returns how long a part took; a long or wasted one makes its principal rest."""
        now = self._monotonic()
        took = now - began
        if (wasted or took > SLICE_SECONDS) and now < self._shared_until:
            self._rests[principal] = max(now, self._rests.get(principal, 0.0)) + took
        return took

    async def each(
        self,
        principal: str,
        items: Sequence[bytes],
        compute: Callable[[int, int], T],
        wasted: Callable[[T], bool] = lambda _: False,
        part_bytes: int = PART_BYTES,
    ) -> list[T]:
        """Calls ``compute(start, stop)`` for consecutive parts of the items.

        Parts are as large as a fraction of a slice allows, by what the part before took, and have
        ``part_bytes`` at most.
        ``wasted`` is called with a result: whether the part came to nothing. Returns the results
        in their order.
        """
        if len(items) == 1:
            began = self._monotonic()
            result = compute(0, 1)
            self._took(principal, began, wasted=wasted(result))
            return [result]
        results: list[T] = []
        start, size = 0, FIRST_ITEMS
        while start < len(items):
            began = self._monotonic()
            if start and began >= self._until:
                await self.begin(principal)
                began = self._monotonic()
            stop = _end(items, start, size, part_bytes)
            result = compute(start, stop)
            results.append(result)
            took = self._took(principal, began, wasted=wasted(result))
            if took < self._length / 4:
                size = min(2 * size, MOST_ITEMS)
            elif took > self._length / 2:
                size = max(1, size // 4)
            start = stop
        return results


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
            work.exception()  # whose caller may have left
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


def _end(items: Sequence[bytes], start: int, size: int, part_bytes: int) -> int:
    """Returns where a part of up to ``size`` items ends: one item, or ``part_bytes`` at most."""
    stop = min(start + size, len(items))
    while stop > start + 1 and sum(map(len, items[start:stop])) > part_bytes:
        stop = start + (stop - start) // 2
    return stop


async def in_thread(name: str, function: Callable[[], T]) -> T:
    """Calls a function in a thread of its own, which does not keep the process from ending."""
    loop = asyncio.get_running_loop()
    result: asyncio.Future[T] = loop.create_future()

    def settle(value: T | None, error: Exception | None) -> None:
        if result.done():
            return
        if error is not None:
            result.set_exception(error)
        else:
            result.set_result(value)  # type: ignore[arg-type] # a value, where there is no error

    def run() -> None:
        try:
            value, problem = function(), None
        except Exception as error:  # noqa: BLE001 - raised where the result is awaited
            value, problem = None, error
        with suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(settle, value, problem)

    threading.Thread(target=run, name=name, daemon=True).start()
    return await result

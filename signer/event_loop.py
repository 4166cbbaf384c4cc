"""The event loop of the front process: one loop, in one thread.

What runs on it never waits and never computes for much longer than a millisecond: everything
that could (SQL, files, other processes) runs in threads. Values that belong to the loop are
changed only there; other threads use ``call``.
"""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, ParamSpec, TypeVar

import uvloop

P = ParamSpec("P")
T = TypeVar("T")


GATHER_ROUNDS = 4
"""Rounds for which what has come waits at most for more."""
GATHER_ITEMS = 16
"""What is worth a commit or a frame of its own, and waits for nothing."""


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

        Waits for it, except on the loop itself, where this is a plain call. Where the loop
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

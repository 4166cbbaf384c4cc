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

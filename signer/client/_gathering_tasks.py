"""Drives a ``Gathering`` on an event loop: callers are tasks."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

from signer.client._cutting import fits, too_large
from signer.client._errors import SignerClientError, for_each, late
from signer.client._gathering import Gathering, Next, Parcel, Result, Single
from signer.client._pipeline import AwaitedCall, deadline_of, read_answer, request_of
from signer.model import Format


class TaskGathering:
    """One key and format. ``limit`` finds out how many items the policy allows, or raises."""

    def __init__(
        self,
        call: AwaitedCall,
        limit: Callable[[], Awaitable[int]],
        key: str,
        message_format: Format,
        calls: int,
    ) -> None:
        self._call, self._limit, self._key, self._format = call, limit, key, message_format
        self._core = Gathering(message_format, calls=calls)
        self._loop = asyncio.get_running_loop()
        self._flush_planned = False
        self._tasks: dict[Parcel | None, asyncio.Task[None]] = {}

    async def sign(self, payload: bytes, timeout: float) -> bytes:
        """Returns the signature. Raises ItemError, SignerClientError."""
        if not fits(len(payload), self._format):
            raise too_large(len(payload))
        taker: asyncio.Future[bytes] = self._loop.create_future()
        item = Single(payload, deadline_of(timeout), taker)
        timer = self._loop.call_later(item.deadline - time.monotonic(), self._late, item, timeout)
        self._core.add(item)
        if not self._flush_planned:  # what other tasks add in this turn of the loop goes along
            self._flush_planned = True
            self._loop.call_soon(self._flush)
        try:
            return await taker
        finally:
            timer.cancel()
            if not item.over:  # the task was cancelled
                self._leave(item)

    def close(self, error: Exception) -> None:
        """Ends everything that waits with an error."""
        self._give(self._core.close(error))
        for task in self._tasks.values():
            task.cancel()

    def _late(self, item: Single, timeout: float) -> None:
        self._leave(item)
        self._give([(item, late(timeout))])

    def _leave(self, item: Single) -> None:
        abandoned = self._core.leave(item)
        if abandoned is not None:
            self._tasks[abandoned].cancel()

    def _flush(self) -> None:
        self._flush_planned = False
        while parcel := self._core.due():
            self._tasks[parcel] = self._loop.create_task(self._deliver(parcel))
        if self._core.asks_limit():
            self._tasks[None] = self._loop.create_task(self._ask_limit())

    async def _ask_limit(self) -> None:
        allowed = 0
        try:
            allowed = await self._limit()
        except SignerClientError:
            pass  # the items get errors of their own
        finally:
            del self._tasks[None]
        self._core.limit_known(allowed)
        self._flush()

    async def _deliver(self, parcel: Parcel) -> None:
        try:
            while True:
                then = await self._attempt(parcel)
                self._give(then.results)
                if then.again is None:
                    break
                await asyncio.sleep(then.again)
        except asyncio.CancelledError:
            self._core.left(parcel)
            raise
        finally:
            del self._tasks[parcel]
            self._flush()

    async def _attempt(self, parcel: Parcel) -> Next:
        try:
            request = request_of(self._key, self._format, parcel.payloads, parcel.request_id)
            response = await self._call(request, max(0.0, parcel.deadline - time.monotonic()))
            answer = read_answer(response, len(parcel.items))
        except Exception as error:  # noqa: BLE001 - whatever it is, its callers get it
            return self._core.failed(parcel, error, time.monotonic())
        return self._core.answered(parcel, answer, time.monotonic())

    @staticmethod
    def _give(results: Sequence[tuple[Single, Result]]) -> None:
        for item, result in results:
            taker = item.taker
            assert isinstance(taker, asyncio.Future)  # noqa: S101 - of ``sign``
            if taker.done():  # cancelled in this turn of the loop
                continue
            if isinstance(result, bytes):
                taker.set_result(result)
            else:
                taker.set_exception(for_each(result))

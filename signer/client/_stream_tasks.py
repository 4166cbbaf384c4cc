"""``AsyncSignerClient.stream``: single items over one connection, from any number of tasks."""

import asyncio
from typing import Any, Self

import grpc

from signer.client._calls import retry_awaited
from signer.client._errors import SignerClientError, closed, ended, for_each, from_rpc_error, late
from signer.client._exchanges import DEFAULT_TIMEOUT
from signer.client._streams import WITHOUT_ANSWER, Streamed
from signer.model import Format
from signer.v1.signing_pb2 import SignStreamResponse

_CLOSE_SECONDS = 5.0  # for the appliance's part of a stream's end

_Answer = asyncio.Future[SignStreamResponse]


class _OneTaskStream:
    """One SignStream call: one task sends, one takes answers.

    Every request that was put on it gets an answer or the error of its end, once.
    """

    def __init__(self, method: Any) -> None:
        self._answers: dict[int, _Answer] = {}
        self._next_tag = 1
        self._end: Exception | None = None
        self._closing = False
        self._outbox: asyncio.Queue[tuple[int, Streamed] | None] = asyncio.Queue()
        self._call = method()
        self._sending = asyncio.create_task(self._send())
        self._taking = asyncio.create_task(self._take())

    @property
    def alive(self) -> bool:
        """Whether it takes requests."""
        return self._end is None

    async def exchange(self, item: Streamed) -> bytes:
        """Sends one item and waits for its signature. Raises SignerClientError."""
        if self._end is not None:
            raise for_each(self._end)
        loop = asyncio.get_running_loop()
        tag, answer = self._next_tag, loop.create_future()
        self._next_tag += 1
        self._answers[tag] = answer
        self._outbox.put_nowait((tag, item))
        timer = loop.call_later(item.left, _fail, answer, late(item.timeout))
        try:
            return item.signature(await answer)
        finally:
            timer.cancel()
            item.over = self._answers.pop(tag, None) is not None

    async def close(self, *, wait: bool) -> None:
        """Stops sending; with ``wait`` takes the answers to what was sent."""
        self._closing = True
        self._outbox.put_nowait(None)
        if wait:
            await asyncio.wait([self._taking], timeout=_CLOSE_SECONDS)
        self._call.cancel()
        await asyncio.wait([self._taking, self._sending], timeout=_CLOSE_SECONDS)

    async def _send(self) -> None:
        try:
            while (queued := await self._outbox.get()) is not None:
                tag, item = queued
                if not item.over:
                    await self._call.write(item.request(tag))
            await self._call.done_writing()
        except (grpc.RpcError, asyncio.InvalidStateError, asyncio.CancelledError):
            return  # the call has ended; the other task knows why

    async def _take(self) -> None:
        end: Exception = ended(WITHOUT_ANSWER)
        try:
            async for response in self._call:
                answer = self._answers.pop(response.tag, None)
                if answer is not None and not answer.done():
                    answer.set_result(response)
        except grpc.aio.AioRpcError as error:
            # Where the end overtakes a write, gRPC reports the write, without what came.
            overtaken = error.code() is grpc.StatusCode.INTERNAL and not error.trailing_metadata()
            end = ended(WITHOUT_ANSWER) if overtaken else from_rpc_error(error)
        except asyncio.CancelledError as error:  # the call was cancelled, or the channel closed
            end = closed(error)
        except Exception as error:  # noqa: BLE001 - whatever it is, its callers get it
            end = error
        self._end = end
        answers, self._answers = [*self._answers.values()], {}
        for answer in answers:
            _fail(answer, for_each(end))
        self._outbox.put_nowait(None)
        self._sending.cancel()


def _fail(answer: _Answer, error: Exception) -> None:
    if not answer.done():
        answer.set_exception(error)


class AsyncSignerStream:
    """Signs single items over one connection; an async context manager, for many tasks.

    Items are sent as they come and answered as they are ready. A stream that ends early, as
    when the appliance is restarted, is replaced, and what it did not answer is sent again
    under the same request ids.
    """

    def __init__(self, method: Any, key: str, message_format: Format) -> None:
        self._method, self._key, self._format = method, key, message_format
        self._stream: _OneTaskStream | None = None
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: object, *_: object) -> None:
        await self.close(wait=kind is None)

    async def close(self, *, wait: bool = True) -> None:
        """Ends the stream.

        With ``wait``, what is on its way is waited for, at most 5 s; what is not answered
        fails with the reason ``CLOSED``.
        """
        self._closed = True
        stream, self._stream = self._stream, None
        if stream is not None:
            await stream.close(wait=wait)

    async def sign(self, payload: bytes, *, timeout: float = DEFAULT_TIMEOUT) -> bytes:
        """Signs one payload and returns its signature; as ``SignerStream.sign``.

        A task that is cancelled leaves its item unsent, or its answer unread.
        """
        item = Streamed(self._key, self._format, payload, timeout)
        return await retry_awaited(lambda: self._attempt(item), timeout)

    async def _attempt(self, item: Streamed) -> bytes:
        item.over = False
        if self._closed:
            raise closed(ValueError("the stream was closed"))
        if self._stream is None or not self._stream.alive:
            try:
                self._stream = _OneTaskStream(self._method)
            except grpc.aio.UsageError as error:
                raise closed(error) from error
        try:
            return await self._stream.exchange(item)
        except SignerClientError as error:
            if self._closed and error.retryable:
                raise closed(error) from error
            raise

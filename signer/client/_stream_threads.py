"""``SignerClient.stream``: single items over one connection, from any number of threads."""

import threading
from collections.abc import Iterator
from queue import SimpleQueue
from typing import Any, Self

import grpc

from signer.client._calls import retry
from signer.client._errors import SignerClientError, closed, ended, for_each, from_rpc_error, late
from signer.client._exchanges import DEFAULT_TIMEOUT
from signer.client._gathering_threads import Awaited
from signer.client._streams import WITHOUT_ANSWER, Streamed
from signer.model import Format
from signer.v1.signing_pb2 import SignStreamRequest

_CLOSE_SECONDS = 5.0  # for the appliance's part of a stream's end


class _OneStream:
    """One SignStream call: a thread of gRPC sends, one of ours takes answers.

    Every request that was put on it gets an answer or the error of its end, once.
    """

    def __init__(self, method: Any) -> None:
        self._lock = threading.Lock()
        self._places: dict[int, Awaited] = {}
        self._next_tag = 1
        self._end: Exception | None = None
        self._outbox: SimpleQueue[tuple[int, Streamed] | None] = SimpleQueue()
        self._call = method(self._requests())
        self._thread = threading.Thread(target=self._take, name="signer-stream", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether it takes requests."""
        return self._end is None

    def exchange(self, item: Streamed) -> bytes:
        """Sends one item and waits for its signature. Raises SignerClientError."""
        place = Awaited()
        with self._lock:
            if self._end is not None:
                raise for_each(self._end)
            tag = self._next_tag
            self._next_tag += 1
            self._places[tag] = place
        self._outbox.put((tag, item))
        try:
            answered = place.wait(item.left)
        finally:
            with self._lock:
                unanswered = self._places.pop(tag, None)
                item.over = unanswered is not None
        if not answered and unanswered is not None:
            raise late(item.timeout)
        if isinstance(place.result, Exception):
            raise for_each(place.result)
        return item.signature(place.result)

    def close(self, *, wait: bool) -> None:
        """Stops sending; with ``wait`` takes the answers to what was sent."""
        self._outbox.put(None)
        if wait:
            self._thread.join(_CLOSE_SECONDS)
        self._call.cancel()
        self._thread.join(_CLOSE_SECONDS)

    def _requests(self) -> Iterator[SignStreamRequest]:
        while (queued := self._outbox.get()) is not None:
            tag, item = queued
            if not item.over:
                yield item.request(tag)

    def _take(self) -> None:
        end: Exception = ended(WITHOUT_ANSWER)
        try:
            for response in self._call:
                with self._lock:
                    place = self._places.pop(response.tag, None)
                    if place is not None:
                        place.give(response)
        except grpc.RpcError as error:
            end = from_rpc_error(error)
        except Exception as error:  # noqa: BLE001 - whatever it is, its callers get it
            end = error
        with self._lock:
            self._end = end
            places, self._places = [*self._places.values()], {}
            for place in places:
                place.give(end)
        self._outbox.put(None)


class SignerStream:
    """Signs single items over one connection; a context manager, safe to share by threads.

    Items are sent as they come and answered as they are ready. A stream that ends early, as
    when the appliance is restarted, is replaced, and what it did not answer is sent again
    under the same request ids.
    """

    def __init__(self, method: Any, key: str, message_format: Format) -> None:
        self._method, self._key, self._format = method, key, message_format
        self._lock = threading.Lock()
        self._stream: _OneStream | None = None
        self._stop = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.close(wait=kind is None)

    def close(self, *, wait: bool = True) -> None:
        """Ends the stream.

        With ``wait``, what is on its way is waited for, at most 5 s; what is not answered
        fails with the reason ``CLOSED``.
        """
        self._stop.set()
        with self._lock:
            stream, self._stream = self._stream, None
        if stream is not None:
            stream.close(wait=wait)

    def sign(self, payload: bytes, *, timeout: float = DEFAULT_TIMEOUT) -> bytes:
        """Signs one payload and returns its signature, the finished output of the format.

        ``timeout`` is in seconds and bounds all attempts; failures that may pass are
        repeated within it, no sooner than the appliance says. Raises ItemError for a payload
        that is refused, DeadlineError when the time is over, another SignerClientError if
        the request fails for a reason that is not the payload's.
        """
        item = Streamed(self._key, self._format, payload, timeout)
        return retry(lambda: self._attempt(item), timeout, stop=self._stop)

    def _attempt(self, item: Streamed) -> bytes:
        item.over = False
        stream = self._open()
        try:
            return stream.exchange(item)
        except SignerClientError as error:
            if self._stop.is_set() and error.retryable:
                raise closed(error) from error
            raise

    def _open(self) -> _OneStream:
        with self._lock:
            if self._stop.is_set():
                raise closed(ValueError("the stream was closed"))
            if self._stream is None or not self._stream.alive:
                try:
                    self._stream = _OneStream(self._method)
                except ValueError as error:  # gRPC's way to say that the channel was closed
                    raise closed(error) from error
            return self._stream

"""Drives a ``Gathering`` for callers that are threads.

No thread of its own: who adds an item sends what is due, and so does gRPC's thread that
brings an answer.
"""

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from contextvars import copy_context
from functools import partial
from typing import Any

import grpc

from signer.client._calls import traced
from signer.client._cutting import fits, too_large
from signer.client._errors import closed, ended, for_each, from_rpc_error, late
from signer.client._gathering import Gathering, Parcel, Result, Single
from signer.client._pipeline import deadline_of, read_answer, request_of
from signer.model import Format

Begin = Callable[..., Any]
"""Begins a call: request, timeout and metadata to a grpc.Future, as ``stub.method.future``."""


class Awaited:
    """Where a thread waits for one result."""

    __slots__ = ("_full", "result")

    def __init__(self) -> None:
        self._full = threading.Lock()
        self._full.acquire()
        self.result: Any = None

    def give(self, result: Any) -> None:
        """Gives the result; once."""
        self.result = result
        self._full.release()

    def wait(self, timeout: float) -> bool:
        """Waits at most ``timeout`` seconds; returns whether there is a result."""
        return self._full.acquire(timeout=min(max(timeout, 0.0), threading.TIMEOUT_MAX))


class ThreadGathering:
    """One key and format. ``limit`` finds out how many items the policy allows, and calls back."""

    def __init__(
        self,
        begin: Begin,
        limit: Callable[[Callable[[int], None]], None],
        key: str,
        message_format: Format,
        calls: int,
    ) -> None:
        self._begin, self._limit, self._key, self._format = begin, limit, key, message_format
        self._core = Gathering(message_format, calls=calls)
        self._lock = threading.Lock()  # of the core, and of what is below
        self._under_way: dict[Parcel, Any] = {}  # calls, and timers of pauses
        self._closed: Exception | None = None

    def sign(self, payload: bytes, timeout: float) -> bytes:
        """Returns the signature. Raises ItemError, SignerClientError."""
        if not fits(len(payload), self._format):
            raise too_large(len(payload))
        place = Awaited()
        item = Single(payload, deadline_of(timeout), place)
        with self._lock:
            if self._closed is not None:
                raise for_each(self._closed)
            self._core.add(item)
        try:
            self._flush()
            answered = place.wait(item.deadline - time.monotonic())
        except BaseException:  # KeyboardInterrupt, and the like
            self._leave(item)
            raise
        if not answered:
            self._leave(item)
            if not place.wait(0):  # nor in the meantime
                raise late(timeout)
        if isinstance(place.result, bytes):
            return place.result
        raise for_each(place.result)

    def close(self, error: Exception) -> None:
        """Ends everything that waits with an error; the channel's end ends the calls."""
        with self._lock:
            self._closed = error
            results = self._core.close(error)
            timers = [one for one in self._under_way.values() if isinstance(one, threading.Timer)]
        self._give(results)
        for timer in timers:
            timer.cancel()

    def _leave(self, item: Single) -> None:
        with self._lock:
            abandoned = self._core.leave(item)
            under_way = self._under_way.get(abandoned) if abandoned is not None else None
            if abandoned is not None and isinstance(under_way, threading.Timer):
                self._core.left(abandoned)
                del self._under_way[abandoned]
        if under_way is not None:
            under_way.cancel()  # a call then ends, and is taken, as failed
            if isinstance(under_way, threading.Timer):
                self._flush()

    def _flush(self) -> None:
        while True:
            with self._lock:
                parcel = self._core.due()
                asks = parcel is None and self._core.asks_limit()
            if asks:
                self._limit(self._limit_known)
            if parcel is None:
                return
            self._send(parcel)

    def _limit_known(self, allowed: int) -> None:
        with self._lock:
            self._core.limit_known(allowed)
        self._flush()

    def _send(self, parcel: Parcel) -> None:
        """Begins a call; what cannot begin has failed."""
        stack, context = ExitStack(), copy_context()
        try:
            request = request_of(self._key, self._format, parcel.payloads, parcel.request_id)
            metadata = context.run(stack.enter_context, traced("SignBatch"))
            left = max(0.0, parcel.deadline - time.monotonic())
            future = self._begin(request, timeout=left, metadata=metadata)
        except Exception as error:  # noqa: BLE001 - whatever it is, its callers get it
            self._take(parcel, closed(error) if isinstance(error, ValueError) else error)
            return
        except BaseException:  # this thread is interrupted; the items are also those of others
            self._take(parcel, ended("the sending thread was interrupted"))
            raise
        with self._lock:
            self._under_way[parcel] = future
            abandoned = not parcel.living
        if abandoned:
            future.cancel()
        future.add_done_callback(partial(self._ended, parcel, stack, context))

    def _send_again(self, parcel: Parcel) -> None:
        self._send(parcel)
        self._flush()

    def _ended(self, parcel: Parcel, stack: ExitStack, context: Any, future: Any) -> None:
        outcome: Any
        try:
            with_span = partial(_finish, stack, future)
            outcome = read_answer(context.run(with_span), len(parcel.items))
        except grpc.RpcError as error:
            outcome = from_rpc_error(error)
        except grpc.FutureCancelledError as error:
            outcome = closed(error)
        except Exception as error:  # noqa: BLE001 - whatever it is, its callers get it
            outcome = error
        self._take(parcel, outcome)
        self._flush()

    def _take(self, parcel: Parcel, outcome: Any) -> None:
        """Takes an answer or an error of a call."""
        with self._lock:
            now = time.monotonic()
            if self._closed is not None:
                then = self._core.left(parcel)
            elif isinstance(outcome, Exception):
                then = self._core.failed(parcel, outcome, now)
            else:
                then = self._core.answered(parcel, outcome, now)
            self._under_way.pop(parcel, None)
            if then.again is not None:
                timer = threading.Timer(then.again, self._send_again, [parcel])
                timer.daemon = True
                self._under_way[parcel] = timer
                timer.start()
        self._give(then.results)

    @staticmethod
    def _give(results: Sequence[tuple[Single, Result]]) -> None:
        for item, result in results:
            item.taker.give(result)  # type: ignore[attr-defined]  # a Awaited


def _finish(stack: ExitStack, future: Any) -> Any:
    """Returns the answer of a call, and ends its span."""
    with stack:
        return future.result()

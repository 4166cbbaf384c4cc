"""Exchanges made, blocking or awaited: retries, pages, and failures as ``SignerClientError``."""

import asyncio
import inspect
import random
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from threading import Event
from typing import Any, Concatenate, ParamSpec, TypeVar, get_type_hints

import grpc

from signer.client._errors import closed, from_rpc_error
from signer.client._exchanges import Exchange, Listing, methods, span_name

_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 2.0

P = ParamSpec("P")
T = TypeVar("T")


class Backoff:
    """How long to pause before the next attempt of one call.

    The appliance's hint plus a random part, which grows with each attempt: without it all
    clients that were refused together would come back together.
    """

    __slots__ = ("_longest",)

    def __init__(self) -> None:
        self._longest = _FIRST_PAUSE

    def pause(self, retry_after: float | None) -> float:
        """Returns seconds; the next pause may be longer."""
        random_part = random.uniform(0, self._longest)  # noqa: S311  no secret
        self._longest = min(2 * self._longest, _LONGEST_PAUSE)
        return (retry_after or 0.0) + random_part


def may_help(error: Exception) -> bool:
    """Whether another attempt may end otherwise."""
    return bool(getattr(error, "retryable", False))


def _hinted(error: Exception) -> bool:
    return getattr(error, "retry_after", None) is not None


def retry(
    attempt: Callable[[], T],
    timeout: float,
    *,
    may_help: Callable[[Exception], bool] = may_help,
    stop: Event | None = None,
) -> T:
    """Calls ``attempt`` until it succeeds, fails for good, or ``timeout`` seconds are over.

    Pauses as ``Backoff`` says. Raises the last error. ``stop`` ends a pause at once.
    """
    end, backoff, stop = time.monotonic() + timeout, Backoff(), stop or Event()
    while True:
        try:
            return attempt()
        except Exception as error:
            if stop.is_set() or not may_help(error):
                raise
            pause = backoff.pause(getattr(error, "retry_after", None))
            if time.monotonic() + pause >= end or stop.wait(pause):
                raise


async def retry_awaited(
    attempt: Callable[[], Awaitable[T]],
    timeout: float,
    *,
    may_help: Callable[[Exception], bool] = may_help,
) -> T:
    """As ``retry``, awaited; a cancelled task ends it at once."""
    end, backoff = time.monotonic() + timeout, Backoff()
    while True:
        try:
            return await attempt()
        except Exception as error:
            if not may_help(error):
                raise
            pause = backoff.pause(getattr(error, "retry_after", None))
            if time.monotonic() + pause >= end:
                raise
        await asyncio.sleep(pause)


@contextmanager
def traced(name: str) -> Iterator[list[tuple[str, str]] | None]:
    """Yields metadata that carries the trace of a program that uses OpenTelemetry.

    One that has not imported it by now does not use it. No interceptor is used: gRPC would
    make a new call object each time, and crash on a channel that was closed.
    """
    if "opentelemetry.trace" not in sys.modules:
        yield None
        return
    from signer.client._tracing import span  # noqa: PLC0415 - its packages are optional

    with span(name) as metadata:
        yield metadata


class Blocking:
    """Makes exchanges on a blocking channel; the base of classes with blocking calls."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._methods = methods(channel)

    def _call(self, request: Any, timeout: float) -> Any:
        try:
            with traced(span_name(request)) as metadata:
                return self._methods[type(request)](request, timeout=timeout, metadata=metadata)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        except ValueError as error:  # gRPC's way to say that the channel was closed
            raise closed(error) from error

    def _begin(self, request: Any, **options: Any) -> Any:
        """Begins a call and returns its grpc.Future."""
        return self._methods[type(request)].future(request, **options)  # type: ignore[attr-defined]

    def _begin_later(self, exchange: Exchange[T], known: Callable[[T | None], None]) -> None:
        """Makes a call without waiting; its answer, or None, goes to ``known``."""

        def ended(future: Any) -> None:
            failed = future.cancelled() or future.exception() is not None
            known(None if failed else exchange.read(future.result()))

        try:
            future = self._begin(exchange.request, timeout=exchange.timeout)
        except ValueError:  # the channel was closed
            known(None)
        else:
            future.add_done_callback(ended)

    def _ask(self, exchange: Exchange[T]) -> T:
        if not exchange.patient:
            return exchange.read(self._call(exchange.request, exchange.timeout))
        end = time.monotonic() + exchange.timeout
        answer = retry(
            lambda: self._call(exchange.request, max(0.0, end - time.monotonic())),
            exchange.timeout,
            may_help=_hinted,
        )
        return exchange.read(answer)

    def _pages(self, listing: Listing[T]) -> Iterator[T]:
        request = listing.request
        while True:
            page = self._ask(Exchange(request, lambda page: page, *listing[3:]))
            yield from map(listing.read, getattr(page, listing.items))
            request.page_token = page.next_page_token
            if not request.page_token:
                return


class Awaiting:
    """Makes exchanges on a channel of ``grpc.aio``; the base of classes with coroutines."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._methods = methods(channel)

    async def _call(self, request: Any, timeout: float) -> Any:
        try:
            with traced(span_name(request)) as metadata:
                method = self._methods[type(request)]
                return await method(request, timeout=timeout, metadata=metadata)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        except grpc.aio.UsageError as error:  # the channel was closed
            raise closed(error) from error
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise closed(error) from error  # the channel was closed during the call

    async def _ask(self, exchange: Exchange[T]) -> T:
        if not exchange.patient:
            return exchange.read(await self._call(exchange.request, exchange.timeout))
        end = time.monotonic() + exchange.timeout
        answer = await retry_awaited(
            lambda: self._call(exchange.request, max(0.0, end - time.monotonic())),
            exchange.timeout,
            may_help=_hinted,
        )
        return exchange.read(answer)

    async def _pages(self, listing: Listing[T]) -> AsyncIterator[T]:
        request = listing.request
        while True:
            page = await self._ask(Exchange(request, lambda page: page, *listing[3:]))
            for each in map(listing.read, getattr(page, listing.items)):
                yield each
            request.page_token = page.next_page_token
            if not request.page_token:
                return


def asked(exchange: Callable[P, Exchange[T]]) -> Callable[Concatenate[Any, P], T]:
    """Returns the blocking method that makes an exchange."""

    def method(self: Blocking, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._ask(exchange(*args, **kwargs))

    return _described(method, exchange)


def paged(listing: Callable[P, Listing[T]]) -> Callable[Concatenate[Any, P], Iterator[T]]:
    """Returns the method that yields the items of all pages; one blocking call a page."""

    def method(self: Blocking, /, *args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        return self._pages(listing(*args, **kwargs))

    return _described(method, listing, Iterator)


def awaited(
    exchange: Callable[P, Exchange[T]],
) -> Callable[Concatenate[Any, P], Coroutine[Any, Any, T]]:
    """Returns the coroutine method that makes an exchange."""

    async def method(self: Awaiting, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._ask(exchange(*args, **kwargs))

    return _described(method, exchange)


def iterated(listing: Callable[P, Listing[T]]) -> Callable[Concatenate[Any, P], AsyncIterator[T]]:
    """Returns the method that yields the items of all pages to ``async for``."""

    def method(self: Awaiting, /, *args: P.args, **kwargs: P.kwargs) -> AsyncIterator[T]:
        return self._pages(listing(*args, **kwargs))

    return _described(method, listing, AsyncIterator)


def _described(method: T, source: Callable[..., Any], iterator: Any = None) -> T:
    """Gives a method the name, signature and docstring of what it was made of."""
    made: Any = method
    signature = inspect.signature(source)
    this = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    [value] = get_type_hints(source)["return"].__args__
    made.__name__ = made.__qualname__ = source.__name__
    made.__doc__, made.__module__ = source.__doc__, source.__module__
    made.__signature__ = signature.replace(
        parameters=[this, *signature.parameters.values()],
        return_annotation=iterator[value] if iterator else value,
    )
    return method

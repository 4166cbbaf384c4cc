"""Single calls: retries, pages, and failures as ``SignerClientError``."""

import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event
from typing import Any, TypeVar

import grpc

from signer.client._errors import closed, from_rpc_error

DEFAULT_TIMEOUT = 30.0
"""Seconds; the appliance's own bound of a call without a deadline."""

PAGE_SIZE = 500

_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 2.0

T = TypeVar("T")


def retry(
    attempt: Callable[[], T],
    timeout: float,
    *,
    may_help: Callable[[Exception], bool],
    stop: Event | None = None,
) -> T:
    """Calls ``attempt`` until it succeeds, fails for good, or ``timeout`` seconds are over.

    It pauses for the error's ``retry_after`` plus a random part, which grows with each
    attempt: without it all clients that were refused together would come back together.
    Raises the last error. ``stop`` ends a pause at once.
    """
    end, longest, stop = time.monotonic() + timeout, _FIRST_PAUSE, stop or Event()
    while True:
        try:
            return attempt()
        except Exception as error:
            if stop.is_set() or not may_help(error):
                raise
            hint = getattr(error, "retry_after", None) or 0.0
            pause = hint + random.uniform(0, longest)  # noqa: S311  no secret
            if time.monotonic() + pause >= end or stop.wait(pause):
                raise
        longest = min(2 * longest, _LONGEST_PAUSE)


@contextmanager
def _traced(name: str) -> Iterator[list[tuple[str, str]] | None]:
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


def ask(method: Callable[..., T], request: object, timeout: float, *, name: str = "") -> T:
    """Makes one call; raises ``SignerClientError``. ``name`` is that of its span."""
    try:
        with _traced(name or type(request).__name__.removesuffix("Request")) as metadata:
            return method(request, timeout=timeout, metadata=metadata)
    except grpc.RpcError as error:
        raise from_rpc_error(error) from error
    except ValueError as error:  # gRPC's way to say that the channel was closed
        raise closed(error) from error


def ask_patiently(method: Callable[..., T], request: object, timeout: float) -> T:
    """As ``ask``, repeated while the appliance says when to come back and ``timeout`` allows."""
    end = time.monotonic() + timeout
    return retry(
        lambda: ask(method, request, max(0.0, end - time.monotonic())),
        timeout,
        may_help=lambda error: getattr(error, "retry_after", None) is not None,
    )


def pages(
    method: Callable[..., Any],
    request: Any,
    items: str,
    read: Callable[[Any], T],
    timeout: float,
    *,
    call: Callable[..., Any] = ask,
) -> Iterator[T]:
    """Yields what ``read`` makes of the members ``items`` of all pages; one call a page."""
    request.page_size = PAGE_SIZE
    while True:
        page = call(method, request, timeout)
        yield from map(read, getattr(page, items))
        request.page_token = page.next_page_token
        if not request.page_token:
            return

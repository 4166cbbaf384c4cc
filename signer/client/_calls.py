"""Single calls: their failures come out as ``SignerClientError``."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import grpc
from tenacity import Retrying, retry_if_exception, stop_before_delay

from signer.client import _pipeline as pipeline
from signer.client._errors import closed, from_rpc_error

DEFAULT_TIMEOUT = 30.0
"""Seconds; what the appliance gives a call that names no deadline."""

PAGE_SIZE = 500

_Response = TypeVar("_Response")


@contextmanager
def _traced(request: object) -> Iterator[list[tuple[str, str]] | None]:
    """Yields metadata that carries the trace of a program that uses OpenTelemetry.

    One that has not imported it by now does not, and is not made to. Not by an interceptor:
    gRPC's then make a new call object each time, and crash on a channel that was closed.
    """
    if "opentelemetry.trace" not in sys.modules:
        yield None
        return
    from signer.client._tracing import span  # noqa: PLC0415 - its packages are optional

    with span(type(request).__name__.removesuffix("Request")) as metadata:
        yield metadata


def ask(method: Callable[..., _Response], request: object, timeout: float) -> _Response:
    """Makes one call; its failure comes out as a ``SignerClientError``."""
    try:
        with _traced(request) as metadata:
            return method(request, timeout=timeout, metadata=metadata)
    except grpc.RpcError as error:
        raise from_rpc_error(error) from error
    except ValueError as error:  # gRPC's way to say that the channel was closed
        raise closed(error) from error


def ask_patiently(method: Callable[..., _Response], request: object, timeout: float) -> _Response:
    """As ``ask``, and again as long as the appliance says when and ``timeout`` allows."""
    end = time.monotonic() + timeout
    again = Retrying(
        retry=retry_if_exception(lambda error: getattr(error, "retry_after", None) is not None),
        wait=pipeline.pause,
        stop=stop_before_delay(timeout),
        reraise=True,
    )
    return again(lambda: ask(method, request, max(0.0, end - time.monotonic())))

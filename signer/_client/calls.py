"""Single calls: their failures come out as ``SignerClientError``."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TypeVar

import grpc
from tenacity import Retrying, retry_if_exception, stop_before_delay

from signer._client import pipeline
from signer._client.errors import closed, from_rpc_error

DEFAULT_TIMEOUT = 30.0
"""Seconds; what the appliance gives a call that names no deadline."""

PAGE_SIZE = 500

_Response = TypeVar("_Response")


def traced(channel: grpc.Channel) -> grpc.Channel:
    """Has the calls of a channel carry the trace of a program that uses OpenTelemetry.

    One that has not imported it by now does not, and is not made to.
    """
    if "opentelemetry.trace" not in sys.modules:
        return channel
    from signer._client.tracing import Traced  # noqa: PLC0415 - its packages are optional

    return grpc.intercept_channel(channel, Traced())


def ask(method: Callable[..., _Response], request: object, timeout: float) -> _Response:
    """Makes one call; its failure comes out as a ``SignerClientError``."""
    try:
        return method(request, timeout=timeout)
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

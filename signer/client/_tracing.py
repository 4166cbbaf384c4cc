"""Carries the caller's trace to the appliance, where OpenTelemetry is in use (optional)."""

from collections.abc import Iterator
from contextlib import contextmanager

import grpc
from opentelemetry import propagate, trace


@contextmanager
def span(name: str) -> Iterator[list[tuple[str, str]]]:
    """Opens the span of a call; yields its context as metadata: W3C ``traceparent``."""
    tracer = trace.get_tracer("signer.client")
    # Without the text of an exception, which comes from the appliance; the caller gets it.
    with tracer.start_as_current_span(
        name, kind=trace.SpanKind.CLIENT, record_exception=False, set_status_on_exception=False
    ) as opened:
        headers: dict[str, str] = {}
        propagate.inject(headers)
        try:
            yield list(headers.items())
        except grpc.RpcError as error:
            code = error.code().name if isinstance(error, grpc.Call) else ""
            opened.set_status(trace.Status(trace.StatusCode.ERROR, code))
            raise

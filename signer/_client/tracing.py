"""Carries the caller's trace to the appliance, where OpenTelemetry is in use (optional)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
from opentelemetry import propagate, trace


class Traced(grpc.UnaryUnaryClientInterceptor):
    """Gives every call a span, and sends its context as W3C ``traceparent``."""

    def __init__(self) -> None:
        self._tracer = trace.get_tracer("signer.client")

    def intercept_unary_unary(
        self, continuation: Callable[[Any, Any], Any], client_call_details: Any, request: Any
    ) -> Any:
        name = client_call_details.method.rpartition("/")[2]
        # No text of an exception: it is the appliance's, and the caller has it.
        with self._tracer.start_as_current_span(
            name, kind=trace.SpanKind.CLIENT, record_exception=False
        ) as span:
            headers: dict[str, str] = {}
            propagate.inject(headers)
            metadata = [*(client_call_details.metadata or ()), *headers.items()]
            call = continuation(client_call_details._replace(metadata=metadata), request)
            if call.code() is not grpc.StatusCode.OK:
                span.set_status(trace.Status(trace.StatusCode.ERROR, call.code().name))
            return call

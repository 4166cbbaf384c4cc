"""Spans of calls and their stages (OpenTelemetry).

A call continues the caller's trace if its metadata has one (W3C Trace Context). The span of
a stage is created when the stage has ended. This module is imported
only if tracing is configured: its packages are optional.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.sampling import (
    Decision,
    ParentBased,
    Sampler,
    SamplingResult,
    TraceIdRatioBased,
)
from opentelemetry.trace import (
    Span,
    SpanKind,
    Status,
    StatusCode,
    get_current_span,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from signer import __version__
from signer.config.models import TracingConfig
from signer.events import CALL, CallBegan, CallEnded, Handlers, Stopped
from signer.observe.lines import WARNING, LogLines

CLOSE_SECONDS = 1.0
"""How long the end of the daemon waits until the last spans are sent."""
_EXPORT_SECONDS = 5
"""How long a request to the collector may take."""
_CALLERS_A_SECOND = 50
"""Traces that are kept because their callers ask for it; any client can ask for all of its own."""
_QUEUED_SPANS = 4096
"""Spans that may wait for the collector; more are dropped."""
_W3C = TraceContextTextMapPropagator()


class _AtMost(Sampler):
    """Keeps a limited number of traces per second and drops the rest."""

    def __init__(self, a_second: float) -> None:
        self._a_second = self._left = a_second
        self._then = time.monotonic()
        self._lock = threading.Lock()

    def should_sample(self, parent_context: Context | None, *_: Any, **__: Any) -> SamplingResult:
        """Decides about the first span of a trace in this process."""
        with self._lock:
            now = time.monotonic()
            earned = (now - self._then) * self._a_second
            self._left, self._then = min(self._a_second, self._left + earned), now
            kept = self._left >= 1
            self._left -= kept
        decision = Decision.RECORD_AND_SAMPLE if kept else Decision.DROP
        state = get_current_span(parent_context).get_span_context().trace_state
        return SamplingResult(decision, trace_state=state)

    def get_description(self) -> str:
        """Returns the name of the sampler in the SDK's own texts."""
        return f"AtMost{{{self._a_second}}}"


class _Complaints(logging.Handler):
    """Writes OpenTelemetry's messages as lines of our log."""

    def __init__(self, lines: LogLines) -> None:
        super().__init__()
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.add(WARNING, "tracing_failed", {"text": record.getMessage()})


class _Exporter(OTLPSpanExporter):
    """Sends spans, and counts those that the collector did not take."""

    def __init__(self, on_dropped: Callable[[int], object], **settings: Any) -> None:
        super().__init__(**settings)
        self._on_dropped = on_dropped

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        taken = False
        try:
            result = super().export(spans)
            taken = result is SpanExportResult.SUCCESS
            return result
        finally:
            if not taken:
                self._on_dropped(len(spans))


class Tracing:
    """Creates spans, and sends them to a collector in a separate thread."""

    def __init__(
        self,
        settings: TracingConfig,
        instance: str,
        lines: LogLines,
        on_dropped: Callable[[int], object] = lambda _: None,
    ) -> None:
        """``instance`` names this appliance; what fails is one of the ``lines``.

        ``on_dropped`` gets the number of spans that the collector did not take.
        """
        described = {"name": "signer", "version": __version__, "instance.id": instance}
        self._provider = TracerProvider(
            resource=Resource({f"service.{name}": value for name, value in described.items()}),
            sampler=ParentBased(
                TraceIdRatioBased(settings.sample), remote_parent_sampled=_AtMost(_CALLERS_A_SECOND)
            ),
            shutdown_on_exit=False,
        )
        exporter = _Exporter(
            on_dropped,
            endpoint=settings.endpoint,
            certificate_file=str(settings.ca) if settings.ca else None,
            timeout=_EXPORT_SECONDS,
        )
        self._provider.add_span_processor(
            BatchSpanProcessor(exporter, max_queue_size=_QUEUED_SPANS)
        )
        complaints = logging.getLogger("opentelemetry")
        complaints.handlers, complaints.propagate = [_Complaints(lines)], False
        self._tracer = self._provider.get_tracer("signer", __version__)
        self.handlers: Handlers = {
            CallBegan: self._call_began,
            CallEnded: self._call_ended,
            Stopped: lambda _: self.close(),
        }

    def _call_began(self, event: CallBegan) -> None:
        carrier = {name: value for name, value in event.metadata if isinstance(value, str)}
        # Not as OpenTelemetry's current span, which would record the text of an exception: that
        # may quote a payload.
        span = self._tracer.start_span(
            event.method.rpartition("/")[2],
            context=_W3C.extract(carrier, Context()),
            kind=SpanKind.SERVER,
            attributes={"rpc.method": event.method},
        )
        call = CALL.get()
        if call is not None and span.is_recording():
            call.span, call.trace_id = span, f"{span.get_span_context().trace_id:032x}"

    def _call_ended(self, event: CallEnded) -> None:
        call = CALL.get()
        if call is None or call.span is None:
            return
        span: Span = call.span
        call.span = None
        span.set_attribute("rpc.response.status_code", event.code)
        for name, value in event.notes.items():
            span.set_attribute(f"signer.{name}", value if isinstance(value, int) else str(value))
        if timings := self._stages(span, call.work.stages):
            rounded = {stage: round(seconds, 6) for stage, seconds in timings.items()}
            span.set_attribute("signer.timings", str(rounded))
        if event.code != "OK":
            span.set_status(Status(StatusCode.ERROR, event.code))
        span.end()

    def _stages(self, span: Span, stages: Iterable[tuple[str, float, float]]) -> dict[str, float]:
        """Makes a span of each stage; returns the seconds by stage."""
        timings: dict[str, float] = {}
        parent = set_span_in_context(span)
        for name, began, seconds in stages:
            start = time.time_ns() - round((time.monotonic() - began) * 1e9)
            stage = self._tracer.start_span(name, parent, start_time=start)
            stage.end(start + round(seconds * 1e9))
            timings[name] = timings.get(name, 0.0) + seconds
        return timings

    def close(self) -> None:
        """Sends the spans that are left, for CLOSE_SECONDS at most."""
        # Without an answer of the collector the SDK waits several times longer.
        end = threading.Thread(target=self._provider.shutdown, name="traces", daemon=True)
        end.start()
        end.join(CLOSE_SECONDS)

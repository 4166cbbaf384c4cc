import json
import logging
import socket
import threading
from collections.abc import Iterator

import pytest

from signer import observe
from signer.config.models import TracingConfig
from signer.errors import OperatorError
from signer.events import CALL, CallBegan, CallEnded, CallTrace, Events, stages
from signer.observe import open_tracing, tracing
from signer.observe.lines import LogLines
from signer.observe.tracing import Tracing

PARENT = f"00-{1:032x}-{2:016x}-01"


@pytest.fixture
def silent() -> Iterator[str]:
    """A collector that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/v1/traces"


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    yield
    logging.getLogger("opentelemetry").handlers.clear()
    CALL.set(None)


def made(endpoint: str) -> Tracing:
    """Tracing that keeps only what callers ask for."""
    lines = LogLines("info", write=bytearray().extend)
    return Tracing(TracingConfig(endpoint=endpoint, sample=0.0), "signer/test", lines)


def call(traced: Tracing, parent: str = PARENT) -> str:
    """Makes one call with a stage; returns its trace id."""
    method, events = "/signer.v1.SigningService/SignBatch", Events(traced.handlers)
    CALL.set(trace := CallTrace())
    events.emit(CallBegan(method, [("traceparent", parent)]))
    stages().append(("hsm", 0.0, 0.001))
    events.emit(CallEnded(method, "OK", "ok", 0.002, {"items": 3}))
    assert trace.span is None
    return trace.trace_id


def test_a_collector_that_does_not_answer_holds_up_no_end(
    silent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracing, "CLOSE_SECONDS", 0.2)
    traced = made(silent)
    assert call(traced) == f"{1:032x}"
    traced.close()
    assert [
        each for each in threading.enumerate() if each.name == "traces"
    ]  # and is not waited for


def test_callers_have_only_so_many_traces_kept(
    silent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracing, "CLOSE_SECONDS", 0.2)
    monkeypatch.setattr(tracing, "_CALLERS_A_SECOND", 3)
    monkeypatch.setattr("signer.observe.tracing.time.monotonic", lambda: 1000.0)
    traced = made(silent)
    assert [bool(call(traced)) for _ in range(5)] == [True, True, True, False, False]
    traced.close()


def test_what_opentelemetry_complains_of_is_a_line_of_the_log(
    silent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracing, "CLOSE_SECONDS", 0.2)
    lines = LogLines("info", write=(read := bytearray()).extend)
    traced = Tracing(TracingConfig(endpoint=silent, sample=0.0), "signer/test", lines)
    logging.getLogger("opentelemetry.sdk").error("Failed to export %s", "spans")
    traced.close()
    lines.close()
    assert ("tracing_failed", "Failed to export spans") in [
        (line["event"], line["text"]) for line in map(json.loads, read.splitlines())
    ]  # the threads of tests before may add lines


def test_spans_that_nobody_takes_are_counted() -> None:
    dropped: list[int] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    lines = LogLines("info", write=bytearray().extend)
    settings = TracingConfig(endpoint=f"http://127.0.0.1:{port}/v1/traces", sample=0.0)
    traced = Tracing(settings, "signer/test", lines, dropped.append)
    call(traced)
    traced._provider.force_flush()
    traced._provider.shutdown()
    assert sum(dropped) == 2  # the call and its stage


def test_who_configures_tracing_needs_its_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    assert open_tracing(None, "signer/test", LogLines("info")) is None
    monkeypatch.setattr(observe, "find_spec", lambda _: None)
    with pytest.raises(OperatorError, match=r"install signer-appliance\[tracing\]"):
        open_tracing(TracingConfig(endpoint="http://127.0.0.1:9/"), "signer/test", LogLines("info"))

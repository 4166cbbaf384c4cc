"""Traces, as a collector and a Prometheus get them: from the caller to the audit log."""

import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.integration import edge

SECRET = "Zzyzx-Nguyen-Marker"

PROGRAM = """
import json, sys
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from signer.tools.dev.appliance import connect

with open(sys.argv[1]) as file:
    dev, collector, payload = json.load(file), sys.argv[2], sys.argv[3]
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(endpoint=collector)))
trace.set_tracer_provider(provider)
with connect(dev, "issuer") as client, trace.get_tracer("clinic").start_as_current_span("issue"):
    payloads = [b'{"name":"%s"}' % payload.encode(), payload.encode()]
    [good, bad] = client.sign("facilities/01-001/keys/records", "JWS", payloads)
    assert good.ok and not bad.ok, (good, bad)
"""


class Collector:
    """Takes spans by OTLP over HTTP, as any collector does."""

    def __init__(self) -> None:
        collector = self
        self.spans: list[Any] = []
        self.resources: list[dict[str, str]] = []
        self.text = b""

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                collector.take(body)
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Nobody reads it."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}/v1/traces"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def take(self, body: bytes) -> None:
        self.text += body
        for each in ExportTraceServiceRequest.FromString(body).resource_spans:
            values = {item.key: item.value.string_value for item in each.resource.attributes}
            self.resources.append(values)
            self.spans += [span for scope in each.scope_spans for span in scope.spans]

    def wait(self, names: set[str]) -> dict[str, Any]:
        """The spans by name, client's and server's apart, as soon as these are here."""
        end = time.monotonic() + 30
        while not names <= (found := {_name(span): span for span in self.spans}).keys():
            assert time.monotonic() < end, (names - found.keys(), found.keys())
            time.sleep(0.05)
        return found

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _name(span: Any) -> str:
    return {2: "server ", 3: "client "}.get(span.kind, "") + str(span.name)


@pytest.fixture
def collector() -> Iterator[Collector]:
    with closing(Collector()) as made:
        yield made


def open_metrics(appliance: Any) -> str:
    address = urlsplit(appliance.dev["metrics"])
    connection = HTTPConnection(address.hostname or "", address.port, timeout=10)
    with closing(connection):
        accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
        connection.request("GET", "/metrics", headers=accept)
        return connection.getresponse().read().decode()


def test_one_trace_leads_from_the_caller_to_the_audit_log(
    make_appliance: Callable[..., Any], collector: Collector
) -> None:
    made = make_appliance(config={"tracing": {"endpoint": collector.endpoint, "sample": 0.0}})
    arguments = [str(made.dir / "dev.json"), collector.endpoint, SECRET]
    subprocess.run([sys.executable, "-W", "error", "-c", PROGRAM, *arguments], check=True)
    stages = {"authorise", "format", "queue", "hsm", "audit"}
    spans = collector.wait({"issue", "client SignBatch", "server SignBatch", *stages})

    server = spans["server SignBatch"]
    assert {span.trace_id for span in collector.spans} == {server.trace_id}
    assert spans["client SignBatch"].parent_span_id == spans["issue"].span_id
    assert server.parent_span_id == spans["client SignBatch"].span_id
    for name in stages:
        assert spans[name].parent_span_id == server.span_id
        assert server.start_time_unix_nano <= spans[name].start_time_unix_nano + 1_000_000
        assert spans[name].end_time_unix_nano <= server.end_time_unix_nano + 1_000_000
    assert spans["authorise"].end_time_unix_nano <= spans["hsm"].end_time_unix_nano
    assert spans["queue"].end_time_unix_nano <= spans["hsm"].end_time_unix_nano + 1_000_000

    said = {item.key: item.value for item in server.attributes}
    assert said["signer.key"].string_value == edge.RECORDS
    assert (said["signer.items"].int_value, said["signer.failed"].int_value) == (2, 1)
    assert all(f"'{name}': " in said["signer.timings"].string_value for name in stages)
    assert SECRET.encode() not in collector.text
    [resource] = [each for each in collector.resources if each["service.name"] == "signer"][:1]
    assert resource["service.instance.id"] == "signer/audit"

    trace_id = server.trace_id.hex()
    [line] = [
        record
        for record in made.lines
        if record["event"] == "call" and record["method"].endswith("SignBatch")
    ]
    assert line["trace_id"] == trace_id
    assert line["timings"].keys() == stages
    exemplars = re.findall(
        r'signer_request_duration_seconds_bucket.*# {trace_id="(\w+)"}', open_metrics(made)
    )
    assert set(exemplars) == {trace_id}


@pytest.mark.parametrize("sample", [0.0, 1.0])
def test_calls_without_a_trace_begin_one_as_often_as_configured(
    make_appliance: Callable[..., Any], collector: Collector, sample: float
) -> None:
    made = make_appliance(config={"tracing": {"endpoint": collector.endpoint, "sample": sample}})
    with edge.connect(made.dev) as issuer:
        issuer.sign([b"{}"])
        edge.refused(lambda: issuer.sign([b"{}"], key="facilities/01-001/keys/none"))
    assert made.stop() == 0  # which sends what is left
    ended = [(span.name, span.status.code) for span in collector.spans if span.kind == 2]
    assert ended == ([("SignBatch", 0), ("SignBatch", 2)] if sample else [])


@pytest.mark.parametrize(
    "parent", ["", "00-x-y-01", "zz", "00-" + "0" * 32 + "-" + "0" * 16 + "-01"]
)
def test_a_trace_that_is_none_is_as_if_there_were_none(
    make_appliance: Callable[..., Any], collector: Collector, parent: str
) -> None:
    made = make_appliance(config={"tracing": {"endpoint": collector.endpoint, "sample": 1.0}})
    with edge.connect(made.dev) as issuer:
        call: Any = issuer.channel.unary_unary("/signer.v1.SigningService/SignBatch")
        with pytest.raises(grpc.RpcError) as caught:
            call(b"\x0a\xff", timeout=edge.SECONDS, metadata=[("traceparent", parent)])
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert made.stop() == 0
    [span] = [span for span in collector.spans if span.kind == 2]
    assert span.parent_span_id == b""


def test_a_collector_that_is_away_costs_nobody_anything(make_appliance: Callable[..., Any]) -> None:
    away = {"endpoint": "http://127.0.0.1:9/v1/traces", "sample": 1.0}
    made = make_appliance(config={"tracing": away})
    with edge.connect(made.dev) as issuer:
        for _ in range(20):
            assert len(issuer.sign([b"{}"] * 10).signatures) == 10

"""The load clients against a server that signs nothing: what they send, count and refuse."""

import asyncio
import json
import os
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

import signer.client
from signer.formats.payloads import PayloadError, json_object
from signer.formats.timestamp import read_request
from signer.tools.bench import python_load
from signer.tools.bench.load import PYTHON
from signer.tools.bench.workload import BAD, record_beside
from signer.tools.dev import pki
from signer.v1 import signing_pb2, signing_pb2_grpc
from tests.torture import every
from tests.unit.formats.conftest import TSA

GO = Path("build/load").resolve()
needs_go = pytest.mark.skipif(not GO.exists(), reason="`make bench` builds the client in Go")
CLIENTS = [pytest.param(PYTHON, id="python"), pytest.param((str(GO),), id="go", marks=needs_go)]


def refusal(reason: str) -> status_pb2.Status:
    detail = AnyMessage()
    detail.Pack(error_details_pb2.ErrorInfo(reason=reason, domain="signer.v1"))
    return status_pb2.Status(code=code_pb2.RESOURCE_EXHAUSTED, message="busy", details=[detail])


class StandIn(signing_pb2_grpc.SigningServiceServicer):
    """Answers with signatures of zeros; every tenth request is refused if ``refuses``."""

    def __init__(self) -> None:
        self.refuses = self.fails = False
        self.seen: Counter[str] = Counter()
        self.payloads: list[bytes] = []
        self.cosigned: list[tuple[bytes, bytes]] = []
        self.streams = 0
        self._lock = threading.Lock()

    def _sign(self, request: Any) -> Any:
        with self._lock:
            self.seen[request.key] += 1
            self.payloads += request.payloads
            self.cosigned += zip(request.payloads, request.cosignatures, strict=False)
            number = self.seen.total()
        if self.refuses and number % 10 == 5:
            return refusal("OVERLOADED")
        answer = signing_pb2.SignBatchResponse(signatures=[bytes(64)] * len(request.payloads))
        if self.fails:
            for index in range(len(request.payloads)):
                answer.signatures[index] = b""
                answer.failures[index].CopyFrom(refusal("PAYLOAD_INVALID"))
        return answer

    def SignBatch(self, request: Any, context: Any) -> Any:
        answer = self._sign(request)
        if isinstance(answer, status_pb2.Status):
            context.abort_with_status(rpc_status.to_status(answer))
        return answer

    def SignStream(self, requests: Iterator[Any], _: Any) -> Iterator[Any]:
        self.streams += 1
        for request in requests:
            answer = self._sign(request.batch)
            field = "error" if isinstance(answer, status_pb2.Status) else "batch"
            yield signing_pb2.SignStreamResponse(tag=request.tag, **{field: answer})


class Served(NamedTuple):
    stand_in: StandIn
    arguments: list[str]

    def run(self, client: tuple[str, ...], *more: str) -> subprocess.CompletedProcess[str]:
        command = [*client, *self.arguments, "--seconds", "0.2", "--warm-up", "0.1", *more]
        return subprocess.run(
            command, capture_output=True, text=True, check=False, env=os.environ, timeout=60
        )

    def measured(self, client: tuple[str, ...], *more: str) -> dict[str, Any]:
        done = self.run(client, *more)
        assert done.returncode == 0, done.stderr
        line: dict[str, Any] = json.loads(done.stdout)
        return line


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    pki.server(tmp_path, pki.authority(tmp_path, "ca", "servers"))
    clients = pki.authority(tmp_path, "client-ca", "clients")
    pki.client(tmp_path, clients, "me", "spiffe://test/me")

    def read(name: str) -> bytes:
        return (tmp_path / name).read_bytes()

    credentials = grpc.ssl_server_credentials(
        [(read("server.key"), read("server.pem"))], read("client-ca.pem"), require_client_auth=True
    )
    server = grpc.server(futures.ThreadPoolExecutor(8))
    stand_in = StandIn()
    signing_pb2_grpc.add_SigningServiceServicer_to_server(stand_in, server)
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    arguments = ["--address", f"127.0.0.1:{port}", "--ca", str(tmp_path / "ca.pem")]
    arguments += ["--certificate", str(tmp_path / "me.pem"), "--key", str(tmp_path / "me.key")]
    arguments += ["--name", "facilities/f/keys/a", "--name", "facilities/f/keys/b"]
    try:
        yield Served(stand_in, arguments)
    finally:
        server.stop(None).wait()


@pytest.mark.parametrize("client", CLIENTS)
def test_calls_use_the_keys_in_turn_and_payloads_that_differ(
    served: Served, client: tuple[str, ...]
) -> None:
    line = served.measured(client, "--callers", "3", "--batch", "2")
    assert line["rate"] > 0
    assert 0 < line["p50_ms"] <= line["p99_ms"]
    assert line["client_cpu_us_per_item"] > 0
    assert line["failures"] == {}
    assert "latencies_us" not in line
    first, second = served.stand_in.seen.values()
    assert abs(first - second) <= 4
    assert line["items"] == 2 * (first + second - 1)  # one call before the measurement
    assert len(set(served.stand_in.payloads)) > 40


@pytest.mark.parametrize("client", CLIENTS)
def test_streams_have_messages_in_flight(served: Served, client: tuple[str, ...]) -> None:
    line = served.measured(client, "--callers", "2", "--window", "4", "--connections", "2")
    assert line["rate"] > 0
    assert line["failures"] == {}
    assert served.stand_in.streams == 2
    assert line["items"] == served.stand_in.seen.total() - 2  # a call on each connection


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("window", ["0", "3"])
def test_refusals_are_counted_by_their_reason(
    served: Served, client: tuple[str, ...], window: str
) -> None:
    served.stand_in.refuses = True
    line = served.measured(client, "--callers", "2", "--window", window)
    assert line["failures"].keys() == {"OVERLOADED"}
    assert line["rate"] > 0


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("kind", every(2, BAD))
def test_payloads_that_do_not_parse_have_to_fail(
    served: Served, client: tuple[str, ...], kind: str
) -> None:
    done = served.run(client, "--format", "JWS", "--bad", kind, "--batch", "3")
    assert done.returncode == 1
    assert "3 items were signed that do not parse" in done.stderr
    served.stand_in.fails = True
    line = served.measured(client, "--format", "JWS", "--bad", kind, "--batch", "3")
    assert (line["rate"] > 0, line["failures"]) == (True, {})
    for payload in served.stand_in.payloads:
        with pytest.raises(PayloadError):
            json_object(payload)
    if kind in {"lists", "members"}:
        assert all(1 << 17 < len(payload) < 1 << 19 for payload in served.stand_in.payloads)
    good = served.measured(client, "--batch", "1")
    assert good["failures"].keys() == {"PAYLOAD_INVALID"}
    assert good["rate"] == 0


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("kind", ["JWS", "HCERT"])
def test_documents_parse(served: Served, client: tuple[str, ...], kind: str) -> None:
    done = served.run(client, "--format", kind)
    assert ("HC1" in done.stderr) == (kind == "HCERT" and client != PYTHON)
    documents = [json.loads(payload) for payload in served.stand_in.payloads]
    assert all("ver" in each if kind == "HCERT" else "id" in each for each in documents)


@pytest.mark.parametrize("client", CLIENTS)
def test_requests_for_time_stamps_can_be_granted(served: Served, client: tuple[str, ...]) -> None:
    assert served.measured(client, "--format", "TIMESTAMP", "--batch", "3")["rate"] > 0
    asked = [read_request(payload, TSA) for payload in served.stand_in.payloads]
    assert len({each.imprint.digest for each in asked}) > 3
    assert all(each.certificate and each.nonce for each in asked)


def test_each_certificate_has_a_record_that_was_signed_before(served: Served) -> None:
    words = ("--format", "HCERT", "--batch", "3", "--cosigner", "facilities/f/keys/c")
    assert served.measured(PYTHON, *words)["rate"] > 0
    assert served.stand_in.seen["facilities/f/keys/c"] > 0
    certificates = [each for each in served.stand_in.payloads if b'"ver"' in each]
    assert [payload for payload, _ in served.stand_in.cosigned] == certificates
    assert {record for _, record in served.stand_in.cosigned} == {bytes(64)}
    records = {each for each in served.stand_in.payloads if b'"vaccination"' in each}
    assert {record_beside(each) for each in certificates} <= records


@needs_go
def test_a_signature_that_does_not_verify_ends_the_client_in_go(
    served: Served, tmp_path: Path
) -> None:
    public_key = tmp_path / "public.pem"
    command = ["openssl", "ec", "-in", str(tmp_path / "me.key"), "-pubout", "-out", str(public_key)]
    subprocess.run(command, check=True, capture_output=True)
    more = ("--public-key", str(public_key), "--callers", "8", "--batch", "9")
    done = served.run((str(GO),), *more, "--seconds", "2")
    assert done.returncode == 1
    assert "a signature is wrong" in done.stderr


@pytest.mark.parametrize("client", CLIENTS)
def test_a_server_that_is_not_there_ends_the_client(
    served: Served, client: tuple[str, ...]
) -> None:
    done = served.run(client, "--address", "127.0.0.1:9")
    assert done.returncode == 1
    assert "UNAVAILABLE" in done.stderr


class Gathering:
    """Has the two methods of AsyncSignerClient that tasks of a program use."""

    calls = 0

    @classmethod
    def from_files(cls, *_: object, **__: object) -> "Gathering":
        return cls()

    async def sign_one(self, key: str, message_format: str, payload: bytes) -> bytes:
        assert (key, message_format, len(payload)) == ("facilities/f/keys/a", "MESSAGE", 200)
        Gathering.calls += 1
        await asyncio.sleep(0.001)
        return bytes(64)


def test_tasks_sign_with_the_client_that_gathers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(signer.client, "AsyncSignerClient", Gathering, raising=False)
    words = ["--address", "127.0.0.1:9", "--ca", "-", "--certificate", "-", "--key", "-"]
    words += ["--name", "facilities/f/keys/a", "--gather", "--callers", "5", "--seconds", "0.1"]
    asyncio.run(python_load._main(python_load._options(words)))
    line = json.loads(capsys.readouterr().out)
    assert line["rate"] > 0
    assert line["items"] == Gathering.calls - 1

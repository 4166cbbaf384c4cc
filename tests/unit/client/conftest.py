"""A small server that plays the API over mutual TLS, as its test tells it."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial, wraps
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from signer.client import AsyncSignerClient, SignerClient
from signer.tools.dev import pki
from signer.v1 import (
    control_pb2,
    control_pb2_grpc,
    evidence_pb2,
    evidence_pb2_grpc,
    keys_pb2,
    keys_pb2_grpc,
    operations_pb2,
    operations_pb2_grpc,
    signing_pb2,
    signing_pb2_grpc,
)

VERSION = "facilities/f/keys/k/versions/1"
KEY = "facilities/f/keys/k"

T = TypeVar("T")
Script = Callable[[signing_pb2.SignBatchRequest, int], signing_pb2.SignBatchResponse]

StreamScript = Callable[
    [Iterator[signing_pb2.SignStreamRequest], int], Iterable[signing_pb2.SignStreamResponse]
]


def status(
    code: grpc.StatusCode,
    reason: str,
    *,
    message: str = "what to do",
    retry_after: float | None = None,
    metadata: dict[str, str] | None = None,
    violations: tuple[tuple[str, str], ...] = (),
    domain: str = "signer.v1",
) -> status_pb2.Status:
    made = status_pb2.Status(code=code.value[0], message=message)
    info = error_details_pb2.ErrorInfo(reason=reason, domain=domain, metadata=metadata)
    made.details.add().Pack(info)
    if retry_after is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(int(retry_after * 1000))
        made.details.add().Pack(retry)
    if violations:
        bad = error_details_pb2.BadRequest()
        for path, description in violations:
            bad.field_violations.add(field=path, description=description)
        made.details.add().Pack(bad)
    return made


class Refusal(Exception):  # it is what a script raises, not an error of the test
    def __init__(self, refused: status_pb2.Status) -> None:
        super().__init__(refused.message)
        self.status = refused


def refusable(method: Callable[..., Message]) -> Callable[..., Message]:
    """A method of a service that may raise Refusal."""

    @wraps(method)
    def call(self: Any, request: Any, context: grpc.ServicerContext) -> Message:
        try:
            return method(self, request, context)
        except Refusal as refusal:
            context.abort_with_status(rpc_status.to_status(refusal.status))

    return call


def signed(request: signing_pb2.SignBatchRequest) -> signing_pb2.SignBatchResponse:
    return signing_pb2.SignBatchResponse(
        key_version=VERSION, signatures=[b"sig:" + payload for payload in request.payloads]
    )


def streamed(message: signing_pb2.SignStreamRequest) -> signing_pb2.SignStreamResponse:
    return signing_pb2.SignStreamResponse(tag=message.tag, batch=signed(message.batch))


@dataclass
class Played(
    signing_pb2_grpc.SigningServiceServicer,
    keys_pb2_grpc.KeyServiceServicer,
    evidence_pb2_grpc.EvidenceServiceServicer,
    control_pb2_grpc.ControlServiceServicer,
):
    """``script`` answers the n-th SignBatch call, n from 0; ``requests`` keeps them.

    ``stream`` answers what comes on the n-th stream; ``messages`` keeps what came on all.
    ``note`` answers the n-th GetCheckpoint call of ``asked``.
    """

    script: Script = lambda request, _: signed(request)
    stream: StreamScript = lambda requests, _: map(streamed, requests)
    streams: int = 0
    messages: list[signing_pb2.SignStreamRequest] = field(default_factory=list)
    max_batch_items: int = 0
    quota: int = 9_000
    requests: list[signing_pb2.SignBatchRequest] = field(default_factory=list)
    note: Callable[[int], str] = lambda _: ""
    asked: int = 0
    at_work: int = 0
    most_at_work: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    @refusable
    def SignBatch(self, request: Any, _context: Any) -> signing_pb2.SignBatchResponse:
        with self.lock:
            number = len(self.requests)
            self.requests.append(request)
            self.at_work += 1
            self.most_at_work = max(self.most_at_work, self.at_work)
        try:
            return self.script(request, number)
        finally:
            with self.lock:
                self.at_work -= 1

    def SignStream(
        self, requests: Any, context: grpc.ServicerContext
    ) -> Iterator[signing_pb2.SignStreamResponse]:
        with self.lock:
            number = self.streams
            self.streams += 1

        def read() -> Iterator[signing_pb2.SignStreamRequest]:
            for request in requests:
                with self.lock:
                    self.messages.append(request)
                yield request

        try:
            yield from self.stream(read(), number)
        except Refusal as refusal:
            context.abort_with_status(rpc_status.to_status(refusal.status))

    @refusable
    def GetKey(self, request: Any, _context: Any) -> keys_pb2.GetKeyResponse:
        if request.name != KEY:
            raise Refusal(status(grpc.StatusCode.NOT_FOUND, "KEY_NOT_FOUND"))
        key = keys_pb2.Key(
            name=KEY,
            algorithm=keys_pb2.ALGORITHM_EDDSA,
            formats=[signing_pb2.FORMAT_JWS, signing_pb2.FORMAT_COSE_SIGN1],
            max_batch_items=self.max_batch_items,
            quotas=[keys_pb2.Quota(limit=self.quota, window_seconds=1, remaining=4)],
        )
        key.primary.name = VERSION
        key.primary.state = keys_pb2.KEY_STATE_ACTIVE
        key.primary.create_time.FromSeconds(1_700_000_000)
        return keys_pb2.GetKeyResponse(key=key)

    def GetKeyVersion(self, request: Any, _context: Any) -> keys_pb2.GetKeyVersionResponse:
        version = keys_pb2.KeyVersion(name=request.name, certificate=b"der")
        return keys_pb2.GetKeyVersionResponse(key_version=version)

    def ListKeys(self, request: Any, _context: Any) -> keys_pb2.ListKeysResponse:
        page = int(request.page_token or 0)
        names = [f"facilities/f/keys/{page}-{number}" for number in range(2)]
        return keys_pb2.ListKeysResponse(
            keys=[keys_pb2.Key(name=name) for name in names],
            next_page_token=str(page + 1) if page < 2 else "",
        )

    def ListKeyVersions(self, request: Any, _context: Any) -> keys_pb2.ListKeyVersionsResponse:
        page = int(request.page_token or 0)
        name = f"{request.parent or 'facilities/f/keys/k'}/versions/{page + 1}"
        version = keys_pb2.KeyVersion(name=name, token="t", primary=page == 1)
        version.deactivate_time.FromSeconds(1_700_000_000)
        version.destroy_time.FromSeconds(1_700_000_001)
        return keys_pb2.ListKeyVersionsResponse(
            key_versions=[version], next_page_token=str(page + 1) if page < 2 else ""
        )

    def ListWrappingKeys(self, _request: Any, _context: Any) -> keys_pb2.ListWrappingKeysResponse:
        made = keys_pb2.WrappingKey(id="w", tokens=["t", "u"], newest_on=["t"], key_versions=3)
        made.create_time.FromSeconds(1_700_000_000)
        return keys_pb2.ListWrappingKeysResponse(wrapping_keys=[made])

    @refusable
    def GetCheckpoint(self, _request: Any, _context: Any) -> evidence_pb2.GetCheckpointResponse:
        self.asked += 1
        return evidence_pb2.GetCheckpointResponse(note=self.note(self.asked - 1))

    def ListRecords(self, request: Any, _context: Any) -> evidence_pb2.ListRecordsResponse:
        seq = int(request.page_token or request.start)
        items = b"" if request.omit_items else b"items"
        record = evidence_pb2.LogRecord(seq=seq, kind=" ".join(request.kinds), items=items)
        record.record_time.FromSeconds(1_700_000_000)
        token = str(seq + 1) if seq < request.start + 2 else ""
        return evidence_pb2.ListRecordsResponse(records=[record], next_page_token=token)

    def GetInclusionProof(
        self, request: Any, _context: Any
    ) -> evidence_pb2.GetInclusionProofResponse:
        hashes = [b"inclusion", b"%d" % request.seq, b"%d" % request.size]
        return evidence_pb2.GetInclusionProofResponse(hashes=hashes)

    def GetConsistencyProof(
        self, request: Any, _context: Any
    ) -> evidence_pb2.GetConsistencyProofResponse:
        hashes = [b"consistency", b"%d" % request.old_size, b"%d" % request.size]
        return evidence_pb2.GetConsistencyProofResponse(hashes=hashes)

    def Reload(self, _request: Any, _context: Any) -> control_pb2.ReloadResponse:
        return control_pb2.ReloadResponse(policy_sha256="ab", policy_changed=True)

    def GetStatus(self, request: Any, _context: Any) -> control_pb2.GetStatusResponse:
        usage = [control_pb2.FacilityUsage(facility="f", items=request.busiest)]
        worker = control_pb2.WorkerStatus(token="t", pid=7, state="serving", starts=1)
        return control_pb2.GetStatusResponse(ready=True, workers=[worker], busiest=usage)


class PlayedOperations(operations_pb2_grpc.OperationServiceServicer):
    """Answers every method with ``answers[method](request)``; ``asked`` keeps the requests."""

    def __init__(self) -> None:
        self.answers: dict[str, Callable[[Any], Message]] = {}
        self.asked: list[tuple[str, Any]] = []
        for method in operations_pb2.DESCRIPTOR.services_by_name["OperationService"].methods:
            setattr(self, method.name, partial(self._answer, method.name))

    def _answer(self, name: str, request: Any, context: grpc.ServicerContext) -> Message:
        self.asked.append((name, request))
        return refusable(lambda _, asked, __: self.answers[name](asked))(self, request, context)


@contextmanager
def serving(played: Played, operations: PlayedOperations, folder: Path) -> Iterator[str]:
    """Serves what is played on a port of its own; gives its address."""
    options = [("grpc.max_receive_message_length", 4 * 1024 * 1024), ("grpc.so_reuseport", 0)]
    server = grpc.server(ThreadPoolExecutor(16), options=options)
    signing_pb2_grpc.add_SigningServiceServicer_to_server(played, server)
    keys_pb2_grpc.add_KeyServiceServicer_to_server(played, server)
    evidence_pb2_grpc.add_EvidenceServiceServicer_to_server(played, server)
    control_pb2_grpc.add_ControlServiceServicer_to_server(played, server)
    operations_pb2_grpc.add_OperationServiceServicer_to_server(operations, server)
    checks = health.HealthServicer()
    checks.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    credentials = grpc.ssl_server_credentials(
        [((folder / "server.key").read_bytes(), (folder / "server.pem").read_bytes())],
        root_certificates=(folder / "ca.pem").read_bytes(),
        require_client_auth=True,
    )
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


@dataclass
class Stage:
    """What tests of the client use: a server that plays, a client, and their words."""

    folder: Path
    played: Played = field(default_factory=Played)
    operations: PlayedOperations = field(default_factory=PlayedOperations)
    address: str = ""

    def refuse(self, code: grpc.StatusCode, reason: str, **details: Any) -> NoReturn:
        """Ends the call as the appliance would."""
        raise Refusal(status(code, reason, **details))

    def refusing(self, code: grpc.StatusCode, reason: str, **details: Any) -> Callable[..., Any]:
        """Returns a script, or an answer, that always refuses."""
        return lambda *_: self.refuse(code, reason, **details)

    def signed(
        self, request: signing_pb2.SignBatchRequest, failures: dict[int, status_pb2.Status]
    ) -> signing_pb2.SignBatchResponse:
        """Signs what is not in ``failures``."""
        answer = signed(request)
        for index, failure in failures.items():
            answer.signatures[index] = b""
            answer.failures[index].CopyFrom(failure)
        return answer

    def status(self, code: grpc.StatusCode, reason: str, **details: Any) -> status_pb2.Status:
        return status(code, reason, **details)

    @contextmanager
    def client(self, script: Script | None = None) -> Iterator[SignerClient]:
        """Serves with ``script`` and connects over mutual TLS."""
        if script is not None:
            self.played.script = script
        with serving(self.played, self.operations, self.folder) as address:
            self.address = address
            with self.connect(address) as client:
                yield client

    def connect(self, address: str, name: str | None = pki.SERVER_NAME) -> SignerClient:
        return SignerClient.from_files(address, **self.files, server_name=name)

    @property
    def files(self) -> dict[str, Path]:
        return {
            "ca": self.folder / "ca.pem",
            "certificate": self.folder / "me.pem",
            "key": self.folder / "me.key",
        }

    async def until(self, true: Callable[[], object]) -> None:
        """Waits for something that threads of the server do."""
        async with asyncio.timeout(20):
            while not true():  # noqa: ASYNC110 - no event of this loop
                await asyncio.sleep(0.01)

    def run(
        self, work: Callable[[AsyncSignerClient], Awaitable[T]], script: Script | None = None
    ) -> T:
        """Serves with ``script``, and runs ``work`` on a loop, with a client for asyncio."""
        if script is not None:
            self.played.script = script

        async def main(address: str) -> T:
            async with AsyncSignerClient.from_files(
                address, **self.files, server_name=pki.SERVER_NAME
            ) as client:
                return await work(client)

        with serving(self.played, self.operations, self.folder) as address:
            self.address = address
            return asyncio.run(main(address))


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The certificates of both sides."""
    made = tmp_path_factory.mktemp("pki")
    authority = pki.authority(made, "ca", "ca")
    pki.server(made, authority)
    pki.client(made, authority, "me", "spiffe://signer.example/me")
    return made


@pytest.fixture
def stage(folder: Path) -> Stage:
    return Stage(folder)

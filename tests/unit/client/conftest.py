"""A small server that plays the API over mutual TLS, as its test tells it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NoReturn

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from signer.client import SignerClient
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

Script = Callable[[signing_pb2.SignBatchRequest, int], signing_pb2.SignBatchResponse]


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
    details: list[Message] = [
        error_details_pb2.ErrorInfo(reason=reason, domain=domain, metadata=metadata or {})
    ]
    if retry_after is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(int(retry_after * 1000))
        details.append(retry)
    if violations:
        bad = error_details_pb2.BadRequest()
        for path, description in violations:
            bad.field_violations.add(field=path, description=description)
        details.append(bad)
    made = status_pb2.Status(code=code.value[0], message=message)
    for detail in details:
        packed = AnyMessage()
        packed.Pack(detail)
        made.details.append(packed)
    return made


class Refusal(Exception):  # it is what a script raises, not an error of the test
    def __init__(self, refused: status_pb2.Status) -> None:
        super().__init__(refused.message)
        self.status = refused


def signed(request: signing_pb2.SignBatchRequest) -> signing_pb2.SignBatchResponse:
    return signing_pb2.SignBatchResponse(
        key_version=VERSION, signatures=[b"sig:" + payload for payload in request.payloads]
    )


@dataclass
class Played(
    signing_pb2_grpc.SigningServiceServicer,
    keys_pb2_grpc.KeyServiceServicer,
    evidence_pb2_grpc.EvidenceServiceServicer,
    control_pb2_grpc.ControlServiceServicer,
):
    """``script`` answers the n-th SignBatch call, n from 0; ``requests`` keeps them.

    ``note`` answers the n-th GetCheckpoint call of ``asked``.
    """

    script: Script = lambda request, _: signed(request)
    max_batch_items: int = 0
    requests: list[signing_pb2.SignBatchRequest] = field(default_factory=list)
    note: Callable[[int], str] = lambda _: ""
    asked: int = 0
    at_work: int = 0
    most_at_work: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def SignBatch(  # named by the .proto
        self, request: signing_pb2.SignBatchRequest, context: grpc.ServicerContext
    ) -> signing_pb2.SignBatchResponse:
        with self.lock:
            number = len(self.requests)
            self.requests.append(request)
            self.at_work += 1
            self.most_at_work = max(self.most_at_work, self.at_work)
        try:
            return self.script(request, number)
        except Refusal as refusal:
            context.abort_with_status(rpc_status.to_status(refusal.status))
            raise
        finally:
            with self.lock:
                self.at_work -= 1

    def GetKey(  # named by the .proto
        self, request: keys_pb2.GetKeyRequest, context: grpc.ServicerContext
    ) -> keys_pb2.GetKeyResponse:
        if request.name != KEY:
            refused = status(grpc.StatusCode.NOT_FOUND, "KEY_NOT_FOUND")
            context.abort_with_status(rpc_status.to_status(refused))
        key = keys_pb2.Key(
            name=KEY,
            algorithm=keys_pb2.ALGORITHM_EDDSA,
            formats=[signing_pb2.FORMAT_JWS, signing_pb2.FORMAT_COSE_SIGN1],
            max_batch_items=self.max_batch_items,
            quotas=[keys_pb2.Quota(limit=9, window_seconds=1, remaining=4)],
        )
        key.primary.name = VERSION
        key.primary.state = keys_pb2.KEY_STATE_ACTIVE
        key.primary.create_time.FromSeconds(1_700_000_000)
        return keys_pb2.GetKeyResponse(key=key)

    def GetKeyVersion(  # named by the .proto
        self, request: keys_pb2.GetKeyVersionRequest, context: grpc.ServicerContext
    ) -> keys_pb2.GetKeyVersionResponse:
        del context
        version = keys_pb2.KeyVersion(name=request.name, certificate=b"der")
        return keys_pb2.GetKeyVersionResponse(key_version=version)

    def ListKeys(  # named by the .proto
        self, request: keys_pb2.ListKeysRequest, context: grpc.ServicerContext
    ) -> keys_pb2.ListKeysResponse:
        del context
        page = int(request.page_token or 0)
        names = [f"facilities/f/keys/{page}-{number}" for number in range(2)]
        return keys_pb2.ListKeysResponse(
            keys=[keys_pb2.Key(name=name) for name in names],
            next_page_token=str(page + 1) if page < 2 else "",
        )

    def ListKeyVersions(  # named by the .proto
        self, request: keys_pb2.ListKeyVersionsRequest, context: grpc.ServicerContext
    ) -> keys_pb2.ListKeyVersionsResponse:
        del context
        page = int(request.page_token or 0)
        name = f"{request.parent or 'facilities/f/keys/k'}/versions/{page + 1}"
        version = keys_pb2.KeyVersion(name=name, token="t", primary=page == 1)
        version.deactivate_time.FromSeconds(1_700_000_000)
        version.destroy_time.FromSeconds(1_700_000_001)
        return keys_pb2.ListKeyVersionsResponse(
            key_versions=[version], next_page_token=str(page + 1) if page < 2 else ""
        )

    def GetCheckpoint(  # named by the .proto
        self, request: evidence_pb2.GetCheckpointRequest, context: grpc.ServicerContext
    ) -> evidence_pb2.GetCheckpointResponse:
        del request
        self.asked += 1
        try:
            return evidence_pb2.GetCheckpointResponse(note=self.note(self.asked - 1))
        except Refusal as refusal:
            context.abort_with_status(rpc_status.to_status(refusal.status))
            raise

    def ListRecords(  # named by the .proto
        self, request: evidence_pb2.ListRecordsRequest, context: grpc.ServicerContext
    ) -> evidence_pb2.ListRecordsResponse:
        del context
        seq = int(request.page_token or request.start)
        items = b"" if request.omit_items else b"items"
        record = evidence_pb2.LogRecord(seq=seq, kind=" ".join(request.kinds), items=items)
        record.record_time.FromSeconds(1_700_000_000)
        token = str(seq + 1) if seq < request.start + 2 else ""
        return evidence_pb2.ListRecordsResponse(records=[record], next_page_token=token)

    def GetInclusionProof(  # named by the .proto
        self, request: evidence_pb2.GetInclusionProofRequest, context: grpc.ServicerContext
    ) -> evidence_pb2.GetInclusionProofResponse:
        del context
        hashes = [b"inclusion", b"%d" % request.seq, b"%d" % request.size]
        return evidence_pb2.GetInclusionProofResponse(hashes=hashes)

    def GetConsistencyProof(  # named by the .proto
        self, request: evidence_pb2.GetConsistencyProofRequest, context: grpc.ServicerContext
    ) -> evidence_pb2.GetConsistencyProofResponse:
        del context
        hashes = [b"consistency", b"%d" % request.old_size, b"%d" % request.size]
        return evidence_pb2.GetConsistencyProofResponse(hashes=hashes)

    def Reload(  # named by the .proto
        self, request: control_pb2.ReloadRequest, context: grpc.ServicerContext
    ) -> control_pb2.ReloadResponse:
        del request, context
        return control_pb2.ReloadResponse(policy_sha256="ab", policy_changed=True)

    def GetStatus(  # named by the .proto
        self, request: control_pb2.GetStatusRequest, context: grpc.ServicerContext
    ) -> control_pb2.GetStatusResponse:
        del context
        usage = [control_pb2.FacilityUsage(facility="f", items=request.busiest)]
        worker = control_pb2.WorkerStatus(token="t", pid=7, state="serving", starts=1)
        return control_pb2.GetStatusResponse(ready=True, workers=[worker], busiest=usage)


class PlayedOperations(operations_pb2_grpc.OperationServiceServicer):
    """Answers every method with ``answers[method](request)``; ``asked`` keeps the requests."""

    def __init__(self) -> None:
        self.answers: dict[str, Callable[[Any], Message]] = {}
        self.asked: list[tuple[str, Any]] = []
        for method in operations_pb2.DESCRIPTOR.services_by_name["OperationService"].methods:
            setattr(self, method.name, self._method(method.name))

    def _method(self, name: str) -> Callable[[Any, grpc.ServicerContext], Message]:
        def answer(request: Any, context: grpc.ServicerContext) -> Message:
            self.asked.append((name, request))
            try:
                return self.answers[name](request)
            except Refusal as refusal:
                context.abort_with_status(rpc_status.to_status(refusal.status))
                raise

        return answer


@dataclass(frozen=True)
class Identity:
    ca: Path
    certificate: Path
    key: Path


def _certificate(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: tuple[x509.Certificate, ec.EllipticCurvePrivateKey] | None,
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer[0].subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
    )
    return builder.sign(issuer[1] if issuer else key, hashes.SHA256())


def make_pki(folder: Path) -> Identity:
    """Writes a CA and one end entity, "appliance", that both sides use."""
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca = _certificate("ca", ca_key, None)
    identity = Identity(folder / "ca.pem", folder / "me.pem", folder / "me.key")
    identity.ca.write_bytes(ca.public_bytes(serialization.Encoding.PEM))
    leaf = _certificate("appliance", key, (ca, ca_key))
    identity.certificate.write_bytes(leaf.public_bytes(serialization.Encoding.PEM))
    identity.key.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return identity


@contextmanager
def serving(played: Played, operations: PlayedOperations, identity: Identity) -> Iterator[str]:
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
        [(identity.key.read_bytes(), identity.certificate.read_bytes())],
        root_certificates=identity.ca.read_bytes(),
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

    identity: Identity
    played: Played = field(default_factory=Played)
    operations: PlayedOperations = field(default_factory=PlayedOperations)
    address: str = ""

    def refuse(self, code: grpc.StatusCode, reason: str, **details: Any) -> NoReturn:
        """Ends the call as the appliance would."""
        raise Refusal(status(code, reason, **details))

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
        with serving(self.played, self.operations, self.identity) as address:
            self.address = address
            with self.connect(address) as client:
                yield client

    def connect(self, address: str) -> SignerClient:
        return SignerClient.from_files(
            address,
            ca=self.identity.ca,
            certificate=self.identity.certificate,
            key=self.identity.key,
            server_name="appliance",
        )


@pytest.fixture(scope="session")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    return make_pki(tmp_path_factory.mktemp("pki"))


@pytest.fixture
def stage(identity: Identity) -> Stage:
    return Stage(identity)

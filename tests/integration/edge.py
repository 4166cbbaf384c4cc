"""Calls of the real server as strangers make them, and what they learn."""

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple, Self

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2_grpc
from grpc_status import rpc_status

from signer.client import secure_channel
from signer.errors import Reason
from signer.tools.dev import pki
from signer.v1 import (
    control_pb2,
    control_pb2_grpc,
    evidence_pb2_grpc,
    keys_pb2_grpc,
    signing_pb2,
    signing_pb2_grpc,
)
from tests import daemon
from tests.appliances import serving

SECONDS = 120.0
"""Deadline of every call: what hangs fails its test."""
until = daemon.until

RECORDS = "facilities/01-001/keys/records"
RSA = "facilities/01-001/keys/records-rsa"


class Stubs:
    """All services over one connection; ``sign`` is for requests with one thing changed."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.channel = channel
        self.signing: Any = signing_pb2_grpc.SigningServiceStub(channel)
        self.keys: Any = keys_pb2_grpc.KeyServiceStub(channel)
        self.evidence: Any = evidence_pb2_grpc.EvidenceServiceStub(channel)
        self.control: Any = control_pb2_grpc.ControlServiceStub(channel)
        self.health: Any = health_pb2_grpc.HealthStub(channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.channel.close()

    def sign(
        self,
        payloads: Sequence[bytes] = (b"{}",),
        *,
        key: str = RECORDS,
        format: int | str = "FORMAT_JWS",  # noqa: A002 - its name in the API
        request_id: str = "",
        timeout: float | None = SECONDS,
    ) -> Any:
        request = signing_pb2.SignBatchRequest(
            key=key,
            format=format,  # type: ignore[arg-type] # numbers without a name, too
            payloads=payloads,
            request_id=request_id,
        )
        return self.signing.SignBatch(request, timeout=timeout)


def connect(dev: Mapping[str, Any], name: str = "issuer") -> Stubs:
    """Connects as one of the clients of dev.json."""
    identity = dev["clients"][name]
    return connect_with(dev, identity["cert"], identity["key"])


def connect_with(dev: Mapping[str, Any], certificate: str | Path, key: str | Path) -> Stubs:
    """Connects with any certificate."""
    return Stubs(
        secure_channel(
            dev["address"],
            ca=dev["ca"],
            certificate=certificate,
            key=key,
            server_name=dev["server_name"],
        )
    )


class Refusal(NamedTuple):
    """What a refused call or item carries; an item has no ``call_id``."""

    code: str
    reason: str
    message: str
    metadata: Mapping[str, str]
    retry_after: float | None
    fields: tuple[str, ...]
    call_id: str = ""

    def __str__(self) -> str:
        """What it says; its id is never that of another."""
        return str(self[:-1])


def refused(call: Callable[[], object], reason: str = "") -> Refusal:
    """Expects ``call`` to be refused by us: with exactly one ErrorInfo, for ``reason`` if given."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    error = caught.value
    assert isinstance(error, grpc.Call)
    status = rpc_status.from_call(error)
    assert status is not None, f"no google.rpc.Status: {error.code()} {error.details()}"
    found = read(status)
    assert str(uuid.UUID(found.call_id)) == found.call_id
    if reason:
        assert (found.code, found.reason) == (Reason(reason).code.name, reason)
    return found


def read(status: status_pb2.Status) -> Refusal:
    """Reads a Status of ours: one ErrorInfo, at most one of each other detail."""
    infos = _unpacked(status, error_details_pb2.ErrorInfo)
    retries = _unpacked(status, error_details_pb2.RetryInfo)
    bad = _unpacked(status, error_details_pb2.BadRequest)
    assert len(infos) == 1
    assert infos[0].domain == "signer.v1"
    assert len(retries) <= 1
    assert len(bad) <= 1
    assert len(status.details) == 1 + len(retries) + len(bad)
    assert status.message
    metadata = dict(infos[0].metadata)
    call_id = metadata.pop("call_id", "")
    code = next(code for code in grpc.StatusCode if code.value[0] == status.code)
    return Refusal(
        code.name,
        infos[0].reason,
        status.message,
        metadata,
        retries[0].retry_delay.ToMilliseconds() / 1000 if retries else None,
        tuple(each.field for part in bad for each in part.field_violations),
        call_id,
    )


def _unpacked(status: status_pb2.Status, kind: type[Message]) -> list[Any]:
    found = []
    for detail in status.details:
        message = kind()
        if detail.Unpack(message):
            found.append(message)
    return found


def refused_by_grpc(call: Callable[[], object]) -> tuple[str, str]:
    """Expects gRPC itself to refuse: returns code and text; there is no Status of ours."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    error = caught.value
    assert isinstance(error, grpc.Call)
    assert rpc_status.from_call(error) is None
    return error.code().name, error.details() or ""


@contextmanager
def own(appliance: Any, folder: Path, **changes: Any) -> Iterator[Any]:
    """An appliance like the session's but with changes, for all tests of a module.

    ``config``, ``policy`` and ``workers`` are those of ``make_appliance``; ``prepare``
    gets the appliance before it starts.
    """
    made = type(appliance)(folder / "dev")
    made.init()
    made.set_workers(changes.get("workers", 1))
    if "config" in changes:
        made.configure(changes["config"])
    if "policy" in changes:
        made.edit_policy(changes["policy"])
    if "prepare" in changes:
        changes["prepare"](made)
    with serving(made):
        yield made


class Issued(NamedTuple):
    """A client certificate and its key, as files."""

    certificate: Path
    key: Path
    serial: int


def issue(
    folder: Path, authority: pki.Authority, name: str, *uris: str, ca: bool = False
) -> Issued:
    """Issues a client certificate with any number of URIs, also one of a ``ca``."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri) for uri in uris]
    made = (
        x509.CertificateBuilder()
        .subject_name(x509.Name.from_rfc4514_string(f"CN={name}"))
        .issuer_name(authority.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .add_extension(
            x509.SubjectAlternativeName([*names, x509.DNSName("client.example")]), critical=False
        )
        .sign(authority.key, hashes.SHA256())
    )
    issued = Issued(folder / f"{name}.pem", folder / f"{name}.key", made.serial_number)
    issued.certificate.write_bytes(made.public_bytes(Encoding.PEM))
    issued.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return issued


def client_authority(appliance: Any) -> pki.Authority:
    """The authority of the appliance's client certificates."""
    return pki.authority(appliance.dir / "pki", "client-ca", "as it is")


def fingerprint(pem: bytes) -> bytes:
    """SHA-256 of the first certificate."""
    return x509.load_pem_x509_certificates(pem)[0].fingerprint(hashes.SHA256())


def reload(operator: Stubs) -> Any:
    """Has the daemon read its files again."""
    return operator.control.Reload(control_pb2.ReloadRequest(), timeout=SECONDS)


def status(operator: Stubs) -> Any:
    """The daemon's status, as its operator sees it."""
    return operator.control.GetStatus(control_pb2.GetStatusRequest(), timeout=SECONDS)

"""The Python client of the appliance.

    with SignerClient.from_files("signer.example:7443", ca="ca.pem",
                                 certificate="me.pem", key="me.key") as client:
        for item in client.sign("facilities/01-001/keys/records", "JWS", payloads):
            print(item.signature.decode() if item.ok else item.error)

Two appliances are called in turn, each while it serves, and either may be restarted:

    SignerClient.from_files("10.0.0.1:7443,10.0.0.2:7443", server_name="signer.example", ...)

Everything that users need is in this module; ``signer.client`` is its inside.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Sequence
from threading import Event
from types import TracebackType
from typing import Self

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from signer.client import _pipeline as pipeline
from signer.client._batches import cut
from signer.client._calls import DEFAULT_TIMEOUT, PAGE_SIZE, ask, ask_patiently
from signer.client._channels import CHANNEL_OPTIONS, FilePath, secure_channel
from signer.client._errors import (
    DeadlineError,
    DeniedError,
    ExhaustedError,
    InternalError,
    InvalidRequestError,
    ItemError,
    NotFoundError,
    PreconditionError,
    SignerClientError,
    UnauthenticatedError,
    UnavailableError,
    from_status,
)
from signer.client._operation_values import (
    Officer,
    Officers,
    OfficerSignature,
    Operation,
    Prepared,
    Suspension,
)
from signer.client._operations import OVER, Operations
from signer.client._signing import sign_operation
from signer.client._values import (
    ItemResult,
    Key,
    KeyVersion,
    LogRecord,
    Quota,
    Reloaded,
    Status,
    Usage,
    Worker,
    read_key,
    read_key_version,
    read_log_record,
    read_status,
)
from signer.model import Format
from signer.v1 import (
    control_pb2,
    control_pb2_grpc,
    evidence_pb2,
    evidence_pb2_grpc,
    keys_pb2,
    keys_pb2_grpc,
    signing_pb2,
    signing_pb2_grpc,
)

__all__ = [
    "CHANNEL_OPTIONS",
    "OVER",
    "DeadlineError",
    "DeniedError",
    "ExhaustedError",
    "Format",
    "InternalError",
    "InvalidRequestError",
    "ItemError",
    "ItemResult",
    "Key",
    "KeyVersion",
    "LogRecord",
    "NotFoundError",
    "Officer",
    "OfficerSignature",
    "Officers",
    "Operation",
    "Operations",
    "PreconditionError",
    "Prepared",
    "Quota",
    "Reloaded",
    "SignerClient",
    "SignerClientError",
    "Status",
    "Suspension",
    "UnauthenticatedError",
    "UnavailableError",
    "Usage",
    "Worker",
    "secure_channel",
    "sign_operation",
]

_LARGEST_BATCH = 500


class SignerClient:
    """A connection to one appliance, or to several; safe to share between threads.

    Methods raise ``SignerClientError`` (a subclass by gRPC code) when a call
    fails as a whole. ``timeout`` is in seconds everywhere and bounds the call
    with all its retries. ``operations`` has what security officers do.

    Several are for signing, and for what the registry holds. Each has an audit log, a
    status and answered request ids of its own: operators and auditors ask one by one.
    """

    def __init__(self, channel: grpc.Channel) -> None:
        self._channel = channel
        self.operations = Operations(channel)
        self._signing = signing_pb2_grpc.SigningServiceStub(channel)
        self._keys = keys_pb2_grpc.KeyServiceStub(channel)
        self._evidence = evidence_pb2_grpc.EvidenceServiceStub(channel)
        self._control = control_pb2_grpc.ControlServiceStub(channel)
        self._health = health_pb2_grpc.HealthStub(channel)

    @classmethod
    def from_files(
        cls,
        address: str,
        *,
        ca: FilePath,
        certificate: FilePath,
        key: FilePath,
        server_name: str | None = None,
    ) -> Self:
        """Connects to one appliance or to several; arguments as for ``secure_channel``."""
        return cls(
            secure_channel(
                address, ca=ca, certificate=certificate, key=key, server_name=server_name
            )
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection; calls on their way are cancelled."""
        self._channel.close()

    def sign(
        self,
        key: str,
        message_format: Format | str,
        payloads: Iterable[bytes],
        *,
        batch_items: int | None = None,
        in_flight: int = 4,
        timeout: float = DEFAULT_TIMEOUT,
        request_id: uuid.UUID | None = None,
    ) -> Iterator[ItemResult]:
        """Signs any number of payloads; yields one result each, in their order.

        Payloads are read as they are needed, so millions may stream through:
        ``in_flight`` batches are on their way, each at most ``batch_items`` long
        (None: as long as the policy allows this key, at most 500; one more call
        asks for that) and below the API's 4 MiB. ``timeout`` is for each batch.

        What can be tried again is, within ``timeout`` and no sooner than the
        appliance says: calls refused for load or quota, lost connections, single
        items that an HSM dropped. An item that failed is a result with ``error``.
        Where a call fails for good, its items and those already on their way
        still get their results; then ``SignerClientError`` is raised.

        ``request_id`` names the whole job: repeated with the same payloads it
        repeats the ids of its calls. Raises ValueError for an unknown format or
        numbers below 1, before anything is sent.
        """
        wanted = Format(message_format)
        if in_flight < 1 or (batch_items is not None and batch_items < 1):
            raise ValueError("batch_items and in_flight are at least 1")
        if batch_items is None:
            allowed = self.get_key(key.partition("/versions/")[0], timeout=timeout).max_batch_items
            batch_items = min(_LARGEST_BATCH, allowed or _LARGEST_BATCH)

        def call(batch: Sequence[bytes], call_id: str, left: float) -> pipeline.Answer:
            return self._sign(key, wanted, batch, call_id, left)

        job = pipeline.Job(call, wanted, request_id or uuid.uuid4(), timeout, Event())
        return pipeline.run(cut(payloads, wanted, batch_items), job, in_flight)

    def sign_batch(
        self,
        key: str,
        message_format: Format | str,
        payloads: Sequence[bytes],
        *,
        timeout: float = DEFAULT_TIMEOUT,
        request_id: uuid.UUID | None = None,
    ) -> list[ItemResult]:
        """Signs one batch in exactly one call, without retries."""
        call_id = str(request_id or uuid.uuid4())
        answer = self._sign(key, Format(message_format), payloads, call_id, timeout)
        return [
            ItemResult(index, signature, answer.key_version, answer.failures.get(index))
            for index, signature in enumerate(answer.signatures)
        ]

    def _sign(
        self,
        key: str,
        message_format: Format,
        payloads: Sequence[bytes],
        request_id: str,
        timeout: float,
    ) -> pipeline.Answer:
        request = signing_pb2.SignBatchRequest(
            key=key,
            format=f"FORMAT_{message_format.name}",
            payloads=payloads,
            request_id=request_id,
        )
        response = ask(self._signing.SignBatch, request, timeout)
        failures = {index: from_status(status) for index, status in response.failures.items()}
        return pipeline.Answer(response.key_version, response.signatures, failures)

    def get_key(self, name: str, *, timeout: float = DEFAULT_TIMEOUT) -> Key:
        """One key with its primary version and what the caller may do with it."""
        request = keys_pb2.GetKeyRequest(name=name)
        return read_key(ask(self._keys.GetKey, request, timeout).key)

    def list_keys(self, parent: str = "", *, timeout: float = DEFAULT_TIMEOUT) -> Iterator[Key]:
        """The keys of ``facilities/{facility}``, or all that the caller may see, by name."""
        token = ""
        while True:
            request = keys_pb2.ListKeysRequest(parent=parent, page_size=PAGE_SIZE, page_token=token)
            page = ask(self._keys.ListKeys, request, timeout)
            yield from map(read_key, page.keys)
            token = page.next_page_token
            if not token:
                return

    def get_key_version(self, name: str, *, timeout: float = DEFAULT_TIMEOUT) -> KeyVersion:
        """One version, ``…/versions/{n}``, with its public key and certificate."""
        request = keys_pb2.GetKeyVersionRequest(name=name)
        return read_key_version(ask(self._keys.GetKeyVersion, request, timeout).key_version)

    def list_key_versions(
        self, parent: str = "", *, timeout: float = DEFAULT_TIMEOUT
    ) -> Iterator[KeyVersion]:
        """The versions of a key, of a facility, or all that the caller may see.

        In the order of their keys' names, the oldest of a key first; without
        ``certification_request``. ``timeout`` is for each page.
        """
        request = keys_pb2.ListKeyVersionsRequest(parent=parent, page_size=PAGE_SIZE)
        while True:
            page = ask(self._keys.ListKeyVersions, request, timeout)
            yield from map(read_key_version, page.key_versions)
            request.page_token = page.next_page_token
            if not request.page_token:
                return

    def get_checkpoint(self, *, timeout: float = DEFAULT_TIMEOUT) -> str:
        """The newest checkpoint of the audit log, a signed note (for auditors).

        Refused for a moment after a start; then it is asked for again. So are all
        questions of auditors that the appliance has no time for.
        ``signer.audit.format.checkpoint.parse_note`` verifies it with the public audit key.
        """
        request = evidence_pb2.GetCheckpointRequest()
        return str(ask_patiently(self._evidence.GetCheckpoint, request, timeout).note)

    def list_records(
        self,
        start: int = 0,
        *,
        kinds: Iterable[str] = (),
        omit_items: bool = False,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> Iterator[LogRecord]:
        """The records of the audit log from ``start`` on, in its order (for auditors).

        0 stands for the oldest that was not archived. ``kinds`` are those wanted,
        none: all. ``omit_items`` leaves out digests and signatures. ``timeout`` is
        for each page. Ends where the log ended when the last page was asked for.
        """
        request = evidence_pb2.ListRecordsRequest(
            start=start, page_size=PAGE_SIZE, kinds=kinds, omit_items=omit_items
        )
        while True:
            page = ask_patiently(self._evidence.ListRecords, request, timeout)
            yield from map(read_log_record, page.records)
            request.page_token = page.next_page_token
            if not request.page_token:
                return

    def inclusion_proof(
        self, seq: int, size: int, *, timeout: float = DEFAULT_TIMEOUT
    ) -> list[bytes]:
        """The proof that record ``seq`` is in the log's first ``size`` records (for auditors).

        RFC 6962 section 2.1.1; ``signer.audit.format.merkle.verify_inclusion`` checks it
        against the root of a checkpoint of that size.
        """
        request = evidence_pb2.GetInclusionProofRequest(seq=seq, size=size)
        return list(ask_patiently(self._evidence.GetInclusionProof, request, timeout).hashes)

    def consistency_proof(
        self, old_size: int, size: int, *, timeout: float = DEFAULT_TIMEOUT
    ) -> list[bytes]:
        """The proof that the log's first ``old_size`` records are still there (for auditors).

        RFC 6962 section 2.1.2; ``signer.audit.format.merkle.verify_consistency`` checks it
        against the roots of two checkpoints of these sizes.
        """
        request = evidence_pb2.GetConsistencyProofRequest(old_size=old_size, size=size)
        return list(ask_patiently(self._evidence.GetConsistencyProof, request, timeout).hashes)

    def reload(self, *, timeout: float = DEFAULT_TIMEOUT) -> Reloaded:
        """Has the daemon read its files again (for operators)."""
        done = ask(self._control.Reload, control_pb2.ReloadRequest(), timeout)
        return Reloaded(
            done.policy_sha256,
            done.policy_changed,
            done.certificate_changed,
            done.log_level,
            done.log_level_changed,
            list(done.restart_needed),
        )

    def status(self, busiest: int = 10, *, timeout: float = DEFAULT_TIMEOUT) -> Status:
        """How the daemon is, with its ``busiest`` facilities (for operators)."""
        request = control_pb2.GetStatusRequest(busiest=busiest)
        return read_status(ask(self._control.GetStatus, request, timeout))

    def health(self, service: str = "", *, timeout: float = DEFAULT_TIMEOUT) -> str:
        """``SERVING`` or ``NOT_SERVING``, as grpc.health.v1 says of ``service``."""
        request = health_pb2.HealthCheckRequest(service=service)
        check = self._health.Check  # type: ignore[attr-defined] # the stubs forget the method
        answer = ask(check, request, timeout)
        return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)

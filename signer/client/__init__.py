"""The Python client of the appliance.

    with SignerClient.from_files("signer.example:7443", ca="ca.pem",
                                 certificate="me.pem", key="me.key") as client:
        for item in client.sign("facilities/01-001/keys/records", "JWS", payloads):
            print(item.signature.decode() if item.ok else item.error)

Two appliances take calls in turn while they serve, and either may be restarted:

    SignerClient.from_files("10.0.0.1:7443,10.0.0.2:7443", server_name="signer.example", ...)

The public names are those of this module; its submodules are private.
"""

import uuid
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from threading import Event
from typing import Self

import grpc
from google.protobuf.wrappers_pb2 import Int32Value, StringValue

from signer.client import _pipeline as pipeline
from signer.client._calls import DEFAULT_TIMEOUT, ask, ask_patiently, pages
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
from signer.client._operations import OVER, Operations, sign_operation
from signer.client._values import (
    ItemResult,
    Key,
    KeyVersion,
    LogRecord,
    Officer,
    Officers,
    OfficerSignature,
    Operation,
    Prepared,
    Quota,
    Reloaded,
    Status,
    Suspension,
    Usage,
    Worker,
    read_key,
    read_key_version,
    read_log_record,
    read_reloaded,
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
_HEALTH = ("UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN")  # grpc.health.v1, by number


class SignerClient:
    """A connection to one appliance, or to several; safe to share between threads.

    Methods raise ``SignerClientError`` (a subclass by gRPC code) when a call
    fails as a whole. ``timeout`` is in seconds everywhere and bounds the call
    with all its retries. ``operations`` has the calls of security officers.

    A connection to several is for signing and for what the registry contains. Each
    appliance has its own audit log, status and answered request ids: operators and
    auditors connect to one at a time.
    """

    def __init__(self, channel: grpc.Channel) -> None:
        self._channel = channel
        self.operations = Operations(channel)
        self._signing = signing_pb2_grpc.SigningServiceStub(channel)
        self._keys = keys_pb2_grpc.KeyServiceStub(channel)
        self._evidence = evidence_pb2_grpc.EvidenceServiceStub(channel)
        self._control = control_pb2_grpc.ControlServiceStub(channel)
        # HealthCheckRequest and HealthCheckResponse of grpc.health.v1 have one field each, as
        # the wrappers do: their bytes are the same, and the client needs no other package.
        self._health = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=StringValue.SerializeToString,
            response_deserializer=Int32Value.FromString,
        )

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

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection and cancels the calls that are not answered yet."""
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

        Payloads are read as they are needed, so there may be millions:
        ``in_flight`` batches are sent at a time, each of at most ``batch_items``
        (None: what the policy allows for this key, at most 500; one more call
        reads that) and below the API's 4 MiB. ``timeout`` is for each batch.

        Calls refused for load or quota, lost connections and single items that
        an HSM dropped are retried within ``timeout``, no sooner than the
        appliance says. An item that failed is a result with ``error``. Where a
        call fails for good, its items and those already sent still get their
        results; then ``SignerClientError`` is raised.

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
        call = partial(self._sign, key, wanted)
        job = pipeline.Job(call, wanted, request_id or uuid.uuid4(), timeout, Event())
        return pipeline.run(pipeline.cut(payloads, wanted, batch_items), job, in_flight)

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
        """Returns a key with its primary version and what the caller may do with it."""
        request = keys_pb2.GetKeyRequest(name=name)
        return read_key(ask(self._keys.GetKey, request, timeout).key)

    def list_keys(self, parent: str = "", *, timeout: float = DEFAULT_TIMEOUT) -> Iterator[Key]:
        """Yields the keys of ``facilities/{facility}``, or all visible ones, by name."""
        request = keys_pb2.ListKeysRequest(parent=parent)
        return pages(self._keys.ListKeys, request, "keys", read_key, timeout)

    def get_key_version(self, name: str, *, timeout: float = DEFAULT_TIMEOUT) -> KeyVersion:
        """Returns one version, ``…/versions/{n}``, with its public key and certificate."""
        request = keys_pb2.GetKeyVersionRequest(name=name)
        return read_key_version(ask(self._keys.GetKeyVersion, request, timeout).key_version)

    def list_key_versions(
        self, parent: str = "", *, timeout: float = DEFAULT_TIMEOUT
    ) -> Iterator[KeyVersion]:
        """Yields the versions of a key, of a facility, or all that the caller may see.

        In the order of their keys' names, the oldest of a key first; without
        ``certification_request``. ``timeout`` is for each page.
        """
        request = keys_pb2.ListKeyVersionsRequest(parent=parent)
        return pages(self._keys.ListKeyVersions, request, "key_versions", read_key_version, timeout)

    def get_checkpoint(self, *, timeout: float = DEFAULT_TIMEOUT) -> str:
        """Returns the newest checkpoint of the audit log, a signed note (for auditors).

        The appliance refuses it for a moment after a start, and refuses auditors' calls
        while it is busy; within ``timeout`` they are repeated. ``signer audit checkpoint``
        fetches it and verifies it with the public audit key.
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
        """Yields the records of the audit log from ``start`` on, in order (for auditors).

        0 is the oldest record that is not archived. ``kinds`` selects kinds; empty: all.
        ``omit_items`` leaves out digests and signatures. ``timeout`` is for each page.
        It ends where the log ended when the last page was read.
        """
        request = evidence_pb2.ListRecordsRequest(start=start, kinds=kinds, omit_items=omit_items)
        method = self._evidence.ListRecords
        return pages(method, request, "records", read_log_record, timeout, call=ask_patiently)

    def inclusion_proof(
        self, seq: int, size: int, *, timeout: float = DEFAULT_TIMEOUT
    ) -> list[bytes]:
        """Returns the proof that record ``seq`` is in the log's first ``size`` records.

        For auditors: the audit path of RFC 6962 section 2.1.1, to be checked against the
        root of a checkpoint of that size.
        """
        request = evidence_pb2.GetInclusionProofRequest(seq=seq, size=size)
        return list(ask_patiently(self._evidence.GetInclusionProof, request, timeout).hashes)

    def consistency_proof(
        self, old_size: int, size: int, *, timeout: float = DEFAULT_TIMEOUT
    ) -> list[bytes]:
        """Returns the proof that the log's first ``old_size`` records are unchanged.

        For auditors: RFC 6962 section 2.1.2, to be checked against the roots of two
        checkpoints of these sizes; ``signer audit checkpoint --previous`` does it.
        """
        request = evidence_pb2.GetConsistencyProofRequest(old_size=old_size, size=size)
        return list(ask_patiently(self._evidence.GetConsistencyProof, request, timeout).hashes)

    def reload(self, *, timeout: float = DEFAULT_TIMEOUT) -> Reloaded:
        """Makes the daemon read its files again (for operators)."""
        return read_reloaded(ask(self._control.Reload, control_pb2.ReloadRequest(), timeout))

    def status(self, busiest: int = 10, *, timeout: float = DEFAULT_TIMEOUT) -> Status:
        """Returns the state of the daemon, with its ``busiest`` facilities (for operators)."""
        request = control_pb2.GetStatusRequest(busiest=busiest)
        return read_status(ask(self._control.GetStatus, request, timeout))

    def health(self, service: str = "", *, timeout: float = DEFAULT_TIMEOUT) -> str:
        """Returns ``SERVING`` or ``NOT_SERVING`` for a service of grpc.health.v1."""
        request = StringValue(value=service)
        status = ask(self._health, request, timeout, name="HealthCheck").value
        return _HEALTH[status] if 0 <= status < len(_HEALTH) else str(status)

"""``SignerClient.operations``: the calls of security officers, and their signatures."""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import grpc
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from signer.client._calls import DEFAULT_TIMEOUT, ask, pages
from signer.client._errors import DeadlineError, SignerClientError
from signer.client._pipeline import BATCH_BYTES
from signer.client._values import (
    KeyVersion,
    Officers,
    Operation,
    Prepared,
    Suspension,
    read_key_version,
    read_officers,
    read_operation,
    read_prepared,
    read_suspension,
)
from signer.errors import Code
from signer.v1 import operations_pb2 as pb
from signer.v1 import operations_pb2_grpc

OVER = frozenset({"DONE", "FAILED", "REJECTED", "EXPIRED"})
"""Final states; only a FAILED operation can leave its state, by ``retry``."""

_POLL_SECONDS = 0.5
_OVERHEAD = 8  # tag and length of one certificate


class Operations:
    """Operations under dual control, and the stops that one officer may make alone.

    Methods raise ``SignerClientError``; ``timeout`` is in seconds. ``sign_operation``
    signs the ``content`` of an operation, which is text.
    """

    def __init__(self, channel: grpc.Channel) -> None:
        self._stub = operations_pb2_grpc.OperationServiceStub(channel)

    def prepare(
        self,
        kind: str,
        arguments: Mapping[str, Any],
        attachment: bytes = b"",
        *,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> Prepared:
        """Prepares an operation; the appliance stores nothing."""
        request = pb.PrepareOperationRequest(
            kind=kind, arguments=json.dumps(arguments), attachment=attachment
        )
        return read_prepared(ask(self._stub.PrepareOperation, request, timeout))

    def propose(
        self,
        content: bytes,
        signature: bytes,
        attachment: bytes = b"",
        *,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> Operation:
        """Proposes an operation, with the attachment it was prepared with."""
        request = pb.ProposeOperationRequest(
            content=content, signature=signature, attachment=attachment
        )
        return read_operation(ask(self._stub.ProposeOperation, request, timeout).operation)

    def approve(
        self, identity: str, signature: bytes, *, timeout: float = DEFAULT_TIMEOUT
    ) -> Operation:
        """Approves another officer's proposal."""
        request = pb.ApproveOperationRequest(id=identity, signature=signature)
        return read_operation(ask(self._stub.ApproveOperation, request, timeout).operation)

    def reject(self, identity: str, reason: str, *, timeout: float = DEFAULT_TIMEOUT) -> Operation:
        """Rejects another officer's proposal, or withdraws one's own."""
        request = pb.RejectOperationRequest(id=identity, reason=reason)
        return read_operation(ask(self._stub.RejectOperation, request, timeout).operation)

    def retry(self, identity: str, *, timeout: float = DEFAULT_TIMEOUT) -> Operation:
        """Continues a failed operation from where it stopped."""
        request = pb.RetryOperationRequest(id=identity)
        return read_operation(ask(self._stub.RetryOperation, request, timeout).operation)

    def get(self, identity: str, *, timeout: float = DEFAULT_TIMEOUT) -> Operation:
        """Returns an operation with its bytes and what it changes."""
        request = pb.GetOperationRequest(id=identity)
        return read_operation(ask(self._stub.GetOperation, request, timeout).operation)

    def attachment(self, identity: str, *, timeout: float = DEFAULT_TIMEOUT) -> bytes:
        """Returns what an operation names by its SHA-256 (CSV, keys, policy); b"" if nothing."""
        request = pb.GetOperationRequest(id=identity, attachment=True)
        return bytes(ask(self._stub.GetOperation, request, timeout).attachment)

    def list(
        self, state: str | None = None, *, timeout: float = DEFAULT_TIMEOUT
    ) -> Iterator[Operation]:
        """Yields the operations in a state (as "PROPOSED"), or all, the newest first.

        ``timeout`` is for each page. Raises ValueError for an unknown state.
        """
        request = pb.ListOperationsRequest(state=f"OPERATION_STATE_{state or 'UNSPECIFIED'}")
        return pages(self._stub.ListOperations, request, "operations", read_operation, timeout)

    def wait(
        self, identity: str, timeout: float, progress: Callable[[Operation], None] = lambda _: None
    ) -> Operation:
        """Polls every 0.5 s until the operation is over or waits for certificates.

        ``progress`` is called with every answer. Retryable failures, as during a restart
        of the appliance, do not end it. Raises ``DeadlineError`` after ``timeout`` seconds.
        """
        end = time.monotonic() + timeout
        while True:
            try:
                operation = self.get(identity)
            except SignerClientError as error:
                if not error.retryable or time.monotonic() >= end:
                    raise
            else:
                progress(operation)
                if operation.state in OVER or operation.state == "WAITING":
                    return operation
                if time.monotonic() >= end:
                    code = Code.DEADLINE_EXCEEDED.name
                    text = f"operation {identity} is still {operation.state} after {timeout:g} s"
                    raise DeadlineError(code, code, text)
            time.sleep(_POLL_SECONDS)

    def import_certificates(
        self,
        identity: str,
        certificates: Iterable[bytes],
        progress: Callable[[int], None] = lambda _: None,
        *,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> Operation:
        """Sends certificates (DER or PEM) to a rotation, in calls below the API's 4 MiB.

        The rotation continues with each part, and takes the next when it waits again.
        ``progress`` is called with the number accepted so far. ``timeout`` is for each
        call and each wait; a call accepts all of its certificates or none. Raises
        ValueError if there are none.
        """
        operation, taken = None, 0
        for part in _parts(certificates):
            if operation is not None:
                self.wait(identity, timeout)
            request = pb.ImportCertificatesRequest(id=identity, certificates=part)
            answer = ask(self._stub.ImportCertificates, request, timeout)
            operation, taken = read_operation(answer.operation), taken + len(part)
            progress(taken)
        if operation is None:
            raise ValueError("there are no certificates")
        return operation

    def officers(self, *, timeout: float = DEFAULT_TIMEOUT) -> Officers:
        """Returns the officers, and how many must sign each kind of operation."""
        request = pb.ListOfficersRequest()
        return read_officers(ask(self._stub.ListOfficers, request, timeout))

    def suspend_key(
        self, name: str, reason: str, *, timeout: float = DEFAULT_TIMEOUT
    ) -> tuple[KeyVersion, ...]:
        """Stops a key or one version at once; returns the versions that were changed."""
        request = pb.SuspendKeyRequest(name=name, reason=reason)
        answer = ask(self._stub.SuspendKey, request, timeout)
        return tuple(map(read_key_version, answer.key_versions))

    def suspend_facility(
        self, facility: str, reason: str, *, timeout: float = DEFAULT_TIMEOUT
    ) -> None:
        """Stops all keys of a facility at once."""
        request = pb.SuspendFacilityRequest(facility=facility, reason=reason)
        ask(self._stub.SuspendFacility, request, timeout)

    def suspend_group(self, group: str, reason: str, *, timeout: float = DEFAULT_TIMEOUT) -> None:
        """Stops all facilities of a group at once."""
        request = pb.SuspendGroupRequest(group=group, reason=reason)
        ask(self._stub.SuspendGroup, request, timeout)

    def suspend_everything(self, reason: str, *, timeout: float = DEFAULT_TIMEOUT) -> None:
        """Stops everything at once."""
        ask(self._stub.SuspendEverything, pb.SuspendEverythingRequest(reason=reason), timeout)

    def mark_compromised(
        self, name: str, reason: str, *, timeout: float = DEFAULT_TIMEOUT
    ) -> tuple[KeyVersion, ...]:
        """Ends a key or one version for good; returns the versions that were changed."""
        request = pb.MarkKeyCompromisedRequest(name=name, reason=reason)
        answer = ask(self._stub.MarkKeyCompromised, request, timeout)
        return tuple(map(read_key_version, answer.key_versions))

    def suspensions(self, *, timeout: float = DEFAULT_TIMEOUT) -> tuple[Suspension, ...]:
        """Returns suspensions other than of keys: of everything, then groups, facilities."""
        answer = ask(self._stub.ListSuspensions, pb.ListSuspensionsRequest(), timeout)
        return tuple(map(read_suspension, answer.suspensions))


def _parts(certificates: Iterable[bytes]) -> Iterator[list[bytes]]:
    part, size = list[bytes](), 0
    for certificate in certificates:
        if part and size + len(certificate) + _OVERHEAD > BATCH_BYTES:
            yield part
            part, size = [], 0
        part.append(certificate)
        size += len(certificate) + _OVERHEAD
    if part:
        yield part


def sign_operation(
    content: bytes, private_key_pem: bytes, *, password: bytes | None = None
) -> bytes:
    """Returns the signature over an operation's bytes as appliance and auditors accept it.

    ECDSA with SHA-256 (DER), RSA PKCS #1 v1.5 with SHA-256, or Ed25519, by the kind of the
    key. Raises ValueError, which never quotes the key, if it cannot be read or is of
    another kind.
    """
    try:
        key = load_pem_private_key(private_key_pem, password)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        # Without its cause, whose text could quote the key.
        raise ValueError(
            "it is not a private key in PEM, or its password is missing or wrong"
        ) from None
    match key:
        case ec.EllipticCurvePrivateKey():
            return key.sign(content, ec.ECDSA(hashes.SHA256()))
        case rsa.RSAPrivateKey():
            return key.sign(content, padding.PKCS1v15(), hashes.SHA256())
        case ed25519.Ed25519PrivateKey():
            return key.sign(content)
        case _:
            raise ValueError("the private key must be for ECDSA, RSA or Ed25519")

"""``SignerClient.operations``: what security officers ask of an appliance."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import grpc

from signer.client._batches import BATCH_BYTES
from signer.client._calls import DEFAULT_TIMEOUT, PAGE_SIZE, ask
from signer.client._errors import DeadlineError, SignerClientError
from signer.client._operation_values import (
    Officers,
    Operation,
    Prepared,
    Suspension,
    read_officers,
    read_operation,
    read_prepared,
    read_suspension,
)
from signer.client._values import KeyVersion, read_key_version
from signer.errors import Code
from signer.v1 import operations_pb2 as pb
from signer.v1 import operations_pb2_grpc

OVER = frozenset({"DONE", "FAILED", "REJECTED", "EXPIRED"})
"""States in which an operation stays unless somebody retries it."""

_POLL_SECONDS = 0.5
_OVERHEAD = 8  # tag and length of one certificate


class Operations:
    """Operations under dual control, and what one officer may do at once.

    Methods raise ``SignerClientError``; ``timeout`` is in seconds. ``approval.parse``
    reads ``content``; ``sign_operation`` signs it.
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
        """Works out an operation without keeping it."""
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
        """Proposes an operation, with the attachment that it was prepared with."""
        request = pb.ProposeOperationRequest(
            content=content, signature=signature, attachment=attachment
        )
        return read_operation(ask(self._stub.ProposeOperation, request, timeout).operation)

    def approve(
        self, identity: str, signature: bytes, *, timeout: float = DEFAULT_TIMEOUT
    ) -> Operation:
        """Signs somebody else's proposal."""
        request = pb.ApproveOperationRequest(id=identity, signature=signature)
        return read_operation(ask(self._stub.ApproveOperation, request, timeout).operation)

    def reject(self, identity: str, reason: str, *, timeout: float = DEFAULT_TIMEOUT) -> Operation:
        """Rejects somebody's proposal, or withdraws one's own."""
        request = pb.RejectOperationRequest(id=identity, reason=reason)
        return read_operation(ask(self._stub.RejectOperation, request, timeout).operation)

    def retry(self, identity: str, *, timeout: float = DEFAULT_TIMEOUT) -> Operation:
        """Has a failed operation go on from where it stopped."""
        request = pb.RetryOperationRequest(id=identity)
        return read_operation(ask(self._stub.RetryOperation, request, timeout).operation)

    def get(self, identity: str, *, timeout: float = DEFAULT_TIMEOUT) -> Operation:
        """One operation with its bytes and what it changes."""
        request = pb.GetOperationRequest(id=identity)
        return read_operation(ask(self._stub.GetOperation, request, timeout).operation)

    def attachment(self, identity: str, *, timeout: float = DEFAULT_TIMEOUT) -> bytes:
        """What an operation names by its SHA-256 (a CSV, keys, a policy); b"" for nothing."""
        request = pb.GetOperationRequest(id=identity, attachment=True)
        return bytes(ask(self._stub.GetOperation, request, timeout).attachment)

    def list(
        self, state: str | None = None, *, timeout: float = DEFAULT_TIMEOUT
    ) -> Iterator[Operation]:
        """The operations in a state (as "PROPOSED"), or all of them, the newest first.

        ``timeout`` is for each page. Raises ValueError for an unknown state.
        """
        request = pb.ListOperationsRequest(
            state=f"OPERATION_STATE_{state or 'UNSPECIFIED'}", page_size=PAGE_SIZE
        )
        return self._pages(request, timeout)

    def _pages(self, request: pb.ListOperationsRequest, timeout: float) -> Iterator[Operation]:
        while True:
            page = ask(self._stub.ListOperations, request, timeout)
            yield from map(read_operation, page.operations)
            request.page_token = page.next_page_token
            if not request.page_token:
                return

    def wait(
        self,
        identity: str,
        timeout: float,
        progress: Callable[[Operation], None] = lambda _: None,
    ) -> Operation:
        """Asks every 0.5 s until the operation is over or waits for certificates.

        ``progress`` is told every answer. What may pass, a restart of the appliance for
        instance, is waited out. Raises ``DeadlineError`` after ``timeout`` seconds.
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
        """Gives certificates (DER or PEM) to a rotation, in calls below the API's 4 MiB.

        A rotation goes on with each part, and takes the next when it waits again.
        ``progress`` is told how many have been taken. ``timeout`` is for each call and
        each wait; a call takes all of its certificates or none. Raises ValueError
        without any.
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
        """Who the officers are, and how many each kind of operation needs."""
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
        """What is suspended beside keys: everything first, then groups and facilities."""
        answer = ask(self._stub.ListSuspensions, pb.ListSuspensionsRequest(), timeout)
        return tuple(map(read_suspension, answer.suspensions))


def _parts(certificates: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Cuts certificates into calls, in their order."""
    part, size = list[bytes](), 0
    for each in certificates:
        if part and size + len(each) + _OVERHEAD > BATCH_BYTES:
            yield part
            part, size = [], 0
        part.append(each)
        size += len(each) + _OVERHEAD
    if part:
        yield part

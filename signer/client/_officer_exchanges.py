"""The calls of security officers as data (``_exchanges``)."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from signer.client._exchanges import DEFAULT_TIMEOUT, PAGE_SIZE, Exchange, Listing
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
from signer.v1 import operations_pb2 as pb


def _operation(answer: Any) -> Operation:
    return read_operation(answer.operation)


def _versions(answer: Any) -> tuple[KeyVersion, ...]:
    return tuple(map(read_key_version, answer.key_versions))


def _nothing(_: Any) -> None:
    return None


def prepare(
    kind: str,
    arguments: Mapping[str, Any],
    attachment: bytes = b"",
    *,
    timeout: float = DEFAULT_TIMEOUT,
) -> Exchange[Prepared]:
    """Prepares an operation; the appliance stores nothing."""
    request = pb.PrepareOperationRequest(
        kind=kind, arguments=json.dumps(arguments), attachment=attachment
    )
    return Exchange(request, read_prepared, timeout)


def propose(
    content: bytes, signature: bytes, attachment: bytes = b"", *, timeout: float = DEFAULT_TIMEOUT
) -> Exchange[Operation]:
    """Proposes an operation, with the attachment it was prepared with."""
    request = pb.ProposeOperationRequest(
        content=content, signature=signature, attachment=attachment
    )
    return Exchange(request, _operation, timeout)


def approve(
    identity: str, signature: bytes, *, timeout: float = DEFAULT_TIMEOUT
) -> Exchange[Operation]:
    """Approves another officer's proposal."""
    request = pb.ApproveOperationRequest(id=identity, signature=signature)
    return Exchange(request, _operation, timeout)


def reject(identity: str, reason: str, *, timeout: float = DEFAULT_TIMEOUT) -> Exchange[Operation]:
    """Rejects another officer's proposal, or withdraws one's own."""
    return Exchange(pb.RejectOperationRequest(id=identity, reason=reason), _operation, timeout)


def retry(identity: str, *, timeout: float = DEFAULT_TIMEOUT) -> Exchange[Operation]:
    """Continues a failed operation from where it stopped."""
    return Exchange(pb.RetryOperationRequest(id=identity), _operation, timeout)


def get(identity: str, *, timeout: float = DEFAULT_TIMEOUT) -> Exchange[Operation]:
    """Returns an operation with its bytes and what it changes."""
    return Exchange(pb.GetOperationRequest(id=identity), _operation, timeout)


def attachment(identity: str, *, timeout: float = DEFAULT_TIMEOUT) -> Exchange[bytes]:
    """Returns what an operation names by its SHA-256 (CSV, keys, policy); b"" if nothing."""
    request = pb.GetOperationRequest(id=identity, attachment=True)
    return Exchange(request, lambda answer: bytes(answer.attachment), timeout)


def list_operations(
    state: str | None = None, *, timeout: float = DEFAULT_TIMEOUT
) -> Listing[Operation]:
    """Yields the operations in a state (as "PROPOSED"), or all, the newest first.

    ``timeout`` is for each page. Raises ValueError for an unknown state.
    """
    request = pb.ListOperationsRequest(
        state=f"OPERATION_STATE_{state or 'UNSPECIFIED'}", page_size=PAGE_SIZE
    )
    return Listing(request, "operations", read_operation, timeout)


def import_certificates(
    identity: str, certificates: Sequence[bytes], timeout: float
) -> Exchange[Operation]:
    """Sends certificates of one call to a rotation."""
    request = pb.ImportCertificatesRequest(id=identity, certificates=certificates)
    return Exchange(request, _operation, timeout)


def policy_parts(*, timeout: float = DEFAULT_TIMEOUT) -> Listing[tuple[str, bytes]]:
    """Yields the files of the policy in force; a long one in parts, under the same name."""
    return Listing(
        pb.GetPolicyRequest(), "files", lambda file: (file.name, bytes(file.content)), timeout
    )


def officers(*, timeout: float = DEFAULT_TIMEOUT) -> Exchange[Officers]:
    """Returns the officers, and how many must sign each kind of operation."""
    return Exchange(pb.ListOfficersRequest(), read_officers, timeout)


def suspend_key(
    name: str, reason: str, *, timeout: float = DEFAULT_TIMEOUT
) -> Exchange[tuple[KeyVersion, ...]]:
    """Stops a key or one version at once; returns the versions that were changed."""
    return Exchange(pb.SuspendKeyRequest(name=name, reason=reason), _versions, timeout)


def suspend_facility(
    facility: str, reason: str, *, timeout: float = DEFAULT_TIMEOUT
) -> Exchange[None]:
    """Stops all keys of a facility at once."""
    request = pb.SuspendFacilityRequest(facility=facility, reason=reason)
    return Exchange(request, _nothing, timeout)


def suspend_group(group: str, reason: str, *, timeout: float = DEFAULT_TIMEOUT) -> Exchange[None]:
    """Stops all facilities of a group at once."""
    return Exchange(pb.SuspendGroupRequest(group=group, reason=reason), _nothing, timeout)


def suspend_everything(reason: str, *, timeout: float = DEFAULT_TIMEOUT) -> Exchange[None]:
    """Stops everything at once."""
    return Exchange(pb.SuspendEverythingRequest(reason=reason), _nothing, timeout)


def mark_compromised(
    name: str, reason: str, *, timeout: float = DEFAULT_TIMEOUT
) -> Exchange[tuple[KeyVersion, ...]]:
    """Ends a key or one version for good; returns the versions that were changed."""
    return Exchange(pb.MarkKeyCompromisedRequest(name=name, reason=reason), _versions, timeout)


def suspensions(*, timeout: float = DEFAULT_TIMEOUT) -> Exchange[tuple[Suspension, ...]]:
    """Returns suspensions other than of keys: of everything, then groups, facilities."""
    return Exchange(
        pb.ListSuspensionsRequest(),
        lambda answer: tuple(map(read_suspension, answer.suspensions)),
        timeout,
    )

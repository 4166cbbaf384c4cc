"""What the audit log says of officers: their operations, who they are, what they stopped.

``signer.officers.offline_check`` reads it back and proves offline that enough of them signed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress

from signer.audit.format.record import RecordError, RecordKind, Value
from signer.audit.write.inbox import AuditUnavailable
from signer.audit.write.log import AuditLog
from signer.errors import OperatorError, invalid
from signer.officers.approval import Officers, Signature
from signer.officers.store import StoredOperation

MAX_REASON = 1000
"""Bytes of the reason that an officer gives."""


def check_reason(reason: str) -> None:
    """Raises CallError where an officer gives no reason, or too long a one."""
    if not reason.strip() or len(reason.encode()) > MAX_REASON:
        raise invalid("reason", f"say why, in 1 to {MAX_REASON} bytes")


class OperationRecords:
    """Writes records of operations. What is recorded is durable when a method returns.

    Raises OperatorError where the log takes nothing; ``acted`` never does, for who
    stops a key must not fail with the log.
    """

    def __init__(self, log: AuditLog) -> None:
        self._log = log

    def proposed(self, operation: StoredOperation) -> None:
        [first] = [s for s in operation.signatures if s.officer == operation.proposal.proposer]
        fields = {"content": operation.content, **_signed(operation, first)}
        self._append(RecordKind.PROPOSAL, fields)

    def approved(self, operation: StoredOperation, signature: Signature) -> None:
        self._append(RecordKind.APPROVAL, _signed(operation, signature))

    def rejected(self, operation: StoredOperation, officer: str, reason: str) -> None:
        self._append(
            RecordKind.REJECTION, {"operation": operation.id, "officer": officer, "reason": reason}
        )

    def resumed(self, operation: StoredOperation, officer: str, act: str) -> None:
        """One officer had an approved operation go on."""
        self.acted(act, operation.id, officer, "", {})

    def execution_begun(self, operation: StoredOperation) -> None:
        """The intent: durable before the token is touched."""
        self._append(RecordKind.EXECUTION, approval(operation))

    def execution_ended(self, operation: StoredOperation) -> None:
        self._append(
            RecordKind.EXECUTED,
            {
                "operation": operation.id,
                "state": str(operation.state),
                "note": operation.note,
            },
        )

    def acted(
        self, act: str, target: str, officer: str, reason: str, changed: dict[str, str]
    ) -> None:
        fields: dict[str, Value] = {
            "act": act,
            "target": target,
            "officer": officer,
            "reason": reason,
            "changed": changed,
        }
        with suppress(AuditUnavailable, RecordError):
            self._log.append(RecordKind.ACT, fields)

    def officers(self, officers: Officers, operation: StoredOperation | None) -> None:
        """The officers from here on, and the operation that made them so."""
        self._append(RecordKind.OFFICERS, {**_rows_of(officers), **approval(operation)})

    def first_officers(self, officers: Officers, policy: bytes, *, development: bool) -> None:
        """The officers and the policy (its SHA-256) of which a log knew nothing before."""
        self._append(
            RecordKind.OFFICERS, first_officers_fields(officers, policy, development=development)
        )

    def _append(self, kind: RecordKind, fields: Mapping[str, Value]) -> None:
        try:
            self._log.append(kind, fields)
        except AuditUnavailable as error:
            raise OperatorError(f"the audit log takes no record: {error}") from error
        except RecordError as error:
            raise OperatorError(f"this cannot be recorded: {error}") from error


def first_officers_fields(
    officers: Officers, policy: bytes, *, development: bool
) -> dict[str, Value]:
    """Returns the fields of the first record of officers in a log: nobody has approved it.

    ``policy`` is the SHA-256 of the policy in force. In development files change it.
    """
    return {
        "officers": [[who, der] for who, der in sorted(officers.items())],
        "development": development,
        "policy": policy,
        "operation": "",
        "content": b"",
        "signatures": [],
    }


def approval(operation: StoredOperation | None) -> dict[str, Value]:
    """Returns the fields that carry an operation with its signatures; none: empty ones."""
    if operation is None:
        return {"operation": "", "content": b"", "signatures": []}
    return {
        "operation": operation.id,
        "content": operation.content,
        "signatures": _rows(operation.signatures),
    }


def _rows(signatures: Iterable[Signature]) -> Sequence[Value]:
    return [[each.officer, each.signature, int(each.at * 1_000_000)] for each in signatures]


def _signed(operation: StoredOperation, signature: Signature) -> dict[str, Value]:
    return {
        "operation": operation.id,
        "officer": signature.officer,
        "signature": signature.signature,
    }


def _rows_of(officers: Officers) -> dict[str, Value]:
    return {"officers": [[who, der] for who, der in sorted(officers.items())], "development": False}

"""The audit log's records of officers: what each kind holds, written and read.

``OperationRecords`` writes them while operations run; ``signer.officers.offline_check``
reads them and checks that enough officers signed. Readers raise RecordError.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from signer.audit.format.record import (
    Fields,
    RecordError,
    RecordKind,
    Value,
    number,
    octets,
    text,
    wrong_from,
)
from signer.audit.write.inbox import AuditUnavailable
from signer.audit.write.log import AuditLog
from signer.errors import OperatorError, invalid
from signer.model import Act
from signer.officers.approval import Officers, Signature

if TYPE_CHECKING:
    # Auditors read records where no database is installed.
    from signer.keys.registry import RegistryState
    from signer.officers.store import StoredOperation

MAX_REASON = 1000  # bytes of the reason that an officer gives


def check_reason(reason: str) -> None:
    """Raises CallError if an officer gives no reason, or too long a one."""
    if not reason.strip() or len(reason.encode()) > MAX_REASON:
        raise invalid("reason", f"say why, in 1 to {MAX_REASON} bytes")


class ApprovedOperation(NamedTuple):
    """An operation's id, its bytes, and the signatures under them; all empty without one.

    These fields are an EXECUTION, and part of OFFICERS and POLICY.
    """

    operation: str = ""
    content: bytes = b""
    signatures: tuple[Signature, ...] = ()

    @classmethod
    def of(cls, operation: StoredOperation) -> ApprovedOperation:
        return cls(operation.id, operation.content, operation.signatures)

    def to_fields(self) -> dict[str, Value]:
        rows: list[Value] = [
            [s.officer, s.signature, int(s.at * 1_000_000)] for s in self.signatures
        ]
        return {"operation": self.operation, "content": self.content, "signatures": rows}

    @classmethod
    def from_fields(cls, fields: Fields) -> ApprovedOperation:
        signatures = []
        rows = fields.get("signatures")
        for row in rows if isinstance(rows, list | tuple) else ():
            match row:
                case [str(officer), bytes(signature), int(at_us)]:
                    signatures.append(Signature(officer, signature, at_us / 1_000_000))
                case _:
                    raise RecordError("its signatures cannot be read")
        return cls(text(fields, "operation"), octets(fields, "content"), tuple(signatures))


class SignedRecord(NamedTuple):
    """A PROPOSAL (with ``content``) or an APPROVAL: one officer's signature."""

    operation: str
    officer: str
    signature: bytes
    content: bytes = b""

    def to_fields(self) -> dict[str, Value]:
        return {name: value for name, value in self._asdict().items() if name != "content" or value}

    @classmethod
    def from_fields(cls, fields: Fields) -> SignedRecord:
        return cls(
            text(fields, "operation"),
            text(fields, "officer"),
            octets(fields, "signature"),
            octets(fields, "content", b""),
        )


class OfficersRecord(NamedTuple):
    """An OFFICERS: the officers from here on, and the operation that put them in force.

    ``policy``, the SHA-256 of the policy in force, is only in the first one of a log, which
    nobody has approved. ``development``: the policy's files are in force without approval.
    ``since`` and ``policy_since`` are the revisions of the registry that put them in force, -1
    where that is not known.
    """

    officers: Officers
    approved: ApprovedOperation = ApprovedOperation()
    development: bool = False
    policy: bytes | None = None
    since: int = -1
    policy_since: int = -1

    @classmethod
    def first(cls, state: RegistryState, *, development: bool, policy: bytes) -> OfficersRecord:
        """Returns the first one of a log, which takes the officers of the registry as given."""
        return cls(
            state.officers,
            development=development,
            policy=policy,
            since=state.officers_since,
            policy_since=state.policy_since,
        )

    def to_fields(self) -> dict[str, Value]:
        fields: dict[str, Value] = {
            "officers": rows_of(self.officers),
            "development": self.development,
            "since": self.since,
            **self.approved.to_fields(),
        }
        if self.policy is None:
            return fields
        return {**fields, "policy": self.policy, "policy_since": self.policy_since}

    @classmethod
    def from_fields(cls, fields: Fields) -> OfficersRecord:
        policy = fields.get("policy")
        return cls(
            read_officers(fields.get("officers")),
            ApprovedOperation.from_fields(fields)
            if fields.get("operation")
            else ApprovedOperation(),
            fields.get("development") is True,
            policy if type(policy) is bytes else None,
            number(fields, "since", -1),
            number(fields, "policy_since", -1),
        )


class PolicyRecord(NamedTuple):
    """A POLICY: the SHA-256 of the policy from here on, and the operation that approved it.

    ``since`` is the revision of the registry that put it in force, -1 if unknown.
    """

    policy: bytes
    approved: ApprovedOperation | None = None
    since: int = -1

    def to_fields(self) -> dict[str, Value]:
        approved = self.approved.to_fields() if self.approved else {}
        return {"policy": self.policy, "since": self.since, **approved}

    @classmethod
    def from_fields(cls, fields: Fields) -> PolicyRecord:
        approved = ApprovedOperation.from_fields(fields) if fields.get("operation") else None
        return cls(octets(fields, "policy"), approved, number(fields, "since", -1))


class ClockRecord(NamedTuple):
    """A CLOCK: officers have confirmed the machine's clock, whose time is the record's.

    ``wrong_from`` is the number of the first record whose time is wrong, 0 if none is;
    ``right_until`` is the time of the one before, in microseconds since the epoch.
    """

    approved: ApprovedOperation
    wrong_from: int
    right_until: int

    def to_fields(self) -> dict[str, Value]:
        return {
            **self.approved.to_fields(),
            "wrong_from": self.wrong_from,
            "right_until": self.right_until,
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> ClockRecord:
        approved = ApprovedOperation.from_fields(fields)
        return cls(approved, wrong_from(fields), number(fields, "right_until", 0))


class ActRecord(NamedTuple):
    """An ACT: what one officer did alone; ``changed`` has the states of versions after it.

    ``id`` is that of the act's row in the registry, empty where it stops nothing.
    """

    act: str
    target: str
    officer: str
    reason: str
    changed: Mapping[str, str]
    id: str = ""

    @classmethod
    def of(cls, act: Act, changed: Mapping[str, str] | None = None) -> ActRecord:
        return cls(act.act, act.target, act.officer, act.reason, changed or {}, act.id)

    @classmethod
    def from_fields(cls, fields: Fields) -> ActRecord:
        changed = fields.get("changed")
        return cls(
            text(fields, "act", ""),
            text(fields, "target", ""),
            text(fields, "officer"),
            text(fields, "reason", ""),
            {name: str(state) for name, state in changed.items()}
            if isinstance(changed, Mapping)
            else {},
        )


class OperationRecords:
    """Writes records of operations; a record is durable when its method returns.

    Raises OperatorError if the log does not accept a record; ``acted`` raises nothing, because
    a stop of a key must not fail with the log.
    """

    def __init__(self, log: AuditLog) -> None:
        self._log = log

    def proposed(self, operation: StoredOperation) -> None:
        [first] = [s for s in operation.signatures if s.officer == operation.proposal.proposer]
        record = SignedRecord(operation.id, first.officer, first.signature, operation.content)
        self._append(RecordKind.PROPOSAL, record.to_fields())

    def approved(self, operation: StoredOperation, signature: Signature) -> None:
        record = SignedRecord(operation.id, signature.officer, signature.signature)
        self._append(RecordKind.APPROVAL, record.to_fields())

    def rejected(self, operation: StoredOperation, officer: str, reason: str) -> None:
        fields = {"operation": operation.id, "officer": officer, "reason": reason}
        self._append(RecordKind.REJECTION, fields)

    def execution_begun(self, operation: StoredOperation) -> None:
        """Records the intent: durable before the token is touched."""
        self._append(RecordKind.EXECUTION, ApprovedOperation.of(operation).to_fields())

    def execution_ended(self, operation: StoredOperation) -> None:
        fields = {"operation": operation.id, "state": str(operation.state), "note": operation.note}
        self._append(RecordKind.EXECUTED, fields)

    def clock(self, record: ClockRecord, time_us: int) -> None:
        """Records that the machine's clock is right, which says ``time_us``."""
        self._append(RecordKind.CLOCK, record.to_fields(), time_us)

    def acted(self, record: ActRecord) -> None:
        with suppress(AuditUnavailable, RecordError):
            self._log.append(RecordKind.ACT, record._asdict())

    def officers(self, record: OfficersRecord) -> None:
        self._append(RecordKind.OFFICERS, record.to_fields())

    def _append(
        self, kind: RecordKind, fields: Mapping[str, Value], time_us: int | None = None
    ) -> None:
        try:
            self._log.append(kind, fields, time_us=time_us)
        except AuditUnavailable as error:
            raise OperatorError(f"the audit log accepts no records: {error}") from error
        except RecordError as error:
            raise OperatorError(f"this cannot be recorded: {error}") from error


def rows_of(officers: Officers) -> list[Value]:
    """Returns officers as records and snapshots hold them."""
    return [[who, der] for who, der in sorted(officers.items())]


def read_officers(rows: object) -> dict[str, bytes]:
    """Reads what ``rows_of`` returns; raises RecordError."""
    officers: dict[str, bytes] = {}
    for row in rows if isinstance(rows, Iterable) else ():
        match row:
            case [str(who), bytes(der)] if who not in officers:
                officers[who] = der
            case _:
                raise RecordError("its officers cannot be read")
    return officers

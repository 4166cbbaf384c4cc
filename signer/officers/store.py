"""Operations as rows of the registry, written in its transactions."""

import enum
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa

from signer.errors import CallError, OperatorError, Reason
from signer.keys.columns import (
    BadValueError,
    moment,
    octets,
    one_of,
    optional,
    raw,
    text,
    truth,
    whole,
)
from signer.keys.registry import Registry
from signer.keys.rows import UnreadableError, UnreadableRow
from signer.keys.schema import operations, signatures
from signer.keys.writing import Writing
from signer.officers.approval import MAX_BYTES, MAX_SIGNATURE_BYTES, Proposal, Signature, parse
from signer.text import plain


class OperationState(enum.StrEnum):
    """The states of an operation; EXPIRED is never stored, it follows from the clock."""

    PROPOSED = "PROPOSED"
    APPROVED = "APPROVED"
    EXECUTING = "EXECUTING"
    WAITING = "WAITING"
    DONE = "DONE"
    FAILED = "FAILED"
    REJECTED = "REJECTED"
    EXPIRED = "EXPIRED"


UNFINISHED = (OperationState.APPROVED, OperationState.EXECUTING)
MOST_DECISIONS = 10_000  # operations that an appliance can miss and still account for
ENDED = (OperationState.DONE, OperationState.FAILED, OperationState.WAITING)

# Fields of an operation that are columns as they are.
_UNCHANGED = (
    "content",
    "changed_at",
    "appliance",
    "done",
    "total",
    "note",
    "ended_revision",
    "recorded",
)

_BEGUN = (*UNFINISHED, OperationState.WAITING, OperationState.FAILED)
_LAST = (1 << 63) - 1
_CHANGES = "changes"  # the member of a stored result, and the field, with these lines
PROOF = "proof"  # the member of a result with what a key has signed, in hex

# Built once: to build a statement takes SQLAlchemy longer than SQLite to answer it.
_FIND = sa.select(*raw(operations)).where(operations.c.id == sa.bindparam("identity"))
_SIGNED = (
    sa.select(*raw(signatures))
    .where(signatures.c.operation == sa.bindparam("operation"))
    .order_by(signatures.c.at)
)


@dataclass(frozen=True, slots=True)
class StoredOperation:
    """An operation in the registry.

    ``appliance`` is the origin of the appliance that executes it, ``done`` of ``total`` its
    progress, ``note`` why it failed or what it waits for. ``ended_revision`` is that of the
    transaction that ended it. ``recorded``: its end is in the log. ``changes`` are the lines that
    said what it changes, when it was executed; stored with the result.
    """

    proposal: Proposal
    content: bytes
    changed_at: float
    state: OperationState = OperationState.PROPOSED
    signatures: tuple[Signature, ...] = ()
    appliance: str | None = None
    done: int = 0
    total: int = 0
    note: str = ""
    result: Mapping[str, Any] | None = None
    ended_revision: int | None = None
    recorded: bool = False
    changes: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        return self.proposal.id

    def state_at(self, now: float) -> OperationState:
        """Returns the state in force at a time.

        A proposal that is not approved in time is EXPIRED. An operation that has ended is
        EXECUTING until its end is recorded.
        """
        if self.state is OperationState.PROPOSED and now >= self.proposal.expires_at:
            return OperationState.EXPIRED
        if self.state in ENDED and not self.recorded:
            return OperationState.EXECUTING
        return self.state

    @property
    def proof(self) -> bytes:
        """What a key has signed to show that it is where it was placed; empty without it."""
        said = (self.result or {}).get(PROOF)
        try:
            return bytes.fromhex(said) if isinstance(said, str) else b""
        except ValueError:
            return b""

    @property
    def signers(self) -> frozenset[str]:
        return frozenset(signature.officer for signature in self.signatures)


Found = tuple[list[StoredOperation], list[UnreadableRow]]
"""Operations, and rows among them that cannot be read: the others go on without them."""


class OperationStore:
    """Operations in a registry. Every method raises OperatorError."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def get(self, identity: str) -> StoredOperation:
        """Returns one operation; raises CallError if it does not exist."""
        with self._registry.reading() as connection:
            return get(connection, identity)

    def page(
        self, states: Sequence[OperationState], limit: int, before: tuple[float, str] | None
    ) -> list[StoredOperation]:
        """Returns the newest operations in these stored states, at most ``limit``.

        ``before``, the time and id of a proposal, continues after that operation.
        """
        statement = sa.select(*raw(operations)).order_by(
            operations.c.proposed_at.desc(), operations.c.id.desc()
        )
        if states:
            statement = statement.where(operations.c.state.in_(states))
        if before is not None:
            at, identity = before
            statement = statement.where(
                sa.or_(
                    operations.c.proposed_at < at,
                    sa.and_(operations.c.proposed_at == at, operations.c.id < identity),
                )
            )
        return self._all(statement.limit(limit))[0]

    def unfinished(self, appliance: str) -> Found:
        """Returns the operations that this appliance is to execute or has begun, oldest first."""
        return self._of(appliance, operations.c.state.in_(UNFINISHED))

    def unrecorded(self, appliance: str) -> Found:
        """Returns the operations that ended here and, after a crash, are not recorded as ended."""
        return self._of(
            appliance, sa.and_(operations.c.state.in_(ENDED), sa.not_(operations.c.recorded))
        )

    def that_may_account(self, since: int, kinds: Sequence[str] = ()) -> Found:
        """Returns what can have changed something after a revision; with ``kinds`` only of these.

        Operations that have ended come first, in their order, then those that have begun. What
        the rows say of their states is not evidence of anything: their approvals are.
        """
        begun = operations.c.state.in_(_BEGUN) & (
            (operations.c.state != OperationState.FAILED) | (operations.c.done > 0)
        )
        statement = (
            sa.select(*raw(operations))
            .where(sa.or_(operations.c.ended_revision > since, begun))
            .order_by(
                sa.func.coalesce(operations.c.ended_revision, _LAST), operations.c.proposed_at
            )
            .limit(MOST_DECISIONS)
        )
        if kinds:
            statement = statement.where(operations.c.kind.in_(kinds))
        return self._all(statement)

    def pending(self, now: float) -> int:
        """Returns the number of proposals that wait for signatures."""
        statement = sa.select(sa.func.count()).where(
            operations.c.state == OperationState.PROPOSED, operations.c.expires_at > now
        )
        with self._registry.reading() as connection:
            return int(connection.execute(statement).scalar_one())

    def _of(self, appliance: str, where: sa.ColumnElement[bool]) -> Found:
        return self._all(
            sa.select(*raw(operations))
            .where(operations.c.appliance == appliance, where)
            .order_by(operations.c.proposed_at)
        )

    def _all(self, statement: sa.Select[Any]) -> Found:
        found: list[StoredOperation] = []
        bad: list[UnreadableRow] = []
        with self._registry.reading() as connection:
            for row in connection.execute(statement):
                try:
                    found.append(_read(connection, row))
                except BadValueError as error:
                    bad.append(UnreadableRow(_where(error), f"operation {plain(str(row.id)[:36])}"))
        return found, bad


def find(connection: sa.Connection, identity: str) -> StoredOperation | None:
    """Returns one operation within a transaction, None if it does not exist."""
    row = connection.execute(_FIND, {"identity": identity}).one_or_none()
    try:
        return None if row is None else _read(connection, row)
    except BadValueError as error:
        raise UnreadableError(
            f"the operation cannot be read: {_where(error)}; propose it again"
        ) from None


def get(connection: sa.Connection, identity: str) -> StoredOperation:
    """Returns one operation within a transaction; raises CallError if it does not exist."""
    operation = find(connection, identity)
    if operation is None:
        raise CallError(
            Reason.OPERATION_NOT_FOUND, "this operation does not exist: list them to find its id"
        )
    return operation


def add(write: Writing, proposal: Proposal, content: bytes, first: Signature) -> StoredOperation:
    """Adds a proposal with its proposer's signature; returns the operation."""
    operation = StoredOperation(proposal, content, changed_at=proposal.proposed_at)
    write.connection.execute(
        sa.insert(operations).values(
            id=proposal.id,
            kind=proposal.kind,
            state=operation.state,
            proposed_at=proposal.proposed_at,
            expires_at=proposal.expires_at,
            **{name: getattr(operation, name) for name in _UNCHANGED},
        )
    )
    return sign(write, operation, first)


def sign(write: Writing, operation: StoredOperation, signature: Signature) -> StoredOperation:
    """Adds an officer's signature; returns the operation with it."""
    write.connection.execute(
        sa.insert(signatures).values(operation=operation.id, **signature._asdict())
    )
    return replace(operation, signatures=(*operation.signatures, signature))


def update(
    write: Writing, operation: StoredOperation, now: float, *, ended: bool = False, **values: Any
) -> StoredOperation:
    """Changes fields of an operation; returns it as it is then.

    ``ended`` stores the revision of this transaction as that of its end.
    """
    if ended:
        values["ended_revision"] = write.revision
    changed = replace(operation, changed_at=now, **values)
    stored = {name: getattr(changed, name) for name in ("changed_at", *values)}
    stored.pop(_CHANGES, None)
    if stored.get("result") is not None:
        result = {**stored["result"], _CHANGES: changed.changes}
        stored["result"] = json.dumps(result, sort_keys=True)
    write.connection.execute(
        sa.update(operations).where(operations.c.id == operation.id).values(stored)
    )
    return changed


def _read(connection: sa.Connection, row: sa.Row[Any]) -> StoredOperation:
    """Reads a row and the signatures of its operation. Raises BadValueError."""
    identity, content = text(row, "id", 36), octets(row, "content", MAX_BYTES)
    try:
        proposal = parse(content)
    except OperatorError:
        raise BadValueError("content", "an operation") from None
    if proposal.id != identity:
        raise BadValueError("content", "that of the operation with its id")
    signed = connection.execute(_SIGNED, {"operation": identity})
    result = _result(row)
    changes = tuple(map(str, result.pop(_CHANGES, ()))) if result is not None else ()
    return StoredOperation(
        proposal=proposal,
        content=content,
        changed_at=moment(row, "changed_at"),
        state=one_of(row, "state", OperationState),
        signatures=tuple(map(_signature, signed)),
        appliance=optional(text, row, "appliance"),
        done=whole(row, "done"),
        total=whole(row, "total"),
        note=text(row, "note"),
        result=result,
        ended_revision=optional(whole, row, "ended_revision"),
        recorded=truth(row, "recorded"),
        changes=changes,
    )


def _signature(row: sa.Row[Any]) -> Signature:
    officer, signed = text(row, "officer", 2048), octets(row, "signature", MAX_SIGNATURE_BYTES)
    return Signature(officer, signed, moment(row, "at"))


def _result(row: sa.Row[Any]) -> dict[str, Any] | None:
    """Returns the result, a JSON object."""
    stored = optional(text, row, "result")
    try:
        result = None if stored is None else json.loads(stored)
    except (ValueError, RecursionError):
        result = stored
    if result is not None and not (
        isinstance(result, dict) and isinstance(result.get(_CHANGES, []), list)
    ):
        raise BadValueError("result", "an object in JSON")
    return result


def _where(error: BadValueError) -> str:
    table = signatures if error.column not in operations.c else operations
    return f"{error.column} of {table.name} is not {error.expected}"

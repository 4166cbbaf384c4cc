"""Where operations are kept: rows of the registry, written in its transactions."""

from __future__ import annotations

import enum
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from signer.keys.registry import Registry
from signer.keys.schema import operations, signatures
from signer.keys.writing import Writing
from signer.officers.approval import Proposal, Signature, parse


class State(enum.StrEnum):
    """The life of an operation."""

    PROPOSED = "PROPOSED"
    APPROVED = "APPROVED"
    EXECUTING = "EXECUTING"
    WAITING = "WAITING"
    DONE = "DONE"
    FAILED = "FAILED"
    REJECTED = "REJECTED"
    EXPIRED = "EXPIRED"


UNFINISHED = (State.APPROVED, State.EXECUTING)
MOST_DECISIONS = 1000
"""Changes of policy and officers that an appliance can have missed and still follow."""
ENDED = (State.DONE, State.FAILED, State.WAITING)

# Built once: to build a statement takes SQLAlchemy longer than SQLite to answer it.
_FIND = sa.select(operations).where(operations.c.id == sa.bindparam("identity"))
_SIGNED = (
    sa.select(signatures)
    .where(signatures.c.operation == sa.bindparam("operation"))
    .order_by(signatures.c.at)
)


@dataclass(frozen=True, slots=True)
class Operation:
    """An operation as the registry has it. ``appliance`` executes it; ``note`` is for people."""

    proposal: Proposal
    content: bytes
    state: State
    signatures: tuple[Signature, ...]
    appliance: str | None
    done: int
    total: int
    note: str
    result: Mapping[str, Any] | None
    changed_at: float
    recorded: bool

    @property
    def id(self) -> str:
        return self.proposal.id

    def state_at(self, now: float) -> State:
        """The state in force.

        A proposal that was not approved in time has expired; what has ended is at its end
        when that is on record.
        """
        if self.state is State.PROPOSED and now >= self.proposal.expires_at:
            return State.EXPIRED
        if self.state in ENDED and not self.recorded:
            return State.EXECUTING
        return self.state

    @property
    def signers(self) -> frozenset[str]:
        return frozenset(each.officer for each in self.signatures)


class Store:
    """Operations in a registry. Every method raises OperatorError."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def find(self, identity: str) -> Operation | None:
        """Returns one operation."""
        with self._registry.reading() as connection:
            return find(connection, identity)

    def page(
        self, states: Sequence[State], limit: int, before: tuple[float, str] | None
    ) -> list[Operation]:
        """Returns the newest operations in these stored states that come ``before`` a place.

        A place is ``changed_at``-independent: the time of the proposal and the id.
        """
        statement = sa.select(operations).order_by(
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
        with self._registry.reading() as connection:
            return [_read(connection, row) for row in connection.execute(statement.limit(limit))]

    def unfinished(self, appliance: str) -> list[Operation]:
        """Returns what this appliance has begun or was to begin, the oldest first."""
        return self._of(appliance, operations.c.state.in_(UNFINISHED))

    def unrecorded(self, appliance: str) -> list[Operation]:
        """Returns what has ended here without a word in the log: a crash came between."""
        return self._of(
            appliance, sa.and_(operations.c.state.in_(ENDED), sa.not_(operations.c.recorded))
        )

    def newest_done(self, kinds: Sequence[str]) -> list[Operation]:
        """Returns the operations of these kinds that were done, the one in force last first."""
        statement = (
            sa.select(operations)
            .where(operations.c.kind.in_(kinds), operations.c.state == State.DONE)
            .order_by(operations.c.ended_revision.desc())
            .limit(MOST_DECISIONS)
        )
        with self._registry.reading() as connection:
            return [_read(connection, row) for row in connection.execute(statement)]

    def pending(self, now: float) -> int:
        """Returns how many proposals wait for signatures."""
        statement = sa.select(sa.func.count()).where(
            operations.c.state == State.PROPOSED, operations.c.expires_at > now
        )
        with self._registry.reading() as connection:
            return int(connection.execute(statement).scalar_one())

    def _of(self, appliance: str, where: sa.ColumnElement[bool]) -> list[Operation]:
        statement = (
            sa.select(operations)
            .where(operations.c.appliance == appliance, where)
            .order_by(operations.c.proposed_at)
        )
        with self._registry.reading() as connection:
            return [_read(connection, row) for row in connection.execute(statement)]


def find(connection: sa.Connection, identity: str) -> Operation | None:
    """Returns one operation within a transaction."""
    row = connection.execute(_FIND, {"identity": identity}).one_or_none()
    return None if row is None else _read(connection, row)


def add(write: Writing, proposal: Proposal, content: bytes, first: Signature) -> None:
    """Adds a proposal with its proposer's signature."""
    write.connection.execute(
        sa.insert(operations).values(
            id=proposal.id,
            kind=proposal.kind,
            content=content,
            proposed_at=proposal.proposed_at,
            expires_at=proposal.expires_at,
            state=State.PROPOSED,
            done=0,
            total=0,
            note="",
            changed_at=proposal.proposed_at,
            recorded=False,
        )
    )
    sign(write, proposal.id, first)


def sign(write: Writing, identity: str, signature: Signature) -> None:
    """Adds an officer's signature."""
    write.connection.execute(
        sa.insert(signatures).values(operation=identity, **signature._asdict())
    )


def update(write: Writing, identity: str, now: float, **values: Any) -> None:
    """Changes an operation; ``result`` is a mapping."""
    if values.get("result") is not None:
        values["result"] = json.dumps(values["result"], sort_keys=True)
    write.connection.execute(
        sa.update(operations).where(operations.c.id == identity).values(changed_at=now, **values)
    )


def _read(connection: sa.Connection, row: sa.Row[Any]) -> Operation:
    signed = connection.execute(_SIGNED, {"operation": row.id})
    content = bytes(row.content)
    return Operation(
        proposal=parse(content),
        content=content,
        state=State(row.state),
        signatures=tuple(Signature(s.officer, bytes(s.signature), s.at) for s in signed),
        appliance=row.appliance,
        done=row.done,
        total=row.total,
        note=row.note,
        result=None if row.result is None else json.loads(row.result),
        changed_at=row.changed_at,
        recorded=row.recorded,
    )

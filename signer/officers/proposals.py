"""What officers ask of operations: prepared, proposed, signed, looked at.

The bytes that officers sign are made here and checked again when they come back; who
has approved an operation with the last signature needed has it executed
(``execution``).
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from typing import Any, NamedTuple

from signer.errors import OperatorError, invalid
from signer.keys.writing import Writing
from signer.officers import store
from signer.officers.approval import (
    MAX_BYTES,
    Proposal,
    Signature,
    check_approved,
    check_signature,
    parse,
    valid_signers,
)
from signer.officers.execution import Executor, Surroundings, check_time, tell
from signer.officers.kinds import rotation
from signer.officers.kinds.base import Details, Kind, Problems, World, shortened
from signer.officers.kinds.table import KINDS, known_kind
from signer.officers.refusals import answered, check_reason, found, not_signed, refused
from signer.officers.store import Operation, State, Store

MOST_PROBLEMS = 200
"""Told at once: an answer with one for each line of a long CSV would not get out."""


class Prepared(NamedTuple):
    """What an operation would be; without content where there are problems."""

    content: bytes
    difference: list[str]
    problems: list[str]


class Desk:
    """Operations under dual control. Methods raise CallError."""

    def __init__(self, surroundings: Surroundings, executor: Executor) -> None:
        self._around, self._executor = surroundings, executor
        self._registry, self._clock = surroundings.registry, surroundings.clock
        self._journal = surroundings.journal
        self._store = Store(surroundings.registry)

    def prepare(self, officer: str, kind: str, arguments: str, attachment: bytes) -> Prepared:
        """Works out an operation: the bytes to sign, or everything that is wrong with it."""
        known = KINDS.get(kind)
        if known is None:
            raise invalid("kind", f"is none of {', '.join(sorted(KINDS))}")
        with answered():
            world = self._around.world()
            try:
                details = known.complete(known.read(_members(arguments)), world, attachment)
                world = _with_documents(known, details, world, attachment)
                problems = known.problems(details, world)
                lines = [] if problems else known.difference(details, world)
            except Problems as error:
                problems = list(error.texts)
        if problems:
            return Prepared(b"", [], shortened(problems, "problems", MOST_PROBLEMS))
        now = int(self._clock.now())
        proposal = Proposal(
            origin=self._around.origin,
            id=str(uuid.uuid4()),
            kind=kind,
            proposer=officer,
            proposed_at=now,
            expires_at=now + self._around.expire_seconds,
            officers=world.needed[kind],
            details=details.model_dump(mode="json"),
        )
        content = proposal.canonical()
        if len(content) > MAX_BYTES:
            return Prepared(b"", [], [f"the operation is longer than {MAX_BYTES} bytes: split it"])
        return Prepared(content, lines, [])

    def propose(
        self, officer: str, content: bytes, signature: bytes, attachment: bytes
    ) -> Operation:
        """Keeps an operation that its proposer has signed."""
        with answered(), self._around.steady() as world:
            proposal = self._check_proposal(officer, content, world)
            known, details = known_kind(proposal)
            documents = known.documents(details, world, attachment)
            known.check(details, _with_documents(known, details, world, attachment))
            first = Signature(officer, signature, self._clock.now())
            check_signature(content, first, world.state.officers, first.at)
            with self._registry.writing(counts=False) as write:
                if store.find(write.connection, proposal.id) is not None:
                    raise refused(f"operation {proposal.id} is proposed already")
                for document in documents:
                    write.store(document)
                store.add(write, proposal, content, first)
            operation = self._get(proposal.id)
            self._journal.proposed(operation)
        self._tell(operation)
        return operation

    def approve(self, officer: str, identity: str, signature: bytes) -> Operation:
        """Adds another officer's signature; the last one needed has the operation executed."""
        with answered(), self._around.steady() as world:
            signed = Signature(officer, signature, self._clock.now())
            officers = world.state.officers
            with self._open(identity) as (write, operation):
                if officer == operation.proposal.proposer:
                    raise not_signed("nobody approves his own proposal: another officer must")
                if officer in operation.signers:
                    raise not_signed(f"{officer} has signed it already")
                check_signature(operation.content, signed, officers, signed.at)
                store.sign(write, identity, signed)
                everyone = [*operation.signatures, signed]
                signers = valid_signers(operation.content, everyone, officers)
                complete = len(signers) >= operation.proposal.officers
                if complete:
                    self._update(
                        write, identity, state=State.APPROVED, appliance=self._around.origin
                    )
            operation = self._get(identity)
            try:
                self._journal.approved(operation, signed)
            finally:
                if complete:
                    self._executor.submit(identity)
        self._tell(operation)
        return operation

    def reject(self, officer: str, identity: str, reason: str) -> Operation:
        """Ends a proposal for good."""
        with answered():
            check_reason(reason)
            with self._open(identity) as (write, _):
                self._update(
                    write, identity, state=State.REJECTED, note=f"rejected by {officer}: {reason}"
                )
            operation = self._get(identity)
            self._journal.rejected(operation, officer, reason)
        self._tell(operation)
        return operation

    def retry(self, officer: str, identity: str) -> Operation:
        """Has an operation that failed go on; its signatures are checked again."""
        with answered(), self._registry.writing(counts=False) as write:
            operation = found(store.find(write.connection, identity))
            state = operation.state_at(self._clock.now())
            if state is not State.FAILED:
                raise refused(f"operation {identity} is {state}, not FAILED")
            check_time(operation, self._clock.now())
            self._go_on(write, operation)
        return self._submitted(identity, officer, "retry")

    def import_certificates(
        self, officer: str, identity: str, certificates: Sequence[bytes]
    ) -> Operation:
        """Gives certificates to the new versions of a rotation, which then goes on."""
        with answered():
            operation = self._waiting(self._store.find(identity))
            details = rotation.RotateKind().read(operation.proposal.details)
            world = self._around.world()
            self._check_approved(operation, world)
            changes = rotation.imports(details, certificates, identity, world)
            with self._registry.writing() as write:
                self._waiting(store.find(write.connection, identity))
                write.change(changes)
                self._go_on(write, operation)
        return self._submitted(identity, officer, "import-certificates")

    def get(self, identity: str) -> tuple[Operation, list[str]]:
        """Returns an operation, and while it is not executed what it would change."""
        with answered():
            operation = self._get(identity)
            if operation.state_at(self._clock.now()) is not State.PROPOSED:
                return operation, []
            try:
                world = self._around.world()
                known, details = known_kind(operation.proposal)
                return operation, known.difference(details, world)
            except (Problems, OperatorError) as error:
                return operation, [f"! it cannot be executed any more: {error}"]

    def attachment(self, operation: Operation) -> bytes:
        """Returns what an operation names by its hash, b"" where it names nothing."""
        known = KINDS.get(operation.proposal.kind)
        if known is None or not known.names:
            return b""
        with answered():
            name = str(operation.proposal.details.get(known.names, ""))
            return self._registry.document(name) or b""

    def page(
        self, state: State | None, limit: int, before: tuple[float, str] | None
    ) -> list[Operation]:
        """Returns the newest operations before a place: a proposal's time and id."""
        stored = {State.EXPIRED: [State.PROPOSED], None: []}.get(state, [state] if state else [])
        with answered():
            return self._store.page(stored, limit, before)

    def _check_proposal(self, officer: str, content: bytes, world: World) -> Proposal:
        proposal = parse(content)
        now = self._clock.now()
        if proposal.proposer != officer:
            raise not_signed(f"it is {proposal.proposer}'s proposal: only he proposes it")
        if proposal.origin != self._around.origin:
            raise not_signed(f"it is for the log {proposal.origin}, this is {self._around.origin}")
        if not proposal.proposed_at - 1 <= now < proposal.expires_at:
            raise not_signed("it was prepared too long ago: prepare it again")
        if proposal.expires_at != proposal.proposed_at + self._around.expire_seconds:
            raise not_signed("it has another life than operations have here: prepare it again")
        if proposal.officers != world.needed.get(proposal.kind):
            raise not_signed("it asks for another number of officers: prepare it again")
        return proposal

    def _check_approved(self, operation: Operation, world: World) -> None:
        check_approved(
            operation.proposal, operation.content, operation.signatures, world.state.officers
        )

    @contextmanager
    def _open(self, identity: str) -> Iterator[tuple[Writing, Operation]]:
        """A transaction in which a proposal is still open."""
        with self._registry.writing(counts=False) as write:
            operation = found(store.find(write.connection, identity))
            state = operation.state_at(self._clock.now())
            if state is not State.PROPOSED:
                raise refused(f"operation {identity} is {state}: it takes no more signatures")
            yield write, operation

    def _waiting(self, operation: Operation | None) -> Operation:
        rotating = found(operation)
        state = rotating.state_at(self._clock.now())
        if rotating.proposal.kind != "rotate" or state not in (State.WAITING, State.FAILED):
            raise refused(f"operation {rotating.id} is no rotation that waits for certificates")
        return rotating

    def _go_on(self, write: Writing, operation: Operation) -> None:
        # From here on it is this appliance's to complete; the other one may be gone.
        self._update(
            write, operation.id, state=State.APPROVED, note="", appliance=self._around.origin
        )

    def _submitted(self, identity: str, officer: str, act: str) -> Operation:
        with answered():
            operation = self._get(identity)
        self._journal.went_on(operation, officer, act)
        self._tell(operation)
        self._executor.submit(identity)
        return operation

    def _update(self, write: Writing, identity: str, **values: Any) -> None:
        store.update(write, identity, self._clock.now(), **values)

    def _get(self, identity: str) -> Operation:
        return found(self._store.find(identity))

    def _tell(self, operation: Operation) -> None:
        tell(self._around.observer, operation)


def _with_documents(known: Kind[Any], details: Details, world: World, attachment: bytes) -> World:
    """The world in which what the operation names by hash is kept already."""
    found = {sha256(d).hexdigest(): d for d in known.documents(details, world, attachment)}
    return replace(world, document=lambda name: found.get(name) or world.document(name))


def _members(arguments: str) -> dict[str, Any]:
    try:
        members = json.loads(arguments or "{}")
        json.dumps(members, ensure_ascii=False).encode()  # fails at half a surrogate pair
    except (ValueError, RecursionError):
        members = None
    if not isinstance(members, dict):
        raise invalid("arguments", "is no JSON object")
    return members

"""The calls of officers about operations: prepare, propose, approve, reject, retry, list.

An operation's bytes are made here, and checked here when an officer has signed them. The
last signature that an operation needs starts its execution (``execution``).
"""

import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from typing import Any, NamedTuple

from signer.config.policy_documents import PolicyText
from signer.errors import OperatorError, answered, clock_doubtful, invalid
from signer.keys.writing import Writing
from signer.officers import store
from signer.officers.approval import (
    APART,
    MAX_BYTES,
    ApprovalError,
    Proposal,
    Signature,
    check_approved,
    check_deployment,
    check_needed,
    check_origin,
    check_signature,
    enough,
    parse,
)
from signer.officers.execution import KINDS, Executor, check_time, known_kind, unknown_kind
from signer.officers.kinds import rotation
from signer.officers.kinds.base import OperationDependencies, shortened
from signer.officers.kinds.clock_confirmation import KIND as CLOCK
from signer.officers.kinds.operation_context import OperationContext, OperationError
from signer.officers.records import ActRecord, check_reason
from signer.officers.store import OperationState, OperationStore, StoredOperation
from signer.text import count

MOST_ALIKE = 200  # of the newest proposals are compared with a new one
MOST_PROBLEMS = 200  # in one answer: one for each line of a long CSV would not fit


class PreparedOperation(NamedTuple):
    """An operation's bytes and what it changes; with problems there is no content."""

    content: bytes
    difference: list[str]
    problems: list[str]


class Proposals:
    """Operations under dual control. Methods raise CallError."""

    def __init__(
        self, dependencies: OperationDependencies, executor: Executor, *, expire_hours: int
    ) -> None:
        self._deps, self._executor, self._hours = dependencies, executor, expire_hours
        self._serving, self._records = dependencies.serving, dependencies.records
        self._registry, self._clock = dependencies.registry, dependencies.clock
        self._store = OperationStore(dependencies.registry)

    def prepare(
        self, officer: str, kind: str, arguments: str, attachment: bytes
    ) -> PreparedOperation:
        """Returns the bytes to sign, or everything that is wrong with the operation."""
        known = KINDS.get(kind)
        if known is None:
            raise invalid("kind", unknown_kind(kind))
        with answered():
            context = replace(self._serving.context(), attachment=attachment)
            try:
                details = known.complete(known.read(_members(arguments)), context)
                context = _with_documents(known.documents(details, context), context)
                problems = known.problems(details, context)
                lines = [] if problems else known.difference(details, context)
                alike = [] if problems else self._alike(kind, details.model_dump(mode="json"))
            except OperationError as error:
                problems = list(error.texts)
        if problems:
            return PreparedOperation(b"", [], shortened(problems, "problem", MOST_PROBLEMS))
        now = int(self._clock.now())
        proposal = Proposal(
            origin=self._deps.origin,
            id=str(uuid.uuid4()),
            kind=kind,
            proposer=officer,
            proposed_at=now,
            expires_at=now + self._hours * 3600,
            officers=context.needed[kind],
            details=details.model_dump(mode="json"),
            deployment=context.state.deployment,
        )
        content = proposal.canonical()
        if len(content) > MAX_BYTES:
            too_long = f"the operation has {len(content)} bytes, at most {MAX_BYTES}: split it"
            return PreparedOperation(b"", [], [too_long])
        return PreparedOperation(content, [*lines, *alike], [])

    def _alike(self, kind: str, details: Mapping[str, Any]) -> list[str]:
        """Returns a warning for each proposal of now that asks for the very same."""
        now = self._clock.now()
        waiting = self._store.page([OperationState.PROPOSED], MOST_ALIKE, None)
        return [
            f"! operation {each.id}, which waits for signatures, is the same: approve that one"
            for each in waiting
            if (each.proposal.kind, each.proposal.details) == (kind, details)
            and each.state_at(now) is OperationState.PROPOSED
        ]

    def propose(
        self, officer: str, content: bytes, signature: bytes, attachment: bytes
    ) -> StoredOperation:
        """Stores an operation that its proposer has signed."""
        with answered():
            proposal = parse(content)
            self._check_clock(proposal.kind)
            context = self._serving.context()
            self._check_proposal(officer, proposal, context)
            known, details = known_kind(proposal)
            documents = known.documents(details, replace(context, attachment=attachment))
            # Before the lock, which approvals wait for: thousands of facilities take seconds. The
            # execution checks it again.
            known.check(details, _with_documents(documents, context))
            operation = self._store_proposal(proposal, content, signature, documents, context)
        self._deps.report(operation)
        return operation

    def _store_proposal(
        self,
        proposal: Proposal,
        content: bytes,
        signature: bytes,
        documents: Sequence[bytes],
        checked: OperationContext,
    ) -> StoredOperation:
        """Stores and records an operation that was ``checked``, if its signature counts now."""
        with self._serving.locked(checked) as context:
            first = Signature(proposal.proposer, signature, self._signing_time(proposal))
            check_signature(content, first, context.state.officers, first.at, proposal)
            with self._registry.writing(counts=False) as write:
                if store.find(write.connection, proposal.id) is not None:
                    raise OperatorError(f"operation {proposal.id} is proposed already")
                for document in documents:
                    write.store(document)
                operation = store.add(write, proposal, content, first)
            self._records.proposed(operation)
        return operation

    def approve(self, officer: str, identity: str, signature: bytes) -> StoredOperation:
        """Adds another officer's signature; the last one needed starts the execution."""
        with answered(), self._serving.locked() as context:
            officers = context.state.officers
            with self._open(identity) as (write, proposed):
                check_origin(proposed.proposal, self._deps.origin)
                check_needed(proposed.proposal, context.needed)
                signed = Signature(officer, signature, self._signing_time(proposed.proposal))
                if officer == proposed.proposal.proposer:
                    raise ApprovalError(
                        f"{officer} proposed operation {identity}: another officer must approve it"
                    )
                if officer in proposed.signers:
                    raise ApprovalError(f"{officer} has already signed operation {identity}")
                check_signature(proposed.content, signed, officers, signed.at, proposed.proposal)
                operation = store.sign(write, proposed, signed)
                complete = enough(
                    operation.proposal, operation.content, operation.signatures, officers
                )
                if complete:
                    operation = self._approved(write, operation)
            try:
                self._records.approved(operation, signed)
            finally:
                if complete:
                    self._executor.submit(identity)
        self._deps.report(operation)
        return operation

    def reject(self, officer: str, identity: str, reason: str) -> StoredOperation:
        """Ends a proposal for good."""
        check_reason(reason)
        with answered():
            with self._open(identity) as (write, proposed):
                note = f"rejected by {officer}: {reason}"
                operation = self._update(write, proposed, state=OperationState.REJECTED, note=note)
            self._records.rejected(operation, officer, reason)
        self._deps.report(operation)
        return operation

    def retry(self, officer: str, identity: str) -> StoredOperation:
        """Executes a failed operation again; its signatures are checked again."""
        with answered():
            context = self._serving.context()  # not in the transaction: it waits for its lock
            with self._registry.writing(counts=False) as write:
                operation = store.get(write.connection, identity)
                state = operation.state_at(context.now)
                self._check_clock(operation.proposal.kind)
                check_origin(operation.proposal, self._deps.origin)
                if state is not OperationState.FAILED:
                    raise OperatorError(f"operation {identity} is {state}, not FAILED")
                check_time(operation, context)
                operation = self._approved(write, operation, note="")
        return self._resumed(operation, officer, "retry")

    def import_certificates(
        self, officer: str, identity: str, certificates: Sequence[bytes]
    ) -> StoredOperation:
        """Adds certificates to the new versions of a rotation, and resumes the rotation."""
        with answered():
            operation = self._waiting(self._store.get(identity))
            self._check_clock(operation.proposal.kind)
            details = KINDS["rotate"].read(operation.proposal.details)
            context = self._serving.context()
            check_deployment(operation.proposal, context.state.deployment)
            check_approved(
                operation.proposal, operation.content, operation.signatures, context.state.officers
            )
            changes = rotation.imports(details, certificates, identity, context)
            with self._registry.writing() as write:
                operation = self._waiting(store.get(write.connection, identity))
                write.change(changes)
                operation = self._approved(write, operation, note="")
        return self._resumed(operation, officer, "import-certificates")

    def get(self, identity: str) -> tuple[StoredOperation, list[str]]:
        """Returns an operation, and what it would change, or has changed."""
        with answered():
            operation = self._store.get(identity)
            if operation.state_at(self._clock.now()) is not OperationState.PROPOSED:
                return operation, list(operation.changes)
            try:
                known, details = known_kind(operation.proposal)
                return operation, known.difference(details, self._serving.context())
            except OperatorError as error:
                return operation, [f"! it can no longer be executed: {error}"]

    def policy(self) -> PolicyText:
        """Returns the policy in force."""
        with answered():
            return self._serving.context().policy

    def attachment(self, operation: StoredOperation) -> bytes:
        """Returns the document that an operation names by its hash, b"" if it names none."""
        known = KINDS.get(operation.proposal.kind)
        if known is None or not known.names:
            return b""
        with answered():
            name = str(operation.proposal.details.get(known.names, ""))
            return self._registry.document(name) or b""

    def page(
        self, state: OperationState | None, limit: int, before: tuple[float, str] | None
    ) -> list[StoredOperation]:
        """Returns the newest operations, or those before a proposal's time and id."""
        stored = {OperationState.EXPIRED: [OperationState.PROPOSED], None: []}
        with answered():
            return self._store.page(stored.get(state, [state] if state else []), limit, before)

    def _check_proposal(self, officer: str, proposal: Proposal, context: OperationContext) -> None:
        now, origin = self._clock.now(), self._deps.origin
        if proposal.proposer != officer:
            raise ApprovalError(f"its proposer is {proposal.proposer}: {officer} cannot propose it")
        if proposal.origin != origin:
            raise ApprovalError(f"it is for the log {proposal.origin}, this is {origin}")
        check_deployment(proposal, context.state.deployment)
        if not proposal.proposed_at - 1 <= now < proposal.expires_at:
            raise ApprovalError("it was prepared too long ago: prepare it again")
        if proposal.expires_at != proposal.proposed_at + self._hours * 3600:
            raise ApprovalError(
                f"its expiry is not {self._hours} h after its proposal, as configured here:"
                " prepare it again"
            )
        if proposal.kind not in KINDS:
            raise ApprovalError(unknown_kind(proposal.kind))
        needed = context.needed[proposal.kind]
        if proposal.officers != needed:
            raise ApprovalError(
                f"it asks for {count(proposal.officers, 'officer')}, {proposal.kind} needs {needed}"
                " here: prepare it again"
            )

    def _check_clock(self, kind: str) -> None:
        """Raises CallError while the machine's clock is in doubt, but for the kind that ends it."""
        if kind != CLOCK and (doubt := self._clock.doubt()):
            raise clock_doubtful(doubt)

    def _signing_time(self, proposal: Proposal) -> float:
        """Returns when an officer signs: of two times in doubt the earlier one.

        The later one may be years ahead, after the ends of all officers' certificates. It is not
        before the proposal, which another appliance may have made by its own clock.
        """
        reading = self._clock.reading()
        at = min(reading.now, reading.machine) if reading.doubt else reading.now
        behind = proposal.proposed_at - at
        return proposal.proposed_at if proposal.kind != CLOCK and 0 < behind <= APART else at

    @contextmanager
    def _open(self, identity: str) -> Iterator[tuple[Writing, StoredOperation]]:
        """A transaction in which a proposal is still open."""
        with self._registry.writing(counts=False) as write:
            operation = store.get(write.connection, identity)
            self._check_clock(operation.proposal.kind)
            state = operation.state_at(self._clock.now())
            if state is not OperationState.PROPOSED:
                raise OperatorError(f"operation {identity} is {state}: it takes no more signatures")
            yield write, operation

    def _waiting(self, operation: StoredOperation) -> StoredOperation:
        state = operation.state_at(self._clock.now())
        if operation.proposal.kind != "rotate" or state not in (
            OperationState.WAITING,
            OperationState.FAILED,
        ):
            raise OperatorError(
                f"operation {operation.id} is not a rotation that waits for certificates: it is"
                f" of the kind {operation.proposal.kind}, and {state}"
            )
        return operation

    def _approved(
        self, write: Writing, operation: StoredOperation, **values: Any
    ) -> StoredOperation:
        """Makes an operation this appliance's to execute; another one may be gone."""
        return self._update(
            write, operation, state=OperationState.APPROVED, appliance=self._deps.origin, **values
        )

    def _update(self, write: Writing, operation: StoredOperation, **values: Any) -> StoredOperation:
        return store.update(write, operation, self._clock.now(), **values)

    def _resumed(self, operation: StoredOperation, officer: str, act: str) -> StoredOperation:
        self._records.acted(ActRecord(act, operation.id, officer, "", {}))
        self._deps.report(operation)
        self._executor.submit(operation.id)
        return operation


def _with_documents(documents: Sequence[bytes], context: OperationContext) -> OperationContext:
    """Returns the context as if the documents that an operation names were stored already."""
    by_hash = {sha256(document).hexdigest(): document for document in documents}
    return replace(context, document=lambda name: by_hash.get(name) or context.document(name))


def _members(arguments: str) -> dict[str, Any]:
    try:
        members = json.loads(arguments or "{}")
        json.dumps(members, ensure_ascii=False).encode()  # fails at half a surrogate pair
    except (ValueError, RecursionError):
        members = None
    if not isinstance(members, dict):
        raise invalid("arguments", "is not a JSON object")
    return members

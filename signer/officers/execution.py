"""Executes approved operations: approvals, nothing changed, intent, token, registry, outcome.

``Executor._execute`` has the steps. An interruption at any point neither loses nor repeats
an operation: the same function completes it, because it finds what was created before.
"""

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor as Threads
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from signer.errors import CallError, ConfigError, OperatorError
from signer.events import OperationBug, RegistryUnreadable
from signer.keys.database import RegistryError
from signer.keys.rows import UnreadableError, UnreadableRow
from signer.keys.writing import Writing
from signer.officers import store
from signer.officers.approval import (
    Proposal,
    check_approved,
    check_deployment,
    check_needed,
    check_origin,
)
from signer.officers.kinds.base import (
    Details,
    Effects,
    OperationDependencies,
    OperationKind,
    StoppedError,
    Work,
)
from signer.officers.kinds.certificates_import import ImportCertificateKind
from signer.officers.kinds.clock_confirmation import KIND as CLOCK
from signer.officers.kinds.clock_confirmation import ConfirmClockKind
from signer.officers.kinds.create_key import CreateKeyKind, NewVersionKind
from signer.officers.kinds.enrolment import EnrolKind
from signer.officers.kinds.officer_change import ChangeOfficersKind
from signer.officers.kinds.operation_context import OperationContext, OperationError
from signer.officers.kinds.placements import AddPlacementKind, RemovePlacementKind
from signer.officers.kinds.policy_change import PutPolicyKind
from signer.officers.kinds.rotation import RotateKind
from signer.officers.kinds.state_changes import VERSION_KINDS, ResumeKind
from signer.officers.kinds.wrapping_keys import (
    CreateWrappingKeyKind,
    DestroyWrappingKeyKind,
    PlaceWrappingKeyKind,
    RewrapKind,
)
from signer.officers.store import ENDED, UNFINISHED, OperationState, OperationStore, StoredOperation

KINDS: Mapping[str, OperationKind[Any]] = {
    kind.name: kind
    for kind in (
        *VERSION_KINDS,
        AddPlacementKind(),
        ChangeOfficersKind(),
        ConfirmClockKind(),
        CreateKeyKind(),
        CreateWrappingKeyKind(),
        DestroyWrappingKeyKind(),
        EnrolKind(),
        ImportCertificateKind(),
        NewVersionKind(),
        PlaceWrappingKeyKind(),
        PutPolicyKind(),
        RemovePlacementKind(),
        ResumeKind(),
        RewrapKind(),
        RotateKind(),
    )
}
MAX_NOTE = 2000  # characters of why an operation failed; a long list of problems is cut
_THREADS = 4  # operations executed at once: a long enrolment must not delay a resumption


class Executor:
    """Executes approved operations in the background, each to its end."""

    def __init__(self, dependencies: OperationDependencies, threads: Threads | None = None) -> None:
        """Works in ``threads``, by default in its own."""
        self._deps = dependencies
        self._serving, self._records = dependencies.serving, dependencies.records
        self._registry, self._clock = dependencies.registry, dependencies.clock
        self._store = OperationStore(dependencies.registry)
        self._threads = threads or ThreadPoolExecutor(_THREADS, "operation")
        # Enrolments may occupy all of these for hours: sweeps must not wait for them, or pile up.
        self._sweeper = threads or ThreadPoolExecutor(1, "sweep")
        self._sweeping = threading.Lock()
        self._lock = threading.Lock()
        self._at_work: set[str] = set()
        self._ended: set[str] = set()  # their end is in the log, and the registry does not say so
        self._unreadable = set[str]()
        self._stopping = threading.Event()
        self.pending = 0  # proposals that wait for signatures, as the last sweep counted them

    def sweep(self) -> None:
        """Resumes, in the background, the operations that this appliance has not completed.

        Called at the start and every few seconds: an interruption, or a database that did
        not answer, leaves such operations.
        """
        if self._sweeping.acquire(blocking=False):  # else one is under way
            self._sweeper.submit(self._sweep)

    def close(self) -> None:
        """Stops the operations at work after their next key; the next start resumes them."""
        self._stopping.set()
        self._sweeper.shutdown(wait=True, cancel_futures=True)
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _sweep(self) -> None:
        try:
            ended, bad = self._store.unrecorded(self._deps.origin)
            for operation in ended:
                if self._take(operation.id):
                    self._conclude(operation.id)
            begun, more = self._store.unfinished(self._deps.origin)
            for operation in begun:
                self.submit(operation.id)
            self._report_unreadable([*bad, *more])
            self.pending = self._store.pending(self._clock.now())
        except RegistryError:
            return  # the database does not answer: the next sweep finds them
        except Exception as error:  # noqa: BLE001 - a thread's end must not be silent
            self._deps.events.emit(OperationBug("", error))
        finally:
            self._sweeping.release()

    def _report_unreadable(self, rows: Sequence[UnreadableRow]) -> None:
        """Reports rows of operations that cannot be read, each once: nobody executes them."""
        known, self._unreadable = self._unreadable, {row.text for row in rows}
        for text in sorted(self._unreadable - known):
            self._deps.events.emit(RegistryUnreadable(text))

    def submit(self, identity: str) -> None:
        """Executes an approved operation in the background, unless that is under way."""
        if self._take(identity):
            self._threads.submit(self._execute, identity)

    def _take(self, identity: str) -> bool:
        """Returns whether nobody is at work on an operation; then the caller is."""
        with self._lock:
            free = identity not in self._at_work
            self._at_work.add(identity)
        return free

    def _execute(self, identity: str) -> None:
        """Executes an approved operation, or resumes it; never raises."""
        failed = ""
        try:
            operation = self._claim(identity)
            if operation is None or self._in_doubt(operation):
                self._release(identity)
                return
            context = replace(self._serving.context(), executing=identity)
            check_time(operation, context)
            if not context.changed_by(identity, operation.content):  # else it is completed
                check_needed(operation.proposal, context.needed)
            kind, details = known_kind(operation.proposal)

            # 1. What officers approved is still true; the last transaction refuses later changes.
            kind.check(details, context)
            changes = operation.changes or tuple(kind.difference(details, context))
            with self._serving.locked(context) as current:
                # 2. Enough officers, who are officers now, have signed these very bytes, for us.
                check_deployment(operation.proposal, current.state.deployment)
                check_origin(operation.proposal, self._deps.origin)
                check_approved(
                    operation.proposal,
                    operation.content,
                    operation.signatures,
                    current.state.officers,
                )

                # 3. The intent is on record before the token is touched.
                self._records.execution_begun(operation)

            # 4. Token first: an interruption leaves keys that the next attempt finds.
            work = Work(self._deps, operation, context, self._stopping)
            effects: Effects = kind.execute(details, work)

            # 5. Then the registry with the operation's end; both are served at once.
            with self._serving.lock:
                self._finish(operation, effects, changes)
                self._serving.follow()
        except StoppedError:
            self._release(identity)
            return
        except UnreadableError as error:  # its row: nothing can be written into it either
            self._deps.events.emit(RegistryUnreadable(str(error)))
            self._release(identity)
            return
        except (OperatorError, ConfigError) as error:
            failed = str(error)
        except Exception as error:  # noqa: BLE001 - a thread's end must not be silent
            self._deps.events.emit(OperationBug(identity, error))
            failed = f"internal error: {type(error).__name__}; see the log for operation {identity}"

        # 6. The outcome is on record.
        self._conclude(identity, failed)

    def _conclude(self, identity: str, failed: str = "") -> None:
        """Ends the work on an operation; what cannot be written now is left to the next sweep."""
        try:
            if failed:
                self._fail(identity, failed)
            operation = self._store.get(identity)
            if operation.state not in ENDED or operation.recorded:
                return
            # Outside of a transaction: nobody waits for the registry because a disk of one
            # appliance's log hangs. Where the database takes no writes, a sweep must not add the
            # same record again and again. A crash in between adds it twice, and it counts once.
            if identity not in self._ended:
                self._records.execution_ended(operation)
                self._ended.add(identity)
            with self._registry.writing(counts=False) as write:
                operation = self._update(
                    write, store.get(write.connection, identity), recorded=True
                )
            self._ended.discard(identity)
            self._deps.report(operation)
        except (OperatorError, CallError) as error:
            self._deps.events.emit(OperationBug(identity, error))
        finally:
            self._release(identity)

    def _fail(self, identity: str, note: str) -> None:
        with self._registry.writing() as write:  # counted: what was created is followed now
            operation = store.get(write.connection, identity)
            # It may have ended nevertheless: the database's answer can have been lost.
            if operation.state in UNFINISHED:
                self._update(write, operation, state=OperationState.FAILED, note=note[:MAX_NOTE])
        self._serving.follow()

    def _release(self, identity: str) -> None:
        with self._lock:
            self._at_work.discard(identity)

    def _claim(self, identity: str) -> StoredOperation | None:
        """Marks an operation as begun; returns None if it has ended since a sweep found it."""
        with self._registry.writing(counts=False) as write:
            operation = store.get(write.connection, identity)
            if operation.state not in UNFINISHED:
                return None
            return self._update(
                write, operation, state=OperationState.EXECUTING, note="", recorded=False
            )

    def _in_doubt(self, operation: StoredOperation) -> bool:
        """Whether an operation waits until the machine's clock is not in doubt any more."""
        return operation.proposal.kind != CLOCK and bool(self._clock.doubt())

    def _finish(
        self, operation: StoredOperation, effects: Effects, changes: tuple[str, ...]
    ) -> None:
        with self._registry.writing() as write:
            write.add_versions(effects.added)
            write.change(effects.changes)
            if effects.policy is not None:
                write.put_policy(effects.policy, effects.policy_since)
            if effects.officers is not None:
                write.set_officers(effects.officers, effects.officers_since)
            elif effects.officers_since is not None:
                write.expect_officers(effects.officers_since)
            for wrapping_key in effects.wrapping_keys:
                write.add_wrapping_key(wrapping_key)
            for version, placement in effects.placed:
                write.place(version, placement)
            for version, placement in effects.removed:
                write.remove_placement(version, placement)
            for suspension in effects.lifted:
                write.lift(suspension)
            self._update(
                write,
                operation,
                ended=True,
                state=OperationState.WAITING if effects.waiting else OperationState.DONE,
                note=effects.waiting,
                result=dict(effects.result),
                changes=changes,
            )

    def _update(self, write: Writing, operation: StoredOperation, **values: Any) -> StoredOperation:
        return store.update(write, operation, self._clock.now(), **values)


def check_time(operation: StoredOperation, context: OperationContext) -> None:
    """Raises OperatorError if an operation has expired before it created anything.

    One that has created something is resumed: otherwise nobody could complete it. That the log
    says so counts, not how much is done by its row, which anybody with SQL can write.
    """
    expired = context.now >= operation.proposal.expires_at
    if expired and not context.changed_by(operation.id, operation.content):
        raise OperatorError(f"operation {operation.id} has expired: propose it again")


def known_kind(proposal: Proposal) -> tuple[OperationKind[Any], Details]:
    """Returns a proposal's kind and its details; raises OperationError."""
    kind = KINDS.get(proposal.kind)
    if kind is None:
        raise OperationError(unknown_kind(proposal.kind))
    return kind, kind.read(proposal.details)


def unknown_kind(name: str) -> str:
    """Returns the text for a kind that does not exist."""
    return f'there is no kind of operation "{name[:100]}"; the kinds are {", ".join(sorted(KINDS))}'

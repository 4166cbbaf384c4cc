"""The second pipeline: enough signatures, nothing changed, intent, token, registry, outcome.

``Executor._execute`` is the whole of it. An interruption at any point neither loses nor
repeats an operation: the same function completes it, for it finds what was made.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Executor as Lanes
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

from signer.clock import Clock
from signer.errors import CallError, ConfigError, OperatorError
from signer.keys.registry import Registry
from signer.keys.writing import Change, Writing
from signer.model import KeyVersion, TokenAdmin
from signer.officers import store
from signer.officers.approval import ApprovalError, Signature, check_approved
from signer.officers.kinds.base import Effects, Problems, StoppedError, World
from signer.officers.kinds.table import known_kind
from signer.officers.refusals import found
from signer.officers.store import ENDED, UNFINISHED, Operation, State, Store

MAX_NOTE = 2000
"""Characters of why an operation failed; a long list of problems is cut."""
_LANES = 4
"""Operations executed at once: a long enrolment must not hold up a resumption."""


class Journal(Protocol):
    """The audit log, as far as operations need it. Raises OperatorError where it takes nothing."""

    def proposed(self, operation: Operation) -> None: ...
    def approved(self, operation: Operation, signature: Signature) -> None: ...
    def rejected(self, operation: Operation, officer: str, reason: str) -> None: ...
    def went_on(self, operation: Operation, officer: str, act: str) -> None: ...
    def begun(self, operation: Operation) -> None: ...
    def ended(self, operation: Operation) -> None: ...


class Observer(Protocol):
    """Who logs what becomes of operations."""

    def operation(self, identity: str, kind: str, state: str, note: str) -> None: ...
    def operation_bug(self, identity: str, error: Exception) -> None: ...


class Surroundings(NamedTuple):
    """What the desk is given.

    ``world`` is read anew each time; in a ``steady`` one officers and policy do not change
    for its block. ``follow`` has the daemon serve what the registry holds now.
    """

    registry: Registry
    world: Callable[[], World]
    steady: Callable[[], AbstractContextManager[World]]
    admin: Callable[[str], AbstractContextManager[TokenAdmin]]
    journal: Journal
    observer: Observer
    follow: Callable[[], bool]
    clock: Clock
    origin: str
    expire_seconds: int


class Executor:
    """Executes approved operations in the background, each to its end."""

    def __init__(self, surroundings: Surroundings, lanes: Lanes | None = None) -> None:
        """Takes the threads to work in; by default its own."""
        self._around = surroundings
        self._registry, self._clock = surroundings.registry, surroundings.clock
        self._journal = surroundings.journal
        self._store = Store(surroundings.registry)
        self._lanes = lanes or ThreadPoolExecutor(_LANES, "operation")
        self._lock = threading.Lock()
        self._at_work: set[str] = set()
        self._stopping = threading.Event()
        self.pending = 0
        """Proposals that wait for signatures, as the last sweep counted them."""

    def sweep(self) -> None:
        """Goes on, in the background, with what this appliance has begun and not ended.

        To be called at the start and every now and then: an interruption or a database that
        was gone leaves such operations.
        """
        self._lanes.submit(self._sweep)

    def close(self) -> None:
        """Has what is at work stop after its next key; the next start goes on with it."""
        self._stopping.set()
        self._lanes.shutdown(wait=True, cancel_futures=True)

    def _sweep(self) -> None:
        try:
            for operation in self._store.unrecorded(self._around.origin):
                if self._take(operation.id):
                    self._conclude(operation.id)
            for operation in self._store.unfinished(self._around.origin):
                self.submit(operation.id)
            self.pending = self._store.pending(self._clock.now())
        except OperatorError:
            return  # the database is gone: the next sweep finds them
        except Exception as error:  # noqa: BLE001 - a thread's end must not be silent
            self._around.observer.operation_bug("", error)

    def submit(self, identity: str) -> None:
        """Has an approved operation executed, unless that is under way."""
        if self._take(identity):
            self._lanes.submit(self._execute, identity)

    def _take(self, identity: str) -> bool:
        """Whether nobody is at work on an operation; from then on the caller is."""
        with self._lock:
            mine = identity not in self._at_work
            self._at_work.add(identity)
        return mine

    def _execute(self, identity: str) -> None:
        """Executes an approved operation, or goes on with it; never raises."""
        state, note = State.FAILED, ""
        try:
            operation = self._claim(identity)
            if operation is None:
                self._release(identity)
                return
            world = replace(self._around.world(), made_by=identity)
            check_time(operation, world.now)
            known, details = known_kind(operation.proposal)

            # 1. What they saw is still so; the last transaction refuses what changes from here on.
            known.check(details, world)
            with self._around.steady() as steady:
                # 2. Enough officers, who are officers now, have signed these very bytes.
                check_approved(
                    operation.proposal,
                    operation.content,
                    operation.signatures,
                    steady.state.officers,
                )

                # 3. The intent is on record before the token is touched.
                self._journal.begun(operation)

            # 4. Token first: an interruption leaves keys that the next attempt finds.
            work = _Work(self._around, identity, world, self._stopping)
            effects: Effects = known.execute(details, work)

            # 5. Then the registry, and with it the operation's end, which is served at once.
            with self._around.steady():
                state, note = self._finish(identity, effects)
                self._around.follow()
        except StoppedError:
            self._release(identity)
            return
        except (Problems, OperatorError, ConfigError, ApprovalError) as error:
            note = str(error)
        except Exception as error:  # noqa: BLE001 - a thread's end must not be silent
            self._around.observer.operation_bug(identity, error)
            note = f"internal error: {type(error).__name__}; see the log for operation {identity}"

        # 6. The daemon serves what the registry holds, and the outcome is on record.
        self._conclude(identity, note if state is State.FAILED else None)

    def _conclude(self, identity: str, failed: str | None = None) -> None:
        """Ends the work on an operation; what cannot be written now is for the next sweep."""
        try:
            if failed is not None:
                with self._registry.writing() as write:  # counted: what was made is followed now
                    # It may have ended all the same: the database's answer may have got lost.
                    if found(store.find(write.connection, identity)).state in UNFINISHED:
                        self._update(write, identity, state=State.FAILED, note=failed[:MAX_NOTE])
            self._around.follow()
            operation = self._get(identity)
            if operation.state in ENDED and not operation.recorded:
                # In this order: what may not be written is not recorded at every sweep, either.
                with self._registry.writing(counts=False) as write:
                    self._journal.ended(operation)
                    self._update(write, identity, recorded=True)
                tell(self._around.observer, operation)
        except (OperatorError, CallError) as error:
            self._around.observer.operation_bug(identity, error)
        finally:
            self._release(identity)

    def _release(self, identity: str) -> None:
        with self._lock:
            self._at_work.discard(identity)

    def _claim(self, identity: str) -> Operation | None:
        """Has an operation begin; None where it has ended since somebody found it unfinished.

        Without that look a sweep could execute again what has just been done.
        """
        with self._registry.writing(counts=False) as write:
            operation = found(store.find(write.connection, identity))
            if operation.state not in UNFINISHED:
                return None
            if operation.id != identity:
                raise OperatorError(f"the registry has {operation.id} in the place of {identity}")
            self._update(write, identity, state=State.EXECUTING, note="", recorded=False)
            return found(store.find(write.connection, identity))

    def _finish(self, identity: str, effects: Effects) -> tuple[State, str]:
        state = State.WAITING if effects.waiting else State.DONE
        with self._registry.writing() as write:
            write.add_versions(effects.added)
            write.change(effects.changes)
            if effects.policy is not None:
                write.put_policy(effects.policy, effects.policy_since)
            if effects.officers is not None:
                write.set_officers(effects.officers, effects.officers_since)
            elif effects.officers_since is not None:
                write.expect_officers(effects.officers_since)
            for suspension in effects.lifted:
                write.lift(suspension)
            self._update(
                write,
                identity,
                state=state,
                note=effects.waiting,
                result=dict(effects.result),
                ended_revision=write.revision,
            )
        return state, effects.waiting

    def _update(self, write: Writing, identity: str, **values: Any) -> None:
        store.update(write, identity, self._clock.now(), **values)

    def _get(self, identity: str) -> Operation:
        return found(self._store.find(identity))


class _Work:
    """What executing one operation may use; see kind.Work."""

    def __init__(
        self, around: Surroundings, identity: str, world: World, stopping: threading.Event
    ) -> None:
        self.world, self.id = world, identity
        self.clock, self.admin = around.clock, around.admin
        self._registry, self._look = around.registry, around.world
        self._stopping = stopping

    def look(self) -> World:
        return replace(self._look(), made_by=self.id)

    def go_on(self) -> None:
        if self._stopping.is_set():
            raise StoppedError

    def save(self, added: Sequence[KeyVersion], changes: Sequence[Change]) -> None:
        # New keys alone are followed with the operation's end: until then nobody may use them,
        # and each following has every worker look through its whole token.
        with self._registry.writing(counts=bool(changes)) as write:
            write.add_versions(added)
            write.change(changes)

    def progress(self, done: int, total: int) -> None:
        with self._registry.writing(counts=False) as write:
            store.update(write, self.id, self.clock.now(), done=done, total=total)


def check_time(operation: Operation, now: float) -> None:
    """Raises OperatorError where an operation comes too late to begin.

    One that has made something goes on: else what it made could never be completed.
    """
    if now >= operation.proposal.expires_at and not operation.done:
        raise OperatorError(f"the time of operation {operation.id} is over: propose it again")


def tell(observer: Observer, operation: Operation) -> None:
    """Has what became of an operation logged."""
    observer.operation(operation.id, operation.proposal.kind, str(operation.state), operation.note)

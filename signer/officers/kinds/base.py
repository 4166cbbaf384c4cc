"""What all kinds of operations share, and what operations work with.

A kind completes the details that an officer asks for, returns what is wrong with them and
what they change, and executes them. Problems are checked when an operation is proposed, and
again before it is executed.
"""

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Generic, NamedTuple, Protocol, TypeVar

from pydantic import Field, ValidationError

from signer.clock import FlooredClock
from signer.errors import OperatorError
from signer.events import Events, OperationChanged, OperationFailed
from signer.keys.lifecycle import TokenAdmin
from signer.keys.registry import Registry
from signer.keys.writing import Change
from signer.model import KeyVersion, Placement, Suspension, WrappedKey, WrappingKey
from signer.officers import store
from signer.officers.kinds.operation_context import OperationContext, OperationError
from signer.officers.records import ApprovedOperation, ClockRecord, OperationRecords
from signer.officers.store import OperationState, StoredOperation
from signer.policy.rules import Policy
from signer.strict import StrictModel, problems_of
from signer.text import count

FACILITIES_SHOWN = 20  # lines of a difference that list the same thing; the rest is counted
Moment = Annotated[int, Field(ge=0, le=32_503_680_000)]
"""Seconds since the epoch, up to the year 3000: a time in milliseconds is refused."""
Span = Annotated[int, Field(ge=0, le=3_155_760_000)]
"""Seconds, up to 100 years."""


class Details(StrictModel):
    """The details of an operation of one kind, as officers sign them."""


D = TypeVar("D", bound=Details)


T = TypeVar("T")


@dataclass(slots=True)
class Effects:
    """What the last transaction of an operation writes, together with its end.

    ``waiting``: what the operation waits for until it is resumed; empty if it is DONE. With
    ``policy_since`` or ``officers_since`` the transaction is refused if another revision has
    put the policy or the officers in force since they were checked.
    """

    added: Sequence[KeyVersion] = ()
    changes: Sequence[Change] = ()
    officers: Mapping[str, bytes] | None = None
    lifted: Sequence[Suspension] = ()
    policy: bytes | None = None
    policy_since: int | None = None
    officers_since: int | None = None
    wrapping_keys: Sequence[WrappingKey] = ()
    placed: Sequence[tuple[KeyVersion, Placement]] = ()
    removed: Sequence[tuple[KeyVersion, Placement]] = ()
    result: Mapping[str, Any] = field(default_factory=dict)
    waiting: str = ""


@dataclass(frozen=True, slots=True)
class Pair:
    """A version that an operation has made or changed, as the registry has it.

    ``index`` is which of the operation's keys it has, None if none. ``existed``: it was there
    before. ``certified``: the operation gave it its certificate. ``times`` are those at which
    the operation may have been executed. ``document``
    returns what is stored under a SHA-256. ``kept`` holds what is read once for all versions.
    """

    version: KeyVersion
    index: int | None
    existed: bool
    certified: bool
    times: Sequence[float]
    document: Callable[[str], bytes | None]
    kept: dict[str, Any]

    def once(self, name: str, read: Callable[[], T]) -> T:
        """Returns what ``read`` returns, which is called for the first version only."""
        if name not in self.kept:
            self.kept[name] = read()
        found: T = self.kept[name]
        return found


class StoppedError(Exception):
    """The daemon is stopping in the middle of an operation."""


class ServedState(Protocol):
    """What the daemon serves; it implements this, being a layer above."""

    @property
    def lock(self) -> AbstractContextManager[object]:
        """Held while a change is recorded and then served; no stop waits for it."""

    @property
    def policy(self) -> Policy:
        """The policy in force."""

    def context(self) -> OperationContext:
        """Reads what operations depend on. Raises OperatorError."""

    def locked(
        self, known: OperationContext | None = None
    ) -> AbstractContextManager[OperationContext]:
        """Holds the lock for a block, at the registry's newest state; that is served first.

        A check of officers' signatures and its record belong into one such block: the log
        judges the record by the officers at that time. ``known`` is not read again where
        the registry has not changed since. Raises OperatorError.
        """

    def obey(self) -> bool:
        """Stops at once what the registry stops; returns whether all of that is stopped."""

    def follow(self) -> bool:
        """Does so, and serves what the registry holds, unless another thread is at it."""


class OperationDependencies(NamedTuple):
    """What proposals and executions work with; ``admin`` opens an administrative worker.

    ``origin`` names this appliance's log, and with it the appliance. ``on_clock`` is called with
    the time that officers have confirmed, in seconds since the epoch.
    """

    registry: Registry
    serving: ServedState
    admin: Callable[[str], AbstractContextManager[TokenAdmin]]
    records: OperationRecords
    events: Events
    clock: FlooredClock
    origin: str
    on_clock: Callable[[float], object]

    def report(self, operation: StoredOperation) -> None:
        """Emits an operation's state."""
        failed = operation.state is OperationState.FAILED
        event = OperationFailed if failed else OperationChanged
        kind, state = operation.proposal.kind, str(operation.state)
        self.events.emit(event(operation.id, kind, state, operation.note))


class Work:
    """What the execution of one operation may use; ``id`` is the operation's."""

    def __init__(
        self,
        dependencies: OperationDependencies,
        operation: StoredOperation,
        context: OperationContext,
        stopping: threading.Event,
    ) -> None:
        self.context, self.id = context, operation.id
        self.proposed_at = operation.proposal.proposed_at
        self.clock, self.admin = dependencies.clock, dependencies.admin
        self._deps, self._operation, self._stopping = dependencies, operation, stopping

    def current_context(self) -> OperationContext:
        """Reads the context again: creating keys takes minutes."""
        return replace(self._deps.serving.context(), executing=self.id)

    def check_running(self) -> None:
        """Raises StoppedError if the daemon is stopping: the next start resumes."""
        if self._stopping.is_set():
            raise StoppedError

    def accept_clock(self, wrong_from: int, right_until: int) -> None:
        """Records that officers confirm the machine's clock, and follows it from then on.

        Does nothing if that is done: an attempt was interrupted after it.
        """
        clock = self._deps.clock
        if not clock.doubt():
            return
        approved = ApprovedOperation.of(self._operation)
        record = ClockRecord(approved, wrong_from, right_until)
        self._deps.records.clock(record, int(clock.machine() * 1_000_000))
        clock.accept()
        self._deps.on_clock(clock.now())

    def save(self, added: Sequence[KeyVersion], changes: Sequence[Change]) -> None:
        """Writes a part of what is done, in a transaction of its own."""
        # Each part counts: daemons then read it alone, and not all that was written since the
        # operation began.
        with self._deps.registry.writing() as write:
            write.add_versions(added)
            write.change(changes)

    def save_wrapped(self, wrapped: Sequence[tuple[KeyVersion, WrappedKey]]) -> None:
        """Writes wrapped keys that were wrapped anew, in a transaction of its own."""
        with self._deps.registry.writing() as write:
            for version, key in wrapped:
                write.wrap_anew(version, key)
        self._deps.serving.follow()

    def end_wrapping_key(self, identity: str) -> None:
        """Ends the use of a wrapping key: from here on nothing is wrapped by it."""
        with self._deps.registry.writing() as write:
            write.end_wrapping_key(identity)
        self._deps.serving.follow()

    def rest(self, seconds: float) -> None:
        """Leaves the HSM to others for a time; raises StoppedError if the daemon is stopping."""
        if self._stopping.wait(seconds):
            raise StoppedError

    def progress(self, done: int, total: int) -> None:
        """Writes how much is done."""
        with self._deps.registry.writing(counts=False) as write:
            store.update(write, self._operation, self.clock.now(), done=done, total=total)


class OperationKind(ABC, Generic[D]):
    """One kind of operation. Methods raise OperatorError or ConfigError."""

    name: str
    details: type[D]
    names: str = ""  # the member of the details that names a document by its SHA-256, if one does

    def complete(self, details: D, context: OperationContext) -> D:
        """Adds what the appliance knows."""
        del context
        return details

    def problems(self, details: D, context: OperationContext) -> list[str]:
        """Returns what is wrong with the details now."""
        del details, context
        return []

    def check(self, details: D, context: OperationContext) -> None:
        """Raises OperationError with everything that is wrong with the details now."""
        if problems := self.problems(details, context):
            raise OperationError(*problems)

    def documents(self, details: D, context: OperationContext) -> list[bytes]:
        """Returns the documents to store with the proposal, which names them by hash."""
        del details
        if context.attachment:
            raise OperationError(f"{self.name} takes no attachment")
        return []

    @abstractmethod
    def difference(self, details: D, context: OperationContext) -> list[str]:
        """Returns what the operation changes, as lines for officers."""

    def fits(self, details: D, pair: Pair) -> bool:
        """Returns whether a version is the one that was asked for.

        What the operation permits is in ``signer.officers.permits``. This is what only the row
        shows and the documents that the operation names: algorithm, token, certificate.
        """
        del details, pair
        return True

    @abstractmethod
    def execute(self, details: D, work: Work) -> Effects:
        """Does the work on the token; returns what the registry will hold.

        A repetition finds what an interrupted attempt made.
        """

    def read(self, members: Mapping[str, Any]) -> D:
        """Reads details from plain JSON values; raises OperationError."""
        try:
            return self.details.model_validate(members)
        except ValidationError as error:
            texts = [f"{p.field or 'details'}: {p.description}" for p in problems_of(error, "")]
            raise OperationError(*texts) from None


def found_problems(check: Callable[[], object]) -> list[str]:
    """Runs a check; returns the texts of its error, none if it passes."""
    try:
        check()
    except OperationError as error:
        return list(error.texts)
    except OperatorError as error:
        return str(error).splitlines()
    return []


def shortened(
    lines: Sequence[str], what: str, most: int = FACILITIES_SHOWN, hint: str = ""
) -> list[str]:
    """Returns the first lines, and a line that says how many more there are."""
    if len(lines) <= most:
        return list(lines)
    return [*lines[:most], f"... and {count(len(lines) - most, f'more {what}')}{hint}"]

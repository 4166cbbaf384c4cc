"""What the audit log holds of a batch: its intent, its outcome, or why there is none.

An intent is durable before the HSM receives the batch, its outcome before any signature
leaves the appliance. For the event loop only.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import cast

from signer.audit.format import merkle
from signer.audit.format.batch_records import OutcomeRecord, indeterminate
from signer.audit.format.record import Column, Fields, RecordError, RecordKind
from signer.audit.write.inbox import AuditUnavailable, Entry
from signer.audit.write.log import AuditLog
from signer.clock import DEADLINE_MARGIN, Clock
from signer.errors import CallError, Failure, Reason
from signer.event_loop import EventLoop, Gatherer, Turns
from signer.formats.payloads import signature_length
from signer.hsm.front.chunks import Signed
from signer.model import KeyVersion

BLOCK = 2048
"""Items whose subtree is computed without a pause: a perfect subtree, so a power of two."""
_LOOK_SECONDS = 0.01
CALLER_GONE = "CALLER_GONE"
"""Why an intent has no outcome: its caller has left, and unsigned items were dropped."""


class Evidence:
    """Records intents and outcomes in the audit log."""

    def __init__(self, log: AuditLog, turns: Turns, loop: EventLoop, clock: Clock) -> None:
        self._log, self._turns = log, turns
        self._loop, self._clock = loop, clock
        self._waiting: dict[Entry, asyncio.Future[None]] = {}
        self._gathered: list[Entry] = []
        self._items = 0  # of what is gathered: of a batch all, of other records one
        self._together = Gatherer(loop.loop, lambda: self._items, self._submit)
        self._committing = False  # whether records are with the log's thread, or about to be
        self._when_free: Callable[[], None] | None = None
        self._open = 0  # intents that are durable, or about to be, and not closed yet

    async def intend(
        self, principal: str, intents: Sequence[tuple[Fields, Sequence[bytes]]], deadline: float
    ) -> list[int]:
        """Records intents of one principal; returns their numbers when all are durable.

        Each has the fields of an IntentRecord and the digests of what is to be signed.
        ``deadline`` is in monotonic seconds; intents that are not durable then, or when the
        callers have gone, are withdrawn or closed as INDETERMINATE. Raises CallError; then
        nothing may be signed.
        """
        entries = []
        for fields, digests in intents:
            column = Column(len(digests[0]), b"".join(digests))
            root = await self._root(principal, column)
            entries.append(Entry(RecordKind.INTENT, fields, column, root))
        left = max(0.0, deadline - self._clock.monotonic())
        timer = self._loop.loop.call_later(left, self._expire, entries[-1])
        try:
            await self._durable(entries)
            for entry in entries:
                if entry.error is not None:
                    raise entry.error
        except AuditUnavailable as error:
            raise _unavailable(f"nothing was signed: {error}") from None
        except TimeoutError:
            self._abandon(entries, str(Reason.DEADLINE_TOO_SHORT))
            raise CallError(
                Reason.DEADLINE_TOO_SHORT,
                "nothing was signed: the disk of the audit log was too slow to record this in "
                "time; allow more time",
            ) from None
        except asyncio.CancelledError:
            self._abandon(entries, self._why_gone(deadline))
            raise
        except RecordError:
            self._abandon(entries, str(Reason.INTERNAL))
            raise
        finally:
            timer.cancel()
        self._open += len(entries)
        return [entry.seq for entry in entries]

    async def outcome(self, seq: int, principal: str, version: KeyVersion, signed: Signed) -> Entry:
        """Returns the outcome of an intent, for ``conclude``.

        Raises RecordError for signatures that are not as long as the key's.
        """
        width = signature_length(version)
        signatures = signed.signatures
        if signed.failures:
            signatures = [signature or bytes(width) for signature in signatures]
        column = Column(width, b"".join(signatures))
        outcome = OutcomeRecord(seq, signed.attempts, reasons_of(signed.failures))
        root = await self._root(principal, column)
        return Entry(RecordKind.OUTCOME, outcome.to_fields(), column, root)

    async def conclude(self, outcomes: Sequence[Entry]) -> list[CallError | RecordError | None]:
        """Records outcomes; returns when all are durable, with the errors of those that are not.

        This has no deadline, and nothing may cancel it: a repetition that did not find the
        outcome would sign again.
        """
        if not outcomes:
            return []
        self._open -= len(outcomes)
        await self._durable(outcomes)
        return [self._problem(outcome) for outcome in outcomes]

    def _problem(self, outcome: Entry) -> CallError | RecordError | None:
        """Returns why the signatures of an intent are not released; None if they are."""
        error = outcome.error
        if isinstance(error, RecordError):
            self._open += 1
            self.close([cast("int", outcome.fields["intent"])], error, 0.0)
            return error
        if error is not None:
            return _unavailable(f"the signatures are not released: {error}")
        return None

    def when_free(self, act: Callable[[], None]) -> bool:
        """Calls ``act`` once when the present commit has ended; False if there is none."""
        if self._committing:
            self._when_free = act
        return self._committing

    async def settle(self, seconds: float) -> None:
        """Returns when all intents are closed and their records are with the log or refused.

        Waits for ``seconds`` at most. Records that come after the end of the log would
        be lost, and the next start would have to close their intents.
        """
        until = self._clock.monotonic() + seconds
        while (self._open or self._committing) and self._clock.monotonic() < until:  # noqa: ASYNC110 - once
            await asyncio.sleep(_LOOK_SECONDS)

    def close(self, seqs: Sequence[int], error: BaseException, deadline: float) -> None:
        """Closes intents as INDETERMINATE after an error: nothing of them is released."""
        self._open -= len(seqs)
        match error:
            case CallError():
                reason = str(error.reason)
            case asyncio.CancelledError():
                reason = self._why_gone(deadline)
            case _:
                reason = str(Reason.INTERNAL)
        self._hand_over(
            [Entry(RecordKind.INDETERMINATE, indeterminate(seq, reason)) for seq in seqs]
        )

    def _abandon(self, entries: Sequence[Entry], reason: str) -> None:
        for entry in entries:
            self._log.abandon(entry, reason)

    def _why_gone(self, deadline: float) -> str:
        """Returns why a call was cancelled: gRPC cancels it at its deadline, too."""
        late = self._clock.monotonic() > deadline - DEADLINE_MARGIN
        return str(Reason.DEADLINE_TOO_SHORT) if late else CALLER_GONE

    async def _root(self, principal: str, column: Column) -> bytes:
        """Returns the root of the column's tree, from the roots of its blocks."""
        if column.count <= BLOCK:
            return column.root()
        size = BLOCK * column.width
        roots = []
        for start in range(0, len(column.data), size):
            await self._turns.next(principal)
            roots.append(Column(column.width, column.data[start : start + size]).root())
        return merkle.root(roots)

    async def _durable(self, entries: Sequence[Entry]) -> None:
        """Hands over records together; returns when each is durable or has its ``error``.

        They go into one commit, so that the last one ends when all do.
        """
        last = entries[-1]
        waiter = self._waiting[last] = self._loop.loop.create_future()
        self._hand_over(entries)
        try:
            await waiter
        finally:
            del self._waiting[last]

    def _hand_over(self, entries: Sequence[Entry]) -> None:
        """Hands records to the log with all others that come together.

        While a commit is in progress, records gather for the next one.
        """
        for entry in entries:
            entry.finished = self._finished
            self._items += 1 if entry.column is None else entry.column.count
        self._gathered += entries
        if not self._committing:
            self._committing = True
            self._together.soon()

    def _submit(self) -> None:
        entries, self._gathered, self._items = self._gathered, [], 0
        refused = self._log.submit(entries)
        if len(refused) == len(entries):
            self._wake(refused)
        elif refused:
            self._resume(refused)

    def _finished(self, entries: Sequence[Entry]) -> None:
        """Is called by the log's thread, once for all entries of a commit."""
        self._loop.soon(self._wake, entries)

    def _wake(self, entries: Sequence[Entry]) -> None:
        self._committing = bool(self._gathered)
        self._resume(entries)
        act, self._when_free = self._when_free, None
        if act is not None:
            act()  # before the next commit is made of what has gathered
        if self._gathered:
            self._together.soon()

    def _resume(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            waiter = self._waiting.get(entry)
            if waiter is not None and not waiter.done():
                waiter.set_result(None)

    def _expire(self, entry: Entry) -> None:
        waiter = self._waiting.get(entry)
        if waiter is not None and not waiter.done():
            waiter.set_exception(TimeoutError())


def reasons_of(failures: Mapping[int, Failure]) -> dict[int, str]:
    """Returns failures as records hold them: their reasons, without the messages."""
    if not failures:
        return {}
    return {index: str(failure.reason) for index, failure in failures.items()}


def _unavailable(text: str) -> CallError:
    # It takes some time: an operator has to repair the log.
    return CallError(Reason.AUDIT_UNAVAILABLE, text, retry_after=5.0)

"""What the audit log holds of a batch: its intent, its outcome, or why there is none.

An intent is durable before the HSM receives the batch, its outcome before any signature
leaves the appliance. For the event loop only.
"""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress

from signer.audit.format import merkle
from signer.audit.format.batch_records import IntentRecord, OutcomeRecord, indeterminate
from signer.audit.format.record import Column, RecordError, RecordKind
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
        self._open = 0  # intents that are durable, or about to be, and not closed yet

    async def intend(self, intent: IntentRecord, digests: Sequence[bytes], deadline: float) -> int:
        """Records an intent to sign ``digests``; returns its number when it is durable.

        ``deadline`` is in monotonic seconds; an intent that is not durable then, or when the
        caller has gone, is withdrawn or closed as INDETERMINATE. Raises CallError; then
        nothing may be signed.
        """
        column = Column(len(digests[0]), b"".join(digests))
        entry = Entry(
            RecordKind.INTENT,
            intent.to_fields(),
            column,
            await self._root(intent.principal, column),
        )
        left = max(0.0, deadline - self._clock.monotonic())
        timer = self._loop.loop.call_later(left, self._expire, entry)
        try:
            seq = await self._durable(entry)
        except AuditUnavailable as error:
            raise _unavailable(f"nothing was signed: {error}") from None
        except TimeoutError:
            self._log.abandon(entry, str(Reason.DEADLINE_TOO_SHORT))
            raise CallError(
                Reason.DEADLINE_TOO_SHORT,
                "nothing was signed: the disk of the audit log was too slow to record this in "
                "time; allow more time",
            ) from None
        except asyncio.CancelledError:
            self._log.abandon(entry, self._why_gone(deadline))
            raise
        finally:
            timer.cancel()
        self._open += 1
        return seq

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

    async def conclude(self, seq: int, outcome: Entry) -> None:
        """Records an outcome; returns when it is durable. Raises CallError and RecordError.

        This has no deadline, and a caller that leaves meanwhile changes nothing: a repetition
        that did not find the outcome would sign again.
        """
        self._open -= 1
        try:
            await self._durable(outcome)
        except asyncio.CancelledError:
            # Until it is durable, a repetition would not find it, and sign again.
            await self._settled(outcome)
            raise
        except AuditUnavailable as error:
            raise _unavailable(f"the signatures are not released: {error}") from None
        except RecordError as error:
            self._open += 1
            self.close(seq, error, 0.0)
            raise

    async def settle(self, seconds: float) -> None:
        """Returns when all intents are closed and their records are with the log or refused.

        Waits for ``seconds`` at most. Records that come after the end of the log would
        be lost, and the next start would have to close their intents.
        """
        until = self._clock.monotonic() + seconds
        while (self._open or self._committing) and self._clock.monotonic() < until:  # noqa: ASYNC110 - once
            await asyncio.sleep(_LOOK_SECONDS)

    def close(self, seq: int, error: BaseException, deadline: float) -> None:
        """Closes an intent as INDETERMINATE after an error: nothing of it is released."""
        self._open -= 1
        match error:
            case CallError():
                reason = str(error.reason)
            case asyncio.CancelledError():
                reason = self._why_gone(deadline)
            case _:
                reason = str(Reason.INTERNAL)
        self._hand_over(Entry(RecordKind.INDETERMINATE, indeterminate(seq, reason)))

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

    async def _durable(self, entry: Entry) -> int:
        """Submits a record and returns its number when it is durable; raises its error."""
        waiter = self._waiting[entry] = self._loop.loop.create_future()
        self._hand_over(entry)
        try:
            await waiter
        finally:
            del self._waiting[entry]
        if entry.error is not None:
            raise entry.error
        return entry.seq

    async def _settled(self, entry: Entry) -> None:
        """Returns when a submitted record is durable or refused, however often it is cancelled."""
        while entry.seq < 0 and entry.error is None:
            waiter = self._waiting[entry] = self._loop.loop.create_future()
            with suppress(asyncio.CancelledError):
                await waiter
        self._waiting.pop(entry, None)

    def _hand_over(self, entry: Entry) -> None:
        """Hands a record to the log with all others that come together.

        While a commit is in progress, records gather for the next one.
        """
        entry.finished = self._finished
        self._gathered.append(entry)
        self._items += 1 if entry.column is None else entry.column.count
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
        if self._gathered:
            self._together.soon()
        self._resume(entries)

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

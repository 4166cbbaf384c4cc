"""What passes between the log's writer and other threads: entries in, answers and growth out.

Handing over and withdrawing an entry never wait: not for the disk, and not for what is done with
the entries that were taken. So the event loop may do both.
"""

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from signer.audit.format.batch_records import indeterminate
from signer.audit.format.record import Column, Fields, Record, RecordKind


class AuditUnavailable(Exception):  # named after the reason that callers get
    """The record may not be in the log: nothing that it covers may be released."""


@dataclass(slots=True, eq=False)
class Entry:
    """A record for the log; ``root`` is the column's, if already computed.

    ``finished`` is called when the entry is durable or refused: in the writer's thread, once
    a commit with all entries that have the same one. ``seq`` is then the record's number, or
    ``error`` the reason of the refusal; before, -1 and None.
    """

    kind: RecordKind
    fields: Fields
    column: Column | None = None
    root: bytes | None = None
    finished: "Finished | None" = None
    error: Exception | None = None
    seq: int = -1
    begun: bool = False
    """Whether it was taken to be recorded."""
    abandoned: str = ""
    """Why its caller stopped waiting; empty while it waits."""
    time_us: int | None = None
    """The record's time, if it is not that of its commit."""


Finished = Callable[[Sequence[Entry]], None]


class Inbox:
    """The queue of the log, and whether a thread works on entries that were taken from it.

    ``failed`` is the reason why no record is accepted, ``low`` why no intent is; both are
    normally empty. ``on_stop`` is called with either before any record is refused for it; it
    is called without a lock. ``on_error`` gets what a ``finished`` of an entry raises.
    """

    def __init__(
        self, on_stop: Callable[[str], None], on_error: Callable[[Exception], None] = lambda _: None
    ) -> None:
        self.failed = self.low = ""
        self._on_stop, self._on_error = on_stop, on_error
        # Held for a few assignments at a time: the event loop takes it, too.
        self._lock = threading.Lock()
        self._queue: list[Entry] = []
        self._refusal = self._low_refusal = ""  # set after the call of ``on_stop``
        self._working = False

    def abandon(self, entry: Entry, reason: str) -> bool:
        """Gives up an intent; returns False if it is durable or refused already.

        One that is not begun is withdrawn. Another will be closed as INDETERMINATE, with this
        reason, as soon as it is durable.
        """
        with self._lock:
            if entry.seq >= 0 or entry.error is not None:
                return False
            entry.abandoned = reason
            if not entry.begun:  # it stays in the queue, which may be long while a disk hangs
                entry.fields, entry.column = {}, None
            return True

    def put_all(self, entries: Iterable[Entry]) -> list[Entry]:
        """Queues records together; returns those that are refused, with their ``error``."""
        refused: list[Entry] = []
        # Under the lock, so that every accepted entry is taken before the end.
        with self._lock:
            for entry in entries:
                text = self._refusal
                if not text and entry.kind is RecordKind.INTENT:
                    text = self._low_refusal
                if text:
                    entry.error = AuditUnavailable(text)
                    refused.append(entry)
                else:
                    self._queue.append(entry)
        return refused

    def claim(self) -> list[Entry]:
        """Returns all entries unless a thread works on earlier ones, else none.

        The caller then works on them, until ``more`` returns none. Those that were withdrawn
        have an ``error``.
        """
        with self._lock:
            return [] if self._working else self._take()

    def more(self) -> list[Entry]:
        """Returns the entries that came meanwhile; after none, the next ``claim`` gets them."""
        with self._lock:
            return self._take()

    def _take(self) -> list[Entry]:
        taken, self._queue = self._queue, []
        for entry in taken:
            if entry.abandoned:
                entry.error = AuditUnavailable("the record was withdrawn")
            else:
                entry.begun = True
        self._working = bool(taken)
        return taken

    @property
    def finished(self) -> bool:
        """Whether no entry can be taken any more: it is closed, empty, and no thread works."""
        with self._lock:
            return bool(self._refusal) and not (self._queue or self._working)

    def answer(self, entries: Sequence[Entry], numbers: Iterable[int]) -> None:
        """Numbers durable entries, and closes those that were abandoned meanwhile."""
        with self._lock:
            closing: list[Entry] = []
            for entry, seq in zip(entries, numbers, strict=True):
                entry.seq = seq
                if entry.abandoned:
                    fields = indeterminate(seq, entry.abandoned)
                    closing.append(Entry(RecordKind.INDETERMINATE, fields))
            # Before all newer entries, which may have the same request id.
            self._queue[:0] = closing

    def tell(self, entries: Iterable[Entry]) -> None:
        """Tells those who wait that their entries are durable or refused."""
        by_waiter: dict[Finished, list[Entry]] = {}
        for entry in entries:
            if (finished := entry.finished) is not None:
                by_waiter.setdefault(finished, []).append(entry)
        for finished, done in by_waiter.items():
            try:
                finished(done)
            except Exception as error:  # noqa: BLE001 - a mistake there must not stop the log
                self._on_error(error)

    def stop_intents(self, reason: str) -> None:
        """Refuses all further intents."""
        self.low = reason
        self._on_stop(reason)
        with self._lock:
            self._low_refusal = reason

    def fail(self, taken: Sequence[Entry], reason: str) -> None:
        """Refuses all further entries, those in the queue, and those ``taken`` without an answer.

        The thread that works on entries gives them as ``taken``, and stops working. Another thread
        that finds a fault gives none: the work stays with its owner. The first reason counts.
        """
        first = not self.failed
        self.failed = reason = self.failed or reason
        try:
            if first:
                self._on_stop(reason)
        finally:
            with self._lock:
                self._refusal = reason
                if taken:
                    self._working = False
                waiting, self._queue = self._queue, []
                told = [*taken, *waiting]
                for entry in told:
                    if entry.seq < 0 and entry.error is None:
                        entry.error = AuditUnavailable(reason)
            self.tell(told)

    def close(self) -> None:
        """Refuses all further entries; those in the queue are still written."""
        with self._lock:
            self._refusal = self._refusal or "the audit log is closed"


class Growth:
    """How much the log has grown since this was last taken: records, and the items of intents."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._units = 0
        self._enough = 0
        self.closed = False

    def add(self, units: int) -> None:
        """Adds the records and items of a commit."""
        with self._changed:
            before, self._units = self._units, self._units + units
            if not before or before < self._enough <= self._units:
                self._changed.notify_all()

    def take(self, enough: int, seconds: float) -> int:
        """Waits for a first unit, then for ``enough`` or up to ``seconds``; returns all units.

        Does not wait once it is closed, and returns 0 when nothing is left to take.
        """
        with self._changed:
            self._enough = enough
            self._changed.wait_for(lambda: self._units or self.closed)
            self._changed.wait_for(lambda: self._units >= enough or self.closed, seconds)
            units, self._units = self._units, 0
            return units

    def close(self) -> None:
        with self._changed:
            self.closed = True
            self._changed.notify_all()


def units_of(record: Record) -> int:
    """Returns by how much a record makes the log grow: itself, and the items of an intent."""
    column = record.column
    return 1 + (column.count if column and record.kind is RecordKind.INTENT else 0)

"""What stands in front of the log's writer: records on their way, and those who wait for them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence

from signer.audit.format.record import Column, RecordKind, Value
from signer.errors import Reason


class AuditUnavailable(Exception):  # noqa: N818  # named after the reason that callers get
    """The record is not in the log, or nobody knows: nothing that it covers may be released."""


class AuditLate(Exception):  # noqa: N818  # says when, not that anything is wrong
    """The wait for an intent has ended: it was taken back, or will be closed as INDETERMINATE."""


class Entry:
    """One record on its way; ``done`` is set when it is durable or refused.

    ``seq`` is its number once it is durable, -1 before; ``late``: nobody waits for it.
    """

    __slots__ = ("column", "done", "error", "fields", "kind", "late", "root", "seq")

    def __init__(
        self,
        kind: RecordKind,
        fields: Mapping[str, Value],
        column: Column | None = None,
        root: bytes | None = None,
    ) -> None:
        self.kind, self.fields, self.column, self.root = kind, fields, column, root
        self.done = threading.Event()
        self.error: Exception | None = None
        self.seq = -1
        self.late = False

    def refuse(self, error: Exception) -> None:
        self.error = error
        self.done.set()


class Inbox:
    """The queue of one writer.

    ``failed`` says why nothing is taken any more, ``low`` why no intent is; both
    are empty while all is well. ``on_stop`` hears either before anybody is refused
    for it; it must not put anything in.
    """

    def __init__(self, on_stop: Callable[[str], None]) -> None:
        self.failed = self.low = ""
        self._on_stop = on_stop
        self._changed = threading.Condition()
        self._queue: list[Entry] = []
        self._closing = False

    def put(self, entry: Entry) -> None:
        """Queues a record; raises AuditUnavailable."""
        # Under the lock, so that whoever gets in is seen by the writer's end, too.
        with self._changed:
            if self.failed or self._closing:
                raise AuditUnavailable(self.failed or "the audit log is closed")
            if self.low and entry.kind is RecordKind.INTENT:
                raise AuditUnavailable(self.low)
            self._queue.append(entry)
            self._changed.notify()

    def wait(self, entry: Entry, seconds: float | None) -> int:
        """Returns the number of a record once it is durable; raises why it will not be.

        Where the ``seconds`` are over before that, an intent that the writer has not
        begun is taken back, and one that it has is closed as INDETERMINATE: AuditLate.
        """
        if not entry.done.wait(seconds):
            self._give_up(entry)
        if entry.error is not None:
            raise entry.error
        return entry.seq

    def _give_up(self, entry: Entry) -> None:
        with self._changed:
            if entry.done.is_set() or entry.seq >= 0:
                return
            if entry in self._queue:
                self._queue.remove(entry)
            entry.late = True
        raise AuditLate("the disk of the audit log was too slow to record this in time")

    # --- for the writer ----------------------------------------------------------------------

    def take(self) -> list[Entry]:
        """Waits for records; returns none when the inbox is closed and all were taken."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closing)
            taken, self._queue = self._queue, []
            return taken

    def answer(self, entries: Sequence[Entry]) -> None:
        """Tells whoever waits for these durable records, and closes those of nobody."""
        reason = str(Reason.DEADLINE_TOO_SHORT)
        with self._changed:
            # Ahead of all that was asked for since, perhaps under the same request id.
            self._queue[:0] = [
                Entry(RecordKind.INDETERMINATE, {"intent": entry.seq, "reason": reason})
                for entry in entries
                if entry.late
            ]
        for entry in entries:
            entry.done.set()

    def stop_intents(self, why: str) -> None:
        """Takes no intent from now on."""
        with self._changed:
            self.low = why
            self._on_stop(why)

    def fail(self, taken: Sequence[Entry], why: str) -> None:
        """Takes nothing from now on, and refuses what waits or was ``taken``."""
        waiting: list[Entry] = []
        try:
            with self._changed:
                self.failed = why
                waiting, self._queue = self._queue, []
                self._on_stop(why)
        finally:
            for entry in (*taken, *waiting):
                if not entry.done.is_set():
                    entry.refuse(AuditUnavailable(why))

    def close(self) -> None:
        """Takes nothing from now on; what waits is still written."""
        with self._changed:
            self._closing = True
            self._changed.notify()

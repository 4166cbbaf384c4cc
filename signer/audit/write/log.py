"""The audit log while it grows: one writer, one order, group commit.

A record is durable when one ``fdatasync`` has covered it, together with all records that
arrived during the sync before. ``append`` waits for that, ``submit`` does not. After a failed
write or sync the state of the file is unknown: the log stops until it is opened again, which
reads what is on the disk.
"""

import errno
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

from signer.audit.format.batch_records import indeterminate
from signer.audit.format.record import (
    DOUBTFUL,
    Column,
    Fields,
    Record,
    RecordError,
    RecordKind,
    encode,
)
from signer.audit.format.segments import Segment
from signer.audit.read.reader import Reader
from signer.audit.read.replay import OnRecord
from signer.audit.write.disk import Disk, Tail
from signer.audit.write.durable import Durable, DurableLog
from signer.audit.write.inbox import AuditUnavailable, Entry, Growth, Inbox, units_of
from signer.clock import Clock
from signer.events import AuditCommitted

SLOW_SECONDS = 1.0
"""A commit that takes longer is reported to operators."""

LOOK_SECONDS = 0.1
"""How often the room on the disk is looked at while records are written."""

BALLAST = "ballast"  # the file that is removed to free space for outcomes
_WITH_ANSWER = frozenset(
    {RecordKind.INTENT, RecordKind.OUTCOME, RecordKind.INDETERMINATE, RecordKind.SNAPSHOT}
)
WATCH_SECONDS = 0.5
"""How often the file at the path of the open segment is compared with the file that is written."""


class _Staged(NamedTuple):
    """What goes into one commit: entries, the records of those that have one, and its begin."""

    batch: Sequence[Entry]
    entries: Sequence[Entry]
    records: Sequence[Record]
    began: float  # monotonic seconds


class Listener(NamedTuple):
    """Takes the records of ``kinds`` (None: of every kind), in the order of the log.

    ``on_record`` is called with every record that is read at the start, and with every new
    one when it is durable, before its ``append`` returns; with a SNAPSHOT only if the reading
    starts with it. ``snapshot`` returns the listener's part of the fields of a new SNAPSHOT:
    the result of all its records so far. ``check`` raises RecordError for a SNAPSHOT that is
    read after them and has another result.
    """

    on_record: OnRecord
    kinds: frozenset[RecordKind] | None = None
    snapshot: Callable[[], Fields] | None = None
    check: OnRecord = lambda _: None


class LogHooks(NamedTuple):
    """What the log calls besides listeners.

    ``on_commit`` is called for each commit, ``on_time`` with the time of the newest durable
    record (seconds since the epoch), ``on_stop`` with the reason why intents are refused
    from now on, before any is refused, ``on_error`` with what an entry's ``finished`` raises,
    which disturbs nothing, ``on_problem`` with a text for operators.
    """

    on_commit: Callable[[AuditCommitted], None] = lambda _: None
    on_time: Callable[[float], None] = lambda _: None
    on_stop: Callable[[str], None] = lambda _: None
    on_error: Callable[[Exception], None] = lambda _: None
    on_problem: Callable[[str], None] = lambda _: None


class AuditLog(DurableLog):
    """The open log in a directory; made by ``recovery.open_audit_log``.

    ``free_bytes`` is the free space at the last commit, which took ``commit_seconds``;
    ``committing_since`` is when the present commit began (seconds since the epoch), 0 if
    there is none. ``without_snapshot`` says why the newest file that was begun has no snapshot,
    empty if it has one. ``overridden`` is the number of records that an override left when the
    log was opened, else None.

    The writer's thread calls listeners one after the other and waits for them; they must
    not append. If one adds to snapshots, every segment but the first begins with a SNAPSHOT.
    ``growth`` is for the one thread that makes checkpoints.
    """

    def __init__(
        self,
        directory: Path,
        disk: Disk,
        tail: Tail,
        clock: Clock,
        *,
        lock: int,
        free_bytes: int,
        firsts: Sequence[tuple[RecordKind, Fields]],
        overridden: int | None,
        segment_bytes: int,
        low_disk_bytes: int,
        listeners: Sequence[Listener],
        hooks: LogHooks,
    ) -> None:
        """Starts the writer's thread, and appends ``firsts``; raises AuditUnavailable.

        ``lock`` is the descriptor that keeps other processes out.
        """
        self._directory, self._disk, self._tail = directory, disk, tail
        self._lock, self._clock = lock, clock
        self._segment_bytes, self._low_disk_bytes = segment_bytes, low_disk_bytes
        self._listeners = by_kind(listeners)
        self._snapshots = [one.snapshot for one in listeners if one.snapshot is not None]
        self._on_commit, self._on_time = hooks.on_commit, hooks.on_time
        self._on_problem = hooks.on_problem
        self._inbox = Inbox(hooks.on_stop, hooks.on_error)
        self._handed: SimpleQueue[_Staged | None] = SimpleQueue()  # None: the log is closed
        self._looked = -LOOK_SECONDS  # when the room on the disk was looked at
        self.growth = Growth()
        self.free_bytes, self.overridden = free_bytes, overridden
        self.commit_seconds = self.committing_since = 0.0
        self.without_snapshot = ""
        self._segments: tuple[Segment, ...] = ()
        self._reader = Reader(())
        self._postponed = 0.0  # since when the next segment cannot be begun, monotonic seconds
        self._publish()
        if tail.older is not None and not firsts:  # what a recovery records comes before
            try:
                self._rotate()
            except OSError as error:
                self._fail((), str(error))
        # A daemon thread: a hanging disk must not keep a process alive.
        self._thread = threading.Thread(target=self._run, name="audit-log", daemon=True)
        self._thread.start()
        self._closing = threading.Event()
        threading.Thread(target=self._watch_file, name="audit-file", daemon=True).start()
        try:
            for kind, fields in firsts:
                self.append(kind, fields)
        except BaseException:
            self.close()
            raise

    def append(
        self,
        kind: RecordKind,
        fields: Fields,
        column: Column | None = None,
        root: bytes | None = None,
        *,
        time_us: int | None = None,
    ) -> int:
        """Returns the sequence number of a new record when it is durable; not for an event loop.

        ``root`` is the column's, if already computed; ``time_us`` is the record's time
        (microseconds since the epoch), if it is not that of its commit. Raises
        AuditUnavailable, and RecordError for fields that a record cannot hold and for a record
        that may not be the next.
        """
        done = threading.Event()
        entry = Entry(kind, fields, column, root, lambda _: done.set(), time_us=time_us)
        if not self.submit((entry,)):
            done.wait()
        if entry.error is not None:
            raise entry.error
        return entry.seq

    def submit(self, entries: Iterable[Entry]) -> list[Entry]:
        """Hands over records that go into one commit, without waiting.

        ``finished`` is called when they are durable. Returns those that are refused at once,
        with their ``error``; what else ``append`` would raise becomes an ``error`` later.
        """
        refused = self._inbox.put_all(entries)
        if batch := self._inbox.claim():
            try:
                self._handed.put(self._stage(batch))
            except Exception as error:  # noqa: BLE001 - it stops the log
                self._fail(batch, f"internal error: {type(error).__name__}")
                self.committing_since = 0.0
                self._handed.put(None)  # the writer has nothing more to do
        return refused

    def abandon(self, entry: Entry, reason: str) -> None:
        """Gives up an INTENT that was submitted: its caller has left.

        One that the writer has not begun is withdrawn: it is not recorded, and gets an
        ``error``. Another is closed as INDETERMINATE with this reason, before all records that
        are submitted later. If the log has stopped, the next start closes it.
        """
        if not self._inbox.abandon(entry, reason) and entry.seq >= 0:
            closing = Entry(RecordKind.INDETERMINATE, indeterminate(entry.seq, reason))
            self.submit((closing,))

    def note(self, kind: RecordKind, fields: Fields) -> None:
        """Appends a record without waiting; the next commit makes it durable.

        Raises AuditUnavailable, and RecordError for fields that a record cannot hold.
        """
        if kind in _WITH_ANSWER:
            raise RecordError(f"an {kind} is appended, not noted")
        encode(0, 0, kind, fields)  # the log could only drop a record that is not valid
        for refused in self.submit((Entry(kind, fields),)):
            raise refused.error or AuditUnavailable("the record was refused")

    @property
    def refusal(self) -> str:
        """Why intents are refused: the log has failed, or the disk is low. Normally empty."""
        return self._inbox.failed or self._inbox.low

    def close(self) -> None:
        """Writes the records in the queue and ends; further records are refused."""
        self._closing.set()
        self._inbox.close()
        self._handed.put(None)
        self._thread.join()
        self._tail.close()
        with suppress(OSError):
            os.close(self._lock)

    def _run(self) -> None:
        """Is the writer's thread: makes staged records durable, and those that come meanwhile."""
        closed = False
        batch: Sequence[Entry] = ()
        try:
            while not (closed and self._inbox.finished):
                staged = self._handed.get()
                closed = closed or staged is None
                while staged is not None:
                    batch = staged.batch
                    self._commit(staged)
                    batch = ()
                    if self._tail.due(self._segment_bytes) and self._may_rotate():
                        self._rotate()
                    batch = self._inbox.more()
                    staged = self._stage(batch) if batch else None
        except OSError as error:
            self._fail(batch, str(error))
        except BaseException as error:
            self._fail(batch, f"internal error: {type(error).__name__}")
            raise

    def _stage(self, batch: Sequence[Entry]) -> _Staged:
        """Adds the records of entries to the tail. For the thread that has claimed them."""
        began = self._begin()
        time_us, doubt = round(self.committing_since * 1_000_000), self._clock.doubt()
        refusal = self._inbox.low or doubt
        entries: list[Entry] = []
        records: list[Record] = []
        for entry in batch:
            if entry.error is not None:
                continue
            if refusal and entry.kind is RecordKind.INTENT:
                entry.error = AuditUnavailable(refusal)
                continue
            fields = entry.fields
            if doubt:
                fields = {**fields, DOUBTFUL: round(self._clock.machine() * 1_000_000)}
            at = time_us if entry.time_us is None else entry.time_us
            try:
                record = self._tail.stage(at, entry.kind, fields, entry.column, entry.root)
            except RecordError as error:
                entry.error = error
                continue
            entries.append(entry)
            records.append(record)
        return _Staged(batch, entries, records, began)

    def _commit(self, staged: _Staged) -> None:
        """Makes staged records durable, and wakes those who wait for them."""
        records = staged.records
        try:
            self._watch_disk()
            if records:
                self._tail.commit()
            if self._inbox.failed:  # meanwhile: the file may be gone
                raise OSError(self._inbox.failed)
        finally:
            self._end(staged.began)
        if records:
            self._publish()
            for record in records:
                for on_record in self._listeners[record.kind]:
                    on_record(record)
            self._inbox.answer(staged.entries, [record.seq for record in records])
        self._inbox.tell(staged.batch)
        if records:
            self.growth.add(sum(map(units_of, records)))
            self._on_commit(AuditCommitted(len(records), self.commit_seconds))

    def _begin(self) -> float:
        """Sets ``committing_since``; returns the time for ``_end``."""
        self.committing_since = self._clock.now()
        return self._clock.monotonic()

    def _end(self, began: float) -> None:
        self.commit_seconds, self.committing_since = self._clock.monotonic() - began, 0.0

    def _may_rotate(self) -> bool:
        """Whether it is time to begin the next segment, if that was not possible before."""
        since = self._postponed
        return not since or self._clock.monotonic() - since >= WATCH_SECONDS

    def _rotate(self) -> None:
        """Begins the next segment, if not now then after the next commit."""
        began = self._begin()
        try:
            snapshot, problem = self._snapshot()
            rotated = self._tail.rotate(round(self.committing_since * 1_000_000), snapshot)
        finally:
            self._end(began)
        if not rotated:
            if self._tail.older is not None:  # it must not get records of this version
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            if not self._postponed:
                self._on_problem("the next file of the audit log cannot be opened now: later again")
            self._postponed = self._clock.monotonic()
            return
        self._postponed = 0.0
        self._publish()
        self.without_snapshot = problem or self._tail.without_snapshot
        if self.without_snapshot:
            self._on_problem(
                f"a file of the audit log begins without a snapshot: {self.without_snapshot};"
                " starts take longer, and archiving stops before it"
            )
        self._on_commit(AuditCommitted(0, self.commit_seconds))

    def _snapshot(self) -> tuple[Fields | None, str]:
        """Returns the fields of a new snapshot, and why there are none: signing goes on."""
        if not self._snapshots:
            return None, ""
        try:
            parts = [one() for one in self._snapshots]
        except Exception as error:  # noqa: BLE001 - what only makes starts faster stops nothing
            return None, f"it could not be made ({type(error).__name__})"
        return {name: value for part in parts for name, value in part.items()}, ""

    def _publish(self) -> None:
        """Makes all records of the tail visible to readers."""
        tail, tip = self._tail, self._tail.tip
        if self._segments is not tail.segments:
            # One reader per segment, because it caches the indices of closed segments.
            self._segments, self._reader = tail.segments, Reader(tail.segments, tail.index)
        peaks = tip.frontier.to_list()
        self._durable = Durable(tail.file, tip.size, peaks, len(tip.open), self._reader)
        self._on_time(tip.time_us / 1e6)

    def _watch_disk(self) -> None:
        """Refuses intents from now on if the disk is low, and frees the ballast for outcomes."""
        now = self._clock.monotonic()
        if now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        self.free_bytes = self._disk.free_bytes(self._directory)
        if self._inbox.low or self.free_bytes >= self._low_disk_bytes:
            return
        self._inbox.stop_intents(
            f"the disk of the audit log has {self.free_bytes} bytes free, less than "
            f"{self._low_disk_bytes}: nothing is signed; make room, then restart"
        )
        self._disk.remove(self._directory / BALLAST)

    def _watch_file(self) -> None:
        """Stops the log if auditors would not find what is written; in a thread of its own.

        The file descriptor would take records, and make them durable, in a file without a
        name.
        """
        while not self._closing.wait(WATCH_SECONDS):
            file = self._durable.file
            problem = file.problem(self._disk)
            if problem and file.path == self._durable.file.path:
                self._fail((), problem)
                return

    def _fail(self, batch: Sequence[Entry], cause: str) -> None:
        self._inbox.fail(
            batch,
            f"the audit log in {self._directory} cannot be written ({cause}): nothing is "
            "signed until the cause is fixed and the daemon restarted",
        )


def by_kind(listeners: Sequence[Listener]) -> dict[RecordKind, tuple[OnRecord, ...]]:
    """Returns what to call with a record of each kind."""
    return {
        kind: tuple(one.on_record for one in listeners if one.kinds is None or kind in one.kinds)
        for kind in RecordKind
    }

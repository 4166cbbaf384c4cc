"""The audit log: one writer, one order, nobody is answered before his record is durable.

Whoever appends waits until one ``fdatasync`` has covered his record, together
with all records that came while the one before was under way (group commit). A
write or sync that fails leaves the file in a state that nobody knows: the log
stops for good, and only opening it again, which reads what is there, goes on.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from signer.audit.format.checkpoint import Checkpoint
from signer.audit.format.entries import Tip
from signer.audit.format.merkle import Frontier
from signer.audit.format.record import Column, Record, RecordError, RecordKind, encode
from signer.audit.format.segments import Segment
from signer.audit.read.reader import Reader
from signer.audit.read.replay import OnRecord
from signer.audit.write.disk import Disk
from signer.audit.write.inbox import AuditUnavailable, Entry, Inbox
from signer.audit.write.recovery import AuditRefused, Fields, Opened, Space, ballast_path, open_tail
from signer.clock import Clock

SEGMENT_BYTES = 64 << 20
LOW_DISK_BYTES = 256 << 20
BALLAST_BYTES = 64 << 20
SLOW_SECONDS = 1.0
"""A commit that takes longer is reported to operators."""
_LEAVES = 4096  # hashes held at once while a root is computed

_WITH_ANSWER = frozenset(
    {RecordKind.INTENT, RecordKind.OUTCOME, RecordKind.INDETERMINATE, RecordKind.SNAPSHOT}
)


class TreeHead(NamedTuple):
    """The tree over all durable records: what a checkpoint says."""

    size: int
    root: bytes


class _Durable(NamedTuple):
    """What readers may see; replaced as a whole at every commit."""

    size: int
    peaks: list[bytes]
    time_us: int
    open_intents: int
    reader: Reader


class Growth:
    """How much the log has grown since this was last taken: records, and the items of intents."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._units = 0
        self._enough = 0
        self._closed = False

    def add(self, units: int) -> None:
        """Adds what has become durable."""
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
            self._changed.wait_for(lambda: self._units or self._closed)
            self._changed.wait_for(lambda: self._units >= enough or self._closed, seconds)
            units, self._units = self._units, 0
            return units

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    @property
    def closed(self) -> bool:
        return self._closed


class Listener(NamedTuple):
    """Takes the records of ``kinds`` (None: of every kind), in the order of the log.

    ``on_record`` is called with every record from the start of the reading on, and
    with every new one once it is durable, before its writer is answered; with a
    SNAPSHOT only where the reading starts with it. ``snapshot`` returns what the
    listener adds to the fields of a new SNAPSHOT: the result of all its records so far.
    """

    on_record: OnRecord
    kinds: frozenset[RecordKind] | None = None
    snapshot: Callable[[], Fields] | None = None


class AuditLog:
    """The log in a directory, of which there is one writer at a time.

    ``free_bytes`` of its disk were found by the last commit, which took
    ``commit_seconds``; ``committing_since`` is when the one under way began
    (seconds since the epoch), 0 where there is none. ``overridden`` is how many
    records were left where this opening had to go on without others, else None.

    Listeners are called side by side, in their order, by the writer's thread, which
    waits for them; they must not append. Where one adds to snapshots, every segment
    but the first begins with a SNAPSHOT. ``on_commit`` is called with the number of records
    that became durable and the seconds that this took, ``on_time`` with the time of the
    newest durable record (seconds since the epoch), ``on_stop`` with the reason why no intent
    is taken any more, before any is refused. ``growth`` is for the one thread that makes
    checkpoints.
    """

    def __init__(
        self,
        opened: Opened,
        clock: Clock,
        *,
        segment_bytes: int,
        low_disk_bytes: int,
        listeners: Sequence[Listener],
        on_commit: Callable[[int, float], None],
        on_time: Callable[[float], None],
        on_stop: Callable[[str], None],
    ) -> None:
        """Starts the writer. Use ``open``."""
        self._directory, self._disk, self._tail = opened.directory, opened.disk, opened.tail
        self._lock = opened.lock
        self._clock = clock
        self._segment_bytes, self._low_disk_bytes = segment_bytes, low_disk_bytes
        self._listeners = _by_kind(listeners)
        self._snapshots = [one.snapshot for one in listeners if one.snapshot is not None]
        self._on_commit, self._on_time = on_commit, on_time
        self._inbox = Inbox(on_stop)
        self.growth = Growth()
        self.free_bytes = opened.free_bytes
        self.commit_seconds = self.committing_since = 0.0
        self.overridden: int | None = None
        self._segments: tuple[Segment, ...] = ()
        self._reader = Reader(())
        self._publish()
        # A daemon thread: what nobody waits for must not keep a process alive.
        self._thread = threading.Thread(target=self._run, name="audit-log", daemon=True)
        self._thread.start()

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        origin: str,
        clock: Clock,
        segment_bytes: int = SEGMENT_BYTES,
        low_disk_bytes: int = LOW_DISK_BYTES,
        ballast_bytes: int = BALLAST_BYTES,
        checkpoints: Iterable[Checkpoint] = (),
        override: bool = False,
        listeners: Sequence[Listener] = (),
        on_commit: Callable[[int, float], None] = lambda _records, _seconds: None,
        on_time: Callable[[float], None] = lambda _: None,
        on_stop: Callable[[str], None] = lambda _: None,
        disk: Disk | None = None,
    ) -> AuditLog:
        """Verifies the log from the newest snapshot under all ``checkpoints`` on, and opens it.

        It must bear out every one of them, so the smallest decides how much is read.
        A directory without a log gets one, unless a checkpoint knows better. A torn
        tail is cut, kept aside and recorded; intents without an outcome are closed
        as INDETERMINATE. ``override`` goes on where this would refuse: what cannot
        be read is cut and kept aside, too, and an OVERRIDE record says why.

        Signing stops when the disk has less than ``low_disk_bytes`` free; the
        ballast of ``ballast_bytes`` is given up then, so that what was begun can
        still be recorded.

        Raises AuditRefused; where the log is not whole, nothing has been changed.
        """
        by_kind = _by_kind(listeners)

        def on_record(record: Record) -> None:
            for take in by_kind[record.kind]:
                take(record)

        opened = open_tail(
            directory,
            disk or Disk(),
            Space(low_disk_bytes, ballast_bytes),
            origin=origin,
            checkpoints=tuple(checkpoints),
            override=override,
            on_record=on_record,
        )
        left = opened.tail.tip.size
        log = cls(
            opened,
            clock,
            segment_bytes=segment_bytes,
            low_disk_bytes=low_disk_bytes,
            listeners=listeners,
            on_commit=on_commit,
            on_time=on_time,
            on_stop=on_stop,
        )
        try:
            for kind, fields in opened.firsts:
                log.append(kind, fields)
        except AuditUnavailable as error:
            log.close()
            raise AuditRefused(str(error)) from None
        if any(kind is RecordKind.OVERRIDE for kind, _ in opened.firsts):
            log.overridden = left
        return log

    def append(
        self,
        kind: RecordKind,
        fields: Fields,
        column: Column | None = None,
        root: bytes | None = None,
        deadline: float | None = None,
    ) -> int:
        """Returns the sequence number of a new record when it is durable.

        ``root`` is the column's, where the caller has it. ``deadline`` (monotonic
        seconds) is for an INTENT only: what was signed is recorded however long it
        takes. Raises AuditLate, AuditUnavailable, and RecordError for what a record
        cannot hold or what may not follow.
        """
        entry = Entry(kind, fields, column, root)
        self._inbox.put(entry)
        left = None if deadline is None else max(0.0, deadline - self._clock.monotonic())
        return self._inbox.wait(entry, left)

    def note(self, kind: RecordKind, fields: Fields) -> None:
        """Hands over a record that nobody waits for; the next commit makes it durable.

        Raises AuditUnavailable where it cannot even be handed over, and RecordError
        for what a record cannot hold.
        """
        if kind in _WITH_ANSWER:
            raise RecordError(f"an {kind} is appended, not noted")
        encode(0, 0, kind, fields)  # what cannot be recorded is refused here, not lost there
        self._inbox.put(Entry(kind, fields))

    @property
    def refusal(self) -> str:
        """Why no intent is taken: the log has failed or the disk is low. Empty while it works."""
        return self._inbox.failed or self._inbox.low

    @property
    def failed(self) -> str:
        """Why nothing can be written any more, empty while it can."""
        return self._inbox.failed

    @property
    def size(self) -> int:
        """Durable records: the sequence number of the next."""
        return self._durable.size

    @property
    def first(self) -> int:
        """The number of the oldest record that is here; those before it were archived."""
        return self._durable.reader.first

    @property
    def last_time(self) -> int:
        """Microseconds since the epoch of the last durable record, 0 before the first."""
        return self._durable.time_us

    @property
    def open_intents(self) -> int:
        """Durable intents whose outcome is not durable yet."""
        return self._durable.open_intents

    def root(self) -> bytes:
        """Returns the root of the tree over all durable records."""
        return self.tree_head().root

    def tree_head(self) -> TreeHead:
        """Returns size and root that belong together."""
        durable = self._durable  # read once: the writer replaces it as a whole
        root = Frontier.from_list(durable.size, durable.peaks).root()
        return TreeHead(durable.size, root)

    def root_of(self, size: int) -> bytes:
        """Returns the root of the first ``size`` records, of which the oldest may be archived.

        Raises LookupError where the oldest that is here comes after them.
        """
        first, tip = self.first, Tip()
        if size < first:
            raise LookupError(f"the first {size} records are not here: they were archived")
        if first:
            tip.continue_from(self.records(first, 1)[0])
        for start in range(first, size, _LEAVES):
            for leaf in self.leaf_hashes(start, min(start + _LEAVES, size)):
                tip.frontier.append(leaf)
        return tip.frontier.root()

    def leaf_hashes(self, start: int, stop: int) -> list[bytes]:
        """Returns the leaf hashes of the durable records [start, stop); see ``Reader``."""
        durable = self._durable
        return durable.reader.leaf_hashes(start, min(stop, durable.size))

    def records(self, start: int, limit: int) -> list[Record]:
        """Returns up to ``limit`` durable records from ``start`` on; see ``Reader``."""
        durable = self._durable
        return list(durable.reader.records(start, min(start + limit, durable.size)))

    def close(self) -> None:
        """Writes what was handed over, and ends. Nothing can be appended any more."""
        self._inbox.close()
        self._thread.join()
        self._tail.close()
        with suppress(OSError):
            os.close(self._lock)

    def _run(self) -> None:
        """The writer: takes all that wait, makes them durable, and so on."""
        batch: list[Entry] = []
        try:
            while batch := self._inbox.take():
                self._commit(batch)
                if self._tail.due(self._segment_bytes):
                    self._rotate()
        except OSError as error:
            self._fail(batch, str(error))
        except BaseException as error:
            self._fail(batch, f"internal error: {type(error).__name__}")
            raise

    def _commit(self, batch: Sequence[Entry]) -> None:
        with self._timed():
            self._watch_disk()
            written = [(entry, record) for entry in batch if (record := self._stage(entry))]
            if written:
                self._tail.commit()
        if not written:
            return
        self._publish()
        for entry, record in written:
            for on_record in self._listeners[record.kind]:
                on_record(record)
            entry.seq = record.seq
        self.growth.add(sum(1 + _items(record) for _, record in written))
        self._inbox.answer([entry for entry, _ in written])
        self._on_commit(len(written), self.commit_seconds)

    @contextmanager
    def _timed(self) -> Iterator[None]:
        """Shows from outside that the disk is at work, and for how long it was."""
        self.committing_since, started = self._clock.now(), self._clock.monotonic()
        try:
            yield
        finally:
            self.commit_seconds, self.committing_since = self._clock.monotonic() - started, 0.0

    def _stage(self, entry: Entry) -> Record | None:
        if self._inbox.low and entry.kind is RecordKind.INTENT:
            entry.refuse(AuditUnavailable(self._inbox.low))
            return None
        time_us = int(self._clock.now() * 1_000_000)
        try:
            return self._tail.stage(time_us, entry.kind, entry.fields, entry.column, entry.root)
        except RecordError as error:
            entry.refuse(error)
            return None

    def _rotate(self) -> None:
        with self._timed():
            snapshot = None
            if self._snapshots:
                snapshot = {name: value for one in self._snapshots for name, value in one().items()}
            self._tail.rotate(int(self._clock.now() * 1_000_000), snapshot)
        self._publish()
        self._on_commit(0, self.commit_seconds)

    def _publish(self) -> None:
        """Shows readers what is durable: all that the tail holds."""
        tail, tip = self._tail, self._tail.tip
        if self._segments is not tail.segments:
            # One reader a segment, for it keeps what it has read of the closed ones.
            self._segments, self._reader = tail.segments, Reader(tail.segments, tail.index)
        peaks = tip.frontier.to_list()
        self._durable = _Durable(tip.size, peaks, tip.time_us, len(tip.open), self._reader)
        self._on_time(tip.time_us / 1e6)

    def _watch_disk(self) -> None:
        """Stops signing for good when the disk is low, and gives up the ballast for the rest."""
        self.free_bytes = self._disk.free_bytes(self._directory)
        if self._inbox.low or self.free_bytes >= self._low_disk_bytes:
            return
        self._inbox.stop_intents(
            f"the disk of the audit log has {self.free_bytes} bytes free, less than "
            f"{self._low_disk_bytes}: nothing is signed until there is room and a restart"
        )
        self._disk.remove(ballast_path(self._directory))

    def _fail(self, batch: Sequence[Entry], cause: str) -> None:
        self._inbox.fail(
            batch,
            f"the audit log in {self._directory} cannot be written ({cause}): nothing is "
            "signed until the cause is mended and the daemon restarted",
        )


def _by_kind(listeners: Sequence[Listener]) -> dict[RecordKind, tuple[OnRecord, ...]]:
    return {
        kind: tuple(one.on_record for one in listeners if one.kinds is None or kind in one.kinds)
        for kind in RecordKind
    }


def _items(record: Record) -> int:
    """Returns the items of an intent, 0 for other records."""
    column = record.column if record.kind is RecordKind.INTENT else None
    return column.count if column is not None else 0

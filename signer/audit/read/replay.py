"""Reads the log from its files: the same code opens it and verifies it.

Every frame must continue the chain, every record the sequence and the time, every outcome
an open intent, every segment the one before. Every snapshot must match the records before
it, and the tree must have the roots of the checkpoints.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import NamedTuple

from signer.audit.format.checkpoint import Checkpoint
from signer.audit.format.parse import NewerError, parse, parse_with_leaf
from signer.audit.format.record import Record, RecordError, RecordKind, Tip
from signer.audit.format.segments import (
    BrokenFrame,
    Header,
    NewerFrame,
    Segment,
    SegmentError,
    TornTail,
    open_segment,
)
from signer.audit.read.reader import Index
from signer.text import count

OnRecord = Callable[[Record], None]


class Unreadable(NamedTuple):
    """The log cannot be read beyond ``offset`` of ``segment``.

    ``torn``: an interrupted write explains it, and nothing that was durable is missing.
    ``newer``: a later version of signer has written it and can read it.
    """

    segment: Segment
    offset: int
    text: str
    torn: bool
    newer: bool = False


class Replay:
    """Reads segments in their order; ``tip`` is the end so far, ``index`` of the last segment.

    ``first`` is the record at which the reading starts: 0 or a snapshot. ``covered`` is the
    size of the largest checkpoint that the records confirm; ``contradictions`` are texts
    about those that they do not. ``on_record`` is called with every record in order; with a
    snapshot only if the reading starts with it, because elsewhere it adds nothing: such a one
    is for ``on_seam``, which raises RecordError unless it holds what was read before it.
    ``confirmed`` returns whether officers have confirmed a CLOCK that ``on_record`` got: another
    one does not move the log's time back. Without it each one does.
    """

    def __init__(
        self,
        origin: str,
        checkpoints: Iterable[Checkpoint] = (),
        on_record: OnRecord = lambda _: None,
        on_seam: OnRecord = lambda _: None,
        confirmed: Callable[[Record], bool] = lambda _: True,
    ) -> None:
        self.tip = Tip()
        self.index = Index()
        self.contradictions: list[str] = []
        self.first = 0
        self.covered = 0
        self._origin = origin
        self._on_record, self._on_seam, self._confirmed = on_record, on_seam, confirmed
        self._started = False
        self._awaited: dict[int, set[bytes]] = {}
        for checkpoint in checkpoints:
            self._awaited.setdefault(checkpoint.size, set()).add(checkpoint.root)

    def run(self, segments: Sequence[Segment]) -> Unreadable | None:
        """Reads a whole log, or the part that is readable. Raises OSError."""
        unreadable = self.read(segments)
        self.conclude()
        return unreadable

    def read(self, segments: Sequence[Segment], records: int | None = None) -> Unreadable | None:
        """Reads the next segments, or only so many ``records`` of each. Raises OSError."""
        for position, segment in enumerate(segments):
            continued = self._started
            try:
                self._read(segment, records)
            except SegmentError as error:
                # A tail is torn only after intact records: a log that begins with a torn
                # snapshot has lost the records that the snapshot continued.
                continued = continued or error.offset > 0 or segment.first == 0
                last = position == len(segments) - 1
                torn = isinstance(error, TornTail) and last and continued
                newer = isinstance(error, NewerFrame)
                text = f"{segment.path.name}: {error}"
                return Unreadable(segment, error.offset, text, torn, newer)
        return None

    def conclude(self, *, end_elsewhere: bool = False) -> None:
        """Compares the records with the checkpoints of the whole log.

        ``end_elsewhere``: the log was not read to its end.
        """
        largest = max(self._awaited, default=0)
        if largest > self.tip.size and not end_elsewhere:
            self.contradictions.append(
                f"the log ends after {count(self.tip.size, 'record')}, but a checkpoint covers"
                f" {largest}"
            )
        if self.first and self.covered <= self.first:
            self.contradictions.append(
                f"the log begins with a snapshot at {self.first}, which no checkpoint proves"
            )
        elif end_elsewhere and not self.covered:
            self.contradictions.append("no checkpoint proves any of these records")

    def _read(self, segment: Segment, records: int | None) -> None:
        with open_segment(segment) as (header, frames):
            starts = not self._started
            self._enter(segment, header, starts)
            for frame in islice(frames, records):
                try:
                    record, leaf = parse_with_leaf(frame.body)
                    self._take(record, leaf, starts and not self.index, header.leaf_items)
                except RecordError as error:
                    kind = NewerFrame if isinstance(error, NewerError) else BrokenFrame
                    raise kind(frame.offset, f"at {frame.offset}: {error}") from None
                self.tip.chain = frame.chain
                self.index.append(frame.offset, leaf)

    def _enter(self, segment: Segment, header: Header, starts: bool) -> None:
        """Checks a segment's header and its link; raises BrokenFrame."""
        if header.origin != self._origin or header.first != segment.first:
            raise BrokenFrame(0, "the segment is from another log, or has another name")
        if not starts and header.first != self.tip.size:
            raise BrokenFrame(
                0, f"the segment begins with record {header.first} instead of {self.tip.size}"
            )
        if header.previous != self.tip.chain and not (starts and header.first):
            raise BrokenFrame(0, "the segment does not continue the chain of the one before")
        _, self.tip.chain = header.frame()
        self.index = Index()
        self._started = True

    def _take(self, record: Record, leaf: bytes, first: bool, leaf_items: int) -> None:
        tip = self.tip
        if record.column is not None and record.column.leaf_items != leaf_items:
            raise RecordError("the column is not one of the segment's version")
        if first and record.seq:
            tip.continue_from(record)
            self.first = record.seq
        size = tip.size
        if record.seq != size:
            raise RecordError(f"record {record.seq} is in the position of record {size}")
        tip.check_time(record)
        tip.check(record.kind, record.fields)
        seam = record.kind is RecordKind.SNAPSHOT and not first
        if seam and record.time_us < tip.time_us:  # a reading that begins with it would go back
            raise RecordError("the snapshot is earlier than the records before it")
        (self._on_seam if seam else self._on_record)(record)  # first: a listener may refuse it, too
        confirmed = record.kind is not RecordKind.CLOCK or self._confirmed(record)
        tip.add(record, leaf, confirmed=confirmed)
        roots = self._awaited.get(size + 1)
        if roots and roots == {tip.frontier.root()}:
            self.covered = tip.size
        elif roots:
            self.contradictions.append(
                f"a checkpoint of {count(tip.size, 'record')} has another root than the log"
            )


def forks(checkpoints: Sequence[Checkpoint]) -> list[str]:
    """Returns a text about every size whose checkpoints differ: no log can confirm both."""
    roots: dict[int, set[bytes]] = {}
    for checkpoint in checkpoints:
        roots.setdefault(checkpoint.size, set()).add(checkpoint.root)
    return [
        f"two checkpoints of {count(size, 'record')} have different roots: the audit key has signed"
        " two logs"
        for size, different in sorted(roots.items())
        if len(different) > 1
    ]


def starting_point(segments: Sequence[Segment], checkpoint: Checkpoint | None) -> Sequence[Segment]:
    """Returns the segments from the newest snapshot on that the checkpoint covers, or all."""
    for position in reversed(range(len(segments))):
        segment = segments[position]
        covered = checkpoint is not None and segment.first < checkpoint.size
        if covered and begins_with_snapshot(segment):
            return segments[position:]
    return segments


def begins_with_snapshot(segment: Segment) -> bool:
    """Returns whether a reading can start with this segment. Raises OSError."""
    try:
        first = first_record(segment)
    except RecordError:
        return False  # a reading that starts earlier reports the damage
    return first is not None and first.kind is RecordKind.SNAPSHOT


def first_record(segment: Segment) -> Record | None:
    """Returns the first record of a segment or None; raises RecordError, OSError."""
    with open_segment(segment) as (_, frames):
        first = next(frames, None)
        return None if first is None else parse(first.body)

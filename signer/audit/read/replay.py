"""Reading the log from its files: the same functions open it and verify it.

Every frame must continue the chain, every record the sequence and the time,
every outcome an open intent, every segment the one before, every snapshot must
say what led to it, and the tree must have the roots that checkpoints say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

from signer.audit.format.checkpoint import Checkpoint
from signer.audit.format.merkle import Frontier
from signer.audit.format.record import (
    FIRST_CHAIN,
    BrokenFrame,
    FrameError,
    NewerError,
    NewerFrame,
    Record,
    RecordError,
    RecordKind,
    TornTail,
    Value,
    parse,
    parse_with_leaf,
)
from signer.audit.format.segments import Header, Index, Segment, open_segment

OnRecord = Callable[[Record], None]
_CLOSING = frozenset({RecordKind.OUTCOME, RecordKind.INDETERMINATE})


class Finding(NamedTuple):
    """The log cannot be read beyond ``offset`` of ``segment``.

    ``torn``: an interrupted write explains it, and nothing that was durable is missing.
    ``newer``: a later version of signer wrote it, and can read it.
    """

    segment: Segment
    offset: int
    text: str
    torn: bool
    newer: bool = False


class Tip:
    """Where the log ends: what the next record has to continue.

    ``open`` holds the sequence numbers of intents without an outcome; ``time_us``
    is the time of the last record.
    """

    def __init__(self) -> None:
        self.chain = FIRST_CHAIN
        self.time_us = 0
        self.frontier = Frontier()
        self.open: set[int] = set()

    @property
    def size(self) -> int:
        """How many records the log has: the sequence number of the next."""
        return self.frontier.size

    def check(self, kind: RecordKind, fields: Mapping[str, Value]) -> None:
        """Refuses what may not follow; raises RecordError."""
        if kind in _CLOSING and fields.get("intent") not in self.open:
            raise RecordError(f"an {kind} closes no open intent")
        if kind is RecordKind.SNAPSHOT and any(
            fields.get(n) != v for n, v in self.snapshot().items()
        ):
            raise RecordError("a snapshot does not say what led to it")

    def add(self, record: Record, leaf: bytes) -> None:
        """Takes one more record into account, which ``check`` has let pass."""
        if record.kind is RecordKind.INTENT:
            self.open.add(record.seq)
        elif record.kind in _CLOSING:
            self.open.remove(record.fields["intent"])  # type: ignore[arg-type]  # check saw it
        self.time_us = record.time_us
        self.frontier.append(leaf)

    def snapshot(self) -> dict[str, Value]:
        """Returns what a SNAPSHOT record says about the log itself."""
        return {"frontier": self.frontier.to_list(), "open": sorted(self.open)}

    def continue_from(self, snapshot: Record) -> None:
        """Starts before a SNAPSHOT record that begins a segment; raises RecordError.

        It is believed only until a checkpoint beyond it has been compared: the
        root over these subtrees and the snapshot's own leaf is what was signed.
        """
        peaks, intents = snapshot.fields.get("frontier"), snapshot.fields.get("open")
        if snapshot.kind is not RecordKind.SNAPSHOT:
            raise RecordError("the log does not begin with its first record or a snapshot")
        if not _are(bytes, peaks) or not _are(int, intents):
            raise RecordError("the snapshot has no subtrees and open intents")
        try:
            self.frontier = Frontier.from_list(snapshot.seq, list(peaks))  # type: ignore[arg-type]
        except ValueError as error:
            raise RecordError(f"the snapshot is wrong: {error}") from None
        self.open = set(intents)  # type: ignore[arg-type]  # a list of integers
        self.time_us = snapshot.time_us


def _are(kind: type, values: Value) -> bool:
    return isinstance(values, list) and all(type(value) is kind for value in values)


class Replay:
    """Reads segments in their order. ``tip`` and ``index`` (of the last segment) tell how far.

    ``first`` is where the reading starts: at 0 or a snapshot. ``covered`` is the
    size of the largest checkpoint that the records bear out, ``contradictions``
    are those that they do not, in words.
    ``on_record`` is given every record in order; a snapshot only where the
    reading starts with it, for elsewhere it says nothing new.
    """

    def __init__(
        self,
        origin: str,
        checkpoints: Iterable[Checkpoint] = (),
        on_record: OnRecord = lambda _: None,
    ) -> None:
        self.tip = Tip()
        self.index = Index()
        self.contradictions: list[str] = []
        self.first = 0
        self.covered = 0
        self._origin = origin
        self._on_record = on_record
        self._started = False
        self._awaited: dict[int, set[bytes]] = {}
        for checkpoint in checkpoints:
            self._awaited.setdefault(checkpoint.size, set()).add(checkpoint.root)

    def run(self, segments: Sequence[Segment]) -> Finding | None:
        """Reads a whole log, or up to the first place beyond which it cannot. Raises OSError."""
        finding = self.read(segments)
        self.conclude()
        return finding

    def read(self, segments: Sequence[Segment], records: int | None = None) -> Finding | None:
        """Reads the next segments, or only so many records of each; as ``run`` otherwise."""
        for place, segment in enumerate(segments):
            behind = self._started
            try:
                self._read(segment, records)
            except FrameError as error:
                # A tail is torn only behind something: a log that begins with a torn
                # snapshot has lost what the snapshot continued.
                behind = behind or error.offset > 0 or segment.first == 0
                torn = isinstance(error, TornTail) and place == len(segments) - 1 and behind
                newer = isinstance(error, NewerFrame)
                text = f"{segment.path.name}: {error}"
                return Finding(segment, error.offset, text, torn, newer)
        return None

    def conclude(self, *, end_elsewhere: bool = False) -> None:
        """Compares what was read with what the checkpoints know of the whole log.

        ``end_elsewhere``: it was not to be read to its end.
        """
        known = max(self._awaited, default=0)
        if known > self.tip.size and not end_elsewhere:
            self.contradictions.append(
                f"the log ends after {self.tip.size} records, but a checkpoint knows {known}"
            )
        if self.first and self.covered <= self.first:
            self.contradictions.append(
                f"the log begins with a snapshot at {self.first}, which no checkpoint proves"
            )
        elif end_elsewhere and not self.covered:
            self.contradictions.append("no checkpoint proves any of the records that are here")

    def _read(self, segment: Segment, records: int | None) -> None:
        with open_segment(segment) as (header, frames):
            starts = not self._started
            self._enter(segment, header, starts)
            for one in islice(frames, records):
                try:
                    record, leaf = parse_with_leaf(one.body)
                    self._take(record, leaf, starts and not self.index)
                except RecordError as error:
                    kind = NewerFrame if isinstance(error, NewerError) else BrokenFrame
                    raise kind(one.offset, f"at {one.offset}: {error}") from None
                self.tip.chain = one.chain
                self.index.append(one.offset, leaf)

    def _enter(self, segment: Segment, header: Header, starts: bool) -> None:
        """Checks a segment's header and its link; raises BrokenFrame."""
        if header.origin != self._origin or header.first != segment.first:
            raise BrokenFrame(0, "the segment belongs to another log or place")
        if not starts and header.first != self.tip.size:
            raise BrokenFrame(
                0, f"the segment begins with record {header.first}, {self.tip.size} is the next"
            )
        if header.previous != self.tip.chain and not (starts and header.first):
            raise BrokenFrame(0, "the segment does not continue the chain of the one before")
        _, self.tip.chain = header.frame()
        self.index = Index()
        self._started = True

    def _take(self, record: Record, leaf: bytes, first: bool) -> None:
        tip = self.tip
        if first and record.seq:
            tip.continue_from(record)
            self.first = record.seq
        size = tip.size
        if record.seq != size:
            raise RecordError(f"record {record.seq} stands where record {size} belongs")
        if record.time_us < tip.time_us:
            raise RecordError("the time goes back")
        tip.check(record.kind, record.fields)
        if first or record.kind is not RecordKind.SNAPSHOT:
            self._on_record(record)  # before it counts, for it may be refused here, too
        tip.add(record, leaf)
        if size + 1 in self._awaited:
            self._compare()

    def _compare(self) -> None:
        """Compares the tree with the checkpoints of this size."""
        if self._awaited[self.tip.size] == {self.tip.frontier.root()}:
            self.covered = self.tip.size
        else:
            self.contradictions.append(
                f"a checkpoint of {self.tip.size} records has another root than the log"
            )


def forks(checkpoints: Sequence[Checkpoint]) -> list[str]:
    """Says where checkpoints of one size differ: no log can bear out both."""
    roots: dict[int, set[bytes]] = {}
    for each in checkpoints:
        roots.setdefault(each.size, set()).add(each.root)
    return [
        f"two checkpoints of {size} records have different roots: the audit key has signed two logs"
        for size, found in sorted(roots.items())
        if len(found) > 1
    ]


def starting_point(segments: Sequence[Segment], checkpoint: Checkpoint | None) -> Sequence[Segment]:
    """Returns the segments from the newest snapshot under the checkpoint on, or all."""
    for place in reversed(range(len(segments))):
        segment = segments[place]
        under = checkpoint is not None and segment.first < checkpoint.size
        if under and begins_with_snapshot(segment):
            return segments[place:]
    return segments


def begins_with_snapshot(segment: Segment) -> bool:
    """Whether a reading can start with this segment. Raises OSError."""
    try:
        first = first_record(segment)
    except RecordError:
        return False  # an earlier start will come upon the damage and report it
    return first is not None and first.kind is RecordKind.SNAPSHOT


def first_record(segment: Segment) -> Record | None:
    """Returns the first record of a segment, if it has one; raises RecordError, OSError."""
    with open_segment(segment) as (_, frames):
        first = next(frames, None)
        return None if first is None else parse(first.body)

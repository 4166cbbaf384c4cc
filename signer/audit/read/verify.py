"""Verifying a whole log offline, by the same functions that open it.

A long log is read by several processes at once. Each begins where a segment
begins with a snapshot and believes that; whoever puts their findings together
reads the seams like any other place: the segment must continue the chain, the
sequence and the time of the one before, and the snapshot must say what led to it.
The few records that folds want are collected, and folded in order at the seams.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

from signer.audit.format.checkpoint import Checkpoint
from signer.audit.format.record import Record, RecordKind
from signer.audit.format.segments import Segment, list_segments
from signer.audit.read.replay import Finding, Replay, Tip, begins_with_snapshot, forks

Progress = Callable[[int, int], None]
"""Is called with the number of bytes that were read, and of all."""


class Fold(Protocol):
    """A further check over a log: it gets the records that it wants, in the log's order.

    Each reading makes its own. ``problems`` are one text each, with the number of the record.
    """

    @staticmethod
    def relevant(record: Record) -> Record | None:
        """Returns what the fold needs of a record, or None. Runs in any process."""

    def apply(self, record: Record) -> None: ...

    @property
    def problems(self) -> Sequence[str]: ...


FoldT = TypeVar("FoldT")


@dataclass(frozen=True, slots=True)
class Report:
    """What a log holds, and every reason not to believe it.

    ``first`` is the number of the first record that is here (0, or of a snapshot
    where older segments were archived), ``records`` that of the next. ``kinds``
    counts records, the snapshots aside, ``items`` what intents wanted signed;
    ``covered`` is the size of the largest
    checkpoint that the records bear out: what comes after it is chained, but
    signed by nobody yet. ``recovered`` and ``overridden`` are the numbers of
    RECOVERY and OVERRIDE records. ``time_us`` is microseconds since the epoch.
    ``folds`` are those of this reading, after the last record.
    """

    first: int
    records: int
    items: int
    kinds: dict[RecordKind, int]
    root: bytes
    covered: int
    time_us: int
    open_intents: int
    recovered: tuple[int, ...]
    overridden: tuple[int, ...]
    folds: tuple[Fold, ...]
    problems: tuple[str, ...]

    @property
    def whole(self) -> bool:
        return not self.problems

    def fold(self, kind: type[FoldT]) -> FoldT:
        """Returns the fold of this class; raises LookupError where none was asked for."""
        for fold in self.folds:
            if isinstance(fold, kind):
                return fold
        raise LookupError(f"the log was verified without {kind.__name__}")


def verify_log(
    directory: Path,
    origin: str,
    checkpoints: Iterable[Checkpoint],
    progress: Progress = lambda _done, _total: None,
    *,
    folds: Sequence[type[Fold]] = (),
    beginning_elsewhere: bool = False,
    end_elsewhere: bool = False,
    processes: int | None = None,
) -> Report:
    """Reads every record in a directory and compares the tree with ``checkpoints``.

    The checkpoints' signatures have been verified before. What ``folds`` find wrong
    is a problem, too. Where the log's beginning is elsewhere, it may begin with a
    snapshot, if a checkpoint proves it; where its end is, it may end before the newest
    checkpoint. ``processes`` read at once, as many as there are processors for a long
    log. Raises OSError.
    """
    log = _Part(list_segments(directory), origin, tuple(checkpoints), folds)
    reading = _read(log, progress, processes)
    return reading.report(beginning_elsewhere=beginning_elsewhere, end_elsewhere=end_elsewhere)


def verify_part(
    segments: Sequence[Segment],
    origin: str,
    checkpoints: Iterable[Checkpoint],
    progress: Progress = lambda _done, _total: None,
) -> Report:
    """Reads some segments in a row, as ``verify_log`` does with both ends elsewhere.

    No folds: whether copies are whole does not depend on what officers have approved.
    """
    reading = _read(_Part(segments, origin, tuple(checkpoints), ()), progress, None)
    return reading.report(beginning_elsewhere=True, end_elsewhere=True)


_READINGS = 3
"""How often a log is read whose writer is at work: what it is just writing looks torn."""

_LONG = 64 << 20
"""Bytes of a log that are worth the start of more processes."""


def _read(log: _Part, progress: Progress, processes: int | None) -> _Reading:
    for _ in range(_READINGS):
        reading = _Reading(log, progress, processes)
        if not reading.overtaken():
            break
    return reading


class _Part(NamedTuple):
    """Segments that can be read by themselves, for the first begins with a snapshot (or the log).

    ``checkpoints`` are those that the first record does not settle.
    """

    segments: Sequence[Segment]
    origin: str
    checkpoints: Sequence[Checkpoint]
    folds: Sequence[type[Fold]]


class _Ended(NamedTuple):
    """How the reading of a part ended."""

    tip: Tip
    covered: int
    contradictions: list[str]
    finding: Finding | None
    counted: _Counted


def _read_part(part: _Part) -> _Ended:
    """Reads a part, perhaps in a process of its own."""
    counted = _Counted(part.folds)
    replay = Replay(part.origin, part.checkpoints, counted.record)
    finding = replay.read(part.segments)
    return _Ended(replay.tip, replay.covered, replay.contradictions, finding, counted)


class _Reading:
    """One reading of the whole log."""

    def __init__(self, log: _Part, progress: Progress, processes: int | None) -> None:
        segments, origin, checkpoints, folds = log
        self._sizes = {segment: segment.path.stat().st_size for segment in segments}
        # An empty file at the end was just begun, or left so by a crash: nothing was in it.
        if segments and not self._sizes[segments[-1]]:
            del self._sizes[segments[-1]]
            segments = segments[:-1]
        self._counted = _Counted(folds)
        self._folds = tuple(fold() for fold in folds)
        self._forks = forks(checkpoints)
        self._replay = Replay(origin, checkpoints)
        self._finding: Finding | None = None
        parts = [
            _Part(run, origin, [c for c in checkpoints if c.size > run[0].first + 1], folds)
            for run in _runs(segments)
        ]
        total = sum(self._sizes.values())
        if processes is None:
            processes = len(os.sched_getaffinity(0)) if total > _LONG else 1
        done = 0
        with _readers(min(processes, len(parts))) as read_all:
            for part, ended in zip(parts, read_all(_read_part, parts), strict=True):
                self._finding = self._join(part, ended)
                done += sum(self._sizes[segment] for segment in part.segments)
                progress(done, total)
                if self._finding is not None:
                    break

    def _join(self, part: _Part, ended: _Ended) -> Finding | None:
        """Goes on over the seam before a part, and then from where the part ends."""
        replay = self._replay
        finding = replay.read(part.segments[:1], 1)
        if finding is not None:
            return finding
        replay.tip = ended.tip
        replay.covered = max(replay.covered, ended.covered)
        replay.contradictions += ended.contradictions
        self._counted.add(ended.counted)
        for fold, records in zip(self._folds, ended.counted.folded, strict=True):
            for record in records:
                fold.apply(record)
        return ended.finding

    def overtaken(self) -> bool:
        """Whether the tail is torn, but has grown since: then it was only not finished."""
        finding = self._finding
        if finding is None or not finding.torn:
            return False
        return finding.segment.path.stat().st_size != self._sizes[finding.segment]

    def report(self, *, beginning_elsewhere: bool, end_elsewhere: bool) -> Report:
        replay, counted = self._replay, self._counted
        problems = [*self._forks, *([self._finding.text] if self._finding else [])]
        first = next((segment.first for segment in self._sizes), None)
        if first is None:
            problems.append("the directory holds no segment of a log")
        elif first and not beginning_elsewhere:
            problems.append(f"the records before {first} are missing")
        replay.conclude(end_elsewhere=end_elsewhere)
        problems += replay.contradictions
        for fold in self._folds:
            problems += fold.problems
        return Report(
            first=replay.first,
            records=replay.tip.size,
            items=counted.items,
            kinds=dict(counted.kinds),
            root=replay.tip.frontier.root(),
            covered=replay.covered,
            time_us=replay.tip.time_us,
            open_intents=len(replay.tip.open),
            recovered=tuple(counted.recovered),
            overridden=tuple(counted.overridden),
            folds=self._folds,
            problems=tuple(problems),
        )


def _runs(segments: Sequence[Segment]) -> list[list[Segment]]:
    """The segments in runs, of which all but the first begin with a snapshot."""
    runs: list[list[Segment]] = []
    for segment in segments:
        if not runs or begins_with_snapshot(segment):
            runs.append([])
        runs[-1].append(segment)
    return runs


@contextmanager
def _readers(
    processes: int,
) -> Iterator[Callable[[Callable[[_Part], _Ended], list[_Part]], Iterator[_Ended]]]:
    """Gives what reads parts and yields how they ended, in their order."""
    if processes < 2:
        yield map
        return
    # Spawned, for a fork would copy whatever threads the caller has.
    pool = ProcessPoolExecutor(processes, get_context("spawn"), _leave_interrupts)
    try:
        yield pool.map
    except BrokenProcessPool:
        raise OSError("a process that read the log was killed") from None
    finally:
        pool.shutdown(cancel_futures=True)


def _leave_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's to handle: it ends the pool


class _Counted:
    """What the report counts; ``folded`` are the records for each fold, applied at the seams."""

    def __init__(self, folds: Sequence[type[Fold]]) -> None:
        self.items = 0
        self.kinds: Counter[RecordKind] = Counter()
        self.recovered: list[int] = []
        self.overridden: list[int] = []
        self.folded: list[list[Record]] = [[] for _ in folds]
        self._folds = folds

    def record(self, record: Record) -> None:
        for fold, into in zip(self._folds, self.folded, strict=True):
            if (needed := fold.relevant(record)) is not None:
                into.append(needed)
        if record.kind is RecordKind.SNAPSHOT:
            return
        self.kinds[record.kind] += 1
        if record.kind is RecordKind.INTENT and record.column is not None:
            self.items += record.column.count
        elif record.kind is RecordKind.RECOVERY:
            self.recovered.append(record.seq)
        elif record.kind is RecordKind.OVERRIDE:
            self.overridden.append(record.seq)

    def add(self, other: _Counted) -> None:
        self.items += other.items
        self.kinds += other.kinds
        self.recovered += other.recovered
        self.overridden += other.overridden

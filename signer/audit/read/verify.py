"""Verifies a whole log offline, with the code that opens it.

Several processes read a long log at once. Each starts at a segment that begins with a
snapshot, and trusts the snapshot. The calling process then checks the seams: every
segment must continue the chain, the sequence and the time of the one before, and its
snapshot must match the records before it. Folds work in the same way: what a fold needs of
a part is gathered where the part is read, and joined in order at the seams.
"""

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
from typing import Any, NamedTuple, Protocol, TypeVar

from signer.audit.format.checkpoint import Checkpoint
from signer.audit.format.record import Record, RecordKind, Tip
from signer.audit.format.segments import Segment, list_segments
from signer.audit.read.replay import Replay, Unreadable, begins_with_snapshot, forks

Progress = Callable[[int, int], None]
"""Is called with the number of bytes read so far, and of all."""


class FoldPart(Protocol):
    """What a fold needs of consecutive records; it is pickled after the last one."""

    def take(self, record: Record) -> None:
        """Takes the next record. Runs in any process."""


class Fold(Protocol):
    """A further check over a log. Every reading makes its own.

    ``part`` makes an empty part, in any process; ``join`` gets the parts in the log's order.
    ``problems`` has one text for each, with the record's number.
    """

    @property
    def part(self) -> Callable[[], FoldPart]: ...

    def join(self, part: Any) -> None: ...

    @property
    def problems(self) -> Sequence[str]: ...


FoldT = TypeVar("FoldT")


@dataclass(frozen=True, slots=True)
class Report:
    """What a log holds, and every reason not to trust it.

    ``first`` is the number of its first record (0, or that of a snapshot if older segments
    were archived), ``records`` the number of the next record. ``kinds`` counts records
    except snapshots, ``items`` the items of all intents. ``covered`` is the size of the
    largest checkpoint that the records confirm: later records are chained, but not signed
    yet. ``recovered`` and ``overridden`` are the numbers of RECOVERY and OVERRIDE records.
    ``time_us`` is microseconds since the epoch. ``folds`` have applied all records.
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
        """Returns the fold of this class; raises LookupError if there is none."""
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
    folds: Sequence[Callable[[], Fold]] = (),
    beginning_elsewhere: bool = False,
    end_elsewhere: bool = False,
    processes: int | None = None,
) -> Report:
    """Reads every record in a directory and compares the tree with ``checkpoints``.

    The caller has verified the checkpoints' signatures. The problems of ``folds`` are added
    to those of the records. ``beginning_elsewhere`` allows a log that begins with a snapshot
    which a checkpoint proves, ``end_elsewhere`` one that ends before the newest checkpoint.
    ``processes`` read at once; by default one per processor for a long log. Raises OSError.
    """
    log = _Log(list_segments(directory), origin, tuple(checkpoints), folds)
    reading = _read(log, progress, processes)
    return reading.report(beginning_elsewhere=beginning_elsewhere, end_elsewhere=end_elsewhere)


def verify_part(
    segments: Sequence[Segment],
    origin: str,
    checkpoints: Iterable[Checkpoint],
    progress: Progress = lambda _done, _total: None,
) -> Report:
    """Verifies consecutive segments, as ``verify_log`` does with both ends elsewhere.

    Without folds: whether copies are whole does not depend on what officers have approved.
    """
    reading = _read(_Log(segments, origin, tuple(checkpoints), ()), progress, None)
    return reading.report(beginning_elsewhere=True, end_elsewhere=True)


_READINGS = 3
"""How often a log is read while a writer appends: a frame that it is writing looks torn."""

_LONG = 64 << 20
"""Bytes from which on a log is read by several processes."""


def _read(log: "_Log", progress: Progress, processes: int | None) -> "_Reading":
    for _ in range(_READINGS):
        reading = _Reading(log, progress, processes)
        if not reading.overtaken():
            break
    return reading


class _Log(NamedTuple):
    """What is verified, and with which folds."""

    segments: Sequence[Segment]
    origin: str
    checkpoints: Sequence[Checkpoint]
    folds: Sequence[Callable[[], Fold]]


class _Run(NamedTuple):
    """Consecutive segments, of which the first begins the log or begins with a snapshot.

    ``checkpoints`` are those of more records than the first; ``parts`` make those of the folds.
    """

    segments: Sequence[Segment]
    origin: str
    checkpoints: Sequence[Checkpoint]
    parts: Sequence[Callable[[], FoldPart]]


class _Ended(NamedTuple):
    """The result of reading a run."""

    tip: Tip
    covered: int
    contradictions: list[str]
    unreadable: Unreadable | None
    counted: "_Counted"


def _read_run(run: _Run) -> _Ended:
    """Reads a run; runs in any process."""
    counted = _Counted(run.parts)
    replay = Replay(run.origin, run.checkpoints, counted.record)
    unreadable = replay.read(run.segments)
    return _Ended(replay.tip, replay.covered, replay.contradictions, unreadable, counted)


class _Reading:
    """One reading of the whole log."""

    def __init__(self, log: _Log, progress: Progress, processes: int | None) -> None:
        segments, origin, checkpoints, folds = log
        self._sizes = {segment: segment.path.stat().st_size for segment in segments}
        # An empty file at the end was just created, or a crash left it: it held nothing.
        if segments and not self._sizes[segments[-1]]:
            del self._sizes[segments[-1]]
            segments = segments[:-1]
        self._counted = _Counted()
        self._folds = tuple(fold() for fold in folds)
        self._forks = forks(checkpoints)
        self._replay = Replay(origin, checkpoints)
        self._unreadable: Unreadable | None = None
        parts = [fold.part for fold in self._folds]
        runs = [
            _Run(run, origin, [c for c in checkpoints if c.size > run[0].first + 1], parts)
            for run in _runs(segments)
        ]
        total = sum(self._sizes.values())
        if processes is None:
            processes = len(os.sched_getaffinity(0)) if total > _LONG else 1
        done = 0
        with _readers(min(processes, len(runs))) as read_all:
            for run, ended in zip(runs, read_all(_read_run, runs), strict=True):
                self._unreadable = self._join(run, ended)
                done += sum(self._sizes[segment] for segment in run.segments)
                progress(done, total)
                if self._unreadable is not None:
                    break

    def _join(self, run: _Run, ended: _Ended) -> Unreadable | None:
        """Checks the seam before a run, then continues at the end of the run."""
        replay = self._replay
        unreadable = replay.read(run.segments[:1], 1)
        if unreadable is not None:
            return unreadable
        replay.tip = ended.tip
        replay.covered = max(replay.covered, ended.covered)
        replay.contradictions += ended.contradictions
        self._counted.add(ended.counted)
        for fold, part in zip(self._folds, ended.counted.parts, strict=True):
            fold.join(part)
        return ended.unreadable

    def overtaken(self) -> bool:
        """Returns whether a torn tail has grown since: then a writer was appending to it."""
        unreadable = self._unreadable
        if unreadable is None or not unreadable.torn:
            return False
        return unreadable.segment.path.stat().st_size != self._sizes[unreadable.segment]

    def report(self, *, beginning_elsewhere: bool, end_elsewhere: bool) -> Report:
        replay, counted = self._replay, self._counted
        problems = [*self._forks, *([self._unreadable.text] if self._unreadable else [])]
        first = next((segment.first for segment in self._sizes), None)
        if first is None:
            problems.append("the directory contains no segment of a log")
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
    """Returns the segments in runs; each but the first begins with a snapshot."""
    runs: list[list[Segment]] = []
    for segment in segments:
        if not runs or begins_with_snapshot(segment):
            runs.append([])
        runs[-1].append(segment)
    return runs


@contextmanager
def _readers(
    processes: int,
) -> Iterator[Callable[[Callable[[_Run], _Ended], list[_Run]], Iterator[_Ended]]]:
    """Yields a function like ``map`` that reads runs in several processes."""
    if processes < 2:
        yield map
        return
    # Spawned, because a fork would copy the state of the caller's threads.
    pool = ProcessPoolExecutor(processes, get_context("spawn"), _leave_interrupts)
    try:
        yield pool.map
    except BrokenProcessPool:
        raise OSError("a process that read the log was killed") from None
    finally:
        pool.shutdown(cancel_futures=True)


def _leave_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles it and ends the pool


class _Counted:
    """Counts for the report; ``parts`` are those of the folds."""

    def __init__(self, parts: Iterable[Callable[[], FoldPart]] = ()) -> None:
        self.items = 0
        self.kinds: Counter[RecordKind] = Counter()
        self.recovered: list[int] = []
        self.overridden: list[int] = []
        self.parts = [part() for part in parts]

    def record(self, record: Record) -> None:
        for part in self.parts:
            part.take(record)
        if record.kind is RecordKind.SNAPSHOT:
            return
        self.kinds[record.kind] += 1
        if record.kind is RecordKind.INTENT and record.column is not None:
            self.items += record.column.count
        elif record.kind is RecordKind.RECOVERY:
            self.recovered.append(record.seq)
        elif record.kind is RecordKind.OVERRIDE:
            self.overridden.append(record.seq)

    def add(self, other: "_Counted") -> None:
        self.items += other.items
        self.kinds += other.kinds
        self.recovered += other.recovered
        self.overridden += other.overridden

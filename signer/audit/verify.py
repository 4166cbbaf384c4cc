"""Verifying a whole log offline, by the same functions that open it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from signer.audit.checkpoint import Checkpoint
from signer.audit.record import Kind, Record
from signer.audit.replay import Replay
from signer.audit.segments import list_segments


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
    """

    first: int
    records: int
    items: int
    kinds: dict[Kind, int]
    root: bytes
    covered: int
    time_us: int
    open_intents: int
    recovered: tuple[int, ...]
    overridden: tuple[int, ...]
    problems: tuple[str, ...]

    @property
    def whole(self) -> bool:
        return not self.problems


def verify_log(
    directory: Path,
    origin: str,
    checkpoints: Iterable[Checkpoint],
    progress: Callable[[int, int], None] = lambda _done, _total: None,
    *,
    archived: bool = False,
) -> Report:
    """Reads every record in a directory and compares the tree with ``checkpoints``.

    The checkpoints' signatures have been verified before. ``archived``: older
    segments are elsewhere, so the log may begin with a snapshot, if a checkpoint
    proves it. ``progress`` hears how many bytes of how many were read. Raises OSError.
    """
    known = tuple(checkpoints)
    for _ in range(_READINGS):
        reading = _Reading(directory, origin, known, progress)
        if not reading.overtaken():
            break
    return reading.report(archived=archived)


_READINGS = 3
"""How often a log is read whose writer is at work: what it is just writing looks torn."""


class _Reading:
    """One reading of the whole log."""

    def __init__(
        self,
        directory: Path,
        origin: str,
        checkpoints: Iterable[Checkpoint],
        progress: Callable[[int, int], None],
    ) -> None:
        self._directory = directory
        self._sizes = {segment: segment.path.stat().st_size for segment in list_segments(directory)}
        self._done = 0
        self._progress = progress
        self._counted = _Counted()
        self._replay = Replay(origin, checkpoints, self._counted.record)
        self._finding = self._replay.run(list(self._sizes), self._read)

    def _read(self, size: int) -> None:
        self._done += size
        self._progress(self._done, max(self._done, sum(self._sizes.values())))

    def overtaken(self) -> bool:
        """Whether the tail is torn, but has grown since: then it was only not finished."""
        finding = self._finding
        if finding is None or not finding.torn:
            return False
        return finding.segment.path.stat().st_size != self._sizes[finding.segment]

    def report(self, *, archived: bool) -> Report:
        replay, counted = self._replay, self._counted
        problems = [self._finding.text] if self._finding else []
        first = next((segment.first for segment in self._sizes), None)
        if first is None:
            problems.append(f"{self._directory} holds no segment of a log")
        elif first and not archived:
            problems.append(f"the records before {first} are missing")
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
            problems=(*problems, *replay.contradictions),
        )


class _Counted:
    """What the report tells of the records."""

    def __init__(self) -> None:
        self.items = 0
        self.kinds: Counter[Kind] = Counter()
        self.recovered: list[int] = []
        self.overridden: list[int] = []

    def record(self, record: Record) -> None:
        self.kinds[record.kind] += 1
        if record.kind is Kind.INTENT and record.column is not None:
            self.items += record.column.count
        elif record.kind is Kind.RECOVERY:
            self.recovered.append(record.seq)
        elif record.kind is Kind.OVERRIDE:
            self.overridden.append(record.seq)

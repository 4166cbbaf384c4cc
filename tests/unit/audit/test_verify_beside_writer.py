"""Verifying a log that is being written: what is only not finished is no problem."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from signer.audit.format.checkpoint import Checkpoint
from signer.audit.format.record import Column, RecordKind
from signer.audit.format.segments import list_segments
from signer.audit.read.verify import verify_log
from signer.audit.write.log import Listener
from tests.stand_ins import small_log

ORIGIN = "signer.example/log"
WRITERS = 4
SEGMENTS = 24
"""How long the log is when a test ends: it has been verified all the way."""


class Writer:
    """Threads that append as fast as they can, into segments of about ten records."""

    def __init__(self, folder: Path, items: int, snapshots: bool) -> None:
        self._records = 0
        self._digests = Column(32, bytes(32 * items))
        self._over = threading.Event()
        self.log = small_log(
            folder,
            origin=ORIGIN,
            segment_bytes=10 * (300 + 32 * items),
            listeners=[Listener(self._count, snapshot=self._snapshot if snapshots else None)],
        )
        self._threads = [threading.Thread(target=self._work) for _ in range(WRITERS)]

    def _count(self, _: object) -> None:
        self._records += 1

    def _snapshot(self) -> dict[str, int]:
        return {"records": self._records}

    def _work(self) -> None:
        while not self._over.is_set():
            intent = self.log.append(RecordKind.INTENT, {"principal": "a"}, self._digests)
            self.log.append(RecordKind.OUTCOME, {"intent": intent, "attempts": 1}, self._digests)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._over.set()
            for thread in self._threads:
                thread.join()
            self.log.close()


@pytest.mark.parametrize("snapshots", [False, True])
@pytest.mark.parametrize("items", [1, 2000])
def test_a_log_that_grows_is_whole_whenever_it_is_looked_at(
    tmp_path: Path, items: int, snapshots: bool
) -> None:
    writer = Writer(tmp_path, items, snapshots)
    seen = []
    with writer.at_work():
        while len(list_segments(tmp_path)) < SEGMENTS:
            before = Checkpoint(ORIGIN, *writer.log.tree_head())
            report = verify_log(tmp_path, ORIGIN, [before])
            assert report.problems == ()
            assert report.covered == before.size <= report.records
            seen.append(report.records)
    assert seen == sorted(seen)
    assert len(set(seen)) > 1, "nothing was written meanwhile"
    end = Checkpoint(ORIGIN, *writer.log.tree_head())
    report = verify_log(tmp_path, ORIGIN, [end])
    assert (report.problems, report.covered) == ((), end.size)

"""The power is lost while a log of an older version gets its first segment of the new one."""

import shutil
from collections.abc import Callable
from itertools import count
from pathlib import Path
from random import Random

import pytest

from signer.audit.format.record import FIRST_CHAIN, Record, RecordKind, frame
from signer.audit.format.segments import VERSION, Header, list_segments, open_segment
from signer.audit.read.verify import verify_log
from signer.audit.write.disk import Disk
from signer.audit.write.inbox import AuditUnavailable
from signer.audit.write.log import Listener
from signer.audit.write.recovery import AuditRefused
from tests.fault.audit_disk import PowerDisk
from tests.stand_ins import small_log
from tests.upgrade.make_log import ORIGIN

LOSSES = 12
"""Ways in which each of the calls loses what is not on the platter."""


def written_before(folder: Path) -> None:
    """What an earlier version wrote; its last intent is open."""
    shutil.copytree(Path(__file__).parents[1] / "upgrade" / "log-1" / "audit", folder)


def torn(folder: Path) -> None:
    """The same, and a record that was not finished."""
    written_before(folder)
    with list_segments(folder)[-1].path.open("ab") as file:
        file.write(b"torn")


def begun(folder: Path) -> None:
    """A log whose last segment has no record yet."""
    folder.mkdir()
    data, chain = Header(ORIGIN, 0, FIRST_CHAIN, 1).frame()
    framed, chain = frame(chain, Record(0, 1, RecordKind.START, {}).body())
    (folder / f"{0:016d}.log").write_bytes(data + framed)
    (folder / f"{1:016d}.log").write_bytes(Header(ORIGIN, 1, chain, 1).frame()[0])


def went_on(folder: Path, disk: Disk) -> list[Record]:
    """Starts, records one thing and ends; returns all records."""
    listener = Listener(lambda _: None, snapshot=lambda: {"told": 1})
    log = small_log(folder, origin=ORIGIN, listeners=[listener], disk=disk)
    try:
        log.append(RecordKind.TOKEN, {})
        return log.records(0, log.size)
    finally:
        log.close()


@pytest.mark.parametrize("prepare", [written_before, torn, begun])
def test_a_log_of_an_older_version_is_continued_after_each_loss_of_power(
    tmp_path: Path, prepare: Callable[[Path], None]
) -> None:
    refused = 0
    for off_at in count():
        for seed in range(LOSSES):
            folder = tmp_path / f"{off_at}-{seed}"
            prepare(folder)
            before = [path.read_bytes() for path in sorted(folder.glob("*.log"))]
            disk = PowerDisk(off_at)
            try:
                went_on(folder, disk)
            except (AuditRefused, AuditUnavailable):
                assert disk.off
            if not disk.off:
                assert off_at > 5
                assert refused < off_at * LOSSES / 4
                return
            hole = disk.lose(Random(seed).randrange)
            try:
                found = went_on(folder, Disk())
            except AuditRefused:  # a disk that wrote later bytes before earlier ones
                assert hole
                refused += 1
                continue
            assert [record.seq for record in found] == list(range(len(found)))
            assert verify_log(folder, ORIGIN, []).problems == ()
            segments = list_segments(folder)
            for segment, data in zip(segments, before, strict=False):
                if segment is not segments[-1]:
                    assert segment.path.read_bytes().startswith(data.removesuffix(b"torn"))
            with open_segment(segments[-1]) as (header, _):
                assert header.version == VERSION
            kinds = [record.kind for record in found]
            assert (RecordKind.RECOVERY in kinds) or prepare is not torn

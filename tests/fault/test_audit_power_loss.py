"""Losses of power and kills, again and again: what was acknowledged is in the log afterwards."""

import shutil
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any, cast

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from signer.audit.format.checkpoint import Checkpoint
from signer.audit.format.record import Column, Record, RecordKind
from signer.audit.read.verify import verify_log
from signer.audit.write.disk import Disk
from signer.audit.write.inbox import AuditUnavailable, Entry
from signer.audit.write.log import AuditLog, Listener
from signer.audit.write.recovery import AuditRefused
from tests.fault.audit_disk import PowerDisk
from tests.stand_ins import small_log

ORIGIN = "signer.example/log"


@dataclass(frozen=True)
class Life:
    """One life of the process: what it does, at which call it ends, and whether by power."""

    steps: tuple[str, ...]
    ends_at: int
    power: bool


@dataclass
class World:
    """What callers know: the records they were answered for, by number, and a checkpoint."""

    folder: Path
    acknowledged: dict[int, int] = field(default_factory=dict)
    checkpoint: Checkpoint | None = None
    marker: int = 0

    def open(self, disk: Disk) -> AuditLog:
        counted = Fold()
        return small_log(
            self.folder,
            origin=ORIGIN,
            segment_bytes=1500,
            checkpoints=[self.checkpoint] if self.checkpoint else [],
            listeners=[Listener(counted.record, snapshot=lambda: {"records": counted.records})],
            disk=disk,
        )

    def append(self, log: AuditLog, kind: RecordKind, **fields: int) -> int:
        self.marker += 1
        marker = self.marker
        column = Column(32, bytes(32 * 3)) if kind is RecordKind.INTENT else None
        seq = log.append(kind, {"marker": marker, **fields}, column)
        self.acknowledged[seq] = marker
        return seq

    def step(self, log: AuditLog, name: str) -> None:
        match name:
            case "sign":
                intent = self.append(log, RecordKind.INTENT)
                self.append(log, RecordKind.OUTCOME, intent=intent)
            case "intent":
                self.append(log, RecordKind.INTENT)
            case "group":  # one commit of many records, and more than a page
                log.submit(Entry(RecordKind.DENIALS, {"padding": bytes(900)}) for _ in range(6))
                self.append(log, RecordKind.TOKEN)
            case _:
                self.checkpoint = Checkpoint(ORIGIN, *log.tree_head())


class Fold:
    """Counts the records, by snapshots too."""

    def __init__(self) -> None:
        self.records = 0

    def record(self, record: Record) -> None:
        told = record.fields.get("records")
        self.records = told if isinstance(told, int) else self.records + 1


steps = st.lists(st.sampled_from(["sign", "intent", "group", "checkpoint"]), max_size=12)
lives = st.builds(Life, steps.map(tuple), st.integers(0, 60), st.booleans())


def live(world: World, life: Life, disk: PowerDisk) -> bool:
    """One life, up to its end by fault or after its last step; whether it came to open the log."""
    try:
        log = world.open(disk)
    except AuditRefused:
        if disk.off:
            return False
        raise
    try:
        for step in life.steps:
            world.step(log, step)
    except AuditUnavailable:
        assert disk.off
        assert log.refusal
    finally:
        log.close()
    return True


def check_lives(folder: Path, histories: list[Life], seed: int) -> None:
    """Lives one life after the other; then everything acknowledged must be there."""
    shutil.rmtree(folder, ignore_errors=True)
    world, random = World(folder), Random(seed)  # only chooses damage
    disk: PowerDisk | None = None
    hole = False
    for life in histories:
        if disk is None:
            disk = PowerDisk(life.ends_at)
        else:
            disk.restart(life.ends_at)
        try:
            hole = not live(world, life, disk) and hole
        except AuditRefused as refused:
            check_refusal(world, refused, hole=hole)
            return
        if life.power:
            hole = disk.lose(random.randrange) or hole
            disk = None
    try:
        log = world.open(Disk())
    except AuditRefused as refused:
        check_refusal(world, refused, hole=hole)
        return
    event("recovered")
    try:
        for seq, marker in world.acknowledged.items():
            [record] = log.records(seq, 1)
            assert record.fields["marker"] == marker
        check_kept_aside(folder, log)
    finally:
        log.close()
    known = [world.checkpoint] if world.checkpoint else []
    report = verify_log(folder, ORIGIN, known)
    assert report.problems == ()
    assert report.records == log.size
    assert report.open_intents == 0


def check_kept_aside(folder: Path, log: AuditLog) -> None:
    """What recovery cut off is where the log says, byte for byte."""
    for record in log.records(0, log.size):
        if record.kind is RecordKind.RECOVERY:
            told = cast("list[dict[str, Any]]", record.fields["cut"])
            assert told
            for file in told:
                content = (folder / file["file"]).read_bytes()
                assert (len(content), sha256(content).digest()) == (file["bytes"], file["sha256"])


def check_refusal(world: World, refused: AuditRefused, *, hole: bool) -> None:
    """Only a hole may be refused, and nothing that was acknowledged is touched by that."""
    event("refused")
    assert hole
    assert "frames follow" in str(refused)
    log = small_log(
        world.folder,
        origin=ORIGIN,
        checkpoints=[world.checkpoint] if world.checkpoint else [],
        override=True,
    )
    try:
        for seq, marker in world.acknowledged.items():
            [record] = log.records(seq, 1)
            assert record.fields["marker"] == marker
    finally:
        log.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("power") / "audit"


histories = given(st.lists(lives, min_size=1, max_size=4), st.integers(0, 1 << 32))


@histories
@settings(max_examples=60, deadline=None)
def test_nothing_acknowledged_is_lost(folder: Path, lives: list[Life], seed: int) -> None:
    check_lives(folder, lives, seed)


@pytest.mark.torture
@histories
@settings(max_examples=5000, deadline=None)
def test_nothing_acknowledged_is_lost_in_5000_histories(
    folder: Path, lives: list[Life], seed: int
) -> None:
    check_lives(folder, lives, seed)


@pytest.mark.parametrize("killed_at", range(2, 14))
def test_what_a_start_has_read_survives_the_next_loss(tmp_path: Path, killed_at: int) -> None:
    """A killed writer leaves records to the page cache; who reads them relies on them."""
    world, disk = World(tmp_path / "audit"), PowerDisk(killed_at)
    live(world, Life(("group", "sign", "sign"), killed_at, power=False), disk)
    disk.restart(1000)
    log = world.open(disk)
    told = log.records(0, log.size)
    log.close()
    disk.lose(lambda _: 0)  # all that was never synced is dropped
    log = world.open(Disk())
    assert log.records(0, len(told)) == told
    log.close()

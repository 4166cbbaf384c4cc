"""The log's writer: order, group commit, segments, readers, opening again."""

import struct
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from signer.audit.format import merkle
from signer.audit.format.batch_records import indeterminate
from signer.audit.format.checkpoint import Checkpoint
from signer.audit.format.record import MAX_BODY, Column, Fields, Record, RecordError, RecordKind
from signer.audit.format.segments import list_segments
from signer.audit.read.reader import Index, Reader
from signer.audit.read.verify import verify_log
from signer.audit.write.disk import Disk
from signer.audit.write.inbox import AuditUnavailable, Entry
from signer.audit.write.log import LOOK_SECONDS, AuditLog, Listener, LogHooks
from signer.audit.write.recovery import AuditRefused, open_audit_log
from tests.stand_ins import GatedDisk, SetClock

ORIGIN = "signer.example/log"
DIGESTS = Column(32, sha256(b"a").digest() + sha256(b"b").digest())
SIGNATURES = Column(64, bytes(128))


class CountingDisk(Disk):
    def __init__(self) -> None:
        self.syncs = 0
        self.free = 1 << 40

    def sync(self, descriptor: int) -> None:
        self.syncs += 1
        super().sync(descriptor)

    def free_bytes(self, path: Path) -> int:  # noqa: ARG002  # one disk for all paths
        return self.free


Opener = Callable[..., AuditLog]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "audit"


@pytest.fixture
def opened(folder: Path) -> Iterator[Opener]:
    """Opens the log in ``folder``; closes it, if the test has not, at the end."""
    logs: list[AuditLog] = []

    def open_log(**changes: Any) -> AuditLog:
        usual: dict[str, Any] = {
            "origin": ORIGIN,
            "clock": SetClock(),
            "low_disk_bytes": 0,
            "ballast_bytes": 0,
            "disk": CountingDisk(),
        }
        logs.append(open_audit_log(folder, **(usual | changes)))
        return logs[-1]

    yield open_log
    for log in logs:
        log.close()


def sign(log: AuditLog, number: int = 0) -> tuple[int, int]:
    """Appends an intent and its outcome; returns their numbers."""
    intent = log.append(
        RecordKind.INTENT, {"principal": "spiffe://signer.example/a", "now": number}, DIGESTS
    )
    outcome = log.append(
        RecordKind.OUTCOME, {"intent": intent, "attempts": 1, "failures": {}}, SIGNATURES
    )
    return intent, outcome


def signed(opened: Opener, count: int, **changes: Any) -> AuditLog:
    """Opens a log, signs so often and closes it."""
    log = opened(**changes)
    for number in range(count):
        sign(log, number)
    log.close()
    return log


def whole(folder: Path, *checkpoints: Checkpoint) -> bool:
    report = verify_log(folder, ORIGIN, checkpoints)
    assert report.problems == ()
    return report.whole


def head(log: AuditLog) -> Checkpoint:
    return Checkpoint(ORIGIN, *log.tree_head())


# Order


def test_sequence_numbers_follow_each_other_from_zero(opened: Opener, folder: Path) -> None:
    log = opened()
    assert [log.append(RecordKind.START, {"pid": n}) for n in range(5)] == [0, 1, 2, 3, 4]
    assert log.size == 5
    assert [record.fields["pid"] for record in log.records(0, 100)] == [0, 1, 2, 3, 4]
    assert whole(folder, head(log))


def test_64_threads_get_distinct_numbers_and_one_chain(opened: Opener, folder: Path) -> None:
    log, disk = opened(disk=(counting := CountingDisk())), counting
    got: list[list[int]] = [[] for _ in range(64)]

    def work(mine: list[int]) -> None:
        for number in range(10):
            mine.extend(sign(log, number))

    threads = [threading.Thread(target=work, args=(mine,)) for mine in got]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    numbers = sorted(number for mine in got for number in mine)
    assert numbers == list(range(64 * 20))
    assert all(mine == sorted(mine) for mine in got)
    assert disk.syncs < len(numbers)  # many waited for one
    assert whole(folder, head(log))
    assert log.open_intents == 0


def test_time_never_goes_back(opened: Opener) -> None:
    clock = SetClock()
    log = opened(clock=clock)
    log.append(RecordKind.START, {})
    clock.time -= 3600
    log.append(RecordKind.TOKEN, {})
    clock.time += 7200
    log.append(RecordKind.TOKEN, {})
    first, second, third = (record.time_us for record in log.records(0, 3))
    assert first == second < third


def test_root_is_that_of_the_leaves(opened: Opener) -> None:
    log = opened(segment_bytes=600)
    for number in range(12):
        sign(log, number)
        leaves = log.leaf_hashes(0, log.size)
        assert len(leaves) == log.size
        assert merkle.root(leaves) == log.tree_head()[1]
    assert log.leaf_hashes(5, 9) == leaves[5:9]
    assert [record.leaf_hash() for record in log.records(0, 99)] == leaves


# Group commit


def test_a_slow_sync_holds_up_and_then_covers_all_that_came(opened: Opener, folder: Path) -> None:
    disk = GatedDisk()
    log = opened(disk=disk)
    done: list[int] = []
    threads = [
        threading.Thread(target=lambda: done.append(log.append(RecordKind.TOKEN, {})))
        for _ in range(20)
    ]
    disk.gate.clear()
    threads[0].start()
    assert disk.waiting.wait(30)
    for thread in threads[1:]:
        thread.start()
    while len(log._inbox._queue) < 19:
        threading.Event().wait(0.001)
    assert not done  # nobody is answered before the sync
    assert log.size == 0
    assert log.leaf_hashes(0, 10) == []
    assert log.refusal == ""  # slow is not failed
    assert log.committing_since == SetClock().now()

    before = disk.syncs
    disk.gate.set()
    for thread in threads:
        thread.join()
    assert sorted(done) == list(range(20))
    assert disk.syncs - before == 2  # the first one's, and one for the other 19
    assert log.committing_since == 0
    assert whole(folder, head(log))


def test_a_note_does_not_wait_and_is_written_before_what_follows(opened: Opener) -> None:
    disk = GatedDisk()
    log = opened(disk=disk)
    disk.gate.clear()
    log.note(RecordKind.DENIALS, {"refused": 3})
    assert disk.waiting.wait(30)
    assert log.size == 0
    disk.gate.set()
    assert log.append(RecordKind.STOP, {}) == 1
    assert [record.kind for record in log.records(0, 9)] == [RecordKind.DENIALS, RecordKind.STOP]


def test_close_writes_what_was_handed_over(opened: Opener, folder: Path) -> None:
    log = opened()
    for number in range(100):
        log.note(RecordKind.WORKER, {"number": number})
    log.close()
    assert verify_log(folder, ORIGIN, []).kinds == {RecordKind.WORKER: 100}
    with pytest.raises(AuditUnavailable, match="closed"):
        log.append(RecordKind.START, {})


def test_nothing_is_durable_in_a_file_that_was_lost_meanwhile(opened: Opener) -> None:
    disk = GatedDisk()
    log = opened(disk=disk)
    disk.gate.clear()
    told = Told()
    log.submit([entry := told.intent()])
    assert disk.waiting.wait(30)
    log._fail((), "its file is not at its path")
    disk.gate.set()
    told.wait()
    assert isinstance(entry.error, AuditUnavailable)
    assert "its file is not at its path" in log.refusal
    assert log.size == 0


def test_a_mistake_in_staging_stops_the_log_and_its_end_does_not_wait(
    opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = opened()

    def broken(*_: object) -> None:
        log._handed.put(None)  # as `close` does at this moment
        raise KeyError("a mistake of ours")

    monkeypatch.setattr(log._tail, "stage", broken)
    with pytest.raises(AuditUnavailable, match="internal error: KeyError"):
        log.append(RecordKind.TOKEN, {})
    assert log.committing_since == 0
    with pytest.raises(AuditUnavailable, match="internal error"):
        log.append(RecordKind.TOKEN, {})
    log.close()


# Without waiting


class Told:
    """Waits for entries as an event loop does: told in another thread, once a commit."""

    def __init__(self) -> None:
        self.calls: list[list[Entry]] = []
        self._some = threading.Semaphore(0)

    def finished(self, entries: Sequence[Entry]) -> None:
        self.calls.append(list(entries))
        self._some.release()

    def wait(self) -> list[Entry]:
        """Returns the entries of the next call."""
        assert self._some.acquire(timeout=30)
        return self.calls[-1]

    def intent(self) -> Entry:
        return Entry(RecordKind.INTENT, {"principal": "a"}, DIGESTS, finished=self.finished)


@pytest.fixture
def slow(opened: Opener) -> tuple[AuditLog, GatedDisk]:
    """A log whose writer hangs in a commit of one record."""
    disk = GatedDisk()
    log = opened(disk=disk)
    disk.gate.clear()
    log.note(RecordKind.TOKEN, {})
    assert disk.waiting.wait(30)
    return log, disk


def ends(log: AuditLog) -> list[tuple[RecordKind, Any, Any]]:
    """Closes a log; returns its records from number 1 on, with what those of an end say."""
    log.close()
    return [
        (record.kind, record.fields.get("intent"), record.fields.get("reason"))
        for record in log.records(1, 99)
    ]


def test_submitted_records_are_told_once_a_commit(slow: tuple[AuditLog, GatedDisk]) -> None:
    log, disk = slow
    told, other = Told(), Told()
    entries = [told.intent(), other.intent(), told.intent()]
    wrong = Entry(RecordKind.OUTCOME, {"intent": 0}, finished=told.finished)
    assert log.submit([*entries, wrong]) == []
    disk.gate.set()
    assert told.wait() == [entries[0], entries[2], wrong]
    assert other.wait() == [entries[1]]
    assert [entry.seq for entry in (*entries, wrong)] == [1, 2, 3, -1]
    assert isinstance(wrong.error, RecordError)
    log.append(RecordKind.STOP, {})
    assert (len(told.calls), len(other.calls)) == (1, 1)


def test_a_waiter_that_raises_does_not_stop_the_log(opened: Opener) -> None:
    errors: list[Exception] = []

    def broken(_: Sequence[Entry]) -> None:
        raise KeyError("a mistake of ours")

    log = opened(hooks=LogHooks(on_error=errors.append))
    log.submit([Entry(RecordKind.TOKEN, {}, finished=broken)])
    assert log.append(RecordKind.STOP, {}) == 1
    assert log.refusal == ""
    assert [type(error) for error in errors] == [KeyError]


def test_an_abandoned_intent_is_withdrawn_before_it_is_begun(
    slow: tuple[AuditLog, GatedDisk], folder: Path
) -> None:
    log, disk = slow
    told = Told()
    gone, other = told.intent(), told.intent()
    log.submit([gone, other])
    log.abandon(gone, "CANCELLED")
    disk.gate.set()
    assert [entry for entry in told.wait() if entry.error is None] == [other]
    assert ends(log) == [(RecordKind.INTENT, None, None)]
    assert len(told.calls) == 1
    assert whole(folder, head(log))


def test_an_abandoned_intent_is_closed_when_it_is_durable(opened: Opener, folder: Path) -> None:
    disk, told = GatedDisk(), Told()
    log = opened(disk=disk)
    disk.gate.clear()
    gone, again = told.intent(), told.intent()
    log.submit([gone])
    assert disk.waiting.wait(30)
    log.abandon(gone, "CANCELLED")
    log.submit([again])  # its caller repeats it
    disk.gate.set()
    while told.wait() != [again]:
        pass
    assert (gone.seq, again.seq) == (0, 2)
    assert ends(log)[:1] == [(RecordKind.INDETERMINATE, 0, "CANCELLED")]
    assert log.open_intents == 1
    assert whole(folder, head(log))


def test_a_durable_intent_that_is_abandoned_is_closed(opened: Opener) -> None:
    log, told = opened(), Told()
    gone, failed = told.intent(), told.intent()
    log.submit([gone])
    told.wait()
    log.abandon(gone, "CANCELLED")
    log.submit([failed])
    told.wait()
    for reason in ("HSM_UNAVAILABLE", "INTERNAL"):  # it is closed once
        log.submit([Entry(RecordKind.INDETERMINATE, indeterminate(failed.seq, reason))])
    assert [end for end in ends(log) if end[0] is not RecordKind.INTENT] == [
        (RecordKind.INDETERMINATE, gone.seq, "CANCELLED"),
        (RecordKind.INDETERMINATE, failed.seq, "HSM_UNAVAILABLE"),
    ]
    log.abandon(gone, "CANCELLED")  # nothing is recorded any more, and nobody is disturbed
    late = told.intent()
    assert log.submit([late]) == [late]
    assert isinstance(late.error, AuditUnavailable)


# What cannot be recorded


def test_what_a_record_cannot_hold_is_refused_alone(opened: Opener, folder: Path) -> None:
    log = opened()
    wrong: list[tuple[RecordKind, Mapping[str, Any], str]] = [
        (RecordKind.START, {"seq": 7}, "name that is reserved for the head"),
        (RecordKind.START, {"load": 0.5}, "float"),
        (RecordKind.OUTCOME, {"intent": 0}, "closes an intent that is not open"),
        (RecordKind.INDETERMINATE, {}, "closes an intent that is not open"),
    ]
    for kind, fields, text in wrong:
        with pytest.raises(RecordError, match=text):
            log.append(kind, fields)
    assert log.append(RecordKind.START, {}) == 0
    assert whole(folder, head(log))


def test_an_outcome_closes_its_intent_once(opened: Opener) -> None:
    log = opened()
    intent, _ = sign(log)
    with pytest.raises(RecordError, match="closes an intent that is not open"):
        log.append(RecordKind.OUTCOME, {"intent": intent})


def test_a_note_is_refused_where_it_could_not_be_recorded(opened: Opener) -> None:
    log = opened()
    with pytest.raises(RecordError, match="float"):
        log.note(RecordKind.DENIALS, {"share": 0.5})  # type: ignore[dict-item]
    with pytest.raises(RecordError, match="appended"):
        log.note(RecordKind.INTENT, {})


# Segments


def test_segments_link_and_every_record_is_found(opened: Opener, folder: Path) -> None:
    log = signed(opened, 40, segment_bytes=1000)
    segments = list_segments(folder)
    assert len(segments) > 5
    assert whole(folder, head(log))
    for seq in range(0, log.size, 7):
        [record] = log.records(seq, 1)
        assert record.seq == seq
    assert [record.seq for record in log.records(3, 30)] == list(range(3, 33))


def test_a_log_goes_on_where_it_ended(opened: Opener, folder: Path) -> None:
    for _ in range(4):
        signed(opened, 2, segment_bytes=700)
    log = opened()
    assert log.size == 16
    assert whole(folder, head(log))


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: b"\1" + data[1:], None])
def test_a_damaged_or_missing_index_is_made_anew(
    opened: Opener, folder: Path, damage: Callable[[bytes], bytes] | None
) -> None:
    log = signed(opened, 20, segment_bytes=1000)
    leaves = log.leaf_hashes(0, log.size)
    path = list_segments(folder)[1].index_path
    good = path.read_bytes()
    path.unlink() if damage is None else path.write_bytes(damage(good))
    reader = Reader(list_segments(folder))
    assert reader.leaf_hashes(0, reader.size) == leaves
    assert [record.seq for record in reader.records(0, reader.size)] == list(range(40))
    assert path.read_bytes() == good


def test_an_index_of_something_else_finds_no_wrong_record(opened: Opener, folder: Path) -> None:
    signed(opened, 20, segment_bytes=1000)
    segments = list_segments(folder)
    index = Index.decode(segments[0].index_path.read_bytes())
    lie = Index()
    for place in range(len(index)):
        lie.append(index.offset(len(index) - 1 - place), index.leaves(place, place + 1)[0])
    lie.save(segments[0])
    with pytest.raises(RecordError, match="is in the position of record 0"):
        list(Reader(segments).records(0, 1))


def test_what_was_archived_is_said_to_be(opened: Opener, folder: Path) -> None:
    signed(opened, 20, segment_bytes=1000)
    first, second, *_ = list_segments(folder)
    first.path.unlink()
    reader = Reader(list_segments(folder))
    with pytest.raises(LookupError, match="archived"):
        list(reader.records(0, 1))
    [record] = reader.records(second.first, second.first + 1)
    assert record.seq == second.first
    with pytest.raises(LookupError, match="not in the log"):
        reader.leaf_hashes(0 + reader.size, reader.size + 1)


# Listeners and snapshots


class Count:
    """The smallest fold: how many records there were, and the numbers it was shown."""

    def __init__(self) -> None:
        self.heard: list[Record] = []
        self.total = 0

    def record(self, record: Record) -> None:
        self.heard.append(record)
        if record.kind is RecordKind.SNAPSHOT:
            total = record.fields["total"]
            assert isinstance(total, int)
            self.total = total
        else:
            self.total += 1

    def snapshot(self) -> Mapping[str, Any]:
        return {"total": self.total}

    def folding(self) -> Listener:
        return Listener(self.record, snapshot=self.snapshot)


def test_a_fold_hears_every_record_once_before_its_author_goes_on(opened: Opener) -> None:
    count, commits = Count(), list[int]()
    log = opened(
        listeners=[Listener(count.record)],
        hooks=LogHooks(on_commit=lambda commit: commits.append(commit.records)),
    )
    for number in range(10):
        seq = log.append(RecordKind.TOKEN, {"number": number})
        assert count.heard[-1].seq == seq
    assert [record.seq for record in count.heard] == list(range(10))
    assert commits == [1] * 10
    log.close()
    again = Count()
    opened(listeners=[Listener(again.record)])
    assert again.heard == count.heard


def test_listeners_get_the_kinds_they_want_side_by_side_and_add_to_one_snapshot(
    opened: Opener, folder: Path
) -> None:
    every, intents = Count(), Count()
    some = Listener(intents.record, frozenset({RecordKind.INTENT}), lambda: {"intents": 1})
    log = opened(segment_bytes=1, listeners=[every.folding(), some])
    sign(log)
    log.append(RecordKind.TOKEN, {})
    log.close()
    assert [record.seq for record in every.heard] == [0, 2, 4]  # the others are snapshots
    assert [record.seq for record in intents.heard] == [0]
    [snapshot] = Reader(list_segments(folder)).records(1, 2)
    assert (snapshot.fields["total"], snapshot.fields["intents"]) == (1, 1)
    again = Count()
    opened(listeners=[Listener(again.record, frozenset({RecordKind.OUTCOME}))])
    assert again.heard == [every.heard[1]]


def test_opening_starts_at_the_newest_snapshot_under_the_checkpoint(
    opened: Opener, folder: Path
) -> None:
    count = Count()
    log = signed(opened, 30, segment_bytes=1000, listeners=[count.folding()])
    checkpoint, total = head(log), count.total

    resumed = Count()
    log = opened(checkpoints=[checkpoint], listeners=[resumed.folding()])
    assert resumed.total == total
    assert resumed.heard[0].kind is RecordKind.SNAPSHOT
    assert resumed.heard[0].seq == list_segments(folder)[-1].first
    assert len(resumed.heard) < 10
    assert log.tree_head() == (checkpoint.size, checkpoint.root)
    sign(log)
    assert whole(folder, checkpoint, head(log))


def test_the_smallest_of_several_checkpoints_decides_where_opening_starts(
    opened: Opener, folder: Path
) -> None:
    count = Count()
    log = opened(segment_bytes=1000, listeners=[count.folding()])
    known = []
    for number in range(30):
        sign(log, number)
        if number in {14, 29}:
            known.append(head(log))
    log.close()
    resumed = Count()
    opened(checkpoints=known, listeners=[Listener(resumed.record)]).close()
    behind = [segment.first for segment in list_segments(folder) if segment.first < known[0].size]
    assert resumed.heard[0].seq == behind[-1] > 0
    assert resumed.total == count.total
    wrong = Checkpoint(ORIGIN, known[0].size, bytes(32))
    with pytest.raises(AuditRefused, match=f"a checkpoint of {wrong.size} records has another"):
        opened(checkpoints=[wrong, known[1]])
    with pytest.raises(AuditRefused, match=f"two checkpoints of {wrong.size} records"):
        opened(checkpoints=[wrong, known[0]])


def test_a_snapshot_beyond_the_checkpoint_is_not_believed(opened: Opener, folder: Path) -> None:
    count = Count()
    log = opened(segment_bytes=1000, listeners=[count.folding()])
    sign(log)
    checkpoint = head(log)
    for number in range(30):
        sign(log, number)
    log.close()
    resumed = Count()
    opened(checkpoints=[checkpoint], listeners=[Listener(resumed.record)])
    assert resumed.heard[0].seq == 0
    assert resumed.total == count.total
    assert len(list_segments(folder)) > 3


def test_open_intents_survive_a_snapshot(opened: Opener) -> None:
    count = Count()
    log = opened(segment_bytes=500, listeners=[count.folding()])
    early = log.append(RecordKind.INTENT, {"principal": "a"}, DIGESTS)
    for number in range(10):
        sign(log, number)
    checkpoint = head(log)
    log.close()
    log = opened(checkpoints=[checkpoint], segment_bytes=500)
    [closing] = log.records(checkpoint.size, 9)
    assert (closing.kind, closing.fields) == (RecordKind.INDETERMINATE, {"intent": early})


def test_archived_segments_need_a_snapshot_and_a_checkpoint(opened: Opener, folder: Path) -> None:
    count = Count()
    checkpoint = head(signed(opened, 30, segment_bytes=1000, listeners=[count.folding()]))
    *older, last = list_segments(folder)
    for segment in older:
        segment.path.unlink()
    unproven = f"begins with a snapshot at {last.first}, which no checkpoint proves"
    with pytest.raises(AuditRefused, match=unproven):
        opened()
    log = opened(checkpoints=[checkpoint])
    assert log.size == checkpoint.size


def _large() -> Fields:
    return {"state": bytes(MAX_BODY)}


def _fails() -> Fields:
    raise struct.error("argument out of range")


@pytest.mark.parametrize("snapshot", [_large, _fails])
def test_a_snapshot_that_cannot_be_written_stops_nothing_and_is_told(
    opened: Opener, folder: Path, snapshot: Callable[[], Fields]
) -> None:
    told: list[str] = []
    listener = Listener(lambda _: None, snapshot=snapshot)
    hooks = LogHooks(on_problem=told.append)
    log = signed(opened, 10, segment_bytes=500, listeners=[listener], hooks=hooks)
    assert len(list_segments(folder)) > 1
    assert whole(folder, head(log))
    assert log.without_snapshot
    assert len(told) == len(list_segments(folder)) - 1
    assert all("begins without a snapshot" in text for text in told)


def test_the_next_snapshot_that_can_be_written_ends_the_alarm(opened: Opener) -> None:
    fails = [True]
    listener = Listener(lambda _: None, snapshot=lambda: _fails() if fails[0] else {})
    log = opened(segment_bytes=500, listeners=[listener])
    for number in range(10):
        sign(log, number)
    assert log.without_snapshot
    fails[0] = False
    for number in range(10):
        sign(log, number)
    assert not log.without_snapshot


def test_a_listener_that_fails_stops_the_log(opened: Opener) -> None:
    stopped: list[str] = []
    thrown: list[type[BaseException]] = []

    def broken(_: Record) -> None:
        raise KeyError("a mistake of ours")

    hook, threading.excepthook = threading.excepthook, lambda args: thrown.append(args.exc_type)
    try:
        log = opened(listeners=[Listener(broken)], hooks=LogHooks(on_stop=stopped.append))
        with pytest.raises(AuditUnavailable, match="internal error: KeyError"):
            log.append(RecordKind.START, {})
        log.close()
    finally:
        threading.excepthook = hook
    assert stopped == [log.refusal]
    assert thrown == [KeyError]


# Opening


def test_intents_without_an_outcome_are_closed(opened: Opener, folder: Path) -> None:
    log = opened()
    first = log.append(RecordKind.INTENT, {"principal": "a"}, DIGESTS)
    sign(log)
    second = log.append(RecordKind.INTENT, {"principal": "b"}, DIGESTS)
    assert log.open_intents == 2
    log.close()
    log = opened()
    closed = [(record.kind, record.fields) for record in log.records(4, 9)]
    assert closed == [
        (RecordKind.INDETERMINATE, {"intent": first}),
        (RecordKind.INDETERMINATE, {"intent": second}),
    ]
    assert log.open_intents == 0
    assert whole(folder, head(log))


def test_a_directory_has_one_writer(opened: Opener) -> None:
    log = opened()
    with pytest.raises(AuditRefused, match="open in another process"):
        opened()
    sign(log)
    log.close()
    assert opened().size == 2


def test_a_torn_tail_is_cut_kept_aside_and_recorded(opened: Opener, folder: Path) -> None:
    signed(opened, 1)
    [segment] = list_segments(folder)
    torn = b"\0\0\1\0 what an interrupted write leaves"
    with segment.path.open("ab") as file:
        file.write(torn)
    assert not verify_log(folder, ORIGIN, []).whole
    log = opened()
    [record] = log.records(2, 9)
    aside = folder / "0000000000000002-0.torn"
    assert record.kind is RecordKind.RECOVERY
    assert record.fields == {
        "cut": [{"file": aside.name, "bytes": len(torn), "sha256": sha256(torn).digest()}]
    }
    assert aside.read_bytes() == torn
    assert verify_log(folder, ORIGIN, [head(log)]).recovered == (2,)
    assert whole(folder, head(log))


def test_a_log_behind_its_checkpoint_is_refused_unchanged(opened: Opener, folder: Path) -> None:
    checkpoint = head(signed(opened, 2))
    [segment] = list_segments(folder)
    cut = segment.path.read_bytes()[:-10]
    segment.path.write_bytes(cut)
    with pytest.raises(AuditRefused, match="ends after 3 records, but a checkpoint covers 4"):
        opened(checkpoints=[checkpoint])
    assert segment.path.read_bytes() == cut
    assert not list(folder.glob("*.torn"))


def test_a_directory_without_its_log_is_refused_where_a_checkpoint_knows_better(
    opened: Opener, folder: Path
) -> None:
    checkpoint = head(signed(opened, 1))
    list_segments(folder)[0].path.unlink()
    with pytest.raises(AuditRefused, match="ends after 0 records"):
        opened(checkpoints=[checkpoint])


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"checkpoints": [Checkpoint(ORIGIN, 2, bytes(32))]}, "another root"),
        ({"origin": "other.example/log"}, "is from another log"),
    ],
)
def test_another_root_or_origin_is_refused(
    opened: Opener, changes: dict[str, Any], text: str
) -> None:
    assert signed(opened, 1).size == 2
    with pytest.raises(AuditRefused, match=text):
        opened(**changes)


def test_a_missing_segment_is_refused(opened: Opener, folder: Path) -> None:
    signed(opened, 20, segment_bytes=1000)
    middle = list_segments(folder)[2]
    middle.path.unlink()
    with pytest.raises(AuditRefused, match=f"instead of {middle.first}"):
        opened()


def test_an_override_goes_on_keeps_what_it_cut_and_is_recorded(
    opened: Opener, folder: Path
) -> None:
    checkpoint = head(signed(opened, 20, segment_bytes=1000))
    segments = list_segments(folder)
    broken = segments[2]
    data = bytearray(broken.path.read_bytes())
    data[-5] ^= 1
    broken.path.write_bytes(data)
    before = {segment.path.name: segment.path.read_bytes() for segment in segments}

    with pytest.raises(AuditRefused, match="not whole"):
        opened(checkpoints=[checkpoint])
    assert {s.path.name: s.path.read_bytes() for s in list_segments(folder)} == before

    log = opened(checkpoints=[checkpoint], override=True)
    report = verify_log(folder, ORIGIN, [head(log)])
    assert report.whole
    assert len(report.overridden) == 1
    [told] = log.records(report.overridden[0], 1)
    assert f"a checkpoint covers {checkpoint.size}" in str(told.fields["problems"])
    aside = b"".join(path.read_bytes() for path in sorted(folder.glob("*.torn")))
    assert data[-5:] in aside
    assert all(before[segment.path.name] in aside for segment in segments[3:])
    assert verify_log(folder, ORIGIN, [checkpoint]).problems != ()  # an auditor still sees it


def test_an_override_of_nothing_is_not_recorded(opened: Opener) -> None:
    signed(opened, 1)
    assert opened(override=True).size == 2


# Room on the disk


def test_a_low_disk_stops_intents_and_lets_the_rest_be_recorded(
    opened: Opener, folder: Path
) -> None:
    disk, clock = CountingDisk(), SetClock()
    stopped: list[str] = []
    options = {"disk": disk, "clock": clock, "low_disk_bytes": 1 << 20, "ballast_bytes": 1 << 16}
    log = opened(**options, hooks=LogHooks(on_stop=stopped.append))
    ballast = folder / "ballast"
    assert ballast.stat().st_blocks * 512 >= 1 << 16  # it occupies what it promises
    intent = log.append(RecordKind.INTENT, {"principal": "a"}, DIGESTS)

    disk.free = (1 << 20) - 1
    log.append(RecordKind.TOKEN, {})
    assert not stopped, "the room was looked at a moment ago"
    clock.forward(2 * LOOK_SECONDS)
    log.append(RecordKind.TOKEN, {})  # the writer looks
    with pytest.raises(AuditUnavailable, match="bytes free"):
        log.append(RecordKind.INTENT, {"principal": "a"}, DIGESTS)
    assert not ballast.exists()
    log.append(RecordKind.OUTCOME, {"intent": intent, "attempts": 1, "failures": {}}, SIGNATURES)
    log.append(RecordKind.STOP, {})
    assert stopped == [log.refusal]

    disk.free = 1 << 30  # room alone does not resume: a restart does
    with pytest.raises(AuditUnavailable):
        log.append(RecordKind.INTENT, {"principal": "a"}, DIGESTS)
    log.close()

    disk.free = 100
    with pytest.raises(AuditRefused, match="make room"):
        opened(**options)
    disk.free = 1 << 30
    log = opened(**options)
    assert ballast.exists()
    sign(log)
    assert whole(folder, head(log))


class LyingCache(Disk):
    """A sync has failed before: the page cache shows as clean what the disk has not."""

    def __init__(self, path: Path, on_disk: bytes) -> None:
        self._path, self._on_disk = path, on_disk

    def forget(self, descriptor: int) -> None:
        super().forget(descriptor)
        self._path.write_bytes(self._on_disk)


def test_a_start_reads_what_the_disk_has_not_what_the_cache_shows(
    folder: Path, opened: Opener
) -> None:
    log = opened()
    log.append(RecordKind.WORKER, {"number": 0})
    [segment] = list_segments(folder)
    on_disk = segment.path.read_bytes()
    log.append(RecordKind.WORKER, {"number": 1})  # its sync failed, as far as the disk knows
    log.close()
    again = opened(disk=LyingCache(segment.path, on_disk))
    assert again.size == 1
    assert again.append(RecordKind.WORKER, {"number": 2}) == 1
    again.close()
    assert verify_log(folder, ORIGIN, []).problems == ()

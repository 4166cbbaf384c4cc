import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from signer.api import evidence_service as evidence
from signer.api import wire as pages
from signer.api.evidence_service import AT_ONCE, LONGEST_SECONDS, EvidenceService
from signer.api.guard import Caller
from signer.audit.format import merkle
from signer.audit.format.record import Column, Record, RecordKind
from signer.audit.format.segments import list_segments
from signer.audit.read import subtrees
from signer.audit.write.log import Listener
from signer.clock import SystemClock
from signer.errors import CallError, Reason
from signer.model import Role
from signer.v1.evidence_pb2 import (
    GetCheckpointRequest,
    GetConsistencyProofRequest,
    GetInclusionProofRequest,
    ListRecordsRequest,
)
from tests.stand_ins import small_log

CALLER = Caller("spiffe://signer.example/auditor", frozenset({Role.AUDITOR}), 1e9, "id", {})
BATCH = 50


class Clock(SystemClock):
    """The time, and ``ahead`` seconds more."""

    ahead = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.ahead


class Stage:
    """A log of 60 records in several segments, and the service over it."""

    def __init__(self, directory: Path, answer_bytes: int = 4 << 20) -> None:
        self.directory = directory
        self.clock = Clock()
        self.note = "a note"
        self.log = small_log(
            directory,
            origin="signer.example/test",
            clock=self.clock,
            segment_bytes=20_000,
            listeners=[Listener(lambda _: None, snapshot=dict)],
        )
        for number in range(30):
            column = Column(32, bytes(31 * BATCH) + bytes([number]) * BATCH)
            intent = self.log.append(RecordKind.INTENT, {"request_id": ""}, column)
            self.log.append(RecordKind.OUTCOME, {"intent": intent})
        self.service = EvidenceService(
            self.log, lambda: self.note, self.clock, answer_bytes=answer_bytes
        )

    def page(self, **fields: Any) -> Any:
        return self.service.ListRecords(ListRecordsRequest(**fields), CALLER)

    def inclusion(self, seq: int, size: int) -> list[bytes]:
        request = GetInclusionProofRequest(seq=seq, size=size)
        return list(self.service.GetInclusionProof(request, CALLER).hashes)

    def records(self) -> list[Record]:
        return self.log.records(0, self.log.size)


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    made = Stage(tmp_path / "audit")
    assert len(list_segments(made.directory)) > 2
    yield made
    made.log.close()


def refused(call: Any) -> CallError:
    with pytest.raises(CallError) as caught:
        call()
    return caught.value


def test_a_page_ends_before_it_is_too_long(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence, "PAGE_BYTES", 5000)
    seen, token = list[int](), ""
    while True:
        page = stage.page(page_size=1000, page_token=token)
        assert page.ByteSize() < 5200
        assert len(page.records) > 1
        seen += [record.seq for record in page.records]
        token = page.next_page_token
        if not token:
            break
    assert seen == list(range(stage.log.size))


def test_what_is_left_out_counts_for_the_length_of_a_page(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evidence, "PAGE_BYTES", 5000)
    whole, heads = stage.page(), stage.page(omit_items=True)
    assert whole.next_page_token == heads.next_page_token
    for one, other, record in zip(whole.records, heads.records, stage.records(), strict=False):
        items = record.column.data if record.column else b""
        assert (one.items, one.omitted_bytes) == (items, 0)
        assert (other.items, other.omitted_bytes) == (b"", len(items))
        assert one.head == other.head == record.head()


def test_a_record_that_no_answer_holds_comes_without_its_items_or_head(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "audit", answer_bytes=64 << 10)
    longest = (64 << 10) - 8192
    head = stage.log.append(RecordKind.WORKER, {"cause": "x" * longest})
    items = stage.log.append(RecordKind.INTENT, {"request_id": ""}, Column(64, bytes(longest)))
    whole = stage.log.append(RecordKind.WORKER, {"cause": "x" * (longest - 100)})
    found = [stage.page(start=seq).records[0] for seq in (head, items, whole)]
    records = [stage.log.records(seq, 1)[0] for seq in (head, items, whole)]
    stage.log.close()
    assert [bool(each.head) for each in found] == [False, True, True]
    assert [bool(each.items) for each in found] == [False, False, False]
    assert found[0].omitted_bytes == len(records[0].head())
    assert found[1].omitted_bytes == longest - longest % 64
    assert found[2].omitted_bytes == 0
    for each, record in zip(found, records, strict=True):
        assert each.leaf_hash == record.leaf_hash()
        assert each.ByteSize() < 64 << 10


def test_a_filter_looks_at_no_more_than_a_page(stage: Stage) -> None:
    page = stage.page(page_size=10, kinds=["stop"])
    assert (len(page.records), page.next_page_token) == (0, "10")
    wanted = {record.seq for record in stage.records() if record.kind is RecordKind.OUTCOME}
    found, token = set[int](), ""
    while True:
        page = stage.page(page_size=10, kinds=["outcome"], page_token=token)
        found |= {record.seq for record in page.records}
        token = page.next_page_token
        if not token:
            break
    assert found == wanted


def test_before_the_first_checkpoint_it_says_so(stage: Stage) -> None:
    request = GetCheckpointRequest()
    assert stage.service.GetCheckpoint(request, CALLER).note == "a note"
    stage.note = ""
    error = refused(lambda: stage.service.GetCheckpoint(request, CALLER))
    assert error.reason is Reason.AUDIT_UNAVAILABLE
    assert error.retry_after


def test_no_more_calls_than_places(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    leave, at_work, most = threading.Event(), [0], [0]

    def slow(start: int, stop: int) -> Any:
        at_work[0] += 1
        most[0] = max(most[0], at_work[0])
        assert leave.wait(30)
        at_work[0] -= 1
        return [bytes(32)] * (stop - start)

    monkeypatch.setattr(stage.log, "leaf_hashes", slow)
    threads = [threading.Thread(target=stage.inclusion, args=(0, 2)) for _ in range(AT_ONCE)]
    for thread in threads:
        thread.start()
    while stage.service._places._value:
        assert all(thread.is_alive() for thread in threads)
    error = refused(lambda: stage.inclusion(0, 2))
    assert error.reason is Reason.OVERLOADED
    assert error.retry_after
    leave.set()
    for thread in threads:
        thread.join(30)
    assert most == [1]
    monkeypatch.undo()
    assert len(stage.inclusion(0, 2)) == 1


def test_a_long_log_is_hashed_in_several_calls(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subtrees, "SPAN", 4)
    monkeypatch.setattr(evidence, "REST", 0)
    read, real = [0], stage.log.leaf_hashes

    def slow(start: int, stop: int) -> Any:
        stage.clock.ahead += LONGEST_SECONDS / 5
        read[0] += stop - start
        return real(start, stop)

    monkeypatch.setattr(stage.log, "leaf_hashes", slow)
    size, calls = 60, 1
    while True:
        try:
            proof = stage.inclusion(0, size)
        except CallError as error:
            assert error.reason is Reason.OVERLOADED  # the others end the test
            calls += 1
            continue
        break
    leaves = [record.leaf_hash() for record in stage.records()[:size]]
    assert proof == merkle.inclusion_proof(leaves, 0)
    assert calls > 2
    assert read[0] < 2 * size


def test_what_was_archived_meanwhile_is_not_there(stage: Stage) -> None:
    segments = list_segments(stage.directory)
    size, leaves = stage.log.size, [record.leaf_hash() for record in stage.records()]
    assert stage.inclusion(0, size) == merkle.inclusion_proof(leaves, 0)
    segments[0].path.rename(stage.directory / "elsewhere")
    segments[0].index_path.rename(stage.directory / "index")
    error = refused(lambda: stage.page(start=1))
    assert error.reason is Reason.FIELD_INVALID
    assert "archived" in error.message
    oldest = segments[1].first
    assert stage.page().records[0].seq == oldest
    assert stage.page(start=oldest).records[0].seq == oldest
    for seq in range(oldest, size):
        assert stage.inclusion(seq, size) == merkle.inclusion_proof(leaves, seq)


def test_a_damaged_log_is_told(stage: Stage) -> None:
    path = list_segments(stage.directory)[0].path
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    error = refused(lambda: stage.page(page_size=pages.LARGEST_PAGE))
    assert error.reason is Reason.AUDIT_UNAVAILABLE
    assert "audit verify" in error.message


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("size", {"seq": 0, "size": 0}),
        ("size", {"seq": 0, "size": 10_000}),
        ("size", {"seq": 0, "size": -1}),
        ("seq", {"seq": 30, "size": 30}),
        ("seq", {"seq": -1, "size": 30}),
    ],
)
def test_an_inclusion_proof_is_of_a_record_and_a_tree(
    stage: Stage, field: str, fields: dict[str, int]
) -> None:
    error = refused(lambda: stage.inclusion(**fields))
    assert [each.field for each in error.violations] == [field]


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("size", {"old_size": 0, "size": 10_000}),
        ("size", {"old_size": 0, "size": -1}),
        ("old_size", {"old_size": 31, "size": 30}),
        ("old_size", {"old_size": -1, "size": 30}),
    ],
)
def test_a_consistency_proof_is_of_two_trees(
    stage: Stage, field: str, fields: dict[str, int]
) -> None:
    request = GetConsistencyProofRequest(**fields)
    error = refused(lambda: stage.service.GetConsistencyProof(request, CALLER))
    assert [each.field for each in error.violations] == [field]

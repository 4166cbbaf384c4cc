from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from signer.audit.format import merkle
from signer.audit.format.record import Record, RecordError, RecordKind
from signer.audit.read import subtrees
from signer.audit.read.subtrees import Subtrees
from tests.unit.audit.test_merkle import consistency_proof

LARGEST = 300
LEAVES = [merkle.leaf_hash(b"%d" % number) for number in range(LARGEST)]


class Leaves:
    """The leaves from ``first`` on; counts how many were read."""

    def __init__(self, first: int = 0) -> None:
        self.first = first
        self.read = 0
        self.longest = 0

    def __call__(self, start: int, stop: int) -> Sequence[bytes]:
        if start < self.first:
            raise LookupError(f"record {start} is not here")
        self.read += stop - start
        self.longest = max(self.longest, stop - start)
        return LEAVES[start:stop]


@pytest.fixture(params=[1, 2, 8, 64])
def span(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(subtrees, "SPAN", request.param)
    return int(request.param)


def pairs(size: int) -> Iterator[tuple[int, int]]:
    for larger in range(1, size + 1):
        for smaller in range(larger + 1):
            yield smaller, larger


def snapshot(first: int) -> Record:
    """The record that begins a log whose records before ``first`` were archived."""
    frontier = merkle.Frontier()
    for leaf in LEAVES[:first]:
        frontier.append(leaf)
    return Record(first, 0, RecordKind.SNAPSHOT, {"frontier": frontier.to_list(), "open": []})


def test_every_proof_of_every_size_is_that_of_the_tree(span: int) -> None:
    leaves = Leaves()
    tree = Subtrees(leaves)
    for smaller, larger in pairs(70):
        here = LEAVES[:larger]
        assert tree.consistency_proof(smaller, larger) == consistency_proof(here, smaller)
        if smaller < larger:
            assert tree.inclusion_proof(smaller, larger) == merkle.inclusion_proof(here, smaller)
    assert leaves.longest <= span


@given(size=st.integers(1, LARGEST), index=st.integers(0, LARGEST), first=st.integers(0, LARGEST))
def test_what_is_here_is_provable_without_what_was_archived(
    size: int, index: int, first: int
) -> None:
    size = max(size, first)
    index = min(max(index, first), size)
    here = LEAVES[:size]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subtrees, "SPAN", 8)
        tree = Subtrees(Leaves(first), snapshot(first) if first else None)
        assert tree.consistency_proof(index, size) == consistency_proof(here, index)
        if index < size:
            assert tree.inclusion_proof(index, size) == merkle.inclusion_proof(here, index)


def test_what_was_archived_is_not_provable(span: int) -> None:
    del span
    tree = Subtrees(Leaves(150), snapshot(150))
    with pytest.raises(LookupError):
        tree.inclusion_proof(149, 300)
    with pytest.raises(LookupError):
        tree.consistency_proof(149, 300)


def test_the_second_proof_reads_few_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subtrees, "SPAN", 8)
    leaves = Leaves()
    tree = Subtrees(leaves)
    tree.inclusion_proof(0, LARGEST)
    assert leaves.read == LARGEST - 1
    for index in range(LARGEST):
        leaves.read = 0
        tree.inclusion_proof(index, LARGEST)
        assert leaves.read < 3 * 8


def test_what_was_computed_before_a_question_ended_stays_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(subtrees, "SPAN", 8)
    leaves, budget = Leaves(), [5]

    def ended(start: int, stop: int) -> Sequence[bytes]:
        if not budget[0]:
            raise TimeoutError
        budget[0] -= 1
        return leaves(start, stop)

    tree = Subtrees(ended)
    questions = 0
    while True:
        questions += 1
        budget[0] = 5
        try:
            proof = tree.consistency_proof(1, 256)
        except TimeoutError:
            continue
        break
    assert proof == consistency_proof(LEAVES[:256], 1)
    assert questions > 3
    assert leaves.read < 256 + 8 * questions


def test_no_more_roots_are_kept_than_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subtrees, "SPAN", 1)
    monkeypatch.setattr(subtrees, "KEPT", 16)
    tree = Subtrees(Leaves())
    for index in range(0, LARGEST, 7):
        assert tree.inclusion_proof(index, LARGEST) == merkle.inclusion_proof(LEAVES, index)
        assert tree._kept.cache_info().currsize <= 16


@pytest.mark.parametrize(("index", "size"), [(5, 5), (-1, 5), (6, 5)])
def test_a_record_beyond_the_tree_is_refused(index: int, size: int) -> None:
    with pytest.raises(IndexError):
        Subtrees(Leaves()).inclusion_proof(index, size)


def test_an_older_tree_is_not_larger() -> None:
    with pytest.raises(IndexError):
        Subtrees(Leaves()).consistency_proof(6, 5)


@pytest.mark.parametrize(
    "oldest",
    [
        Record(3, 0, RecordKind.START, {}),
        Record(3, 0, RecordKind.SNAPSHOT, {"frontier": [bytes(32)], "open": []}),
        Record(3, 0, RecordKind.SNAPSHOT, {"frontier": "x", "open": []}),
    ],
)
def test_a_log_that_begins_with_no_snapshot_is_refused(oldest: Record) -> None:
    with pytest.raises(RecordError):
        Subtrees(Leaves(3), oldest)

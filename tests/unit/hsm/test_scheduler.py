"""No item is lost or given out twice, and no owner waits long behind a flood."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from signer.algorithms import Algorithm
from signer.hsm.front.scheduler import CHUNK_BYTES, CHUNK_SECONDS, Batch, Chunk, Scheduler
from signer.model import SignJob
from tests.stand_ins import key_version

COSTS = {Algorithm.ES256: 5e-5, Algorithm.EDDSA: 1e-4, Algorithm.PS256: 2e-3, Algorithm.ES384: 0.02}


def cost(job: SignJob) -> float:
    return COSTS[job.version.algorithm]


def job(
    owner: str,
    inputs: int | Sequence[bytes],
    *,
    algorithm: Algorithm = Algorithm.ES256,
    weight: int = 1,
) -> Batch:
    version = key_version(algorithm=algorithm)
    column = [bytes(32)] * inputs if isinstance(inputs, int) else inputs
    return Batch(SignJob(version, column, owner, weight, 1, 0.0), 0.0)


def drain(scheduler: Scheduler) -> list[Chunk]:
    chunks = []
    while (chunk := scheduler.take()) is not None:
        chunks.append(chunk)
    return chunks


def seconds(chunk: Chunk) -> float:
    return len(chunk) * cost(chunk.batch.job)


class EveryItemOnce(RuleBasedStateMachine):
    """The model: for each job, where each of its items is."""

    jobs = Bundle("jobs")
    taken = Bundle("taken")

    @initialize()
    def start(self) -> None:
        self.scheduler = Scheduler(cost)
        self.waiting: Counter[tuple[int, int]] = Counter()
        self.known: list[Batch] = []

    def items(self, chunk: Chunk) -> list[tuple[int, int]]:
        number = next(i for i, each in enumerate(self.known) if each is chunk.batch)
        return [(number, item) for item in range(chunk.start, chunk.stop)]

    @rule(
        target=jobs,
        owner=st.sampled_from("abc"),
        algorithm=st.sampled_from(sorted(COSTS)),
        weight=st.integers(1, 4),
        count=st.integers(1, 400),
    )
    def add(self, owner: str, algorithm: Algorithm, weight: int, count: int) -> Batch:
        batch = job(owner, count, algorithm=algorithm, weight=weight)
        self.known.append(batch)
        self.waiting.update((len(self.known) - 1, item) for item in range(count))
        self.scheduler.add(batch)
        return batch

    @rule(target=taken)
    def take(self) -> Any:
        chunk = self.scheduler.take()
        assert (chunk is None) == (not self.waiting), "work waits and none is given"
        if chunk is not None:
            for item in self.items(chunk):
                assert self.waiting.pop(item, 0) == 1, "an item is given out twice"
        return chunk

    @rule(chunk=consumes(taken))
    def give_back(self, chunk: Chunk | None) -> None:
        if chunk is not None:
            self.scheduler.give_back(chunk)
            self.waiting.update(self.items(chunk))

    @rule(wanted=jobs)
    def remove(self, wanted: Batch) -> None:
        for chunk in self.scheduler.remove(lambda batch: batch is wanted):
            assert chunk.batch is wanted
            for item in self.items(chunk):
                assert self.waiting.pop(item, 0) == 1, "an item is removed twice"
        assert not any(self.known[number] is wanted for number, _ in self.waiting)

    @invariant()
    def counts_agree(self) -> None:
        assert self.scheduler.items == self.waiting.total()
        assert sum(each.items for each in self.scheduler.waiting()) == self.waiting.total()

    def teardown(self) -> None:
        for chunk in drain(self.scheduler):
            for item in self.items(chunk):
                assert self.waiting.pop(item, 0) == 1
        assert not self.waiting, "an item is lost"


TestEveryItemOnce = EveryItemOnce.TestCase
TestEveryItemOnce.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@given(
    st.lists(st.integers(0, 3 * CHUNK_BYTES // 2), min_size=1, max_size=30),
    st.sampled_from([Algorithm.EDDSA, Algorithm.ES384]),
)
def test_chunks_are_bounded_in_time_and_bytes(sizes: list[int], algorithm: Algorithm) -> None:
    scheduler = Scheduler(cost)
    scheduler.add(job("a", [bytes(size) for size in sizes], algorithm=algorithm))
    chunks = drain(scheduler)
    assert [item for chunk in chunks for item in range(chunk.start, chunk.stop)] == [
        *range(len(sizes))
    ]
    for chunk in chunks:
        assert len(chunk) >= 1
        inputs = chunk.batch.job.inputs[chunk.start : chunk.stop]
        if len(chunk) > 1:
            assert seconds(chunk) <= CHUNK_SECONDS
            assert sum(map(len, inputs)) <= CHUNK_BYTES


def test_digests_fill_chunks() -> None:
    scheduler = Scheduler(cost)
    scheduler.add(job("a", 1000))
    full = int(CHUNK_SECONDS / cost(job("a", 1).job))
    assert [len(chunk) for chunk in drain(scheduler)] == [full] * (1000 // full) + [1000 % full]


@given(
    owners=st.integers(1, 12),
    batches=st.integers(1, 4),
    weights=st.lists(st.integers(1, 4), min_size=12, max_size=12),
    taken=st.integers(0, 60),
)
def test_one_item_waits_a_bounded_time_behind_a_flood(
    owners: int, batches: int, weights: list[int], taken: int
) -> None:
    scheduler = Scheduler(cost)
    for number in range(owners):
        for _ in range(batches):
            scheduler.add(job(f"flood-{number}", 4000, weight=weights[number]))
    for _ in range(taken):
        scheduler.take()
    single = job("single", 1)
    scheduler.add(single)
    waited = 0.0
    while (chunk := scheduler.take()) is not None and chunk.batch is not single:
        waited += seconds(chunk)
    assert chunk is not None
    # Its first turn earns it enough for one item, its second one serves it: two
    # rounds at most, in each of which every other spends what it earned.
    assert waited <= 2 * CHUNK_SECONDS * sum(weights[:owners]) + CHUNK_SECONDS


@pytest.mark.parametrize(
    "algorithms",
    [
        (Algorithm.ES256, Algorithm.ES256),
        (Algorithm.ES256, Algorithm.PS256),
        (Algorithm.ES384, Algorithm.ES256),
    ],
)
@pytest.mark.parametrize("weights", [(1, 1), (4, 1), (2, 3)])
def test_owners_share_the_time_of_the_hsm_by_weight(
    algorithms: tuple[Algorithm, Algorithm], weights: tuple[int, int]
) -> None:
    scheduler = Scheduler(cost)
    for owner, algorithm, weight in zip("ab", algorithms, weights, strict=True):
        count = int(20 / COSTS[algorithm])  # twenty seconds of work each
        scheduler.add(job(owner, count, algorithm=algorithm, weight=weight))
    spent = dict.fromkeys("ab", 0.0)
    while sum(spent.values()) < 10:
        chunk = scheduler.take()
        assert chunk is not None
        spent[chunk.batch.job.owner] += seconds(chunk)
    share = weights[0] / sum(weights)
    assert spent["a"] == pytest.approx(10 * share, abs=0.3)


def test_batches_of_one_owner_stay_in_their_order() -> None:
    scheduler = Scheduler(cost)
    batches = [job("a", 300) for _ in range(3)]
    for batch in batches:
        scheduler.add(batch)
    order = [batches.index(chunk.batch) for chunk in drain(scheduler)]
    assert order == sorted(order)


def test_a_returned_chunk_is_taken_first_and_whole() -> None:
    scheduler = Scheduler(cost)
    scheduler.add(job("a", 500))
    first = scheduler.take()
    assert first is not None
    scheduler.add(job("b", 500))
    scheduler.give_back(first)
    assert scheduler.take() is first


def test_removing_asks_once_of_each_job_and_keeps_the_others_in_order() -> None:
    scheduler = Scheduler(cost)
    jobs = [job("ab"[number % 2], 3) for number in range(40)]
    for each in jobs:
        scheduler.add(each)
    asked: list[Batch] = []
    gone = jobs[::3]

    def wanted(batch: Batch) -> bool:
        asked.append(batch)
        return any(batch is each for each in gone)

    removed = scheduler.remove(wanted)
    assert sorted(map(id, asked)) == sorted(map(id, jobs))
    assert {id(chunk.batch) for chunk in removed} == set(map(id, gone))
    taken = [chunk.batch for chunk in drain(scheduler)]
    for owner in "ab":
        left = [each for each in jobs if each.job.owner == owner and each not in gone]
        assert list(dict.fromkeys(each for each in taken if each.job.owner == owner)) == left


def test_an_owner_that_comes_back_has_no_credit() -> None:
    scheduler = Scheduler(cost)
    scheduler.add(job("a", 1))
    drain(scheduler)
    scheduler.add(job("a", 5000))
    scheduler.add(job("b", 5000))
    shares = Counter(chunk.batch.job.owner for chunk in drain(scheduler)[:20])
    assert abs(shares["a"] - shares["b"]) <= 2

"""No item is lost or given out twice, and no owner waits long behind a flood."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from signer.algorithms import Algorithm
from signer.errors import Failure, Reason
from signer.hsm.front.chunks import APPLIANCE, CHUNK_SECONDS, Batch, Chunk, Kind, Portion, SignJob
from signer.hsm.front.costs import Cost
from signer.hsm.front.scheduler import CHUNK_BYTES, SHARED_CHUNK_SECONDS, SHARED_FOR, Scheduler
from tests.stand_ins import key_version

ALL = 10**9
COSTS = {Algorithm.ES256: 5e-5, Algorithm.EDDSA: 1e-4, Algorithm.PS256: 2e-3, Algorithm.ES384: 0.02}


def cost(kind: Kind) -> Cost:
    return Cost(COSTS[kind[0]])


def job(
    owner: str,
    inputs: int | Sequence[bytes],
    *,
    algorithm: Algorithm = Algorithm.ES256,
    weight: int = 1,
    at: float = 0.0,
) -> Batch:
    version = key_version(algorithm=algorithm)
    column = [bytes(32)] * inputs if isinstance(inputs, int) else inputs
    return batch(SignJob(version, column, owner, weight, 1, 0.0), at)


def batch(job: SignJob, at: float = 0.0) -> Batch:
    return Batch(job, at, cast("asyncio.Future[None]", Future()))


def drain(scheduler: Scheduler) -> list[Chunk]:
    chunks = []
    while (chunk := scheduler.take(ALL)) is not None:
        chunks.append(chunk)
    return chunks


def seconds(chunk: Chunk) -> float:
    return sum(map(seconds_of, chunk.portions))


def seconds_of(portion: Portion) -> float:
    return len(portion) * COSTS[portion.batch.kind[0]]


def owners(chunk: Chunk) -> list[str]:
    return [portion.batch.job.owner for portion in chunk.portions]


class EveryItemOnce(RuleBasedStateMachine):
    """The model: for each job, where each of its items is."""

    jobs = Bundle("jobs")
    taken = Bundle("taken")

    @initialize()
    def start(self) -> None:
        self.scheduler = Scheduler(cost)
        self.waiting: Counter[tuple[int, int]] = Counter()
        self.known: list[Batch] = []

    def items(self, portions: Sequence[Portion]) -> list[tuple[int, int]]:
        numbers = {id(each): number for number, each in enumerate(self.known)}
        return [
            (numbers[id(portion.batch)], item)
            for portion in portions
            for item in range(portion.start, portion.stop)
        ]

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

    @rule(target=taken, most=st.integers(1, 200))
    def take(self, most: int) -> Any:
        chunk = self.scheduler.take(most)
        assert (chunk is None) == (not self.waiting), "work waits and none is given"
        if chunk is not None:
            assert chunk.items == sum(map(len, chunk.portions)) > 0
            for item in self.items(chunk.portions):
                assert self.waiting.pop(item, 0) == 1, "an item is given out twice"
        return chunk

    @rule(chunk=consumes(taken))
    def give_back(self, chunk: Chunk | None) -> None:
        if chunk is not None:
            self.scheduler.give_back(chunk)
            self.waiting.update(self.items(chunk.portions))

    @rule(wanted=jobs)
    def remove(self, wanted: Batch) -> None:
        removed = self.scheduler.remove(lambda batch: batch is wanted)
        assert all(portion.batch is wanted for portion in removed)
        for item in self.items(removed):
            assert self.waiting.pop(item, 0) == 1, "an item is removed twice"
        assert not any(self.known[number] is wanted for number, _ in self.waiting)

    @rule(wanted=jobs)
    def abandon(self, wanted: Batch) -> None:
        self.scheduler.abandon(wanted)
        self.waiting = Counter(
            {item: 1 for item in self.waiting if self.known[item[0]] is not wanted}
        )

    @invariant()
    def counts_agree(self) -> None:
        assert self.scheduler.items == self.waiting.total()
        assert sum(each.items for each in self.scheduler.waiting()) == self.waiting.total()

    def teardown(self) -> None:
        for chunk in drain(self.scheduler):
            for item in self.items(chunk.portions):
                assert self.waiting.pop(item, 0) == 1
        assert not self.waiting, "an item is lost"
        assert not self.scheduler.full()


TestEveryItemOnce = EveryItemOnce.TestCase
TestEveryItemOnce.settings = settings(stateful_step_count=40)


@given(
    st.lists(st.integers(0, 3 * CHUNK_BYTES // 2), min_size=1, max_size=30),
    st.sampled_from([Algorithm.EDDSA, Algorithm.ES384]),
)
def test_chunks_are_bounded_in_time_and_bytes(sizes: list[int], algorithm: Algorithm) -> None:
    scheduler = Scheduler(cost)
    scheduler.add(job("a", [bytes(size) for size in sizes], algorithm=algorithm))
    chunks = drain(scheduler)
    portions = [portion for chunk in chunks for portion in chunk.portions]
    assert [item for each in portions for item in range(each.start, each.stop)] == [
        *range(len(sizes))
    ]
    for chunk in chunks:
        assert chunk.items >= 1
        if chunk.items > 1:
            assert seconds(chunk) <= CHUNK_SECONDS + 1e-9
            bytes_packed = sum(each.batch.size(each.start, each.stop) for each in chunk.portions)
            assert bytes_packed <= CHUNK_BYTES


def test_digests_fill_chunks() -> None:
    scheduler = Scheduler(cost)
    scheduler.add(job("a", 1000))
    full = int(CHUNK_SECONDS / COSTS[Algorithm.ES256])
    assert [chunk.items for chunk in drain(scheduler)] == [full] * (1000 // full) + [1000 % full]


@given(
    flooding=st.integers(1, 12),
    batches=st.integers(1, 4),
    weights=st.lists(st.integers(1, 4), min_size=12, max_size=12),
    taken=st.integers(0, 60),
)
def test_one_item_waits_a_bounded_time_behind_a_flood(
    flooding: int, batches: int, weights: list[int], taken: int
) -> None:
    scheduler = Scheduler(cost)
    for number in range(flooding):
        for _ in range(batches):
            scheduler.add(job(f"flood-{number}", 4000, weight=weights[number]))
    for _ in range(taken):
        scheduler.take(ALL)
    single = job("single", 1)
    scheduler.add(single)
    waited = 0.0
    while (chunk := scheduler.take(ALL)) is not None and "single" not in owners(chunk):
        waited += seconds(chunk)
    assert chunk is not None
    # One round at most, in which every other spends what it has earned.
    assert waited <= CHUNK_SECONDS * sum(weights[:flooding]) + CHUNK_SECONDS


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
        chunk = scheduler.take(ALL)
        assert chunk is not None
        for portion in chunk.portions:
            spent[portion.batch.job.owner] += seconds_of(portion)
    share = weights[0] / sum(weights)
    assert spent["a"] == pytest.approx(10 * share, abs=0.3)


def test_owners_of_long_and_of_short_messages_share_the_time_too() -> None:
    """A long one costs a thousand times what a short one does."""
    scheduler = Scheduler(lambda _: Cost(5e-5, 5e-8))
    for _ in range(50):
        scheduler.add(job("long", [bytes(1 << 20)] * 2, algorithm=Algorithm.EDDSA))
        scheduler.add(job("short", [b"message"] * 2000, algorithm=Algorithm.EDDSA))
    spent = dict.fromkeys(("long", "short"), 0.0)
    while sum(spent.values()) < 4:
        chunk = scheduler.take(ALL)
        assert chunk is not None
        took = 0.0
        for portion in chunk.portions:
            size = portion.batch.size(portion.start, portion.stop)
            time = Cost(5e-5, 5e-8).of(len(portion), size)
            spent[portion.batch.job.owner] += time
            took += time
        assert chunk.seconds == pytest.approx(took)
    assert spent["long"] == pytest.approx(2, abs=0.1)


def test_batches_of_one_owner_stay_in_their_order() -> None:
    scheduler = Scheduler(cost)
    batches = [job("a", 300) for _ in range(3)]
    for each in batches:
        scheduler.add(each)
    portions = [portion for chunk in drain(scheduler) for portion in chunk.portions]
    order = [batches.index(portion.batch) for portion in portions]
    assert order == sorted(order)


def test_a_returned_chunk_is_taken_first_and_whole() -> None:
    scheduler = Scheduler(cost)
    scheduler.add(job("a", 500))
    first = scheduler.take(ALL)
    assert first is not None
    scheduler.add(job("b", 500))
    scheduler.give_back(first)
    assert scheduler.full()
    assert scheduler.take(1) is first


def test_an_abandoned_batch_leaves_what_was_returned_too() -> None:
    scheduler = Scheduler(cost)
    gone, kept = job("a", 3), job("b", 3)
    scheduler.add(gone)
    scheduler.add(kept)
    packed = scheduler.take(ALL)
    assert packed is not None
    scheduler.give_back(packed)
    scheduler.abandon(gone)
    assert scheduler.items == 3
    again = scheduler.take(ALL)
    assert again is not None
    assert (again.items, [portion.batch for portion in again.portions]) == (3, [kept])


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
    assert {id(portion.batch) for portion in removed} == set(map(id, gone))
    taken = [portion.batch for chunk in drain(scheduler) for portion in chunk.portions]
    for owner in "ab":
        left = [each for each in jobs if each.job.owner == owner and each not in gone]
        assert list(dict.fromkeys(each for each in taken if each.job.owner == owner)) == left


def test_an_owner_that_comes_back_has_no_credit() -> None:
    scheduler = Scheduler(cost)
    scheduler.add(job("a", 1))
    drain(scheduler)
    scheduler.add(job("a", 5000))
    scheduler.add(job("b", 5000))
    shares = Counter(owner for chunk in drain(scheduler)[:20] for owner in owners(chunk))
    assert abs(shares["a"] - shares["b"]) <= 2


# --- what goes together ------------------------------------------------------------------------


def test_single_items_of_many_owners_go_in_one_chunk() -> None:
    scheduler = Scheduler(cost)
    for number in range(30):
        scheduler.add(job(f"owner-{number}", 1))
    assert not scheduler.full()
    [chunk] = drain(scheduler)
    assert owners(chunk) == [f"owner-{number}" for number in range(30)]


def test_a_chunk_takes_no_more_than_asked_for() -> None:
    scheduler = Scheduler(cost)
    for number in range(7):
        scheduler.add(job(f"owner-{number % 2}", 1))
    sizes = []
    while (chunk := scheduler.take(3)) is not None:
        sizes.append(chunk.items)
    assert sizes == [3, 3, 1]


def test_neighbours_of_one_version_and_sample_are_one_part() -> None:
    one, other = key_version(cka_id=b"one"), key_version(cka_id=b"other")
    jobs = [(one, 1, b"1"), (one, 1, b"2"), (one, 9, b"3"), (other, 9, b"4"), (one, 1, b"5")]
    scheduler = Scheduler(cost)
    for version, check_every, digest in jobs:
        scheduler.add(batch(SignJob(version, [digest * 32] * 2, "a", 1, check_every, 0.0)))
    [chunk] = drain(scheduler)
    frame = chunk.frame(7, "t")
    assert frame.chunk == 7
    assert [(p.cka_id, p.check_every, [i[:1] for i in p.inputs]) for p in frame.parts] == [
        (b"one", 1, [b"1", b"1", b"2", b"2"]),
        (b"one", 9, [b"3", b"3"]),
        (b"other", 9, [b"4", b"4"]),
        (b"one", 1, [b"5", b"5"]),
    ]
    assert [part.items for part in chunk.parts] == [4, 2, 2, 2]


def test_keys_count_among_the_bytes_of_a_chunk() -> None:
    scheduler = Scheduler(lambda _: Cost(1e-6))
    for number in range(300):
        version = key_version(cka_id=b"%d" % number, spki=bytes(600))
        scheduler.add(batch(SignJob(version, [bytes(32)], f"owner-{number}", 1, 1, 0.0)))
    first = scheduler.take(ALL)
    assert first is not None
    assert 90 < first.items < CHUNK_BYTES // 632


@pytest.mark.parametrize(
    ("items", "algorithm", "full"),
    [(119, Algorithm.ES256, False), (121, Algorithm.ES256, True), (1, Algorithm.ES384, True)],
)
def test_a_chunk_is_full_by_time(items: int, algorithm: Algorithm, full: bool) -> None:
    scheduler = Scheduler(cost)
    for _ in range(items):
        scheduler.add(job("owner", 1, algorithm=algorithm))
    assert scheduler.full() == full


def test_chunks_are_short_while_another_owner_has_used_the_token_lately() -> None:
    """A single item waits for the chunks of a flood that its worker has got before it came."""
    scheduler = Scheduler(cost)

    def longest(at: float) -> float:
        scheduler.add(job("flood", 4000, at=at))
        return max(map(seconds, drain(scheduler)))

    assert longest(at=100.0) == pytest.approx(CHUNK_SECONDS)
    scheduler.add(job("single", 1, at=101.0))
    drain(scheduler)
    for moment in (101.0, 101.0 + 0.99 * SHARED_FOR):  # the item has been gone for long
        assert longest(at=moment) == pytest.approx(SHARED_CHUNK_SECONDS)
    after = 102.0 + 2 * SHARED_FOR
    assert longest(at=after) == pytest.approx(CHUNK_SECONDS)


def test_a_chunk_of_a_flood_is_short_while_another_owner_waits() -> None:
    scheduler = Scheduler(cost)
    scheduler.add(job("flood", 4000))
    scheduler.add(job("other", 4000))
    assert max(map(seconds, drain(scheduler))) <= SHARED_CHUNK_SECONDS + 1e-9


def test_checkpoints_of_the_log_do_not_make_the_chunks_of_others_short() -> None:
    scheduler = Scheduler(cost)
    scheduler.add(job(APPLIANCE, 1, at=99.0))
    for moment in range(100, 110):
        scheduler.add(job("flood", 4000, at=moment))
        scheduler.add(job(APPLIANCE, 1, at=moment + 0.5))
    assert seconds(drain(scheduler)[0]) == pytest.approx(CHUNK_SECONDS)


def test_a_chunk_is_full_by_bytes() -> None:
    scheduler = Scheduler(cost)
    scheduler.add(job("a", [bytes(CHUNK_BYTES - 1)], algorithm=Algorithm.EDDSA))
    assert not scheduler.full()
    scheduler.add(job("a", [b"x"], algorithm=Algorithm.EDDSA))
    assert scheduler.full()


# --- when work will be done --------------------------------------------------------------------


def test_work_ends_after_ones_own_line_and_the_shares_of_others() -> None:
    scheduler = Scheduler(cost)
    assert scheduler.finish("a", 1, 0.1) == pytest.approx(0.1)
    scheduler.add(job("a", 2000))  # 0.1 s
    assert scheduler.finish("a", 1, 0.1) == pytest.approx(0.2)
    scheduler.add(job("b", 20_000, weight=2))  # 1 s, of which it gets 0.4 s meanwhile
    scheduler.add(job("c", 200))  # 10 ms
    assert scheduler.finish("a", 1, 0.1) == pytest.approx(0.2 + 0.4 + 0.01)
    assert scheduler.finish("new", 1, 0.01) == pytest.approx(0.01 + 0.01 + 0.02 + 0.01)
    drain(scheduler)
    assert scheduler.finish("a", 1, 0.1) == pytest.approx(0.1)


def test_what_is_promised_is_ahead_like_what_waits() -> None:
    scheduler = Scheduler(cost)
    kind = job("a", 1).kind
    scheduler.promise("a", kind, 2000, 0)  # 0.1 s
    scheduler.promise("b", kind, 20_000, 0)
    scheduler.add(job("b", 200))
    assert (scheduler.admitted, scheduler.admitted_of("b")) == (22_200, 20_200)
    assert scheduler.backlog() == pytest.approx(1.11)
    assert scheduler.seconds() == pytest.approx(0.01)
    assert scheduler.finish("a", 1, 0.1) == pytest.approx(0.4)
    assert scheduler.share("a", 900) == scheduler.share("b", 900) == 300
    assert scheduler.share("new", 900) == 225
    scheduler.promise("a", kind, -2000, 0)
    scheduler.promise("b", kind, -20_000, 0)
    drain(scheduler)
    assert (scheduler.admitted, scheduler.backlog(), scheduler.share("a", 900)) == (0, 0, 450)


def test_a_batch_is_done_once_with_its_last_item() -> None:
    made = job("a", 3)
    made.store(0, [b"s", b"t"], {1: Failure(Reason.INTERNAL, "wrong")})
    assert (made.signatures, made.remaining, made.done.done()) == ([b"s", b"", b""], 1, False)
    made.fail(2, 3, Failure(Reason.INTERNAL, "gone"))
    assert made.done.done()
    assert {index: failure.message for index, failure in made.failures.items()} == {
        1: "wrong",
        2: "gone",
    }

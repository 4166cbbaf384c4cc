import asyncio
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from signer.event_loop import MOST_ITEMS, PART_BYTES, SHARED_SECONDS, SLICE_SECONDS, Turns
from tests.stand_ins import SetClock


def alone(clock: SetClock) -> Turns:
    """Turns in which "a" has been alone for long."""
    turns = Turns(clock.monotonic)
    turns._latest = "a"
    return turns


@given(st.lists(st.integers(0, 2 * PART_BYTES), max_size=300), st.lists(st.booleans()))
def test_parts_are_consecutive_and_bounded(lengths: list[int], slow: list[bool]) -> None:
    items = [bytes(length) for length in lengths]
    clock, bounds = SetClock(), list[tuple[int, int]]()

    def compute(start: int, stop: int) -> None:
        bounds.append((start, stop))
        if slow:
            clock.forward(SLICE_SECONDS if slow[len(bounds) % len(slow)] else 0)

    asyncio.run(alone(clock).each("a", items, compute))
    assert [i for start, stop in bounds for i in range(start, stop)] == list(range(len(items)))
    for start, stop in bounds:
        assert 0 < stop - start <= MOST_ITEMS
        assert stop - start == 1 or sum(map(len, items[start:stop])) <= PART_BYTES


def test_slow_payloads_are_computed_one_by_one() -> None:
    clock, sizes = SetClock(), list[int]()

    def compute(start: int, stop: int) -> None:
        sizes.append(stop - start)
        clock.forward((stop - start) * SLICE_SECONDS)

    asyncio.run(alone(clock).each("a", [b"x"] * 20, compute))
    assert sizes == [8, 2, *[1] * 10]


class Computing:
    """Principals that compute for so many slices; the order in which they had them."""

    def __init__(self, step: float = SLICE_SECONDS) -> None:
        self.step = step
        self.clock = SetClock()
        self.turns = Turns(self.clock.monotonic)
        self.order: list[str] = []

    async def compute(self, principal: str, slices: int) -> None:
        await self.turns.begin(principal)
        for number in range(slices):
            if number:
                await self.turns.next(principal)
            self.order.append(principal)
            self.clock.forward(self.step)

    def run(self, *work: tuple[str, int]) -> str:
        async def scenario() -> None:
            await asyncio.gather(*(self.compute(*each) for each in work))

        asyncio.run(scenario())
        return "".join(self.order)


def test_one_alone_computes_without_pause() -> None:
    assert Computing().run(("a", 3)) == "aaa"


def test_principals_have_slices_in_turn_however_much_one_computes() -> None:
    order = Computing().run(*[("a", 5)] * 3, ("b", 2))
    assert Counter(order) == {"a": 15, "b": 2}
    assert order.index("b") <= 2
    assert order.rindex("b") <= 5


def test_slices_are_short_while_several_principals_have_calls() -> None:
    order = Computing(SHARED_SECONDS).run(("a", 6), ("b", 6))
    assert "aaa" not in order
    assert "bbb" not in order
    alone = Computing(SHARED_SECONDS)
    alone.turns._latest = "a"
    assert alone.run(("a", 4), ("a", 4)) == "aaaaaaaa"


def test_one_whose_payloads_take_long_rests_while_others_have_calls() -> None:
    computing = Computing()
    clock, turns, done = computing.clock, computing.turns, list[int]()
    computed = asyncio.Event()

    def long(start: int, stop: int) -> None:
        done.extend(range(start, stop))
        computed.set()
        clock.forward(5 * SLICE_SECONDS * (stop - start))

    async def scenario() -> None:
        await turns.begin("a")
        await turns.begin("b")
        heavy = asyncio.ensure_future(turns.each("b", [bytes(PART_BYTES)] * 3, long))
        for count in (1, 2, 3):
            await asyncio.wait_for(computed.wait(), 10)
            computed.clear()
            for _ in range(20):  # rounds of a single call
                await asyncio.wait_for(turns.begin("a"), 10)
            assert done == list(range(count))
            clock.forward(5 * SLICE_SECONDS)
            await turns.begin("a")
        await heavy

    asyncio.run(scenario())


@pytest.mark.parametrize("wasted", [True, False])
def test_one_whose_payloads_fail_rests_as_long_as_they_took(wasted: bool) -> None:
    computing = Computing()
    clock, turns = computing.clock, computing.turns

    def compute(_start: int, _stop: int) -> bool:
        clock.forward(SHARED_SECONDS)
        return wasted

    async def scenario() -> bool:
        for principal in "ab":
            await turns.begin(principal)
        await turns.each("b", [b"x"], compute, wasted=bool)
        await turns.begin("a")  # who does not rest
        rests = asyncio.ensure_future(turns.begin("b"))
        for _ in range(50):
            await asyncio.sleep(0)
        waits = not rests.done()
        clock.forward(SHARED_SECONDS)
        await asyncio.wait_for(rests, 10)
        return waits

    assert asyncio.run(scenario()) == wasted


def test_one_alone_does_not_rest() -> None:
    computing = Computing()

    def long(_start: int, _stop: int) -> None:
        computing.clock.forward(100.0)

    async def scenario() -> None:
        await asyncio.wait_for(turns.each("a", [bytes(PART_BYTES)] * 3, long), 20)

    turns = alone(computing.clock)
    asyncio.run(scenario())


def test_parts_are_shorter_while_several_principals_have_calls() -> None:
    computing = Computing()
    clock, sizes = computing.clock, list[int]()

    def compute(start: int, stop: int) -> None:
        sizes.append(stop - start)
        clock.forward((stop - start) * SLICE_SECONDS / 64)

    async def scenario() -> None:
        for principal in "ab":
            await computing.turns.begin(principal)
        await computing.turns.each("b", [b"x"] * 400, compute)

    asyncio.run(scenario())
    assert max(sizes[1:]) * SLICE_SECONDS / 64 <= SHARED_SECONDS / 2


def test_a_small_piece_of_work_does_not_wait_where_the_slice_lasts() -> None:
    computing = Computing()

    async def scenario() -> None:
        await computing.turns.begin("a")
        await computing.turns.begin("b")
        assert not computing.turns._waiting

    asyncio.run(scenario())


def test_a_cancelled_wait_costs_no_turn() -> None:
    computing = Computing()

    async def scenario() -> None:
        tasks = [asyncio.ensure_future(computing.compute(name, 2)) for name in "abc"]
        await asyncio.sleep(0)
        tasks[1].cancel()
        await asyncio.wait(tasks)

    asyncio.run(scenario())
    assert Counter(computing.order) == {"a": 2, "c": 2}


def test_a_batch_that_has_waited_computes_one_slice_in_a_round() -> None:
    computing, rounds = Computing(), list[int]()

    async def count_rounds(until: asyncio.Task[None]) -> None:
        while not until.done():
            before = len(computing.order)
            await asyncio.sleep(0)
            rounds.append(len(computing.order) - before)

    async def scenario() -> None:
        task = asyncio.ensure_future(computing.compute("a", 20))
        await count_rounds(task)

    asyncio.run(scenario())
    assert len(computing.order) == 20
    assert max(rounds) == 1

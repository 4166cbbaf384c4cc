import asyncio
from collections import Counter
from contextlib import suppress
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from signer.api.places import Bound, Place, Places, Reads, held_by
from signer.errors import CLIENT_LIMIT, CallError, Reason
from signer.model import MAX_BATCH_ITEMS
from tests.unit.api.context import until


def places(calls: int = 8, of_one: int = 4, size: int = 1000, size_of_one: int = 500) -> Places:
    return Places(Bound(calls, of_one), Bound(size, size_of_one), Bound(calls, of_one), Bound(8, 2))


def limit(taken: Places, principal: str, size: int = 1) -> str:
    """The setting that refuses one more call."""
    with pytest.raises(CallError) as caught:
        taken.take(principal, size)
    assert caught.value.reason is Reason.OVERLOADED
    assert caught.value.retry_after
    return caught.value.metadata["limit"]


def test_a_principal_has_its_places_and_gets_them_back() -> None:
    taken = places()
    for _ in range(4):
        taken.take("a", 1)
    assert limit(taken, "a") == CLIENT_LIMIT
    taken.take("b", 1)
    taken.give_back("a", 1)
    taken.take("a", 1)
    assert taken.taken == 5


def test_bytes_are_bounded_for_one_and_for_all() -> None:
    taken = places()
    taken.take("a", 500)
    assert limit(taken, "a") == "bytes_in_flight_per_client"
    taken.take("b", 200)
    assert limit(taken, "c", 301) == "bytes_in_flight"
    taken.give_back("a", 500)
    taken.take("c", 301)


def test_two_greedy_principals_leave_places_for_a_third() -> None:
    taken = places(calls=32, of_one=16)
    for principal in "ab":
        for _ in range(17):
            with suppress(CallError):
                taken.take(principal, 1)
    for _ in range(4):
        taken.take("c", 1)  # and it is never refused


@given(st.lists(st.tuples(st.sampled_from("abcde"), st.booleans(), st.integers(0, 60))))
def test_the_bounds_hold_and_a_newcomer_is_refused_only_when_all_is_taken(
    steps: list[tuple[str, bool, int]],
) -> None:
    taken = places(calls=12, of_one=6, size=300, size_of_one=120)
    held: list[tuple[str, int, Place]] = []
    for principal, give, size in steps:
        if give and held:
            held.pop(0)[2].give_back()
            continue
        try:
            place = taken.take(principal, size)
        except CallError:
            continue
        held.append((principal, size, place))
        assert taken.taken == len(held) <= 12
        assert sum(size for _, size, _ in held) <= 300
        for one in "abcde":
            sizes = [size for name, size, _ in held if name == one]
            assert len(sizes) <= 6
            assert sum(sizes) <= 120
    if len(held) < 12 and sum(size for _, size, _ in held) < 300:
        taken.take("newcomer", 1)


def test_streams_wait_for_a_place_and_an_idle_one_keeps_none() -> None:
    taken = places(calls=8, of_one=2, size=20_000, size_of_one=20_000)

    async def scenario() -> None:
        held = {principal: taken.add(principal, 1) for principal in "aabb"}
        waits = [asyncio.ensure_future(taken.wait(principal)) for principal in "aaab"]
        await asyncio.sleep(0)
        assert not any(wait.done() for wait in waits)
        waits[0].cancel()
        held["a"].give_back()
        await until(lambda: all(wait.done() for wait in waits[:3]))
        assert not waits[3].done()
        held["b"].give_back()
        await until(waits[3].done)
        await taken.wait("a")
        assert not taken._waiting

    asyncio.run(scenario())


def test_a_place_holds_the_bytes_of_the_message_and_then_of_the_answer() -> None:
    taken = places(size=1000, size_of_one=500)
    place = taken.take("a", 100)
    place.resize(400)
    with pytest.raises(CallError) as caught:
        place.resize(501)
    assert caught.value.metadata == {"limit": "bytes_in_flight_per_client"}
    assert limit(taken, "a", 101) == "bytes_in_flight_per_client"
    place.answered(600)  # what is signed is not refused
    assert limit(taken, "a", 1) == "bytes_in_flight_per_client"
    place.give_back()
    assert (taken.taken, taken.bytes.total) == (0, 0)
    firm = taken.add("a", 450)
    firm.resize(2000)
    firm.give_back()
    assert not taken.bytes.held


def test_a_call_waits_for_the_bytes_of_its_own_principal() -> None:
    """What was received is not thrown away because other calls of the client hold its share."""
    taken = places(size=40_000, size_of_one=10_000)

    async def scenario() -> None:
        first = await taken.enter("a", 4000, 20)
        assert (first.message, first.size) == (4000, 10_000)  # all that it may come to hold
        second = asyncio.ensure_future(taken.enter("a", 4000, 20))
        await asyncio.sleep(0)
        assert not second.done()
        assert (await taken.enter("b", 4000, 20)).size == 10_000  # others do not wait
        first.resize(8000)  # what is left is too little
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not second.done()
        first.give_back()
        assert (await second).size == 10_000
        with pytest.raises(CallError) as caught:
            await taken.enter("a", 4000, 0.001)
        assert caught.value.metadata == {"limit": "bytes_in_flight_per_client"}
        third = asyncio.ensure_future(taken.enter("a", 4000, 20))
        await asyncio.sleep(0)
        third.cancel()
        await asyncio.wait([third])
        assert taken.taken == 2
        (await second).answered(5000)  # a short answer leaves room before it is out
        assert (await taken.enter("a", 1, 20)).message == 1

    asyncio.run(scenario())


def test_a_message_that_no_wait_makes_fit_is_refused_at_once() -> None:
    async def scenario() -> None:
        taken = places(size=1000, size_of_one=500)
        with pytest.raises(CallError) as own:
            await asyncio.wait_for(taken.enter("a", 501, 20), 10)
        assert own.value.metadata == {"limit": "bytes_in_flight_per_client"}
        for principal in "bc":
            taken.take(principal, 400)
        with pytest.raises(CallError) as all_together:
            await asyncio.wait_for(taken.enter("a", 300, 20), 10)
        assert all_together.value.metadata == {"limit": "bytes_in_flight"}

    asyncio.run(scenario())


@given(st.integers(0, 1 << 22), st.data())
def test_a_call_that_has_entered_is_not_refused_for_its_items(
    size: int, data: st.DataObject
) -> None:
    items = data.draw(st.integers(0, min(MAX_BATCH_ITEMS, size // 2)))

    async def scenario() -> None:
        taken = places(size=64 << 20, size_of_one=16 << 20)
        place = await taken.enter("a", size, 20)
        place.resize(held_by(place.message, items))
        place.give_back()
        assert not taken.bytes.held

    asyncio.run(scenario())


def test_calls_without_a_message_are_bounded_for_themselves() -> None:
    taken = places(calls=8, of_one=2)
    for _ in range(2):
        taken.arrive("a")
    with pytest.raises(CallError) as caught:
        taken.arrive("a")
    assert caught.value.metadata == {"limit": CLIENT_LIMIT}
    taken.take("a", 1)
    taken.arrived("a")
    taken.arrive("a")


def test_a_few_messages_of_one_principal_are_received_at_a_time() -> None:
    reads, order = Reads(Bound(8, 2)), list[str]()

    async def receive(name: str, over: asyncio.Event) -> None:
        await reads.begin(name[0])
        order.append(name)
        try:
            await over.wait()
        finally:
            reads.end(name[0])

    async def scenario() -> None:
        over = {name: asyncio.Event() for name in ("a1", "a2", "a3", "a4", "b1")}
        tasks = {name: asyncio.ensure_future(receive(name, over[name])) for name in over}
        await asyncio.sleep(0)
        assert order == ["a1", "a2", "b1"]
        tasks["a3"].cancel()
        over["a1"].set()
        await until(lambda: "a4" in order)
        tasks["a2"].cancel()
        for event in over.values():
            event.set()
        await asyncio.wait(tasks.values())

    asyncio.run(scenario())
    assert order == ["a1", "a2", "b1", "a4"]
    assert not reads._waiting
    assert not reads._bound.held


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 4)), max_size=30), st.randoms())
def test_every_read_has_its_turn_and_the_bounds_hold(
    calls: list[tuple[str, int]], random: Random
) -> None:
    bound = Bound(3, 2)
    reads, most = Reads(bound), Counter[str]()

    async def receive(principal: str, rounds: int) -> None:
        await reads.begin(principal)
        most[principal] = max(most[principal], bound.held[principal])
        most["all"] = max(most["all"], bound.total)
        try:
            for _ in range(rounds):
                await asyncio.sleep(0)
        finally:
            reads.end(principal)

    async def scenario() -> None:
        tasks = [asyncio.ensure_future(receive(*call)) for call in calls]
        for task in random.sample(tasks, len(tasks) // 4):
            for _ in range(random.randrange(3)):
                await asyncio.sleep(0)
            task.cancel()
        await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 20)

    asyncio.run(scenario())
    assert not bound.total
    assert all(count <= 2 for principal, count in most.items() if principal != "all")
    assert most["all"] <= 3


def test_all_that_may_begin_after_an_end_do_so() -> None:
    """The share of each grows when another one has gone: more than one may then begin."""
    reads, begun = Reads(Bound(64, 8)), list[str]()

    async def begin(principal: str) -> None:
        await reads.begin(principal)
        begun.append(principal)

    async def scenario() -> None:
        for principal in "abcdefg":
            for _ in range(7):
                await reads.begin(principal)
        await reads.begin("h")
        waiting = [asyncio.ensure_future(begin(principal)) for principal in "abcdefg"]
        await asyncio.sleep(0)
        assert not begun
        reads.end("h")
        await asyncio.wait(waiting, timeout=20)

    asyncio.run(scenario())
    assert "".join(begun) == "abcdefg"


def test_a_newer_call_does_not_overtake_one_that_waits() -> None:
    reads, order = Reads(Bound(8, 1)), list[int]()

    async def receive(number: int) -> None:
        await reads.begin("a")
        order.append(number)
        reads.end("a")

    async def scenario() -> None:
        await reads.begin("a")
        first = asyncio.ensure_future(receive(0))
        await asyncio.sleep(0)
        reads.end("a")
        later = [asyncio.ensure_future(receive(number)) for number in range(1, 50)]
        await asyncio.wait([first, *later], timeout=20)

    asyncio.run(scenario())
    assert order == list(range(50))

"""What comes together on the event loop goes on together."""

import asyncio
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from signer.event_loop import GATHER_ROUNDS, Gatherer


def gathered(arrivals: Sequence[int]) -> list[int]:
    """Returns how many came together, where so many come in each round of the loop."""
    waiting, calls, rounds = 0, list[int](), iter(arrivals)

    async def scenario() -> None:
        loop, ended = asyncio.get_running_loop(), asyncio.Event()

        def act() -> None:
            nonlocal waiting
            calls.append(waiting)
            waiting = 0

        gathering = Gatherer(loop, lambda: waiting, act)

        def arrive() -> None:
            nonlocal waiting
            if (count := next(rounds, None)) is None:
                loop.call_later(0.01, ended.set)
                return
            loop.call_soon(arrive)
            if count:
                waiting += count
                gathering.soon()

        arrive()
        await ended.wait()

    asyncio.run(scenario())
    return calls


def test_one_that_comes_alone_does_not_wait() -> None:
    assert gathered([1, 0, 0, 1]) == [1, 1]


def test_what_comes_round_after_round_goes_together() -> None:
    assert gathered([2, 1, 1, 0, 0]) == [4]


def test_it_ends_where_there_is_no_end_of_what_comes() -> None:
    first, *_ = gathered([2] * 50)
    assert first <= 2 * (GATHER_ROUNDS + 2)


def test_after_several_one_waits_a_round_for_others() -> None:
    assert gathered([2, 0, 0, 0, 1, 1, 0, 0]) == [2, 2]


@given(st.lists(st.integers(0, 3), max_size=40))
def test_nothing_is_left_and_nothing_goes_twice(arrivals: list[int]) -> None:
    calls = gathered(arrivals)
    assert sum(calls) == sum(arrivals)
    assert 0 not in calls

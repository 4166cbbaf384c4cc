"""Quotas counted from a log: honest batches always fit, and what is more shows."""

from hypothesis import given
from hypothesis import strategies as st

from signer.policy.recount import Recount
from signer.policy.usage import Usage
from signer.policy.values import Quota

START = 1_767_571_200
SECOND, MINUTE = Quota(5, 1), Quota(20, 60)

# A batch: seconds until the next one is authorised, how long until it is charged and then until
# it is recorded (in tenths), and its items.
BATCHES = st.lists(
    st.tuples(st.integers(0, 30), st.integers(0, 40), st.integers(0, 40), st.integers(1, 5)),
    max_size=40,
)


@given(BATCHES)
def test_what_the_appliance_charged_fits_however_late_it_was_recorded(
    batches: list[tuple[int, int, int, int]],
) -> None:
    usage, now, asked = Usage(), 10.0 * START, []
    for wait, until_charged, until_recorded, items in batches:
        now += wait
        charged = now + until_charged
        asked.append((charged, now, charged + until_recorded, items))
    accepted = [
        (recorded, began, items)
        for _, began, recorded, items in sorted(asked)
        if usage.charge("f", (SECOND, MINUTE), items, began / 10) is None
    ]
    recount = Recount()
    for recorded, began, items in sorted(accepted):
        for quota in (SECOND, MINUTE):
            assert not recount.exceeded("f", quota, items, now=began // 10, recorded=recorded / 10)


def test_more_than_the_limit_in_one_window_shows() -> None:
    recount = Recount()
    charged = [
        recount.exceeded("f", MINUTE, 10, now=START + second, recorded=START + second)
        for second in range(3)
    ]
    assert charged == [False, False, True]
    assert not recount.exceeded("f", MINUTE, 20, now=START + 60, recorded=START + 60)


def test_a_batch_at_the_border_counts_where_there_is_room() -> None:
    recount = Recount()
    assert not recount.exceeded("f", MINUTE, 20, now=START + 59, recorded=START + 59)
    assert not recount.exceeded("f", MINUTE, 20, now=START + 59, recorded=START + 60)
    assert recount.exceeded("f", MINUTE, 1, now=START + 60, recorded=START + 61)


def test_a_time_that_lies_far_back_is_worth_no_more_than_a_call_lasts() -> None:
    recount = Recount()
    late = START + 3600
    charged = [
        recount.exceeded("f", MINUTE, 20, now=START, recorded=late + number) for number in range(9)
    ]
    assert charged.count(False) == 7
    assert charged[-1]


def test_facilities_and_windows_are_counted_apart_and_go_on_from_a_snapshot() -> None:
    recount = Recount()
    recount.start("f", 60, START // 60, 15)
    assert not recount.exceeded("g", MINUTE, 20, now=START, recorded=START)
    assert not recount.exceeded("f", SECOND, 5, now=START, recorded=START)
    assert recount.exceeded("f", MINUTE, 6, now=START, recorded=START)

"""Quotas counted from a log: honest batches always fit, and what is more shows."""

from hypothesis import given
from hypothesis import strategies as st

from signer.model import KeyName
from signer.policy.lifetime import KeyItems, VersionCharge
from signer.policy.recount import CALL_SECONDS, LifetimeRecount, Recount
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


# --- lifetimes -----------------------------------------------------------------------------------

KEY = KeyName("f", "k")


@given(BATCHES, st.lists(st.sampled_from([10, 25, None]), min_size=40, max_size=40))
def test_what_fitted_into_a_lifetime_fits_whatever_the_order_of_the_records(
    batches: list[tuple[int, int, int, int]], limits: list[int | None]
) -> None:
    """Also where the policy has changed its bound while batches were under way."""
    usage, now, asked = Usage(), 10.0 * START, []
    for (wait, until_charged, until_recorded, items), limit in zip(batches, limits, strict=False):
        now += wait
        charged = now + until_charged
        asked.append((charged, charged + until_recorded, items, limit))
    accepted = [
        (recorded, items, limit)
        for _, recorded, items, limit in sorted(asked, key=lambda each: each[0])
        if usage.charge("f", (), items, START, VersionCharge("k", 1, items, limit)) is None
    ]
    recount = LifetimeRecount()
    for recorded, items, limit in sorted(accepted, key=lambda each: each[0]):
        assert not recount.exceeded(KEY, 1, items, limit=limit, recorded=recorded / 10)


def test_more_than_the_lifetime_of_a_version_shows() -> None:
    recount = LifetimeRecount()
    recount.start(KEY, KeyItems(5))
    said = [
        recount.exceeded(KEY, number, 5, limit=10, recorded=START) for number in (1, 2, 1, 2, 3)
    ]
    assert said == [False, False, True, True, False]


def test_a_bound_that_was_lowered_counts_once_no_batch_can_be_older() -> None:
    recount = LifetimeRecount()
    assert not recount.exceeded(KEY, 1, 50, limit=None, recorded=START)
    assert not recount.exceeded(KEY, 1, 1, limit=10, recorded=START + CALL_SECONDS)
    assert recount.exceeded(KEY, 1, 1, limit=10, recorded=START + CALL_SECONDS + 1)

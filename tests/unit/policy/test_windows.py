from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from signer.policy.windows import DAY_SECONDS, WEEK_SECONDS, Hours, weekly

ZONES = [
    "Asia/Ho_Chi_Minh",
    "UTC",
    "Europe/Berlin",
    "America/St_Johns",  # half hours
    "Australia/Lord_Howe",  # clocks change by half an hour
    "Africa/Casablanca",  # two changes within about a month
    "Pacific/Apia",  # left out a whole day in 2011
    "America/Sao_Paulo",  # used to skip midnight
]
MINUTES = st.integers(0, 24 * 60)
OPENINGS = st.lists(
    st.tuples(
        st.lists(st.integers(0, 6), min_size=1, max_size=7, unique=True),
        st.lists(MINUTES, min_size=2, max_size=2, unique=True).map(sorted),
    ).map(lambda line: (line[0], line[1][0] * 60, line[1][1] * 60)),
    min_size=1,
    max_size=4,
)
HOURS = st.builds(weekly, st.sampled_from(ZONES).map(ZoneInfo), OPENINGS)
TIMES = st.floats(
    datetime(2005, 1, 1, tzinfo=UTC).timestamp(), datetime(2037, 1, 1, tzinfo=UTC).timestamp()
)
HANOI = ZoneInfo("Asia/Ho_Chi_Minh")
BERLIN = ZoneInfo("Europe/Berlin")


def at(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def open_by_hand(hours: Hours, now: float) -> bool:
    """Reads the wall clock and the plan as a person would."""
    local = datetime.fromtimestamp(now, hours.zone).replace(tzinfo=None)
    monday = datetime.combine(local.date() - timedelta(days=local.weekday()), datetime.min.time())
    seconds = (local - monday).total_seconds()
    return any(start <= seconds < end for start, end in hours.spans)


@given(HOURS, TIMES)
def test_open_as_the_wall_clock_says(hours: Hours, now: float) -> None:
    assert hours.is_open(now) == open_by_hand(hours, now)


@given(HOURS, TIMES)
def test_next_opening_is_open_and_the_first(hours: Hours, now: float) -> None:
    opening = hours.next_opening(now)
    assert hours.is_open(opening)
    if hours.is_open(now):
        assert opening == now
        return
    assert now < opening
    assert not hours.is_open(opening - 1)
    # Clocks change on whole quarters of an hour, so nothing shorter is skipped.
    step = 15 * 60
    minutes = range(int(now), int(min(opening, now + 3 * DAY_SECONDS)), step)
    assert not any(hours.is_open(moment) for moment in minutes)


@given(HOURS)
def test_spans_are_sorted_apart_and_within_a_day(hours: Hours) -> None:
    for start, end in hours.spans:
        assert 0 <= start < end <= WEEK_SECONDS
        assert start // DAY_SECONDS == (end - 1) // DAY_SECONDS
    for (_, end), (start, _) in zip(hours.spans, hours.spans[1:], strict=False):
        assert end <= start


@given(OPENINGS, OPENINGS, st.sampled_from(ZONES).map(ZoneInfo), TIMES)
def test_intersection_is_open_when_both_are(
    one: list[tuple[list[int], int, int]],
    other: list[tuple[list[int], int, int]],
    zone: ZoneInfo,
    now: float,
) -> None:
    first, second = weekly(zone, one), weekly(zone, other)
    both = first.intersection(second)
    expected = first.is_open(now) and second.is_open(now)
    assert (both is not None and both.is_open(now)) == expected


def test_disjoint_hours_have_no_intersection() -> None:
    morning = weekly(HANOI, [(range(7), 0, 12 * 3600)])
    evening = weekly(HANOI, [(range(7), 12 * 3600, DAY_SECONDS)])
    assert morning.intersection(evening) is None


def test_clinic_hours() -> None:
    hours = weekly(HANOI, [(range(6), 6 * 3600, 20 * 3600)])
    assert hours.is_open(at("2026-03-02T06:00:00+07:00"))
    assert not hours.is_open(at("2026-03-02T05:59:59.999+07:00"))
    assert hours.is_open(at("2026-03-02T19:59:59.999+07:00"))
    assert not hours.is_open(at("2026-03-02T20:00:00+07:00"))
    saturday_evening = at("2026-03-07T20:00:00+07:00")
    assert hours.next_opening(saturday_evening) == at("2026-03-09T06:00:00+07:00")


def test_skipped_hour_opens_at_the_change() -> None:
    # 29 March 2026, a Sunday: 02:00 becomes 03:00 in Berlin.
    hours = weekly(BERLIN, [([6], 2 * 3600 + 1800, 5 * 3600)])
    assert hours.next_opening(at("2026-03-29T01:00:00+01:00")) == at("2026-03-29T03:00:00+02:00")


def test_hours_wholly_skipped_open_a_week_later() -> None:
    hours = weekly(BERLIN, [([6], 2 * 3600, 3 * 3600)])
    assert hours.next_opening(at("2026-03-29T01:00:00+01:00")) == at("2026-04-05T02:00:00+02:00")


def test_repeated_hour_is_open_twice() -> None:
    # 25 October 2026, a Sunday: 03:00 becomes 02:00 in Berlin.
    hours = weekly(BERLIN, [([6], 2 * 3600, 2 * 3600 + 1800)])
    assert hours.is_open(at("2026-10-25T02:10:00+02:00"))
    assert not hours.is_open(at("2026-10-25T02:40:00+02:00"))
    assert hours.next_opening(at("2026-10-25T02:40:00+02:00")) == at("2026-10-25T02:00:00+01:00")


def test_round_the_clock_never_closes_at_midnight() -> None:
    hours = weekly(HANOI, [(range(7), 0, DAY_SECONDS)])
    sunday = at("2026-03-08T23:59:59.999+07:00")
    assert hours.is_open(sunday)
    assert hours.is_open(sunday + 0.002)


def test_nothing_open_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing is open"):
        weekly(HANOI, [])


def test_plan_is_printed_as_it_is_written() -> None:
    hours = weekly(
        HANOI, [(range(5), 6 * 3600, 20 * 3600), ([5, 6], 8 * 3600, 12 * 3600), ([6], 0, 60)]
    )
    assert str(hours) == (
        "mon-fri 06:00-20:00; sat-sun 08:00-12:00; sun 00:00-00:01 Asia/Ho_Chi_Minh"
    )


def test_days_apart_are_printed_one_by_one() -> None:
    hours = weekly(HANOI, [([0, 2], 0, DAY_SECONDS)])
    assert str(hours) == "mon,wed 00:00-24:00 Asia/Ho_Chi_Minh"

"""Time that does not go behind what is on record."""

import time
from math import isclose

import pytest
from hypothesis import given
from hypothesis import strategies as st

from signer.clock import JUMP_SECONDS, FlooredClock, SystemClock

MOMENTS = st.floats(0, 4e9)


def test_the_system_clock_reads_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 7.0)
    for clock in (SystemClock(), FlooredClock()):
        assert clock.now() == 7.0
        before = time.monotonic()
        assert before <= clock.monotonic() <= time.monotonic()


class Machine(FlooredClock):
    """A machine whose clocks a test sets: calendar, monotonic time, and time asleep."""

    def __init__(self, calendar: float = 1000.0, absence: float = 500.0) -> None:
        self.calendar, self.running, self.slept = calendar, 50.0, 0.0
        super().__init__(absence)

    def machine(self) -> float:
        return self.calendar

    def monotonic(self) -> float:
        return self.running

    def asleep(self) -> float:
        return self.slept

    def passes(self, seconds: float) -> None:
        self.calendar, self.running = self.calendar + seconds, self.running + seconds


STEPS = st.tuples(st.floats(0, 1e6), st.floats(-4e9, 4e9), st.booleans())


@given(st.lists(STEPS, min_size=1, max_size=20))
def test_time_goes_on_with_monotonic_time_whatever_the_machine_says(
    steps: list[tuple[float, float, bool]],
) -> None:
    """Neither a jump nor its end moves the appliance's time by more than the tolerance."""
    clock = Machine()
    began = clock.now()
    for seconds, jump, undone in steps:
        before = clock.now()
        clock.passes(seconds)
        true = clock.calendar
        clock.calendar += jump
        assert abs(clock.now() - before - seconds) <= 2 * JUMP_SECONDS + 0.1
        off = abs(clock.calendar - true_time(clock))
        if not isclose(off, JUMP_SECONDS):  # sums of these numbers are rounded
            assert bool(clock.doubt()) == (off > JUMP_SECONDS)
        if undone:
            clock.calendar = true
        clock.raise_floor(clock.now())
    assert clock.now() >= began - JUMP_SECONDS


def true_time(clock: Machine) -> float:
    return 1000.0 + clock.running - 50.0


@given(st.lists(st.tuples(st.floats(0, 9), MOMENTS), min_size=1, max_size=20))
def test_time_is_never_behind_the_floor(moments: list[tuple[float, float]]) -> None:
    """The floor only rises, as the log's last record."""
    clock, floor = Machine(absence=4e9), 0.0
    for seconds, record in moments:
        floor = max(floor, record)
        clock.raise_floor(record)
        clock.passes(seconds)
        assert clock.now() >= floor


@given(MOMENTS)
def test_what_was_a_moment_ago_is_not_later_after_a_restart(moment: float) -> None:
    """The floor is a time of the log, in whole microseconds: so is what becomes active now."""
    clock, after = Machine(absence=4e9), Machine(absence=4e9)
    clock.raise_floor(1.0)
    clock.passes(moment)
    now = clock.now()
    after.raise_floor(round(now * 1_000_000) / 1_000_000)
    assert after.now() >= now


def test_the_floor_does_not_hold_up_durations() -> None:
    clock = FlooredClock()
    clock.raise_floor(1e12)
    before = time.monotonic()
    assert before <= clock.monotonic() <= time.monotonic()


def test_a_clock_that_was_set_back_a_little_waits_until_it_has_caught_up() -> None:
    clock = Machine(100.0)
    clock.raise_floor(105.0)
    seen = []
    for _ in range(4):
        clock.passes(2.0)
        seen.append(clock.now())
    assert (seen, clock.doubt()) == ([105.0, 105.0, 106.0, 108.0], "")


@pytest.mark.parametrize(
    ("calendar", "doubt", "now"),
    [
        (1060.0, "", 1060.0),
        (1069.0, "", 1069.0),
        (1071.0, "the clock has jumped forward by 11 s", 1060.0),
        (9e8, "the clock has jumped forward by 899998940 s", 1060.0),
        (1000.0, "the clock has jumped back by 60 s", 1060.0),
    ],
)
def test_a_jump_is_doubted_and_reaches_no_decision(calendar: float, doubt: str, now: float) -> None:
    clock = Machine()
    clock.passes(60.0)
    clock.calendar = calendar
    assert (clock.doubt(), clock.now(), clock.machine()) == (doubt, now, calendar)
    assert clock.reading() == (now, calendar, doubt)
    clock.calendar = 1060.0
    assert (clock.doubt(), clock.now()) == ("", 1060.0)


@pytest.mark.parametrize(
    ("last", "doubt", "now"),
    [
        (0.0, "", 1005.0),  # a new log
        (1000.0, "", 1005.0),
        (500.0, "", 1005.0),  # it was off for so long
        (499.0, "the clock is 501 s ahead of the audit log", 504.0),
        (1009.0, "", 1009.0),
        (1090.0, "the clock is 90 s behind the audit log", 1095.0),
    ],
)
def test_at_a_start_the_last_record_says_what_time_it_was(
    last: float, doubt: str, now: float
) -> None:
    clock = Machine(1000.0, absence=500.0)
    clock.raise_floor(last)
    clock.passes(5.0)
    assert (clock.doubt(), clock.now()) == (doubt, now)


@pytest.mark.parametrize(
    ("slept", "jump", "doubt"),
    [
        (400.0, 0.0, ""),
        (400.0, 9.0, ""),
        (400.0, 30.0, "the clock has jumped forward by 30 s"),
        (400.0, -400.0, "the clock has jumped back by 400 s"),
        (501.0, 0.0, "the clock has jumped forward by 501 s"),
    ],
)
def test_sleep_is_no_jump_for_so_long(slept: float, jump: float, doubt: str) -> None:
    clock = Machine(absence=500.0)
    clock.slept += slept
    clock.calendar += slept + jump
    assert clock.doubt() == doubt
    assert clock.now() == pytest.approx(1000.0 + (slept if slept <= 500 else 0), abs=JUMP_SECONDS)


@pytest.mark.parametrize("calendar", [5000.0, 700.0])
def test_what_officers_accept_is_the_time(calendar: float) -> None:
    clock = Machine()
    clock.raise_floor(1000.0)
    clock.calendar = calendar
    assert clock.doubt()
    clock.accept()
    clock.passes(3.0)
    clock.raise_floor(calendar + 1)
    assert (clock.doubt(), clock.now()) == ("", calendar + 3)


def test_the_kernel_knows_how_long_it_slept() -> None:
    assert FlooredClock().asleep() > -0.001

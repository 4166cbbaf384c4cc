"""Time that does not go behind what is on record."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from signer.clock import FlooredClock, SystemClock

MOMENTS = st.floats(0, 4e9)


def test_the_system_clock_reads_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 7.0)
    monkeypatch.setattr(time, "monotonic", lambda: 8.0)
    assert (SystemClock().now(), SystemClock().monotonic()) == (7.0, 8.0)
    assert (FlooredClock().now(), FlooredClock().monotonic()) == (7.0, 8.0)


@given(st.lists(st.tuples(MOMENTS, MOMENTS), min_size=1, max_size=20))
def test_time_is_never_behind_the_floor(moments: list[tuple[float, float]]) -> None:
    """The machine's clock may jump as it likes; the floor only rises, as a log's last record."""
    clock, floor = FlooredClock(), 0.0
    with pytest.MonkeyPatch.context() as patched:
        for machine, record in moments:
            floor = max(floor, record)
            clock.raise_floor(record)
            patched.setattr(time, "time", lambda machine=machine: machine)
            assert clock.now() == max(machine, floor)
            assert clock.machine() == machine


def test_a_clock_that_was_set_back_waits_until_it_has_caught_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, machine = FlooredClock(), iter((100.0, 50.0, 60.0, 99.0, 100.5))
    clock.raise_floor(100.0)
    monkeypatch.setattr(time, "time", lambda: next(machine))
    assert [clock.now() for _ in range(5)] == [100.0, 100.0, 100.0, 100.0, 100.5]


def test_the_floor_does_not_hold_up_durations(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FlooredClock()
    clock.raise_floor(1e12)
    monkeypatch.setattr(time, "monotonic", lambda: 5.0)
    assert clock.monotonic() == 5.0


@pytest.mark.parametrize(
    ("machine", "monotonic", "record", "doubt"),
    [
        (1000.0, 50.0, 1000.0, ""),
        (1060.0, 110.0, 0.0, ""),
        (1069.0, 110.0, 0.0, ""),
        (1071.0, 110.0, 0.0, "the clock has jumped forward by 11 s"),
        (1000.0, 110.0, 0.0, "the clock has jumped back by 60 s"),
        (1060.0, 110.0, 1061.0, ""),
        (1060.0, 110.0, 1090.0, "the clock is 30 s behind the audit log"),
    ],
)
def test_a_clock_is_doubted_that_jumped_or_is_behind_the_log(
    monkeypatch: pytest.MonkeyPatch, machine: float, monotonic: float, record: float, doubt: str
) -> None:
    monkeypatch.setattr(time, "time", lambda: 1000.0)
    monkeypatch.setattr(time, "monotonic", lambda: 50.0)
    clock = FlooredClock()
    clock.raise_floor(record)
    monkeypatch.setattr(time, "time", lambda: machine)
    monkeypatch.setattr(time, "monotonic", lambda: monotonic)
    assert clock.doubt() == doubt

"""States of a version: the table of NIST SP 800-57, moves that keep to it, states by the clock."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from signer.errors import OperatorError
from signer.keys import lifecycle
from signer.keys.lifecycle import TRANSITIONS, IllegalMoveError
from signer.model import KeyState, KeyVersion
from tests.unit.keys.made import make

S = KeyState
NOW = 1000.0
TABLE = """
    PRE_ACTIVE        ACTIVE, COMPROMISED, DESTROY_SCHEDULED
    ACTIVE            SUSPENDED, DEACTIVATED, COMPROMISED
    SUSPENDED         ACTIVE, DEACTIVATED, COMPROMISED, DESTROY_SCHEDULED
    DEACTIVATED       COMPROMISED, DESTROY_SCHEDULED
    COMPROMISED       DESTROY_SCHEDULED
    DESTROY_SCHEDULED DESTROYED, COMPROMISED, PRE_ACTIVE, SUSPENDED, DEACTIVATED
    DESTROYED
"""

TIMES = st.none() | st.floats(900, 1100)
ORIGINS = (S.PRE_ACTIVE, S.SUSPENDED, S.DEACTIVATED, S.COMPROMISED)


@st.composite
def versions(draw: st.DrawFn) -> KeyVersion:
    """Any record that the moves can leave, and some that they cannot."""
    state = draw(st.sampled_from(S))
    scheduled = state is S.DESTROY_SCHEDULED
    came_from = draw(st.sampled_from(ORIGINS)) if scheduled else None
    return replace(
        make(),
        state=state,
        activate_at=draw(TIMES),
        sign_until=draw(TIMES),
        deactivate_at=draw(TIMES),
        destroy_at=draw(st.floats(900, 1100) if scheduled else TIMES),
        came_from=came_from,
    )


def of(state: KeyState, **times: float | None) -> KeyVersion:
    """A version in a state at NOW, by its record alone."""
    began = None if state is S.PRE_ACTIVE else 500.0
    record: dict[str, Any] = {"activate_at": began, "sign_until": None}
    if state is S.DESTROY_SCHEDULED:
        record["destroy_at"] = 900.0
    version = replace(make(), state=state, **(record | times))
    return replace(version, came_from=S.DEACTIVATED) if state is S.DESTROY_SCHEDULED else version


MOVES: Mapping[str, tuple[Callable[[KeyVersion, float], KeyVersion], frozenset[KeyState]]] = {
    "activate": (lambda v, now: lifecycle.activate(v, now, None, now), frozenset({S.PRE_ACTIVE})),
    "suspend": (lifecycle.suspend, frozenset({S.ACTIVE, S.PRE_ACTIVE})),
    "resume": (lifecycle.resume, frozenset({S.SUSPENDED})),
    "deactivate": (
        lambda v, now: lifecycle.deactivate(v, now, now),
        frozenset({S.ACTIVE, S.SUSPENDED}),
    ),
    "compromise": (lifecycle.compromise, frozenset(S) - {S.COMPROMISED, S.DESTROYED}),
    "schedule_destruction": (
        lambda v, now: lifecycle.schedule_destruction(v, now, now),
        frozenset({S.PRE_ACTIVE, S.SUSPENDED, S.DEACTIVATED, S.COMPROMISED}),
    ),
    "restore": (lifecycle.restore, frozenset({S.DESTROY_SCHEDULED})),
    "destroy": (lifecycle.destroy, frozenset({S.DESTROY_SCHEDULED})),
}
EVERY_MOVE = st.sampled_from(sorted(MOVES))


def test_the_table_is_that_of_the_design() -> None:
    rows = [line.split(None, 1) for line in TABLE.strip().splitlines()]
    wanted = {S(row[0]): {S(to) for to in row[1].split(", ")} if row[1:] else set() for row in rows}
    assert {state: set(to) for state, to in TRANSITIONS.items()} == wanted
    assert set(TRANSITIONS) == set(S)


@pytest.mark.parametrize("state", S)
@pytest.mark.parametrize("name", MOVES)
def test_a_move_is_made_from_its_states_and_from_no_others(name: str, state: KeyState) -> None:
    move, allowed = MOVES[name]
    version = of(state)
    if name == "suspend" and state is S.PRE_ACTIVE:
        assert move(version, NOW).state_at(NOW) is state
    elif state in allowed:
        assert move(version, NOW).state_at(NOW) in TRANSITIONS[state]
    else:
        with pytest.raises(IllegalMoveError, match=rf"is {state}"):
            move(version, NOW)


@given(versions(), EVERY_MOVE, st.floats(900, 1100))
def test_no_record_and_no_time_makes_a_move_that_the_table_has_not(
    version: KeyVersion, name: str, now: float
) -> None:
    before, copy = version.state_at(now), replace(version)
    try:
        after = MOVES[name][0](version, now)
    except OperatorError:
        assert version == copy
        return
    assert before in MOVES[name][1] or (name == "suspend" and before is S.PRE_ACTIVE)
    assert version == copy
    came = after.state_at(now)
    assert came in TRANSITIONS[before] or came is before or name in ("resume", "restore")
    fixed = ("key", "number", "algorithm", "token", "cka_id", "spki", "certificate", "kid")
    assert all(getattr(after, member) == getattr(version, member) for member in fixed)


# --- the state by the clock ----------------------------------------------------------------------


@given(versions(), st.floats(900, 1100))
def test_nothing_is_active_before_its_time_or_after_its_end(
    version: KeyVersion, now: float
) -> None:
    ends = [at for at in (version.sign_until, version.deactivate_at) if at is not None]
    begun = version.activate_at is not None and version.activate_at <= now
    wanted = version.state is S.ACTIVE and begun and all(now < end for end in ends)
    assert version.active(now) is wanted


@given(versions(), st.floats(900, 1100), st.floats(0, 1e9))
def test_the_clock_alone_destroys_nothing_and_starts_nothing_again(
    version: KeyVersion, now: float, later: float
) -> None:
    before, after = version.state_at(now), version.state_at(now + later)
    assert (before is S.DESTROYED) is (after is S.DESTROYED) or before is after
    by_clock = {
        S.PRE_ACTIVE: {S.PRE_ACTIVE, S.ACTIVE, S.DEACTIVATED, S.DESTROY_SCHEDULED},
        S.ACTIVE: {S.ACTIVE, S.DEACTIVATED, S.DESTROY_SCHEDULED},
        S.SUSPENDED: {S.SUSPENDED, S.DEACTIVATED, S.DESTROY_SCHEDULED},
    }
    assert after in by_clock.get(before, {before})


@pytest.mark.parametrize(
    ("times", "state"),
    [
        ({"activate_at": NOW}, S.ACTIVE),
        ({"activate_at": NOW + 0.001}, S.PRE_ACTIVE),
        ({"activate_at": None}, S.PRE_ACTIVE),
        ({"sign_until": NOW}, S.DEACTIVATED),
        ({"sign_until": NOW + 0.001}, S.ACTIVE),
        ({"deactivate_at": NOW}, S.DEACTIVATED),
        ({"deactivate_at": NOW, "destroy_at": NOW + 9}, S.DESTROY_SCHEDULED),
        ({"deactivate_at": NOW + 1, "destroy_at": NOW + 9}, S.ACTIVE),
        ({"sign_until": NOW, "deactivate_at": NOW + 5}, S.DEACTIVATED),
    ],
)
def test_the_moment_belongs_to_what_follows(
    times: dict[str, float | None], state: KeyState
) -> None:
    assert of(S.ACTIVE, **times).state_at(NOW) is state


# --- single moves --------------------------------------------------------------------------------


def test_activation_is_never_in_the_past_and_has_an_end_after_its_beginning() -> None:
    made = of(S.PRE_ACTIVE)
    assert lifecycle.activate(made, 5.0, None, NOW).activate_at == NOW
    waiting = lifecycle.activate(made, NOW + 60, NOW + 61, NOW)
    assert (waiting.activate_at, waiting.sign_until) == (NOW + 60, NOW + 61)
    assert waiting.state_at(NOW) is S.PRE_ACTIVE
    for sign_until in (NOW + 60, NOW, 5.0):
        with pytest.raises(IllegalMoveError, match="would end before it begins"):
            lifecycle.activate(made, NOW + 60, sign_until, NOW)


def test_a_version_that_waits_loses_its_time_when_it_is_stopped_and_says_so() -> None:
    waiting = lifecycle.activate(of(S.PRE_ACTIVE), NOW + 60, None, NOW)
    stopped = lifecycle.suspend(waiting, NOW)
    assert (stopped.state, stopped.activate_at, stopped.came_from) == (S.PRE_ACTIVE, None, S.ACTIVE)
    assert stopped.state_at(NOW + 61) is S.PRE_ACTIVE
    again = lifecycle.activate(stopped, NOW, None, NOW)
    assert (again.state_at(NOW), again.came_from) == (S.ACTIVE, None)


def test_a_version_without_a_plan_is_stopped_once_and_resumed_without_one() -> None:
    stopped = lifecycle.suspend(of(S.PRE_ACTIVE), NOW)
    assert (stopped.state_at(NOW), stopped.activate_at, stopped.came_from) == (
        S.PRE_ACTIVE,
        None,
        S.ACTIVE,
    )
    with pytest.raises(IllegalMoveError, match="nothing to stop"):
        lifecycle.suspend(stopped, NOW)
    assert lifecycle.resume(stopped, NOW) == of(S.PRE_ACTIVE)
    with pytest.raises(IllegalMoveError):
        lifecycle.resume(of(S.PRE_ACTIVE), NOW)


def test_what_was_to_be_destroyed_before_it_signed_is_neither_stopped_nor_resumed() -> None:
    restored = lifecycle.restore(lifecycle.schedule_destruction(of(S.PRE_ACTIVE), NOW, NOW), NOW)
    with pytest.raises(IllegalMoveError, match="nothing to stop"):
        lifecycle.suspend(restored, NOW)
    with pytest.raises(IllegalMoveError):
        lifecycle.resume(restored, NOW)


def test_what_is_suspended_ends_at_its_time_and_is_not_resumed_after_that() -> None:
    suspended = lifecycle.suspend(of(S.ACTIVE, sign_until=NOW + 60), NOW)
    assert lifecycle.resume(suspended, NOW + 59).active(NOW + 59)
    with pytest.raises(IllegalMoveError):
        lifecycle.resume(suspended, NOW + 60)


def test_an_end_in_the_future_is_brought_by_the_clock() -> None:
    ending = lifecycle.deactivate(of(S.ACTIVE), NOW + 60, NOW)
    assert [ending.state_at(NOW + s) for s in (0, 59, 60)] == [S.ACTIVE, S.ACTIVE, S.DEACTIVATED]
    assert lifecycle.deactivate(of(S.ACTIVE), 5.0, NOW).deactivate_at == NOW
    suspended = lifecycle.deactivate(of(S.SUSPENDED), NOW + 60, NOW)
    assert suspended.state_at(NOW) is S.SUSPENDED
    assert suspended.state_at(NOW + 60) is S.DEACTIVATED


def test_with_a_time_of_destruction_an_end_is_scheduled_for_it() -> None:
    ended = lifecycle.deactivate(of(S.ACTIVE), NOW, NOW, NOW + 60)
    assert (ended.state, ended.came_from) == (S.DESTROY_SCHEDULED, S.DEACTIVATED)
    later = lifecycle.deactivate(of(S.ACTIVE), NOW + 60, NOW, NOW + 90)
    assert later.state_at(NOW) is S.ACTIVE
    assert later.state_at(NOW + 60) is S.DESTROY_SCHEDULED
    with pytest.raises(IllegalMoveError):
        lifecycle.destroy(later, NOW + 89)
    assert lifecycle.destroy(later, NOW + 90).state is S.DESTROYED
    with pytest.raises(IllegalMoveError, match="destroyed before it ends"):
        lifecycle.deactivate(of(S.ACTIVE), NOW + 60, NOW, NOW + 59)


@pytest.mark.parametrize("origin", ORIGINS)
def test_a_scheduled_destruction_goes_back_where_it_came_from(origin: KeyState) -> None:
    scheduled = lifecycle.schedule_destruction(of(origin), NOW + 60, NOW)
    assert (scheduled.state, scheduled.came_from) == (S.DESTROY_SCHEDULED, origin)
    assert scheduled.destroy_at == NOW + 60
    restored = lifecycle.restore(scheduled, NOW + 1)
    assert restored.state_at(NOW + 1) is origin
    assert restored.destroy_at is None


@given(versions(), st.floats(900, 1100))
def test_nothing_is_restored_to_active(version: KeyVersion, now: float) -> None:
    scheduled = replace(version, state=S.DESTROY_SCHEDULED)
    for record in (scheduled, replace(scheduled, came_from=None)):
        restored = lifecycle.restore(record, now)
        assert not restored.active(now)
        assert not restored.active(now + 1e6)


def test_what_waited_for_a_time_has_none_when_it_is_restored() -> None:
    waiting = lifecycle.activate(of(S.PRE_ACTIVE), NOW + 60, None, NOW)
    scheduled = lifecycle.schedule_destruction(waiting, NOW + 90, NOW)
    restored = lifecycle.restore(scheduled, NOW)
    assert (restored.state, restored.activate_at) == (S.PRE_ACTIVE, None)
    assert restored.came_from is S.DESTROY_SCHEDULED
    assert restored.state_at(NOW + 61) is S.PRE_ACTIVE


def test_what_the_clock_has_scheduled_is_restored_as_ended() -> None:
    ended = lifecycle.deactivate(of(S.ACTIVE), NOW + 60, NOW, NOW + 90)
    restored = lifecycle.restore(ended, NOW + 61)
    assert (restored.state, restored.destroy_at) == (S.DEACTIVATED, None)


def test_destruction_waits_for_its_time() -> None:
    scheduled = lifecycle.schedule_destruction(of(S.DEACTIVATED), NOW + 60, NOW)
    with pytest.raises(IllegalMoveError, match="must not be destroyed yet"):
        lifecycle.destroy(scheduled, NOW + 59.9)
    assert lifecycle.destroy(scheduled, NOW + 60).state is S.DESTROYED
    at_once = lifecycle.schedule_destruction(of(S.DEACTIVATED), 0.0, NOW)
    assert at_once.destroy_at == NOW


def test_what_is_compromised_is_scheduled_for_nothing() -> None:
    scheduled = lifecycle.schedule_destruction(of(S.DEACTIVATED), NOW, NOW)
    compromised = lifecycle.compromise(scheduled, NOW)
    assert (compromised.state, compromised.came_from) == (S.COMPROMISED, None)
    assert compromised.destroy_at is None


# --- moves towards a stop -----------------------------------------------------------------------


@given(versions(), versions())
def test_what_only_stops_signs_at_no_other_time(before: KeyVersion, after: KeyVersion) -> None:
    if lifecycle.only_stops(before, after):
        for now in (899, 950, 1000, 1050, 1101):
            assert before.active(now) or not after.active(now)


@given(versions(), st.floats(900, 1100))
def test_what_one_officer_may_do_only_stops(version: KeyVersion, now: float) -> None:
    for move in (lifecycle.suspend, lifecycle.compromise):
        try:
            after = move(version, now)
        except OperatorError:
            continue
        assert lifecycle.only_stops(version, after)


@given(versions(), st.floats(900, 1100))
def test_what_takes_officers_together_is_no_mere_stop(version: KeyVersion, now: float) -> None:
    for move in (
        lifecycle.resume,
        lifecycle.restore,
        lambda version, now: lifecycle.activate(version, now, None, now),
    ):
        try:
            after = move(version, now)
        except OperatorError:
            continue
        if after.state in (S.PRE_ACTIVE, S.ACTIVE, S.SUSPENDED):
            assert not lifecycle.only_stops(version, after)


@given(versions())
def test_a_compromised_version_stays_one(version: KeyVersion) -> None:
    bad = replace(version, state=S.COMPROMISED, came_from=None)
    for came_from in (None, *S):
        after = replace(bad, state=S.DESTROY_SCHEDULED, came_from=came_from)
        assert lifecycle.only_stops(bad, after) == (came_from is S.COMPROMISED)

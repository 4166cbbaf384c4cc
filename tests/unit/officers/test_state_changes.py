"""Kinds that move a version through its life, and what lets suspended keys sign again."""

from typing import Any

import pytest

from signer.errors import CallError
from signer.events import Unaccounted
from signer.model import Scope, Suspension
from signer.officers.store import OperationState
from signer.text import utc
from tests.unit.officers.opstage import CLINIC, DAY, HOUR, START, Stage
from tests.unit.officers.people import C

LATER = int(START) + DAY
ONE, TWO = f"{CLINIC}/versions/1", f"{CLINIC}/versions/2"


@pytest.fixture
def key(stage: Stage) -> str:
    return stage.key()


def test_a_version_is_activated_ends_and_is_destroyed(stage: Stage) -> None:
    stage.key(activate=False)
    stage.done("activate", version=ONE, at=LATER, sign_until=LATER + DAY)
    assert stage.states(CLINIC) == ["PRE_ACTIVE"]
    stage.clock.forward(DAY)
    assert stage.states(CLINIC) == ["ACTIVE"]
    stage.done("deactivate", version=ONE)
    stage.done("schedule-destruction", version=ONE, at=LATER + DAY)
    assert "must not be destroyed yet" in stage.problems("destroy", version=ONE)[0]
    stage.done("restore", version=ONE)
    assert stage.states(CLINIC) == ["DEACTIVATED"]
    stage.done("schedule-destruction", version=ONE)
    identity = stage.version(ONE).cka_id
    assert stage.prepare("destroy", version=ONE).difference == [
        f"~ {ONE}: DESTROY_SCHEDULED becomes DESTROYED",
        f"! the private key {identity.hex()} on token soft is destroyed",
    ]
    stage.done("destroy", version=ONE)
    assert stage.states(CLINIC) == ["DESTROYED"]
    assert stage.token.keys == {}


def test_what_will_be_is_shown(stage: Stage) -> None:
    stage.key(activate=False)
    shown = stage.prepare("activate", version=ONE, at=LATER, sign_until=LATER + DAY).difference
    assert shown == [
        f"~ {ONE}: PRE_ACTIVE",
        "  activate_at none becomes 2026-01-06T00:00:00Z",
        "  sign_until none becomes 2026-01-07T00:00:00Z",
    ]
    at_once = stage.prepare("activate", version=ONE).difference
    assert at_once[0] == f"~ {ONE}: PRE_ACTIVE becomes ACTIVE"


@pytest.mark.usefixtures("key")
def test_the_end_of_the_last_active_version_is_warned_of(stage: Stage) -> None:
    def warned(**arguments: Any) -> list[str]:
        lines = stage.prepare("deactivate", **arguments).difference
        return [line for line in lines if line.startswith("!")]

    [now] = warned(version=ONE)
    assert now == (
        f"! {CLINIC} has no other version that is active then: from {utc(stage.clock.now())} on"
        " nothing can be signed with it"
    )
    [later] = warned(version=ONE, at=LATER)
    assert "from 2026-01-06T00:00:00Z on" in later
    stage.done("new-version", key=CLINIC)
    assert warned(version=ONE)
    stage.done("activate", version=TWO, at=LATER)
    assert not warned(version=ONE, at=LATER)  # the next one signs from that moment on
    assert warned(version=ONE, at=LATER - 1)
    assert warned(version=ONE)
    stage.clock.forward(DAY)
    assert not warned(version=ONE)


@pytest.mark.parametrize(
    ("kind", "arguments", "told"),
    [
        ("activate", {}, "is ACTIVE"),
        ("schedule-destruction", {}, "is ACTIVE"),
        ("restore", {}, "is ACTIVE"),
        ("destroy", {}, "is ACTIVE"),
        ("deactivate", {"version": TWO}, "does not exist"),
        ("deactivate", {"version": CLINIC}, "is a key: name one version"),
        ("deactivate", {"version": "v1"}, "expected facilities/"),
        ("deactivate", {"version": f"{CLINIC}/versions/0"}, "n from 1"),
        ("deactivate", {"at": LATER * 1000}, "32503680000"),
        ("deactivate", {"at": -1}, "should be at least 0"),
        ("deactivate", {"at": 10**400}, "32503680000"),
        ("deactivate", {"at": "now"}, "whole number"),
        ("deactivate", {"reason": "x"}, "is not known"),
    ],
)
def test_a_move_is_refused(
    stage: Stage, key: str, kind: str, arguments: dict[str, Any], told: str
) -> None:
    [problem] = stage.problems(kind, **{"version": key} | arguments)
    assert told in problem


def test_an_end_before_the_beginning(stage: Stage) -> None:
    stage.key(activate=False)
    [problem] = stage.problems("activate", version=ONE, at=LATER, sign_until=LATER)
    assert "would end before it begins" in problem


# --- what changed since the proposal ------------------------------------------------------


def failed(stage: Stage, identity: str) -> str:
    stage.approve(identity)
    operation = stage.operation(identity)
    assert operation.state is OperationState.FAILED
    return operation.note


def test_a_version_that_was_stopped_since_is_not_moved(stage: Stage, key: str) -> None:
    identity = stage.propose("deactivate", version=key).id
    stage.emergency.suspend_key(C, key, "seen elsewhere")
    note = failed(stage, identity)
    assert f"{key}: ACTIVE" in note
    assert "SUSPENDED" in note
    assert stage.states(CLINIC) == ["SUSPENDED"]


def test_another_version_of_the_key_counts_too(stage: Stage, key: str) -> None:
    identity = stage.propose("deactivate", version=key).id
    stage.done("new-version", key=CLINIC)
    assert "absent then" in failed(stage, identity)


def test_times_that_were_changed_since_count_too(stage: Stage, key: str) -> None:
    """Officers saw that it had no end; what they approve must not take one away."""
    identity = stage.propose("deactivate", version=key, at=LATER + DAY).id
    stage.done("deactivate", version=key, at=LATER)
    assert "deactivate_at 2026-01-06T00:00:00Z, changed at" in failed(stage, identity)
    assert stage.version(key).deactivate_at == LATER


def test_a_time_that_an_officer_took_away_is_not_given_back(stage: Stage) -> None:
    stage.key(activate=False)
    stage.done("activate", version=ONE, at=LATER)
    identity = stage.propose("activate", version=ONE, at=LATER + HOUR).id
    stage.emergency.suspend_key(C, ONE, "wait")
    assert "has changed since" in failed(stage, identity)
    assert stage.version(ONE).activate_at is None


def test_the_clock_changes_what_officers_saw(stage: Stage, key: str) -> None:
    stage.done("deactivate", version=key, at=int(START) + HOUR)
    identity = stage.propose("deactivate", version=key).id
    stage.clock.forward(HOUR)
    assert "DEACTIVATED" in failed(stage, identity)


# --- resume -----------------------------------------------------------------------------------


def test_a_key_is_resumed_and_a_version(stage: Stage, key: str) -> None:
    for target in (CLINIC, key):
        stage.emergency.suspend_key(C, key, "seen elsewhere")
        assert stage.prepare("resume", target=target).difference == [
            f"~ {key}: SUSPENDED becomes ACTIVE"
        ]
        stage.done("resume", target=target)
        assert stage.states(CLINIC) == ["ACTIVE"]


FLAGS = [
    (Scope.FACILITY, "01-001", "facilities/01-001"),
    (Scope.GROUP, "01", "groups/01"),
    (Scope.EVERYTHING, "", "everything"),
]


@pytest.mark.parametrize(("scope", "name", "target"), FLAGS)
def test_a_flag_is_lifted(stage: Stage, key: str, scope: Scope, name: str, target: str) -> None:
    del key
    stage.emergency.suspend(C, scope, name, "a break-in")
    assert stage.snapshot.suspended.reason("01-001")
    _, line = stage.prepare("resume", target=target).difference
    assert line == f"  it was suspended by {C} on 2026-01-05T00:00:00Z: a break-in"
    stage.done("resume", target=target)
    assert stage.emergency.suspensions() == ()
    assert not stage.snapshot.suspended.reason("01-001")
    assert "is not suspended" in stage.problems("resume", target=target)[0]


@pytest.mark.parametrize(
    ("target", "told"),
    [
        (CLINIC, "no suspended version"),
        ("groups/99", "is not suspended"),
        ("groups/", "is not suspended"),
        ("nothing", "groups/G, or everything"),
        ("", "groups/G, or everything"),
        ("everything/x", "groups/G, or everything"),
        ("facilities/01-001/keys", "groups/G, or everything"),
    ],
)
def test_nothing_to_resume(stage: Stage, key: str, target: str, told: str) -> None:
    del key
    [problem] = stage.problems("resume", target=target)
    assert told in problem


@pytest.mark.parametrize(("scope", "name", "target"), FLAGS)
def test_what_was_suspended_anew_is_not_lifted(
    stage: Stage, scope: Scope, name: str, target: str
) -> None:
    """Also where both happen within one second."""
    stage.emergency.suspend(C, scope, name, "first")
    old, new = (stage.propose("resume", target=target).id for _ in range(2))
    stage.approve(new)
    stage.emergency.suspend(C, scope, name, "second")
    assert "suspended anew" in failed(stage, old)
    assert [each.reason for each in stage.emergency.suspensions()] == ["second"]


# --- acts of one officer ----------------------------------------------------------------------


@pytest.mark.parametrize("scope", [Scope.FACILITY, Scope.GROUP])
@pytest.mark.parametrize(
    "name",
    ["", "/", "01", "01-001/", "01-001/keys", "01-001/keys/records", "0", "01-001\n", "../x"],
)
def test_a_part_of_a_name_stops_nothing_and_is_refused(
    stage: Stage, key: str, scope: Scope, name: str
) -> None:
    assert key
    if (scope, name) == (Scope.GROUP, "01"):
        return  # this one is a group
    with pytest.raises(CallError, match="FIELD_INVALID"):
        stage.emergency.suspend(C, scope, name, "x")
    assert stage.emergency.suspensions() == ()


def test_a_suspension_of_a_part_of_a_name_from_before_can_be_lifted(stage: Stage) -> None:
    with stage.registry.writing() as write:
        write.suspend(Suspension(Scope.FACILITY, "01-001/keys", START, C, "an earlier version"))
    stage.done("resume", target="facilities/01-001/keys")
    assert stage.emergency.suspensions() == ()
    [by_hand] = stage.seen.of(Unaccounted)
    assert by_hand.obeyed == ["facility 01-001/keys was suspended in the registry by hand"]
    stage.seen.seen.clear()


def test_a_suspension_wants_a_reason_and_a_name(stage: Stage, key: str) -> None:
    for reason in ("", " \n", "x" * 1001, "é" * 501):
        with pytest.raises(CallError, match="reason"):
            stage.emergency.suspend_key(C, key, reason)
        with pytest.raises(CallError, match="reason"):
            stage.emergency.suspend(C, Scope.EVERYTHING, "", reason)
    with pytest.raises(CallError, match="KEY_NOT_FOUND"):
        stage.emergency.suspend_key(C, TWO, "x")
    with pytest.raises(CallError, match="FIELD_INVALID"):
        stage.emergency.suspend_key(C, "everything", "x")
    for scope, name in ((Scope.GROUP, "99"), (Scope.FACILITY, "9"), (Scope.FACILITY, "x")):
        with pytest.raises(CallError, match="there is no"):
            stage.emergency.suspend(C, scope, name, "x")
    with pytest.raises(CallError, match="FIELD_INVALID"):
        stage.emergency.suspend(C, Scope.EVERYTHING, "x", "x")
    assert stage.states(CLINIC) == ["ACTIVE"]
    assert stage.emergency.suspensions() == ()


def test_a_facility_that_only_has_keys_can_be_stopped(stage: Stage) -> None:
    stage.key("facilities/x/keys/k")
    stage.emergency.suspend(C, Scope.FACILITY, "x", "why")
    assert stage.snapshot.suspended.reason("x")


def test_what_is_stopped_is_stopped_once_and_compromised_for_good(stage: Stage, key: str) -> None:
    officer = C
    stage.emergency.suspend_key(officer, key, "why")
    with pytest.raises(CallError, match=r"nothing to stop: .*SUSPENDED"):
        stage.emergency.suspend_key(officer, key, "why")
    stage.emergency.compromise(officer, CLINIC, "why")
    assert stage.states(CLINIC) == ["COMPROMISED"]
    with pytest.raises(CallError, match="COMPROMISED"):
        stage.emergency.compromise(officer, CLINIC, "why")
    assert "no suspended version" in stage.problems("resume", target=CLINIC)[0]
    stage.done("schedule-destruction", version=key)
    assert "is DESTROY_SCHEDULED" in stage.problems("deactivate", version=key)[0]


def test_who_stops_a_key_does_not_lose_against_who_changes_it(
    stage: Stage, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look at a version and the write somebody else changes it, twice."""
    read, changes = stage.registry.versions, iter((LATER, LATER + 1))

    def changed_after(*arguments: Any) -> Any:
        found = read(*arguments)
        if (at := next(changes, None)) is not None:
            with monkeypatch.context() as undone:
                undone.setattr(stage.registry, "versions", read)
                stage.done("deactivate", version=key, at=at)
        return found

    monkeypatch.setattr(stage.registry, "versions", changed_after)
    [stopped] = stage.emergency.suspend_key(C, key, "why")
    assert stage.states(CLINIC) == ["SUSPENDED"]
    assert stopped.deactivate_at == LATER + 1

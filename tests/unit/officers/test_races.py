"""What comes between the proposal, the check and the end of an operation must not get lost."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from signer.audit.format.record import RecordKind
from signer.errors import CallError, OperatorError
from signer.events import Unaccounted
from signer.keys import schema
from signer.keys.registry import Registry
from signer.model import Scope
from signer.officers.store import OperationState
from tests.stand_ins import SetClock
from tests.unit.officers.opstage import CLINIC, DAY, MemoryLog, Stage
from tests.unit.officers.people import A, B, C
from tests.unit.officers.softtoken import Crash

FACILITY = "facilities/01-001"
HEAD = "facility,group,profile,clients,key,algorithm,bits"


def facilities(prefix: str, count: int = 2) -> bytes:
    rows = [
        f"{prefix}-{n},01,clinic,spiffe://signer.example/facility/{prefix}-{n},records,ES256,"
        for n in range(count)
    ]
    return "\n".join([HEAD, *rows]).encode()


def while_keys_are_made(stage: Stage, happens: Callable[[], object]) -> None:
    """Has something happen when the token makes its next key."""
    generate, waiting = stage.token.generate, [happens]

    def generating(*arguments: Any) -> bytes:
        if waiting:
            waiting.pop()()
        return generate(*arguments)

    setattr(stage.token, "generate", generating)  # noqa: B010


def remove_client(stage: Stage) -> None:
    policy = stage.policy / "policy.yaml"
    client = "clients: [spiffe://signer.example/facility/02-001]"
    assert client in policy.read_text()
    policy.write_text(policy.read_text().replace(client, "clients: []"))
    stage.done("policy")


def test_an_enrolment_takes_back_no_policy_of_meanwhile(stage: Stage) -> None:
    identity = stage.propose("enrol", facilities("n")).id
    while_keys_are_made(stage, lambda: remove_client(stage))
    stage.approve(identity)
    assert stage.operation(identity).state is OperationState.FAILED
    assert "another policy was put in force" in stage.operation(identity).note
    assert stage.snapshot.policy.facilities["02-001"].clients == frozenset()
    assert "n-0" not in stage.snapshot.policy.facilities
    assert stage.log.control.problems == ()


def test_what_such_an_enrolment_made_is_taken_over_by_the_next(stage: Stage) -> None:
    identity = stage.propose("enrol", facilities("n")).id
    while_keys_are_made(stage, lambda: remove_client(stage))
    stage.approve(identity)
    made = len(stage.token.keys)
    again = stage.prepare("enrol", facilities("n"))
    assert "! 2 keys exist from an enrolment that did not end" in again.difference
    stage.done("enrol", facilities("n"))
    assert len(stage.token.keys) == made
    assert {"n-0", "n-1"} <= stage.snapshot.policy.facilities.keys()
    assert stage.snapshot.policy.facilities["02-001"].clients == frozenset()


def test_of_two_enrolments_at_once_none_undoes_the_other(stage: Stage) -> None:
    first = stage.propose("enrol", facilities("n")).id
    second = stage.propose("enrol", facilities("m"), by=B).id
    while_keys_are_made(stage, lambda: stage.approve(second, by=C))
    stage.approve(first)
    assert stage.operation(second).state is OperationState.DONE
    assert stage.operation(first).state is OperationState.FAILED
    assert "m-0" in stage.snapshot.policy.facilities


def test_an_enrolment_during_which_officers_changed_is_approved_anew(stage: Stage) -> None:
    identity = stage.propose("enrol", facilities("n")).id
    while_keys_are_made(stage, lambda: stage.done("officers", remove=[C]))
    stage.approve(identity)
    assert "the officers were changed" in stage.operation(identity).note
    stage.proposals.retry(A, identity)  # both who signed are officers still
    assert stage.operation(identity).state is OperationState.DONE
    assert stage.log.control.problems == ()


def test_an_old_failure_is_no_right_for_ever(stage: Stage) -> None:
    stage.key()
    stage.emergency.suspend_key(A, CLINIC, "a trial")
    good = stage.propose("resume", target=CLINIC).id
    late = stage.propose("resume", target=CLINIC, by=B).id
    stage.approve(good)
    stage.approve(late, by=A)
    assert stage.operation(late).state is OperationState.FAILED
    stage.clock.forward(200 * DAY)
    stage.emergency.suspend_key(C, CLINIC, "forged certificates")
    with pytest.raises(CallError, match="has expired: propose it again"):
        stage.proposals.retry(A, late)
    assert stage.states(CLINIC) == ["SUSPENDED"]


def test_a_suspension_of_today_is_not_that_of_yesterday(stage: Stage) -> None:
    stage.key()
    stage.emergency.suspend_key(A, CLINIC, "a trial")
    good = stage.propose("resume", target=CLINIC).id
    late = stage.propose("resume", target=CLINIC, by=B).id
    stage.approve(good)
    stage.emergency.suspend_key(C, CLINIC, "forged certificates")
    stage.approve(late, by=A)
    assert stage.operation(late).state is OperationState.FAILED
    assert stage.states(CLINIC) == ["SUSPENDED"]


def test_who_suspends_again_is_not_overruled_by_an_older_proposal(stage: Stage) -> None:
    stage.emergency.suspend(A, Scope.FACILITY, "01-001", "something small")
    identity = stage.propose("resume", target=FACILITY).id
    stage.clock.forward(1)
    stage.emergency.suspend(C, Scope.FACILITY, "01-001", "forged certificates")
    stage.approve(identity)
    assert stage.operation(identity).state is OperationState.FAILED
    [flag] = stage.registry.suspensions()
    assert (flag.officer, flag.reason) == (C, "forged certificates")


def test_a_policy_of_before_is_not_put_back_by_a_retry(stage: Stage) -> None:
    before = (stage.policy / "policy.yaml").read_text()
    (stage.policy / "policy.yaml").write_text(before.replace("200 per second", "9000 per second"))
    wide = stage.propose("policy").id
    (stage.policy / "policy.yaml").write_text(before.replace("200 per second", "100 per second"))
    stage.done("policy")
    stage.approve(wide)
    assert stage.operation(wide).state is OperationState.FAILED
    (stage.policy / "policy.yaml").write_text(before)
    stage.done("policy")  # as it was when the wide one was proposed
    stage.proposals.retry(A, wide)
    assert stage.operation(wide).state is OperationState.FAILED
    assert "another policy was put in force" in stage.operation(wide).note


@pytest.mark.parametrize("running", [False, True])
def test_a_stop_is_repeated_in_a_registry_from_an_older_backup(
    tmp_path: Path, template: Path, running: bool
) -> None:
    """It has a later revision than what the log knows, so that officers can let the key go on."""
    stage = Stage(tmp_path / "stage", template)
    stage.key()
    stage.done("create-key", key=f"{CLINIC}-2", algorithm="ES256", activate=True)
    backup = rows_of(stage.registry)
    for _ in range(3):
        stage.emergency.suspend_key(C, CLINIC, "seen forged")
        stage.done("resume", target=CLINIC)
    stage.emergency.suspend_key(C, CLINIC, "seen forged")
    known = stage.registry.revision()
    put_back(stage.registry, backup)
    if running:
        stage.serving.follow()
    else:
        stage.start()
    assert stage.serving.refused
    assert stage.registry.revision() >= known
    stage.emergency.suspend_key(C, CLINIC, "seen forged, as before the restoration")
    assert stage.serving.refused == []
    stage.start()
    assert stage.serving.refused == []
    stage.done("resume", target=CLINIC)
    assert stage.states(CLINIC) == ["ACTIVE"]
    stage.start()
    assert stage.serving.refused == []
    assert [*stage.log.control.problems, *stage.log.standings.problems] == []
    stage.close()


@pytest.mark.parametrize(
    ("before", "away"),
    [("s", "sr"), ("s", "rs"), ("s", "rsr"), ("s", "ssrs"), ("s", "s"), ("", "srs"), ("", "sr")],
)
def test_an_appliance_that_did_not_look_accounts_for_what_was_suspended_again(
    stage: Stage, before: str, away: str
) -> None:
    def do(steps: str) -> None:
        for step in steps:
            stage.clock.forward(1)
            if step == "s":
                stage.emergency.suspend(C, Scope.FACILITY, "01-001", "seen forged")
            else:
                stage.done("resume", target=FACILITY)

    stage.key()
    do(before)
    known = list(stage.log.records)
    do(away)
    stage.start_with(known)
    assert stage.serving.refused == []
    stopped = (before + away).endswith("s")
    assert bool(stage.snapshot.suspended.facilities) == stopped
    assert bool(stage.log.standings.flags) == stopped
    assert [*stage.log.control.problems, *stage.log.standings.problems] == []


def test_an_officer_approves_at_an_appliance_whose_clock_is_behind(stage: Stage) -> None:
    stage.key()
    known = list(stage.log.records)
    stage.clock.forward(100)
    identity = stage.propose("deactivate", version=f"{CLINIC}/versions/1").id
    stage.clock = SetClock(stage.clock.now() - 60)
    stage.start_with(known)
    stage.approve(identity)
    assert stage.operation(identity).state is OperationState.DONE, stage.operation(identity).note
    assert stage.states(CLINIC) == ["DEACTIVATED"]


def rows_of(registry: Registry) -> dict[sa.Table, list[Any]]:
    with registry.reading() as connection:
        tables = schema.metadata.sorted_tables
        return {table: list(connection.execute(sa.select(table))) for table in tables}


def put_back(registry: Registry, rows: dict[sa.Table, list[Any]]) -> None:
    with registry.writing(counts=False) as write:
        for table in reversed(rows):
            write.connection.execute(sa.delete(table))
        for table, kept in rows.items():
            for row in kept:
                write.connection.execute(sa.insert(table).values(**row._mapping))


def test_what_is_stopped_is_stopped_also_where_the_rest_cannot_be_followed(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = stage.version(stage.key())

    def refuse(*_: object) -> None:
        raise OperatorError("a policy that is not there")

    monkeypatch.setattr(stage.serving._policies, "of", refuse)
    stage.emergency.suspend_key(A, CLINIC, "forged certificates")
    stage.emergency.suspend(A, Scope.EVERYTHING, "", "forged certificates")
    stopped = [set(call.args[0]) for call in stage.hsm.stop_keys.call_args_list]
    assert {version.cka_id} in [{each.cka_id for each in some} for some in stopped]
    assert stage.snapshot.suspended.everything
    assert "not there" in stage.serving.error


@pytest.mark.parametrize("points", range(0, 16, 2))
def test_what_was_recorded_in_part_when_the_program_ended_is_recorded_at_the_next_start(
    stage: Stage, points: int
) -> None:
    """Several acts between two looks are several records: the program may end after the first."""
    stage.key()
    before = list(stage.log.records)
    stage.emergency.suspend(A, Scope.FACILITY, "01-001", "seen forged")
    stage.emergency.suspend_key(A, f"{CLINIC}/versions/1", "seen forged")
    stage.emergency.suspend(A, Scope.EVERYTHING, "", "seen forged")
    log = stage.log = MemoryLog(stage.clock, stage.fate)
    log.take(before)
    with suppress(Crash):
        stage.start(crash_after=points)
    stage.start()
    acts = [r.fields["act"] for r in log.of(RecordKind.KEYS) if "act" in r.fields]
    assert len(acts) == 3
    assert stage.seen.of(Unaccounted) == []
    assert stage.serving.reason == ""

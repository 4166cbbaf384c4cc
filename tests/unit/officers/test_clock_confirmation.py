"""The clock's own operation: what ends a doubt, what is signed meanwhile, what a log proves."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from signer.audit.format.record import DOUBTFUL, Record, RecordKind, number
from signer.audit.read.verify import verify_log
from signer.clock import JUMP_SECONDS
from signer.errors import CallError, Reason
from signer.keys import schema
from signer.officers.approval import parse
from signer.officers.change_check import ChangeFold
from signer.officers.execution import Executor
from signer.officers.offline_check import ApprovalFold
from signer.officers.proposals import Proposals
from signer.officers.store import OperationState
from tests.unit.officers.opstage import CLINIC, DAY, ORIGIN, Inline, Stage, empty_registry
from tests.unit.officers.people import A, B, sign
from tests.unit.officers.reallog import DiskLog

YEARS = 3 * 365 * DAY


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return empty_registry(tmp_path_factory.mktemp("registry") / "registry.sqlite")


@pytest.fixture
def stage(tmp_path: Path, template: Path) -> Iterator[Stage]:
    folder = tmp_path / "audit"
    made = Stage(tmp_path, template, log=lambda clock, fate: DiskLog(folder, clock, fate))
    made.key()
    yield made
    made.close()
    # Whatever happened: the log is whole, and officers have allowed all of it.
    assert not verify_log(folder, ORIGIN, [], folds=[ChangeFold]).problems


def about(seconds: float) -> Any:
    """A time: each step of the stage takes a hundredth of a second."""
    return pytest.approx(seconds, abs=1)


def refused(call: Callable[[], object]) -> None:
    with pytest.raises(CallError) as caught:
        call()
    assert caught.value.reason is Reason.CLOCK_DOUBTFUL
    assert caught.value.retry_after


@pytest.mark.parametrize("jump", [YEARS, -YEARS, JUMP_SECONDS + 1], ids=str)
def test_in_doubt_no_other_operation_goes_on(stage: Stage, jump: float) -> None:
    open_one = stage.propose("deactivate", version=f"{CLINIC}/versions/1").id
    prepared = stage.prepare("new-version", key=CLINIC)
    kinds = [record.kind for record in stage.log.records]
    stage.clock.machine_ahead = jump
    refused(lambda: stage.put(prepared.content, by=A))
    refused(lambda: stage.approve(open_one, by=B))
    refused(lambda: stage.proposals.reject(B, open_one, "a reason"))
    assert [record.kind for record in stage.log.records] == kinds
    stage.clock.machine_ahead = 0.0  # the jump was undone
    stage.approve(open_one, by=B)
    assert stage.operation(open_one).state is OperationState.DONE


def test_an_approved_operation_waits_for_the_end_of_the_doubt(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    identity = stage.propose("deactivate", version=f"{CLINIC}/versions/1").id
    with monkeypatch.context() as patched:
        patched.setattr(stage.executor, "submit", lambda _: None)  # it begins later
        stage.approve(identity, by=B)
    stage.clock.machine_ahead = YEARS
    stage.executor.sweep()
    assert stage.operation(identity).state is OperationState.EXECUTING
    stage.clock.machine_ahead = 0.0
    stage.executor.sweep()
    assert stage.operation(identity).state is OperationState.DONE


@pytest.mark.parametrize("ahead", [DAY, YEARS], ids=str)
def test_officers_confirm_a_clock_that_is_ahead(stage: Stage, ahead: float) -> None:
    """The virtual machine was paused, say: its clock is right."""
    before = stage.clock.now()
    stage.clock.machine_ahead = ahead
    identity = stage.propose("clock").id
    stage.approve(identity, by=B)
    assert stage.operation(identity).state is OperationState.DONE, stage.operation(identity).note
    assert stage.clock.doubt() == ""
    assert stage.clock.now() == stage.clock.machine() == about(before + ahead)
    assert stage.confirmed == [about(before + ahead)]
    by_kind = {record.kind: record for record in stage.log.records}
    assert by_kind[RecordKind.CLOCK].time_us / 1e6 == about(before + ahead)
    for kind in (RecordKind.PROPOSAL, RecordKind.APPROVAL, RecordKind.EXECUTION, RecordKind.CLOCK):
        assert number(by_kind[kind].fields, DOUBTFUL) / 1e6 == about(before + ahead)
    assert by_kind[RecordKind.PROPOSAL].time_us / 1e6 == about(before)  # the time counted on
    assert DOUBTFUL not in by_kind[RecordKind.EXECUTED].fields
    stage.done("new-version", key=CLINIC)  # everything goes on


def test_officers_say_which_times_were_wrong(stage: Stage) -> None:
    """The log has records of a time years ahead, after the ends of all certificates."""
    right = stage.clock.now()
    first_wrong = len(stage.log.records)
    stage.clock.forward(40 * 365 * DAY)  # as a start with a wrong clock would
    stage.emergency.suspend_key(A, CLINIC, "in the wrong time")
    stage.clock.machine_ahead = right + 60 - stage.clock.now()
    assert "jumped back" in stage.clock.doubt()
    [problem] = stage.prepare("clock").problems
    assert "name the first record" in problem
    [problem] = stage.prepare("clock", wrong_from=10_000).problems
    assert "not the number of a record" in problem
    prepared = stage.prepare("clock", wrong_from=first_wrong)
    text = "\n".join(prepared.difference)
    assert f"! the times of record {first_wrong} and all after it are wrong" in text
    identity = stage.propose("clock", wrong_from=first_wrong).id
    stage.approve(identity, by=B)
    assert stage.operation(identity).state is OperationState.DONE, stage.operation(identity).note
    assert (stage.clock.doubt(), stage.clock.now()) == ("", about(right + 60))
    stage.done("resume", target=CLINIC)
    assert stage.log.records[-1].time_us / 1e6 == about(right + 60)
    [clock] = [each for each in stage.log.records if each.kind is RecordKind.CLOCK]
    assert clock.time_us < stage.log.records[clock.seq - 1].time_us


def test_a_time_that_is_called_right_must_be_before_the_clock(stage: Stage) -> None:
    stage.clock.forward(DAY)
    stage.emergency.suspend_key(A, CLINIC, "a record of this time")
    last = len(stage.log.records)
    stage.clock.machine_ahead = -2.0 * DAY
    [problem] = stage.prepare("clock", wrong_from=last).problems
    assert f"which is before record {last - 1}" in problem


def test_without_a_doubt_there_is_nothing_to_confirm(stage: Stage) -> None:
    [problem] = stage.prepare("clock").problems
    assert "not in doubt" in problem


def test_a_clock_that_moves_again_was_not_confirmed(stage: Stage) -> None:
    stage.clock.machine_ahead = DAY
    identity = stage.propose("clock").id
    stage.clock.machine_ahead = 2 * DAY
    stage.approve(identity, by=B)
    operation = stage.operation(identity)
    assert operation.state is OperationState.FAILED
    assert "moved again" in operation.note
    assert stage.clock.doubt()


def test_an_interrupted_confirmation_is_completed(stage: Stage) -> None:
    stage.clock.machine_ahead = DAY
    identity = stage.propose("clock").id
    stage.fate.crash_after(8)
    with suppress(BaseException):  # the power is cut somewhere
        stage.approve(identity, by=B)
    stage.start()
    stage.executor.sweep()
    assert stage.operation(identity).state is OperationState.DONE, stage.operation(identity).note
    assert not stage.clock.doubt()


# --- what the log proves -----------------------------------------------------------------------


def judged(records: list[Record]) -> list[str]:
    fold = ApprovalFold()
    for record in records:
        fold.apply(record)
    return list(fold.problems)


def changed(record: Record, **fields: object) -> Record:
    return Record(record.seq, record.time_us, record.kind, {**record.fields, **fields})  # type: ignore[dict-item]


def test_a_clock_that_nobody_approved_so_is_a_problem(stage: Stage) -> None:
    stage.clock.machine_ahead = DAY
    stage.approve(stage.propose("clock").id, by=B)
    records = stage.log.records
    assert judged(records) == []
    [clock] = [each for each in records if each.kind is RecordKind.CLOCK]
    others = [each for each in records if each.kind is not RecordKind.CLOCK]
    for wrong, text in (
        (changed(clock, wrong_from=1), "not the times"),
        (changed(clock, right_until=7), "not the times"),
        (changed(clock, signatures=[]), "has not validly signed"),
        (clock._replace(time_us=clock.time_us - DAY * 500_000), "its time is not the one"),
        (clock._replace(time_us=clock.time_us + DAY * 1_500_000), "its time is not the one"),
    ):
        [problem] = judged([*others, wrong])
        assert text in problem
    [problem] = judged([*records, clock])
    assert "again" in problem
    elsewhere = ApprovalFold("another/log")
    for record in records:
        elsewhere.apply(record)
    [problem] = elsewhere.problems
    assert f"is about the clock of {ORIGIN}" in problem
    assert not elsewhere.confirmed(clock)


def test_another_appliance_does_not_confirm_this_clock(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own clock may be in doubt, too; somebody has written that it is to execute this one."""
    stage.clock.machine_ahead = 3600
    content = stage.propose("clock").content
    identity = parse(content).id
    there = stage.proposals._deps._replace(origin="another/log")
    elsewhere = Proposals(there, stage.executor, expire_hours=24)
    with pytest.raises(CallError, match="is about the clock of"):
        elsewhere.approve(B, identity, sign(B, content))
    with monkeypatch.context() as patched:
        patched.setattr(stage.executor, "submit", lambda _: None)
        stage.approve(identity, by=B)
    Executor(there, Inline()).submit(identity)
    assert "is about the clock of" in stage.operation(identity).note
    assert stage.log.of(RecordKind.CLOCK) == []
    assert stage.clock.doubt()


def test_an_approval_confirms_the_clock_once_however_long_ago_that_was(stage: Stage) -> None:
    stage.clock.machine_ahead = DAY
    stage.approve(stage.propose("clock").id, by=B)
    records = stage.log.records
    fold = ApprovalFold(ORIGIN, checking=False)
    for record in records:
        fold.apply(record)
    [clock] = [each for each in records if each.kind is RecordKind.CLOCK]
    late = clock.time_us + 60 * DAY * 1_000_000
    [proposal] = [each for each in records if each.kind is RecordKind.PROPOSAL][-1:]
    fold.apply(Record(len(records), late, RecordKind.REJECTION, {}))
    fold.apply(proposal._replace(seq=len(records), time_us=late))  # forgets what is that old
    snapshot = Record(len(records) + 1, late, RecordKind.SNAPSHOT, fold.snapshot())
    begun = ApprovalFold(ORIGIN, checking=False)
    begun.apply(snapshot)
    for each in (fold, begun):
        again = clock._replace(seq=len(records) + 2, time_us=late)
        assert not each.allows(again)
        assert "repeated" in each.problems[-1]
        assert not each.confirmed(again)


def test_an_operation_that_confirmed_the_clock_is_not_executed_again(stage: Stage) -> None:
    """Its row says that it is still to be done; the clock has jumped as far again."""
    stage.clock.machine_ahead = 3600
    identity = stage.propose("clock").id
    stage.approve(identity, by=B)
    with stage.registry.writing() as write:
        row = sa.update(schema.operations).where(schema.operations.c.id == identity)
        write.connection.execute(row.values(state="APPROVED", recorded=False))
    stage.clock.machine_ahead += 3600
    stage.executor.sweep()
    operation = stage.operation(identity)
    assert operation.state is OperationState.FAILED
    assert "has been confirmed since" in operation.note
    assert stage.clock.doubt()

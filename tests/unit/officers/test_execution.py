"""Executing what was approved: once, whole, and on from wherever it was interrupted."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from signer.audit.format.record import RecordKind
from signer.errors import CallError, Reason
from signer.events import OperationBug, RegistryUnreadable, Unaccounted
from signer.keys.database import RegistryError
from signer.keys.registry import Registry
from signer.keys.schema import operations
from signer.model import KeyState, Scope
from signer.officers.execution import MAX_NOTE, Executor
from signer.officers.store import OperationState
from tests.daemon import until
from tests.unit.officers.opstage import CLINIC, ORIGIN, START, Stage
from tests.unit.officers.people import A, B, C, D, pem_of, sign
from tests.unit.officers.softtoken import Crash

HEAD = "facility,group,profile,clients,key,algorithm,bits"


def create_key(stage: Stage, n: int) -> str:
    members: dict[str, Any] = {"key": f"{CLINIC}-{n}", "algorithm": "ES256", "activate": True}
    return stage.propose("create-key", **members).id


def new_version(stage: Stage, n: int) -> str:
    if not n:
        stage.key()
    return stage.propose("new-version", key=CLINIC, subject="CN=x").id


def enrol(stage: Stage, n: int) -> str:
    rows = [f"x{n}-{i},,clinic,spiffe://signer.example/f,records,ES256," for i in range(3)]
    return stage.propose("enrol", "\n".join([HEAD, *rows]).encode()).id


def rotate(stage: Stage, n: int) -> str:
    keys = [f"facilities/r{n}/keys/{name}" for name in "ab"]
    for key in keys:
        stage.key(key)
    members: dict[str, Any] = {"activate_at": 0, "overlap_seconds": 0}
    return stage.propose("rotate", "\n".join(keys).encode(), **members).id


def destroy(stage: Stage, n: int) -> str:
    name = stage.key(f"{CLINIC}-{n}", activate=False)
    stage.done("schedule-destruction", version=name)
    return stage.propose("destroy", version=name).id


def resume(stage: Stage, n: int) -> str:
    name = stage.key(f"{CLINIC}-{n}")
    stage.emergency.suspend_key(C, name, "why")
    return stage.propose("resume", target=name).id


def lift(stage: Stage, n: int) -> str:
    del n
    stage.emergency.suspend(C, Scope.EVERYTHING, "", "why")
    return stage.propose("resume", target="everything").id


def officers(stage: Stage, n: int) -> str:
    members: dict[str, Any] = {"remove": [D]} if n % 2 else {"add": [pem_of(D)]}
    return stage.propose("officers", **members).id


def policy(stage: Stage, n: int) -> str:
    path = stage.policy / "policy.yaml"
    path.write_text(path.read_text() + f"# {n}\n")
    return stage.propose("policy").id


MAKERS = [create_key, new_version, enrol, rotate, destroy, resume, lift, officers, policy]


def crash_at_points(stage: Stage, make: Callable[[Stage, int], str], step: int) -> None:
    """Makes one operation for each point at which the program ends, from the first to the last."""
    points, crashed = step // 2, True
    while crashed:
        identity = make(stage, points // step)
        stage.fate.crash_after(points)
        try:
            stage.approve(identity)
            crashed = False
        except Crash:
            stage.start()
        stage.fate.revive()
        if stage.operation(identity).state is OperationState.PROPOSED:
            stage.approve(identity)
        operation = stage.operation(identity)
        assert (operation.state, operation.recorded) == (OperationState.DONE, True)
        registered = {
            v.cka_id for v in stage.registry.state().keys if v.state is not KeyState.DESTROYED
        }
        assert registered == stage.token.keys.keys()
        points += step
    assert points > 15


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_a_crash_neither_loses_nor_repeats(stage: Stage, make: Callable[[Stage, int], str]) -> None:
    crash_at_points(stage, make, 6)


@pytest.mark.torture
@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_a_crash_at_any_point_neither_loses_nor_repeats(
    stage: Stage, make: Callable[[Stage, int], str]
) -> None:
    crash_at_points(stage, make, 1)


def test_two_officers_race_for_the_last_signature(tmp_path: Path, template: Path) -> None:
    lanes = ThreadPoolExecutor(4)
    stage = Stage(tmp_path / "stage", template, lanes=lanes)
    for round_ in range(5):
        identity = create_key(stage, round_)
        content = stage.operation(identity).content
        ready = threading.Barrier(2)

        def approve(who: str, identity: str = identity, content: bytes = content) -> bool:
            ready.wait()
            try:
                stage.proposals.approve(who, identity, sign(who, content))
            except CallError as error:
                return "takes no more signatures" not in error.message
            return True

        with ThreadPoolExecutor(2) as two:
            heard = sorted(two.map(approve, (B, C)))
        assert heard == [False, True]
    lanes.shutdown(wait=True)
    assert len(stage.token.keys) == 5
    assert len(stage.log.of(RecordKind.EXECUTION)) == 5
    assert {o.state for o in stage.proposals.page(None, 10, None)} == {OperationState.DONE}
    assert stage.log.control.problems == ()
    stage.close()


def test_what_has_ended_is_not_executed_again(stage: Stage) -> None:
    """A sweep may have found it unfinished just before."""
    identity = create_key(stage, 1)
    stage.approve(identity)
    stage.executor.submit(identity)
    stage.executor._conclude(identity)
    assert stage.operation(identity).state is OperationState.DONE
    assert len(stage.log.of(RecordKind.EXECUTION)) == len(stage.log.of(RecordKind.EXECUTED)) == 1


@pytest.mark.parametrize("end", ["reject", "expire", "propose"])
def test_what_is_not_approved_is_not_executed(stage: Stage, end: str) -> None:
    identity = create_key(stage, 1)
    if end == "reject":
        stage.proposals.reject(B, identity, "no")
    if end == "expire":
        stage.clock.forward(24 * 3600)
    stage.executor.submit(identity)
    stage.executor.sweep()
    assert stage.operation(identity).state_at(stage.clock.now()) is not OperationState.DONE
    assert stage.token.keys == {}
    assert stage.log.of(RecordKind.EXECUTION) == []


@pytest.mark.parametrize("done", [0, 5])
def test_what_a_row_says_to_be_done_makes_no_expired_operation_go_on(
    stage: Stage, done: int
) -> None:
    """Only what the log has of it does."""
    identity = create_key(stage, 1)
    stage.fate.crash_after(6)
    with pytest.raises(Crash):
        stage.approve(identity)
    stage.fate.revive()
    stage.clock.forward(24 * 3600)
    with stage.registry.writing(counts=False) as write:
        row = "UPDATE operations SET state = 'EXECUTING', done = ?, total = 9"
        write.connection.exec_driver_sql(row, (done,))
    stage.start()
    operation = stage.operation(identity)
    assert operation.state is OperationState.FAILED
    assert "has expired" in operation.note
    assert stage.token.keys == {}


def test_what_was_changed_by_hand_is_the_basis_of_no_operation(stage: Stage) -> None:
    name = stage.key()
    identity = stage.propose("deactivate", version=name).id
    with stage.registry.writing() as write:
        row = "UPDATE key_versions SET sign_until = NULL, state = 'ACTIVE', activate_at = 1.0"
        write.connection.exec_driver_sql(f"{row}, revision = {write.revision}")
    stage.approve(identity)
    operation = stage.operation(identity)
    assert operation.state is OperationState.FAILED
    assert "something else of it than the audit log accounts for" in operation.note
    [refused] = stage.seen.of(Unaccounted)
    stage.seen.seen.remove(refused)


def test_an_officer_who_is_none_any_more_does_not_count(stage: Stage) -> None:
    """He had signed while he was one; the program ended, and began after he had left."""
    identity = stage.propose("create-key", key=CLINIC, algorithm="ES256").id
    stage.fate.crash_after(6)
    with pytest.raises(Crash):
        stage.approve(identity, by=C)
    stage.fate.revive()
    assert stage.operation(identity).state is OperationState.APPROVED
    with stage.registry.writing() as write:
        write.set_officers(
            {who: der for who, der in stage.emergency.officers().items() if who != C}
        )
    stage.log.control.officers = dict(stage.emergency.officers())
    stage.log.control.officers_since = stage.registry.state().officers_since
    stage.start()
    operation = stage.operation(identity)
    assert operation.state is OperationState.FAILED
    assert "1 of 2 required signatures of officers are valid" in operation.note
    assert stage.token.keys == {}


def test_bytes_that_were_changed_in_the_registry_are_not_executed(stage: Stage) -> None:
    """Whoever can write to the database has no officer's key."""
    identity = create_key(stage, 1)
    one, other = f"{CLINIC}-1".encode(), f"{CLINIC}-2".encode()
    content = stage.operation(identity).content.replace(one, other)
    with stage.registry.writing() as write:
        write.connection.exec_driver_sql("UPDATE operations SET content = ?", (content,))
    with pytest.raises(CallError, match="not by"):
        stage.proposals.approve(B, identity, sign(B, content.replace(other, one)))
    stage.proposals.approve(B, identity, sign(B, content))  # even where one officer goes along
    assert stage.operation(identity).state is OperationState.PROPOSED
    assert stage.token.keys == {}
    [problem] = stage.log.control.problems  # and the log tells of it
    assert "is not by" in problem
    stage.log.control._problems.clear()


def test_an_approved_operation_under_another_id_is_not_executed(stage: Stage) -> None:
    first = create_key(stage, 1)
    stage.approve(first)
    second = create_key(stage, 2)
    with stage.registry.writing() as write:
        run = write.connection.exec_driver_sql
        run(
            "UPDATE operations SET state = 'APPROVED', appliance = 'signer.example/log', content ="
            " (SELECT content FROM operations WHERE id = ?) WHERE id = ?",
            (first, second),
        )
        run("DELETE FROM signatures WHERE operation = ?", (second,))
        run(
            "INSERT INTO signatures (operation, officer, signature, at) SELECT ?, officer,"
            " signature, at FROM signatures WHERE operation = ?",
            (second, first),
        )
    stage.executor.submit(second)
    assert len(stage.log.of(RecordKind.EXECUTION)) == 1
    assert len(stage.token.keys) == 1


def test_nobody_waits_for_the_registry_because_the_log_is_slow(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a record is made durable, another appliance can write, and stop a facility."""
    inner, wrote = stage.log.append, []
    url = f"sqlite:///{tmp_path}/stage/registry.sqlite"

    def slow(kind: RecordKind, fields: Any, **named: Any) -> int:
        with Registry.open(url) as elsewhere, elsewhere.writing(counts=False) as write:
            write.store(b"what another appliance writes")
        wrote.append(kind)
        seq: int = inner(kind, fields, **named)
        return seq

    monkeypatch.setattr(stage.log, "append", slow)
    stage.done("create-key", key=CLINIC, algorithm="ES256")
    assert set(wrote) >= {RecordKind.EXECUTION, RecordKind.KEYS, RecordKind.EXECUTED}


# --- a registry that does not answer, a log that takes nothing -------------------------------


@pytest.fixture
def gone(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Has the registry refuse its n-th next write, after the write or instead of it."""
    writing = stage.registry.writing

    def refuse(after: int) -> None:
        left = iter(range(after))

        def broken(*, counts: bool = True):  # type: ignore[no-untyped-def] # noqa: ANN202
            if next(left, None) is None:
                monkeypatch.setattr(stage.registry, "writing", writing)
                raise RegistryError("cannot write the registry")
            return writing(counts=counts)

        monkeypatch.setattr(stage.registry, "writing", broken)

    yield refuse
    stage.seen.seen.clear()


@pytest.mark.parametrize("after", range(6))
def test_a_registry_that_is_gone_for_a_moment(
    stage: Stage, gone: Callable[[int], None], after: int
) -> None:
    identity = create_key(stage, 1)
    gone(after)
    try:
        stage.approve(identity)
    except CallError as error:
        if error.reason is not Reason.REGISTRY_UNAVAILABLE:
            raise
        stage.approve(identity)
    stage.executor.sweep()
    if stage.operation(identity).state is OperationState.FAILED:
        stage.proposals.retry(A, identity)
    assert stage.operation(identity).state is OperationState.DONE
    assert stage.states(f"{CLINIC}-1") == ["ACTIVE"]
    assert len(stage.token.keys) == 1


def test_a_sweep_reports_an_operation_that_it_cannot_read(stage: Stage) -> None:
    """Otherwise one damaged row would silently keep every other operation from going on."""
    identity = create_key(stage, 1)
    damaged = {"content": b"{}", "state": OperationState.APPROVED, "appliance": ORIGIN}
    with stage.registry.writing(counts=False) as write:
        row = operations.c.id == identity
        write.connection.execute(sa.update(operations).where(row).values(damaged))
    stage.executor.sweep()
    stage.executor.sweep()
    [told] = stage.seen.of(RegistryUnreadable)
    assert "content of operations is not an operation" in str(told.text)
    assert identity in str(told.text)


def test_a_commit_whose_answer_got_lost_stays_done(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = stage.executor._finish

    def lost(*arguments: object) -> None:
        finish(*arguments)  # type: ignore[arg-type]
        raise RegistryError("the connection was lost")

    monkeypatch.setattr(stage.executor, "_finish", lost)
    identity = create_key(stage, 1)
    stage.approve(identity)
    operation = stage.operation(identity)
    assert (operation.state, operation.note, operation.recorded) == (OperationState.DONE, "", True)


def test_without_a_log_nothing_is_executed(stage: Stage) -> None:
    identity = create_key(stage, 1)
    stage.log.full = True
    with pytest.raises(CallError, match="the audit log accepts no records"):
        stage.approve(identity)
    assert stage.token.keys == {}
    stage.log.full = False
    stage.start()
    operation = stage.operation(identity)
    assert operation.state is OperationState.FAILED
    stage.proposals.retry(A, identity)
    assert stage.operation(identity).state is OperationState.DONE
    stage.seen.seen.clear()


def test_a_bug_of_ours_ends_the_operation_and_is_told(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> bytes:
        raise ZeroDivisionError

    monkeypatch.setattr(stage.token, "generate", broken)
    identity = create_key(stage, 1)
    stage.approve(identity)
    operation = stage.operation(identity)
    assert operation.state is OperationState.FAILED
    assert operation.note.startswith("internal error: ZeroDivisionError")
    [bug] = stage.seen.of(OperationBug)
    assert isinstance(bug.error, ZeroDivisionError)
    stage.seen.seen.clear()


def test_a_long_note_is_cut(stage: Stage) -> None:
    rows = [f"x-{i},,clinic,spiffe://signer.example/f,records,ES256," for i in range(200)]
    content = "\n".join([HEAD, *rows]).encode()
    identity = stage.propose("enrol", content).id
    for i in range(3):
        stage.key(f"facilities/x-{i}/keys/records", activate=False)
    stage.approve(identity)
    note = stage.operation(identity).note
    assert "line 2: facilities/x-0/keys/records exists already" in note
    assert len(note) <= MAX_NOTE


def test_how_far_it_is_is_told_while_it_lasts(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [f"x-{i},,clinic,spiffe://signer.example/f,records,ES256," for i in range(120)]
    identity = stage.propose("enrol", "\n".join([HEAD, *rows]).encode()).id
    seen: list[tuple[OperationState, int, int]] = []
    generate = stage.token.generate

    def watched(*arguments: object) -> bytes:
        operation = stage.operation(identity)
        seen.append((operation.state, operation.done, operation.total))
        return generate(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(stage.token, "generate", watched)
    stage.approve(identity)
    assert (OperationState.EXECUTING, 50, 120) in seen
    assert (OperationState.EXECUTING, 100, 120) in seen
    assert stage.operation(identity).done == 120
    assert stage.clock.now() > START


# --- what one operation costs ------------------------------------------------------------------


def test_each_step_reads_the_registry_once(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """State reads and transactions of each step; the execution reads again what it wrote."""
    registry = stage.registry
    counted: Counter[str] = Counter()

    def watch(name: str) -> None:
        inner = getattr(registry, name)

        def outer(*arguments: Any, **options: Any) -> Any:
            counted[name] += 1
            return inner(*arguments, **options)

        monkeypatch.setattr(registry, name, outer)

    for name in ("reading", "writing", "state"):
        watch(name)

    def cost() -> tuple[int, int, int]:
        found = counted["state"], counted["reading"], counted["writing"]
        counted.clear()
        return found

    prepared = stage.prepare("create-key", key=CLINIC, algorithm="ES256")
    assert cost() == (1, 2, 0), "all that it depends on, and whether the same waits already"
    operation = stage.put(prepared.content)
    assert cost() == (1, 2, 1), "the same, and whether there is a newer state meanwhile"
    submitted: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(stage.executor, "submit", submitted.append)
        stage.proposals.approve(B, operation.id, sign(B, operation.content))
    assert cost() == (0, 1, 1)
    stage.executor.submit(*submitted)
    # Context, revision under the lock; revision and state to serve, and what accounts for it
    # (operations, acts); the operation at its end. Begun, done, recorded.
    assert cost() == (2, 7, 3)
    assert stage.operation(operation.id).state is OperationState.DONE


def test_sweeps_wait_for_no_operation_and_do_not_pile_up(stage: Stage) -> None:
    """Long enrolments may be at work in all threads."""
    executor, gate = Executor(stage.executor._deps), threading.Event()
    lanes: Any = executor._threads
    for _ in range(8):
        lanes.submit(gate.wait)
    try:
        assert executor.pending == 0
        stage.propose("create-key", key=CLINIC, algorithm="ES256")
        executor.sweep()
        until(lambda: executor.pending == 1, "a sweep has counted what waits for signatures")
        waiting = lanes._work_queue.qsize()
        for _ in range(100):
            executor.sweep()
        assert lanes._work_queue.qsize() == waiting
    finally:
        gate.set()
        executor.close()

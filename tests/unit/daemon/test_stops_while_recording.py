"""A stop is in force and answered while the log has not taken an earlier change yet."""

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from signer.audit.format.record import RecordKind
from signer.errors import OperatorError
from signer.events import Bug, OperationBug, RegistryUnreadable, Unaccounted
from signer.keys.database import RegistryError
from signer.keys.rows import UnreadableError
from signer.keys.writing import Change
from signer.model import KeyName, KeyState, KeyVersion, Scope
from signer.officers.emergency import EmergencyStops
from signer.officers.execution import KINDS
from signer.officers.records import OperationRecords
from tests.unit.officers.opstage import CLINIC, POLICY, Stage, empty_registry
from tests.unit.officers.people import A, B, C, sign

STUCK = 60  # seconds after which a test gives up, instead of waiting for ever
NEW = "facilities/01-001/keys/new"


class Recording:
    """An appliance whose log takes no record of a change until ``end``."""

    def __init__(self, stage: Stage) -> None:
        self.stage, self._threads = stage, ThreadPoolExecutor(4)
        self._begun, self._go_on = threading.Event(), threading.Event()
        self._account = stage.daemon_log.account
        self._recorders: list[Future[Any]] = []
        self.name = stage.key()
        self.calls = 0
        records = OperationRecords(cast("Any", stage.log))
        self.emergency = EmergencyStops(stage.registry, records, stage.serving, stage.clock)

    def begin(self, change: Callable[[], object]) -> None:
        """Begins a change in a thread of its own, up to its first record."""
        self.stage.daemon_log.account = self._wait  # type: ignore[method-assign]
        self._recorders.append(self.start(change))
        assert self._begun.wait(STUCK)

    def _wait(self, records: Iterable[Any]) -> None:
        self.calls += 1
        self._begun.set()
        assert self._go_on.wait(STUCK)
        self._account(records)

    def start(self, what: Callable[[], object]) -> Future[Any]:
        return self._threads.submit(what)

    def done(self, what: Callable[[], object]) -> Any:
        """Does something in a thread of its own; it must not wait for the log."""
        return self.start(what).result(STUCK)

    def end(self) -> None:
        """Lets the log take all records."""
        self._go_on.set()
        for recorder in self._recorders:
            recorder.result(STUCK)
        self.stage.daemon_log.account = self._account  # type: ignore[method-assign]

    def close(self) -> None:
        self._go_on.set()
        self._threads.shutdown()

    # --- what is in force ----------------------------------------------------------------------

    def version(self, name: str) -> KeyVersion | None:
        return self.stage.snapshot.keys.version(KeyName.parse(name), 1)

    def signs(self, name: str = CLINIC) -> bool:
        """Whether calls and the HSM may sign with a key now."""
        key, snapshot = KeyName.parse(name), self.stage.snapshot
        version = snapshot.keys.primary(key, self.stage.clock.now())
        if version is None or snapshot.suspended.reason(key.facility):
            return False
        return version.name not in self.stopped()

    def stopped(self) -> set[str]:
        """The versions that the HSM does not sign with."""
        stopped: set[str] = set()
        for name, arguments, _ in self.stage.hsm.method_calls:
            if name == "stop_keys":
                stopped |= {version.name for version in arguments[0]}
            elif name == "resume_keys":
                stopped -= {version.name for version in arguments[0]}
        return stopped

    def settled(self) -> None:
        """What is served is what the registry has, each change of it recorded once."""
        stage = self.stage
        stage.serving.follow()
        assert (stage.serving.error, stage.serving.reason) == ("", "")
        assert stage.snapshot.keys == stage.registry.state().keys
        operations = [
            (record.fields["operation"], str(record.fields["versions"]))
            for record in stage.log.of(RecordKind.KEYS)
            if "operation" in record.fields
        ]
        assert len(operations) == len(set(operations))
        acts = [str(r.fields["act"]) for r in stage.log.of(RecordKind.KEYS) if "act" in r.fields]
        assert len(acts) == len(set(acts)) == len(stage.log.of(RecordKind.ACT))
        assert [*stage.log.control.problems, *stage.log.standings.problems] == []
        assert [*stage.seen.of(Bug), *stage.seen.of(OperationBug)] == []
        assert stage.seen.of(Unaccounted) == []


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return empty_registry(tmp_path_factory.mktemp("template") / "empty.sqlite")


@pytest.fixture
def recording(tmp_path: Path, template: Path) -> Iterator[Recording]:
    stage = Stage(tmp_path / "stage", template)
    made = Recording(stage)
    yield made
    made.close()
    stage.close()


STOPS: dict[str, Callable[[EmergencyStops], object]] = {
    "key": lambda stops: stops.suspend_key(A, CLINIC, "seen forged"),
    "compromised": lambda stops: stops.compromise(A, CLINIC, "seen forged"),
    "facility": lambda stops: stops.suspend(A, Scope.FACILITY, "01-001", "seen forged"),
    "group": lambda stops: stops.suspend(A, Scope.GROUP, "01", "seen forged"),
    "everything": lambda stops: stops.suspend(A, Scope.EVERYTHING, "", "seen forged"),
}


@pytest.mark.parametrize("stop", STOPS.values(), ids=STOPS)
def test_a_stop_is_answered_while_a_change_is_recorded_and_lasts(
    recording: Recording, stop: Callable[[EmergencyStops], object]
) -> None:
    recording.begin(lambda: recording.stage.key(NEW))
    assert recording.signs()
    recording.done(lambda: stop(recording.emergency))
    assert not recording.signs()
    assert recording.version(NEW) is None, "it is not recorded yet"
    recording.end()
    assert recording.version(NEW) is not None
    assert not recording.signs(), "the change was read before the stop"
    recording.settled()
    assert not recording.signs()


def test_a_stop_is_shown_before_it_is_recorded(recording: Recording) -> None:
    """So no repetition is answered after it, and no officer is shown an active key."""
    recording.begin(lambda: recording.stage.key(NEW))
    recording.done(lambda: recording.emergency.compromise(A, CLINIC, "seen forged"))
    version = recording.version(CLINIC)
    assert version is not None
    assert version.state is KeyState.COMPROMISED
    recording.done(lambda: recording.emergency.suspend(A, Scope.GROUP, "01", "seen forged"))
    assert [str(flag) for flag in recording.stage.serving.suspensions] == ["group 01"]
    recording.end()
    recording.settled()


def test_a_stop_at_another_appliance_is_obeyed_while_a_change_is_recorded(
    recording: Recording,
) -> None:
    stage = recording.stage
    recording.begin(lambda: stage.key(NEW))
    version = stage.version(recording.name)
    with stage.registry.writing() as write:
        write.change([Change(version, replace(version, state=KeyState.COMPROMISED))])
    assert recording.done(stage.serving.obey)
    assert not recording.signs()
    recording.end()
    assert not recording.signs()


def test_a_key_that_is_stopped_before_it_is_served_never_signs(recording: Recording) -> None:
    stage = recording.stage
    recording.begin(lambda: stage.key(NEW))
    recording.done(lambda: recording.emergency.suspend_key(A, NEW, "made by mistake"))
    recording.end()
    assert recording.version(NEW) is not None
    assert not recording.signs(NEW)
    recording.settled()
    assert not recording.signs(NEW)
    stage.done("resume", target=NEW)
    assert recording.signs(NEW)


def test_a_suspended_group_gets_no_facility_that_signs(recording: Recording) -> None:
    """The facility comes with the policy that is recorded while its group is suspended."""
    stage = recording.stage
    text = POLICY.replace('group: "02"', 'group: "01"')
    (stage.policy / "policy.yaml").write_text(text)
    recording.begin(lambda: stage.done("policy"))
    recording.done(lambda: recording.emergency.suspend(A, Scope.GROUP, "01", "seen forged"))
    recording.end()
    assert stage.snapshot.policy.facilities["02-001"].terms.group == "01"
    assert stage.snapshot.suspended.reason("02-001")
    recording.settled()


def test_a_stop_that_is_taken_back_meanwhile_ends_with_its_record(recording: Recording) -> None:
    """By hand: nothing is recorded of it, and the key signs again."""
    stage = recording.stage
    recording.begin(lambda: stage.key(NEW))
    version = stage.version(recording.name)
    for state in (KeyState.SUSPENDED, KeyState.ACTIVE):
        now = stage.version(recording.name)
        with stage.registry.writing() as write:
            write.change([Change(now, replace(now, state=state, came_from=version.came_from))])
        recording.done(stage.serving.obey)
        assert not recording.signs()
    recording.end()
    assert not recording.signs()
    stage.serving.follow()
    assert recording.signs()


def test_what_cannot_be_recorded_leaves_the_stops_of_meanwhile_in_force(
    recording: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = recording.stage

    def refuse(_: object) -> None:
        raise OperatorError("the audit log accepts no records: its disk is low")

    monkeypatch.setattr(recording, "_account", refuse)
    recording.begin(lambda: stage.key(NEW))
    recording.done(lambda: recording.emergency.suspend_key(A, CLINIC, "seen forged"))
    recording.end()
    assert "disk is low" in stage.serving.error
    monkeypatch.undo()
    stage.daemon_log.account = type(stage.daemon_log).account.__get__(stage.daemon_log)  # type: ignore[method-assign]
    assert recording.version(NEW) is None
    assert not recording.signs()
    recording.settled()
    assert recording.signs(NEW)
    assert not recording.signs()
    stage.done("resume", target=CLINIC)
    assert recording.signs()


def test_a_registry_that_becomes_unreadable_stops_everything_while_a_change_is_recorded(
    recording: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = recording.stage

    def unreadable() -> None:
        raise UnreadableError("value of revision is not a number")

    recording.begin(lambda: stage.key(NEW))
    with monkeypatch.context() as patched:
        patched.setattr(stage.registry, "head", unreadable)
        recording.done(stage.serving.follow)
        assert not recording.signs()
        recording.end()
        assert not recording.signs(), "it is still unreadable"
        assert not recording.signs(NEW)
        assert "nothing is signed" in stage.serving.reason
    recording.settled()
    assert recording.signs()
    assert recording.signs(NEW)


def test_a_change_that_two_threads_follow_is_recorded_once(recording: Recording) -> None:
    stage = recording.stage
    recording.begin(lambda: stage.key(NEW))
    assert recording.done(stage.serving.follow)
    recording.done(stage.serving.compare)
    assert recording.calls == 1
    recording.end()
    recording.settled()


def test_nobody_waits_for_the_check_of_a_large_proposal(
    recording: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = recording.stage
    head = "facility,group,profile,clients,key,algorithm,bits"
    table = f"{head}\nn,,clinic,spiffe://signer.example/facility/n,k,ES256,\n".encode()
    prepared = stage.prepare("enrol", table)
    other = stage.propose("deactivate", version=recording.name, by=B).id
    begun, go_on = threading.Event(), threading.Event()
    check = type(KINDS["enrol"]).check

    def slow(*arguments: Any) -> None:
        begun.set()
        assert go_on.wait(STUCK)
        check(*arguments)

    monkeypatch.setattr(type(KINDS["enrol"]), "check", slow)
    proposed = recording.start(lambda: stage.put(prepared.content, table))
    try:
        assert begun.wait(STUCK)
        content = stage.operation(other).content
        recording.done(lambda: stage.proposals.approve(C, other, sign(C, content)))
        recording.done(lambda: recording.emergency.compromise(A, CLINIC, "seen forged"))
        assert not recording.signs()
    finally:
        go_on.set()
    assert proposed.result(STUCK).proposal.kind == "enrol"
    recording.settled()


def test_a_registry_that_does_not_answer_is_reported_once_whatever_is_served(
    recording: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One thread reads it, another one serves what was read."""
    stage = recording.stage

    def gone() -> None:
        raise RegistryError("cannot read the registry")

    with monkeypatch.context() as patched:
        patched.setattr(stage.registry, "head", gone)
        for _ in range(3):
            assert not stage.serving.obey()
            stage.serving.serve()
            assert "cannot read" in stage.serving.error
    assert len(stage.seen.of(RegistryUnreadable)) == 1
    recording.settled()

"""The daemon serves what the registry says: keys, officers, suspensions, the policy."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from signer.audit.format.record import RecordKind
from signer.config.policy_documents import read_policy
from signer.daemon.accounts import UNACCOUNTED
from signer.errors import ConfigError, OperatorError
from signer.events import PolicyFilesDiffer, RegistryUnreadable, Unaccounted
from signer.key_index import KeyIndex
from signer.keys import schema
from signer.keys.database import RegistryError
from signer.keys.registry import RegistryState
from signer.keys.writing import Change
from signer.model import KeyName, KeyState, KeyVersion, Role, Scope
from signer.officers.approval import parse
from signer.officers.standing_fold import StandingFold
from tests.unit.officers.opstage import (
    CLINIC,
    DAY,
    HOUR,
    LIFE,
    POLICY,
    START,
    Stage,
    empty_registry,
)
from tests.unit.officers.people import OFFICERS, A, B, C, certificate_of, pem

Make = Callable[..., Stage]


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return empty_registry(tmp_path_factory.mktemp("template") / "empty.sqlite")


@pytest.fixture
def make(tmp_path: Path, template: Path) -> Iterator[Make]:
    made: list[Stage] = []

    def begin(**options: Any) -> Stage:
        made.append(Stage(tmp_path / str(len(made)), template, **options))
        return made[-1]

    yield begin
    for each in made:
        each.close()


@pytest.fixture
def stage(make: Make) -> Stage:
    return make()


def edit(stage: Stage, limit: int = 300) -> str:
    """Writes a draft into the files; returns its hash."""
    text = POLICY.replace("200 per second", f"{limit} per second")
    (stage.policy / "policy.yaml").write_text(text)
    return read_policy(stage.policy).policy.sha256


def reload(stage: Stage) -> bool:
    """Reloads as the daemon does; returns whether another policy is in force."""
    draft = stage.serving.draft()
    if draft is not None:
        stage.serving.put(draft)
    return draft is not None


def files(stage: Stage) -> str:
    return read_policy(stage.policy).policy.sha256


def hsm_calls(stage: Stage, what: str) -> list[Any]:
    """Returns the arguments of one kind of calls to the HSM since the last time."""
    method = getattr(stage.hsm, what)
    calls = [call.args for call in method.call_args_list]
    method.reset_mock()
    return calls


# --- who decides which policy is in force -----------------------------------------------------


def test_files_decide_where_there_are_no_officers(make: Make) -> None:
    stage = make(officers={})
    assert stage.serving.files_decide
    new = edit(stage)
    assert reload(stage)
    assert not reload(stage)
    assert stage.snapshot.policy.sha256 == new
    edit(stage, 400)
    stage.start()
    assert stage.snapshot.policy.sha256 == files(stage)
    assert stage.registry.state().policy == files(stage)


def test_files_decide_in_development(make: Make) -> None:
    stage = make(development=True)
    assert stage.serving.files_decide
    new = edit(stage)
    assert reload(stage)
    assert stage.snapshot.policy.sha256 == new
    assert stage.log.control.problems == ()


def test_officers_decide_once_there_are_some(stage: Stage) -> None:
    assert not stage.serving.files_decide
    before = stage.snapshot.policy.sha256
    assert not reload(stage)
    draft = edit(stage)
    with pytest.raises(ConfigError) as refused:
        reload(stage)
    text = str(refused.value)
    assert f"the files hold {draft}, a draft that no approved operation puts in force" in text
    assert "signer policy propose" in text
    assert f"{before} stays in force" in text
    assert stage.snapshot.policy.sha256 == before
    stage.start()
    assert stage.snapshot.policy.sha256 == before


def test_files_that_do_not_read_are_refused_and_do_not_matter_at_a_start(stage: Stage) -> None:
    (stage.policy / "policy.yaml").write_text("profiles: 7\n")
    with pytest.raises(ConfigError, match="profiles"):
        reload(stage)
    stage.start()
    assert stage.snapshot.policy.facilities


def test_without_the_policy_that_is_in_force_nothing_starts(stage: Stage) -> None:
    with stage.registry.writing() as write:
        write.connection.exec_driver_sql("DELETE FROM documents")
    stage.daemon_log.kept.clear()
    with pytest.raises(OperatorError, match="does not hold the policy in force"):
        stage.start()
    with stage.registry.writing() as write:
        write.connection.exec_driver_sql("UPDATE revision SET policy = NULL")
    with pytest.raises(OperatorError, match="does not hold the policy in force"):
        stage.start()


def test_the_files_hold_what_officers_put_in_force(stage: Stage) -> None:
    client = "spiffe://signer.example/facility/n"
    head = "facility,group,profile,clients,key,algorithm,bits"
    stage.done("enrol", f"{head}\nn,,clinic,{client},k,ES256,\n".encode())
    assert files(stage) == stage.snapshot.policy.sha256
    assert len(list(stage.policy.glob("enrolled-*.yaml"))) == 1
    assert not reload(stage)


def test_files_that_hold_it_already_are_no_draft(stage: Stage) -> None:
    operation = stage.propose("policy") if edit(stage) else None
    assert operation is not None
    stage.approve(operation.id)
    assert files(stage) == stage.snapshot.policy.sha256
    assert stage.seen.of(PolicyFilesDiffer) == []


def test_a_draft_in_the_files_is_nobodys_to_overwrite(stage: Stage) -> None:
    operation = stage.propose("policy") if edit(stage) else None
    assert operation is not None
    draft = edit(stage, 900)
    stage.approve(operation.id)
    assert stage.snapshot.policy.sha256 == operation.proposal.details["policy_sha256"]
    assert files(stage) == draft


def test_files_that_cannot_be_written_are_reported(stage: Stage) -> None:
    operation = stage.propose("policy") if edit(stage) else None
    assert operation is not None
    (stage.policy / "policy.yaml").unlink()
    stage.approve(operation.id)
    assert stage.snapshot.policy.sha256 == operation.proposal.details["policy_sha256"]
    assert len(stage.seen.of(PolicyFilesDiffer)) == 1


def test_a_policy_in_which_an_officer_signs_is_refused(make: Make) -> None:
    stage = make(development=True)
    before = stage.snapshot.policy.sha256
    text = POLICY.replace("spiffe://signer.example/ministry", A)
    (stage.policy / "policy.yaml").write_text(text)
    with pytest.raises(ConfigError, match=f"{A} is a client in the policy"):
        reload(stage)
    assert stage.snapshot.policy.sha256 == before
    with pytest.raises(ConfigError, match="is a client in the policy"):
        stage.start()


def test_a_policy_that_cannot_be_kept_is_not_in_force_until_it_can(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = stage.snapshot.policy.sha256
    new = edit(stage)
    operation = stage.propose("policy")

    def full(sha256: str, text: bytes) -> None:
        del text
        raise OperatorError(f"the policy {sha256} cannot be kept: make room")

    with monkeypatch.context() as patched:
        patched.setattr(stage.daemon_log, "keep_policy", full)
        stage.approve(operation.id)
        for _ in range(2):
            stage.serving.follow()
            assert stage.snapshot.policy.sha256 == stage.context.state.policy == before
            assert "cannot be kept" in stage.serving.error
        assert new not in [r.fields["policy"].hex() for r in stage.log.of(RecordKind.POLICY)]
    stage.serving.follow()
    assert stage.snapshot.policy.sha256 == new
    assert stage.serving.error == ""
    newest = stage.log.of(RecordKind.POLICY)[-1].fields
    assert (newest["policy"], newest["operation"]) == (bytes.fromhex(new), operation.id)
    assert new in stage.daemon_log.kept


def test_a_reload_that_cannot_keep_its_policy_changes_nothing(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = make(development=True)
    before = stage.snapshot.policy.sha256
    edit(stage)

    def full(sha256: str, text: bytes) -> None:
        del sha256, text
        raise OperatorError("cannot be kept: make room")

    with monkeypatch.context() as patched:
        patched.setattr(stage.daemon_log, "keep_policy", full)
        with pytest.raises(ConfigError, match="cannot be kept"):
            reload(stage)
    stage.serving.follow()
    assert stage.snapshot.policy.sha256 == stage.registry.state().policy == before
    assert reload(stage)


# --- what accounts for the registry -------------------------------------------------------------


def by_hand(stage: Stage, *statements: str) -> None:
    with stage.registry.writing() as write:
        for statement in statements:
            write.connection.exec_driver_sql(statement)
        revision = sa.update(schema.key_versions).values(revision=write.revision)
        write.connection.execute(revision)


def test_the_log_has_the_revision_of_a_version_that_was_written_as_it_was(stage: Stage) -> None:
    """Officers approve a change of the version at the revision that they saw."""
    name = stage.key(activate=False)
    at = int(stage.clock.now()) + 3600
    for _ in range(2):
        stage.done("activate", version=name, at=at, sign_until=at + 86400)
    known = stage.log.standings.standings.get(name)
    assert known is not None
    assert known.revision == stage.version(name).revision
    stage.done("activate", version=name, at=at - 60)
    assert stage.log.standings.problems == []


def test_a_stop_by_hand_that_the_log_could_not_take_ends_with_its_row(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The row is put back before the log accepts records again."""
    name = stage.key()
    kept = stage.version(name)

    def refuse(_: object) -> None:
        raise OperatorError("the audit log accepts no records: its disk is low")

    with monkeypatch.context() as patched:
        patched.setattr(stage.daemon_log, "account", refuse)
        with stage.registry.writing() as write:
            write.change([Change(kept, replace(kept, state=KeyState.SUSPENDED))])
        stage.serving.follow()
        assert "disk is low" in stage.serving.error
        with stage.registry.writing() as write:
            stopped = stage.version(name)
            write.change([Change(stopped, replace(stopped, state=kept.state))])
    resumed = stage.hsm.resume_keys.call_count
    stage.serving.follow()
    assert stage.serving.error == ""
    assert stage.hsm.resume_keys.call_count == resumed + 1


def test_a_comparison_beside_writers_reads_all_rows_for_a_difference_only(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An enrolment of thousands writes more often than the daemon compares."""
    stage.key(CLINIC)
    stage.serving.follow()
    read, anew = stage.registry.state, list[bool]()

    def state(since: KeyIndex | None = None) -> RegistryState:
        anew.append(since is None)
        return read(since)

    monkeypatch.setattr(stage.registry, "state", state)
    for _ in range(2):
        with stage.registry.writing():
            pass  # which raises the revision
        stage.serving.compare()
        assert stage.snapshot.keys.revision == stage.registry.revision()
    assert anew == [False, False]

    stage.emergency.suspend_key(C, CLINIC, "seen forged")
    with stage.registry.writing() as write:  # and leaves the row's own revision as it was
        write.connection.execute(sa.update(schema.key_versions).values(state="ACTIVE"))
    stage.serving.follow()
    stage.serving.compare()
    assert UNACCOUNTED in stage.serving.reason
    assert stage.snapshot.keys.primary(KeyName.parse(CLINIC), stage.clock.now()) is None


def test_a_log_from_before_takes_what_there_is_as_given(stage: Stage) -> None:
    name = stage.key()
    stage.log.records = [r for r in stage.log.records if r.kind is not RecordKind.KEYS]
    stage.log.control.deployment, stage.log.standings = "", StandingFold(stage.log.control)
    by_hand(stage, "UPDATE key_versions SET state = 'SUSPENDED'")
    stage.start()
    assert stage.states(name) == ["SUSPENDED"]
    assert stage.serving.refused == []
    [baseline] = [r for r in stage.log.of(RecordKind.KEYS) if r.fields.get("baseline")]
    assert baseline.fields["deployment"] == stage.registry.state().deployment
    by_hand(stage, "UPDATE key_versions SET state = 'ACTIVE'")
    stage.start()
    assert len(stage.serving.refused) == 1
    assert stage.snapshot.keys.primary(stage.version(name).key, stage.clock.now()) is None


def test_all_that_was_done_while_an_appliance_was_away_is_recorded_in_order(stage: Stage) -> None:
    name = stage.key()
    served = len(stage.log.records)
    follow, stage.serving._take = stage.serving._take, lambda *_, **__: None  # type: ignore[method-assign]
    at = int(stage.clock.now()) + DAY
    stage.done("deactivate", version=name, at=at)
    stage.emergency.suspend_key(A, name, "why")
    stage.done("resume", target=name)
    stage.emergency.suspend(A, Scope.FACILITY, "01-001", "why")
    stage.done("new-version", key=CLINIC)
    stage.serving._take = follow  # type: ignore[method-assign]
    stage.serving.follow()
    made_by = [
        ("act" if "act" in record.fields else parse(record.fields["content"]).kind)
        for record in stage.log.records[served:]
        if record.kind is RecordKind.KEYS
    ]
    assert made_by == ["deactivate", "act", "resume", "act", "new-version"]
    assert stage.seen.of(Unaccounted) == []
    assert stage.snapshot.keys.version(stage.version(name).key, 1) == stage.version(name)


def test_an_act_is_named_by_every_log(stage: Stage) -> None:
    name = stage.key()
    stage.emergency.suspend_key(A, name, "seen forged")
    stage.emergency.suspend(A, Scope.GROUP, "01", "seen forged")
    acts = [r.fields["act"] for r in stage.log.of(RecordKind.KEYS) if "act" in r.fields]
    said = [[act[1:5] for act in acts], [act[0] for act in acts]]
    assert said[0] == [
        ["suspend", name, A, "seen forged"],
        ["suspend", "group 01", A, "seen forged"],
    ]
    assert said[1] == [r.fields["id"] for r in stage.log.of(RecordKind.ACT)]


def test_a_used_operation_accounts_for_nothing_after_a_restart(stage: Stage) -> None:
    name = stage.key()
    stage.emergency.suspend_key(A, name, "why")
    resumed = stage.done("resume", target=name)
    stage.emergency.suspend_key(A, name, "why")
    by_hand(
        stage,
        "UPDATE key_versions SET state = 'ACTIVE'",
        f"UPDATE operations SET ended_revision = 10000 WHERE id = '{resumed.id}'",
    )
    for look in (stage.serving.follow, stage.start):
        look()
        assert len(stage.serving.refused) == 1
        assert stage.snapshot.keys.primary(stage.version(name).key, stage.clock.now()) is None


@pytest.mark.parametrize("again", [False, True])
def test_a_suspension_that_officers_have_lifted_does_not_come_back_at_a_start(
    stage: Stage, again: bool
) -> None:
    """A start that finds something by hand looks at all acts and operations that ever were."""
    stage.key()
    stage.emergency.suspend(A, Scope.FACILITY, "01-001", "why")
    if again:
        stage.clock.forward(1)
        stage.emergency.suspend(C, Scope.FACILITY, "01-001", "why")
    stage.done("resume", target="facilities/01-001")
    by_hand(stage, "UPDATE key_versions SET state = 'SUSPENDED'")
    stage.start()
    assert stage.serving.refused == []
    assert stage.snapshot.suspended.facilities == {}


def test_an_operation_that_is_said_to_be_later_hides_no_suspension(stage: Stage) -> None:
    stage.key()
    stage.emergency.suspend(A, Scope.FACILITY, "01-001", "why")
    resumed = stage.done("resume", target="facilities/01-001")
    known = list(stage.log.records)
    stage.clock.forward(1)
    stage.emergency.suspend(C, Scope.FACILITY, "01-001", "seen forged")
    by_hand(
        stage,
        "DELETE FROM suspensions",
        f"UPDATE operations SET ended_revision = 10000 WHERE id = '{resumed.id}'",
    )
    stage.start_with(known)
    assert len(stage.serving.refused) == 1
    assert list(stage.snapshot.suspended.facilities) == ["01-001"]


# --- officers ---------------------------------------------------------------------------------


def test_the_officers_of_the_registry_have_their_role(stage: Stage) -> None:
    assert stage.snapshot.policy.roles[A] == {Role.OFFICER}
    stage.done("officers", remove=[C])
    assert C not in stage.snapshot.policy.roles
    assert len(stage.log.of(RecordKind.OFFICERS)) == 2


def test_a_set_of_officers_that_no_operation_made_is_not_in_force(stage: Stage) -> None:
    """Somebody has written to the database."""
    with stage.registry.writing() as write:
        write.set_officers({A: pem(certificate_of(A)).encode(), B: b"x"})
    for look in (stage.serving.follow, stage.start):
        look()
        assert stage.snapshot.policy.roles[C] == {Role.OFFICER}
        assert stage.context.state.officers == OFFICERS
        assert len(stage.log.of(RecordKind.OFFICERS)) == 1
        [text] = stage.serving.refused
        assert "no operation leads to the officers" in text
        assert stage.serving.reason == UNACCOUNTED
    assert [len(event.refused) for event in stage.seen.of(Unaccounted)] == [1, 1]


def test_an_appliance_that_was_away_records_each_set_of_officers(stage: Stage) -> None:
    follow = stage.serving.follow
    stage.serving.follow = lambda: False  # type: ignore[method-assign]
    stage.done("officers", remove=[C])
    stage.serving.follow = follow  # type: ignore[method-assign]
    stage.done("officers", add=[pem(certificate_of(C))])
    assert len(stage.log.of(RecordKind.OFFICERS)) == 3
    assert stage.log.control.problems == ()


# --- keys -------------------------------------------------------------------------------------


def test_workers_learn_of_new_keys_before_they_are_served(stage: Stage) -> None:
    heard: list[tuple[list[str], int]] = []

    def hear(versions: list[KeyVersion]) -> None:
        if versions:
            heard.append(([version.name for version in versions], len(stage.snapshot.keys)))

    stage.hsm.keys_changed.side_effect = hear
    name = stage.key()
    assert heard == [([name], 0)], "a list of one, before it is served"
    assert len(stage.snapshot.keys) == 1
    stage.done("deactivate", version=name, at=int(START) + HOUR)
    stage.clock.time = START + 2 * HOUR
    stage.done("schedule-destruction", version=name, at=int(START) + DAY)
    assert len(heard) == 1, "no key is new"
    stage.clock.time = START + 2 * DAY
    stage.done("destroy", version=name)
    assert heard[1:] == [([name], 1)]


def test_a_version_that_is_stopped_is_stopped_in_the_hsm_and_resumed_there(stage: Stage) -> None:
    name = stage.key()
    hsm_calls(stage, "resume_keys")
    stage.emergency.suspend_key(A, name, "why")
    for (stopped,) in hsm_calls(stage, "stop_keys"):
        assert {v.name: text for v, text in stopped.items()} == {name: f"{name} is SUSPENDED"}
    stage.done("resume", target=name)
    [(resumed,)] = hsm_calls(stage, "resume_keys")
    assert [v.name for v in resumed] == [name]
    stage.emergency.compromise(A, name, "why")
    assert [v.name for v in hsm_calls(stage, "stop_keys")[-1][0]] == [name]


def test_a_suspended_facility_is_stopped_once(stage: Stage) -> None:
    name = stage.key()
    hsm_calls(stage, "suspend")
    stage.emergency.suspend(A, Scope.GROUP, "01", "why")
    [(suspended, halted)] = hsm_calls(stage, "suspend")
    assert suspended.reason("01-001")
    assert not suspended.reason("02-001")
    assert not suspended.reason("_audit")
    assert [v.name for v in halted] == [name]
    stage.emergency.suspend(A, Scope.EVERYTHING, "", "why")
    [(suspended, halted)] = hsm_calls(stage, "suspend")
    assert (suspended.reason("02-001") != "", halted) == (True, [])


def test_what_is_suspended_is_so_after_a_restart(stage: Stage) -> None:
    stage.emergency.suspend(A, Scope.FACILITY, "01-001", "why")
    stage.start()
    [(suspended, _)] = hsm_calls(stage, "suspend")
    assert suspended.reason("01-001")
    assert stage.snapshot.suspended.reason("01-001")


def test_copies_of_all_that_has_ended_are_dropped_when_their_time_comes(stage: Stage) -> None:
    """Also where two ends come between two looks."""
    names = [stage.key(f"{CLINIC}-{n}") for n in range(3)]
    for hours, name in enumerate(names, start=1):
        stage.done("deactivate", version=name, at=int(START) + hours * HOUR)
    stage.clock.time = START + 2 * HOUR
    stage.serving.follow()
    [(dropped,)] = hsm_calls(stage, "drop")
    assert sorted(v.name for v in dropped) == names[:2]
    stage.serving.follow()
    assert hsm_calls(stage, "drop") == []
    stage.clock.time = START + 9 * HOUR
    stage.serving.follow()
    [(dropped,)] = hsm_calls(stage, "drop")
    assert [v.name for v in dropped] == names[2:]


def test_a_key_on_a_token_that_this_appliance_lacks_is_served_and_stopped_as_others(
    stage: Stage,
) -> None:
    key = stage.key()
    token: Any = stage.config.tokens[0]
    token.label = "other"
    stage.start()
    stage.hsm.stop_keys.reset_mock()
    stage.emergency.suspend_key(A, str(stage.version(key).key), "forged certificates")
    assert stage.version(key).state is KeyState.SUSPENDED
    assert [set(call.args[0]) for call in stage.hsm.stop_keys.call_args_list]


# --- a registry that cannot be read -----------------------------------------------------------


def test_the_last_state_is_served_while_the_registry_cannot_be_read(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = stage.key()

    def gone() -> None:
        raise RegistryError("cannot read the registry")

    with monkeypatch.context() as patched:
        patched.setattr(stage.registry, "head", gone)
        for _ in range(3):
            stage.serving.follow()
        assert len(stage.snapshot.keys) == 1
    assert len(stage.seen.of(RegistryUnreadable)) == 1, "once, not at every look"
    stage.emergency.suspend_key(A, name, "why")
    assert stage.states(CLINIC) == ["SUSPENDED"]
    assert stage.snapshot.keys.primary(stage.version(name).key, stage.clock.now()) is None


@pytest.mark.parametrize("late", [False, True], ids=["in-time", "after-its-end"])
def test_an_approval_accounts_for_nothing_that_is_done_after_its_end(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, *, late: bool
) -> None:
    """Officers have approved it, nobody has executed it; then somebody writes what it would do."""
    name = stage.key(CLINIC, activate=False)
    monkeypatch.setattr(stage.executor, "submit", lambda _: None)
    identity = stage.propose("activate", version=name).id
    stage.approve(identity)
    stage.clock.forward(LIFE + HOUR if late else HOUR)
    stage.serving.follow()
    with stage.registry.writing() as write:
        run = write.connection.exec_driver_sql
        at, revision = stage.clock.now(), write.revision
        run(
            "UPDATE key_versions SET state = 'ACTIVE', activate_at = ?, revision = ?",
            (at, revision),
        )
        run(
            "UPDATE operations SET state = 'DONE', ended_revision = ?, changed_at = ? WHERE id = ?",
            (revision, at, identity),
        )
    stage.serving.follow()
    assert bool(stage.serving.refused) is late
    active = stage.snapshot.keys.primary(stage.version(CLINIC).key, stage.clock.now() + 1)
    assert (active is None) is late


def test_an_approval_whose_end_came_while_the_appliance_was_off_accounts_for_what_was_done(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another appliance has executed it in time; this one was off for days."""
    name = stage.key(CLINIC, activate=False)
    monkeypatch.setattr(stage.executor, "submit", lambda _: None)
    identity = stage.propose("activate", version=name).id
    stage.approve(identity)
    at = stage.clock.now() + 1
    with stage.registry.writing() as write:
        run, revision = write.connection.exec_driver_sql, write.revision
        run(
            "UPDATE key_versions SET state = 'ACTIVE', activate_at = ?, revision = ?",
            (at, revision),
        )
        run(
            "UPDATE operations SET state = 'DONE', ended_revision = ?, changed_at = ?, recorded = 1"
            " WHERE id = ?",
            (revision, at, identity),
        )
    stage.clock.forward(3 * LIFE)
    stage.start()
    assert stage.serving.refused == []
    assert stage.snapshot.keys.primary(stage.version(CLINIC).key, stage.clock.now()) is not None

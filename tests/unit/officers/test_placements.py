"""Which tokens may sign with a version: added and removed by operations, and by nothing else."""

import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from signer.audit.format.record import RecordKind
from signer.events import Unaccounted
from signer.keys import schema
from signer.model import KeyVersion, Placement
from signer.officers.change_check import ChangeFold, ChangePart
from signer.officers.kinds.create_key import try_out
from signer.officers.offline_check import ApprovalFold
from signer.officers.possession import claim_of_placement
from signer.officers.records import ApprovedOperation
from signer.officers.standing_fold import StandingFold
from signer.officers.store import PROOF, OperationState
from tests.unit.officers.opstage import CLINIC, Stage
from tests.unit.officers.people import A
from tests.unit.officers.softtoken import Crash, SoftToken

ONE = f"{CLINIC}/versions/1"


@pytest.fixture
def other(stage: Stage) -> SoftToken:
    """Another token, to which the HSM has copied the key."""
    stage.key()
    return with_copy(stage)


def with_copy(stage: Stage) -> SoftToken:
    token = stage.add_token("other")
    token.keys = dict(stage.token.keys)
    return token


def placements(stage: Stage) -> tuple[Placement, ...]:
    """The other placements of the version that is served."""
    version = stage.version(ONE)
    served = stage.snapshot.keys.version(version.key, 1)
    assert served is not None
    return served.other_placements


def by_hand(stage: Stage, token: str, cka_id: bytes) -> None:
    with stage.registry.writing() as write:
        write.place(stage.version(ONE), Placement(token, cka_id))
    stage.serving.follow()


def forget_alarm(stage: Stage) -> list[Unaccounted]:
    """Returns what was alarmed of, which no other test is to be."""
    found = stage.seen.of(Unaccounted)
    stage.seen.seen.clear()
    return found


def told_of(stage: Stage) -> list[KeyVersion]:
    """The versions whose keys workers were told of."""
    return [version for call in stage.hsm.keys_changed.call_args_list for version in call.args[0]]


def problems(stage: Stage) -> tuple[str, ...]:
    """What ``signer audit verify`` says of the log's changes."""
    fold, part = ChangeFold(), ChangePart()
    for record in stage.log.records:
        part.take(record)
    fold.join(part)
    return fold.problems


@pytest.mark.usefixtures("other")
def test_a_placement_is_added_by_two_officers_and_used(stage: Stage) -> None:
    cka_id = stage.version(ONE).cka_id
    stage.hsm.keys_changed.reset_mock()
    assert stage.prepare("add-placement", version=ONE, token="other").difference == [
        f"+ {ONE} is also on token other, CKA_ID {cka_id.hex()}",
        "  it is on soft now",
        "  token other must sign once; the public key in the registry verifies it",
    ]
    done = stage.done("add-placement", version=ONE, token="other")
    assert done.result is not None
    assert done.result["placement"] == ["other", cka_id.hex()]
    assert done.result["attributes"] == {"sensitive": True, "extractable": False}
    assert placements(stage) == (Placement("other", cka_id),)
    assert stage.version(ONE) in told_of(stage), "workers hear of the key before callers do"
    [record] = [r for r in stage.log.of(RecordKind.KEYS) if "placed" in r.fields]
    assert record.fields["placed"] == [[ONE, "other", cka_id]]
    assert record.fields["operation"] == done.id
    assert problems(stage) == ()
    # A start serves it again, from what the log accounts for; later operations go on.
    stage.start()
    assert placements(stage) == (Placement("other", cka_id),)
    stage.done("deactivate", version=ONE)
    assert stage.serving.reason == ""
    assert problems(stage) == ()


def test_a_copy_may_have_another_id(stage: Stage, other: SoftToken) -> None:
    [other.keys[b"moved"]] = other.keys.values()
    stage.done("add-placement", version=ONE, token="other", cka_id=b"moved".hex().upper())
    assert placements(stage) == (Placement("other", b"moved"),)


@pytest.mark.parametrize("fault", ["absent", "another key", "extractable"])
def test_what_the_token_does_not_prove_is_not_placed(
    stage: Stage, other: SoftToken, fault: str
) -> None:
    if fault == "absent":
        other.keys.clear()
    elif fault == "another key":
        stage.key("facilities/02-001/keys/records", token="soft")
        one, two = stage.token.keys
        other.keys[one] = stage.token.keys[two]
    else:
        other.extractable = True
    failed = stage.do("add-placement", version=ONE, token="other")
    assert failed.state is OperationState.FAILED
    assert placements(stage) == stage.version(ONE).other_placements == ()


def said_to_be_done(stage: Stage, operation: str, *, placed: bool, proof: str = "") -> None:
    """Somebody writes by hand that an operation is done, and what it was to do."""
    version = stage.version(ONE)
    result = json.dumps({PROOF: proof})
    with stage.registry.writing() as write:
        row = sa.update(schema.operations).where(schema.operations.c.id == operation)
        done = {"state": "DONE", "ended_revision": write.revision, "result": result}
        write.connection.execute(row.values(done))
        if placed:
            write.place(version, Placement("other", version.cka_id))
    stage.serving.follow()


@pytest.mark.parametrize("stopped", [False, True])
def test_a_failed_operation_does_nothing_by_a_row_that_says_it_is_done(
    stage: Stage, other: SoftToken, stopped: bool
) -> None:
    other.extractable = True
    failed = stage.do("add-placement", version=ONE, token="other")
    if stopped:
        stage.emergency.suspend_key(A, ONE, "seen forged")
        stage.done("resume", target=ONE)
    said_to_be_done(stage, failed.id, placed=True)
    for _ in range(2):
        assert placements(stage) == ()
        assert any("its placement on token other" in text for text in stage.serving.refused)
        stage.start()
    forget_alarm(stage)


def test_an_operation_about_an_earlier_revision_does_nothing_on_another_appliance(
    stage: Stage, other: SoftToken
) -> None:
    """Its log does not have that the operation failed, but what came after it."""
    other.extractable = True
    before = list(stage.log.records)
    failed = stage.do("add-placement", version=ONE, token="other")
    stage.emergency.suspend_key(A, ONE, "seen forged")
    stage.done("resume", target=ONE)
    stage.start_with(before)
    said_to_be_done(stage, failed.id, placed=True)
    assert placements(stage) == ()
    assert any("its placement on token other" in text for text in stage.serving.refused)
    forget_alarm(stage)


@pytest.mark.parametrize("proof", ["", "none", "00" * 64, "of another text"])
def test_a_failed_operation_does_nothing_on_another_appliance(
    stage: Stage, other: SoftToken, proof: str
) -> None:
    """Its log does not have that the operation failed; nothing has changed since."""
    other.extractable = True
    before = list(stage.log.records)
    failed = stage.do("add-placement", version=ONE, token="other")
    if proof == "of another text":
        version = stage.version(ONE)
        proof = try_out(stage.token, version, says=b"any message").hex()
    said_to_be_done(stage, failed.id, placed=True, proof=proof)
    for records in (before, stage.log.records):
        stage.start_with(list(records))
        assert placements(stage) == ()
        assert any("its placement on token other" in text for text in stage.serving.refused)
    forget_alarm(stage)


def test_a_proof_by_a_key_that_was_exchanged_for_a_moment_does_not_count(
    stage: Stage, other: SoftToken
) -> None:
    other.extractable = True
    before, version = list(stage.log.records), stage.version(ONE)
    failed = stage.do("add-placement", version=ONE, token="other")
    stage.start_with(before)
    stranger = SoftToken(stage.fate)
    spki = stranger.generate(version.algorithm, 0, version.cka_id, "strange")
    claim = claim_of_placement(failed.id, ONE, Placement("other", version.cka_id))
    proof = try_out(stranger, replace(version, spki=spki), says=claim).hex()
    for each in (spki, version.spki):
        with stage.registry.writing() as write:
            row = sa.update(schema.key_versions).values(spki=each, revision=write.revision)
            write.connection.execute(row.where(schema.key_versions.c.cka_id == version.cka_id))
        said_to_be_done(stage, failed.id, placed=each == spki, proof=proof)
    for _ in range(2):
        assert placements(stage) == ()
        assert any("its placement on token other" in text for text in stage.serving.refused)
        stage.start()
    assert stage.states(CLINIC) == ["ACTIVE"]
    forget_alarm(stage)


def test_an_appliance_that_was_away_uses_what_the_key_has_proven(
    stage: Stage, other: SoftToken
) -> None:
    del other
    before = list(stage.log.records)
    stage.done("add-placement", version=ONE, token="other")
    stage.start_with(before)
    assert placements(stage) == (Placement("other", stage.version(ONE).cka_id),)
    assert (stage.serving.reason, problems(stage)) == ("", ())


def test_a_failed_operation_that_is_retried_counts(stage: Stage, other: SoftToken) -> None:
    other.extractable = True
    failed = stage.do("add-placement", version=ONE, token="other")
    other.extractable = False
    stage.proposals.retry(A, failed.id)
    assert stage.operation(failed.id).state is OperationState.DONE
    assert placements(stage) == (Placement("other", stage.version(ONE).cka_id),)
    assert stage.serving.reason == ""
    assert problems(stage) == ()
    stage.start()
    assert placements(stage) == (Placement("other", stage.version(ONE).cka_id),)


def test_a_record_by_a_failed_operation_is_a_problem(stage: Stage, other: SoftToken) -> None:
    other.extractable = True
    failed = stage.do("add-placement", version=ONE, token="other")
    row = [ONE, "other", stage.version(ONE).cka_id]
    made = ApprovedOperation.of(stage.operation(failed.id)).to_fields()
    fields = made | {"registry_revision": 99, "versions": [], "placed": [row]}
    stage.log.append(RecordKind.KEYS, fields)
    assert any("has failed, and has not begun again" in text for text in problems(stage))
    assert stage.log.standings.placed == {}
    stage.log.standings.problems.clear()


@pytest.mark.usefixtures("other")
@pytest.mark.parametrize(
    ("kind", "arguments", "text"),
    [
        ("add-placement", {"token": "third"}, "name one of the tokens soft, other"),
        ("add-placement", {"token": "soft"}, "is on token soft already"),
        ("add-placement", {"token": "other", "cka_id": "xyz"}, "bytes in hex"),
        ("remove-placement", {"token": "soft"}, "was made on token soft"),
        ("remove-placement", {"token": "other"}, "is not on token other"),
    ],
)
def test_what_makes_no_sense_is_refused(
    stage: Stage, kind: str, arguments: dict[str, Any], text: str
) -> None:
    assert text in " ".join(stage.problems(kind, version=ONE, **arguments))


@pytest.mark.usefixtures("other")
def test_a_placement_is_removed_and_its_approval_does_not_count_again(stage: Stage) -> None:
    stage.done("add-placement", version=ONE, token="other")
    [placement] = placements(stage)
    stage.done("remove-placement", version=ONE, token="other")
    assert placements(stage) == ()
    assert problems(stage) == ()
    assert stage.serving.reason == ""
    by_hand(stage, *placement)  # the row as it was, and the operation is DONE
    assert placements(stage) == ()
    assert f"{ONE}: no operation accounts for its placement on token other" in stage.serving.refused
    forget_alarm(stage)


@pytest.mark.usefixtures("other")
def test_a_placement_by_hand_is_not_served_and_the_key_signs_where_it_did(stage: Stage) -> None:
    by_hand(stage, "other", b"fake")
    assert placements(stage) == ()
    assert stage.states(CLINIC) == ["ACTIVE"]
    assert str(stage.snapshot.keys.primary(stage.version(ONE).key, stage.clock.now())) != "None"
    assert stage.serving.reason
    assert stage.seen.of(Unaccounted)
    assert any("placement on token other" in problem for problem in problems(stage))
    stage.start()
    assert placements(stage) == ()
    assert stage.serving.reason
    forget_alarm(stage)


def test_a_placement_that_is_not_accounted_for_is_removed_and_added_by_operations(
    stage: Stage, other: SoftToken
) -> None:
    """As after an upgrade, where an earlier version has placed it without a proof."""
    del other
    by_hand(stage, "other", stage.version(ONE).cka_id)
    assert stage.serving.reason
    forget_alarm(stage)
    stage.done("remove-placement", version=ONE, token="other")
    assert stage.serving.reason == ""
    stage.done("add-placement", version=ONE, token="other")
    assert placements(stage) == (Placement("other", stage.version(ONE).cka_id),)
    assert stage.serving.reason == ""


@pytest.mark.usefixtures("other")
def test_a_placement_that_is_gone_is_not_used_and_that_is_told(stage: Stage) -> None:
    stage.done("add-placement", version=ONE, token="other")
    [placement] = placements(stage)
    with stage.registry.writing() as write:
        write.remove_placement(stage.version(ONE), placement)
    stage.serving.follow()
    assert placements(stage) == ()
    assert stage.serving.reason == ""
    [told] = forget_alarm(stage)
    assert told.obeyed == [f"{ONE} was taken from token other in the registry by hand"]
    assert told.obeyed[0] in problems(stage)[0]


@pytest.mark.usefixtures("other")
def test_a_record_of_a_placement_that_no_operation_made_is_a_problem(stage: Stage) -> None:
    done = stage.done("add-placement", version=ONE, token="other")
    [record] = [r for r in stage.log.of(RecordKind.KEYS) if "placed" in r.fields]
    for changed in (
        {k: v for k, v in record.fields.items() if k not in ("operation", "content", "signatures")},
        record.fields | {"placed": [[ONE, "third", b"id"]]},
    ):
        stage.log.records[record.seq] = record._replace(fields=changed)
        assert any("is placed on token" in problem for problem in problems(stage)), done.id
    stage.log.records[record.seq] = record
    assert problems(stage) == ()


@pytest.mark.usefixtures("other")
def test_a_snapshot_of_the_log_holds_what_is_placed(stage: Stage) -> None:
    before = stage.log.standings.snapshot()
    assert "placed" not in before["standings"], "older snapshots have no such member"
    stage.done("add-placement", version=ONE, token="other")
    fold = StandingFold(ApprovalFold())
    fold._load(stage.log.standings.snapshot()["standings"])
    assert fold.placed == stage.log.standings.placed == {ONE: frozenset(placements(stage))}
    assert fold.snapshot() == stage.log.standings.snapshot()


def test_in_development_placements_are_taken_as_given(tmp_path: Path, template: Path) -> None:
    stage = Stage(tmp_path / "stage", template, development=True)
    stage.key()
    with_copy(stage)
    with stage.registry.writing() as write:
        write.place(stage.version(ONE), Placement("other", b"copy"))
    stage.start()
    assert placements(stage) == (Placement("other", b"copy"),)
    assert stage.log.standings.placed == {ONE: frozenset({Placement("other", b"copy")})}
    stage.close()


@pytest.mark.usefixtures("other")
def test_a_key_is_destroyed_on_each_of_its_tokens(stage: Stage) -> None:
    stage.done("add-placement", version=ONE, token="other")
    [(_, cka_id)] = placements(stage)
    stage.done("deactivate", version=ONE)
    stage.done("schedule-destruction", version=ONE, at=0)
    assert stage.prepare("destroy", version=ONE).difference[-2:] == [
        f"! the private key {cka_id.hex()} on token soft is destroyed",
        f"! the private key {cka_id.hex()} on token other is destroyed",
    ]
    lacking = stage.tokens.pop("other")
    config: Any = stage.config
    config.tokens = config.tokens[:1]
    stage.start()
    assert "token other holds the key and is not here" in stage.problems("destroy", version=ONE)[0]
    stage.tokens["other"] = lacking
    stage.add_token("third")
    stage.done("destroy", version=ONE)
    assert stage.token.keys == lacking.keys == {}


@pytest.mark.parametrize("points", range(16))
@pytest.mark.usefixtures("other")
def test_an_interrupted_operation_places_once(stage: Stage, points: int) -> None:
    identity = stage.propose("add-placement", version=ONE, token="other").id
    stage.fate.crash_after(points)
    with suppress(Crash):
        stage.approve(identity)
    stage.start()
    if stage.operation(identity).state is OperationState.PROPOSED:
        stage.approve(identity)
    assert stage.operation(identity).state is OperationState.DONE
    assert len(placements(stage)) == 1
    assert problems(stage) == ()


def test_a_placement_that_officers_removed_does_not_come_back_on_an_appliance_that_was_away(
    other: SoftToken, stage: Stage
) -> None:
    del other
    served = list(stage.log.records)
    stage.done("add-placement", version=ONE, token="other")
    place = stage.version(ONE).other_placements[0]
    stage.done("remove-placement", version=ONE, token="other")
    with stage.registry.writing() as write:
        write.place(stage.version(ONE), place)
    stage.start_with(served)
    assert placements(stage) == ()
    assert "no operation accounts for its placement" in stage.serving.refused[0]
    made = [record for record in stage.log.records if record.kind is RecordKind.KEYS]
    assert sum("placed" in record.fields for record in made) == 1
    assert sum("removed" in record.fields for record in made) == 1
    assert forget_alarm(stage)


def test_copies_on_a_token_that_a_key_has_left_are_destroyed(
    other: SoftToken, stage: Stage
) -> None:
    del other
    stage.done("add-placement", version=ONE, token="other")
    stage.hsm.drop.reset_mock()
    stage.done("remove-placement", version=ONE, token="other")
    dropped = [version for call in stage.hsm.drop.call_args_list for version in call.args[0]]
    assert any(version.cka_id_on("other") for version in dropped)

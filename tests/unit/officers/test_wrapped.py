"""Which wrapped keys are served: what operations have made, and nothing else."""

import hashlib
import json
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from signer.audit.format.record import RecordKind
from signer.events import Unaccounted
from signer.keys import schema
from signer.model import KeyVersion, WrapMechanism, WrappedKey, WrappingKey
from signer.officers.change_check import ChangeFold, ChangePart
from signer.officers.kinds import wrapping_keys as kinds
from signer.officers.kinds.create_key import try_out
from signer.officers.offline_check import ApprovalFold
from signer.officers.packing import place_of
from signer.officers.standing_fold import StandingFold
from signer.officers.store import OperationState
from signer.officers.wrapped import (
    WrappedRow,
    WrappedStandings,
    Wrapping,
    standing_of_wrapped,
    steps_to,
)
from tests.stand_ins import key_version
from tests.torture import every
from tests.unit.officers.opstage import CLINIC, Stage
from tests.unit.officers.softtoken import Crash

STORED = "facilities/03-001/keys/records"
ONE, OTHER = f"{STORED}/versions/1", f"{STORED}-2"


@pytest.fixture
def stored(stage: Stage) -> Stage:
    """A stage with a wrapping key and a wrapped key."""
    stage.done("create-wrapping-key")
    stage.key(STORED)
    return stage


def problems(stage: Stage) -> tuple[str, ...]:
    """What an auditor finds in the log."""
    fold, part = ChangeFold(), ChangePart()
    for record in stage.log.records:
        part.take(record)
    fold.join(part)
    return fold.problems


def served(stage: Stage, name: str = ONE) -> KeyVersion | None:
    version = stage.version(name)
    found = stage.snapshot.keys.version(version.key, version.number)
    return found if found is not None and found.active(stage.clock.now()) else None


def by_hand(stage: Stage, **values: object) -> None:
    with stage.registry.writing() as write:
        write.connection.execute(
            sa.update(schema.wrapped_keys).values(**values, revision=write.revision)
        )
    stage.serving.follow()


def test_without_a_wrapping_key_nothing_is_made(stage: Stage) -> None:
    told = stage.problems("create-key", key=STORED, algorithm="ES256")
    assert "token soft has no wrapping key" in told[0]
    assert stage.problems("create-key", key=CLINIC, algorithm="ES256") == []


def test_a_wrapped_key_is_made_and_served_also_after_a_restart(stored: Stage) -> None:
    version = served(stored)
    assert version is not None
    assert version.wrapped is not None
    assert version.wrapped.tokens == ("soft",)
    assert stored.token.keys == {}
    assert problems(stored) == ()
    stored.start()
    assert served(stored) == version
    assert stored.serving.reason == ""


@pytest.mark.parametrize(
    "values",
    [
        {"blob": b"other"},
        {"blob": b"other", "sha256": hashlib.sha256(b"other").digest()},
        {"sha256": bytes(32)},
        {"mechanism": "AES_KEY_WRAP_KWP"},
        {"wrapping_key": "another"},
    ],
    ids=str,
)
def test_what_was_changed_by_hand_is_not_served(stored: Stage, values: dict[str, object]) -> None:
    before = stored.version(ONE).wrapped
    by_hand(stored, **values)
    assert served(stored) is None
    assert any(ONE in text for text in stored.serving.refused)
    stored.start()
    assert served(stored) is None, "nor after a restart"
    assert before is not None
    by_hand(stored, **{k: v for k, v in before._asdict().items() if k != "tokens"})
    assert served(stored) is not None
    assert stored.serving.reason == ""
    stored.seen.seen.clear()


def test_a_key_that_is_not_wrapped_any_more_is_not_served(stored: Stage) -> None:
    with stored.registry.writing() as write:
        write.connection.execute(sa.delete(schema.wrapped_keys))
        write.connection.execute(sa.update(schema.key_versions).values(revision=write.revision))
    stored.serving.follow()
    assert served(stored) is None
    assert stored.seen.of(Unaccounted)
    stored.seen.seen.clear()


def test_a_key_of_the_token_is_never_a_wrapped_one(stored: Stage) -> None:
    stored.key(CLINIC)
    with stored.registry.writing() as write:
        row = write._row_id(stored.version(f"{CLINIC}/versions/1"))
        write.connection.execute(
            sa.insert(schema.wrapped_keys).values(
                version_id=row,
                blob=b"b",
                sha256=hashlib.sha256(b"b").digest(),
                mechanism="AES_KEY_WRAP_PAD",
                wrapping_key="w",
                revision=write.revision,
            )
        )
    stored.serving.follow()
    assert served(stored, f"{CLINIC}/versions/1") is None
    assert served(stored) is not None
    stored.seen.seen.clear()


def test_a_record_of_a_wrapped_key_that_no_operation_made_is_a_problem(stored: Stage) -> None:
    [record] = [r for r in stored.log.of(RecordKind.KEYS) if "wrapped" in r.fields]
    [[name, sha256, mechanism, wrapping_key, pin]] = record.fields["wrapped"]
    for row in ([name, sha256, mechanism, "another", pin], [OTHER, sha256, mechanism, "w", pin]):
        stored.log.records[record.seq] = record._replace(fields=record.fields | {"wrapped": [row]})
        assert any("the wrapped key of" in problem for problem in problems(stored))
    stored.log.records[record.seq] = record
    assert problems(stored) == ()
    assert wrapping_key


def test_a_snapshot_of_the_log_holds_the_wrapped_keys(stage: Stage) -> None:
    assert "wrapped" not in stage.log.standings.snapshot()["standings"], "as in older ones"
    stage.done("create-wrapping-key")
    stage.key(STORED)
    fold = StandingFold(ApprovalFold())
    fold._load(stage.log.standings.snapshot()["standings"])
    assert fold.snapshot() == stage.log.standings.snapshot()
    now = standing_of_wrapped(stage.version(ONE))
    assert now is not None
    assert now.same(fold.wrapped.get(ONE))


@pytest.mark.parametrize("points", range(16))
def test_an_interrupted_operation_makes_one_key(stage: Stage, points: int) -> None:
    stage.done("create-wrapping-key")
    identity = stage.propose("create-key", key=STORED, algorithm="ES256", activate=True).id
    stage.fate.crash_after(points)
    with suppress(Crash):
        stage.approve(identity)
    stage.start()
    if stage.operation(identity).state is OperationState.PROPOSED:
        stage.approve(identity)
    assert stage.operation(identity).state is OperationState.DONE
    assert served(stage) is not None
    assert problems(stage) == ()


# --- one version -----------------------------------------------------------------------------


class MakingStep:
    """An operation that makes the keys of these places, wrapped by ``key``."""

    def __init__(self, key: str, *places: bytes, anew: dict[str, str] | None = None) -> None:
        self._key, self._places, self._anew = key, places, anew or {}

    def wrapped_with(self, place: bytes) -> Wrapping | None:
        return Wrapping(self._key, 0) if place in self._places else None

    def wraps_anew(self, before: Wrapping) -> Wrapping | None:
        after = self._anew.get(before.key)
        return None if after is None else Wrapping(after, 0)


def public(*, compressed: bool = False) -> bytes:
    key = ec.derive_private_key(7, ec.SECP256R1()).public_key()
    der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if not compressed:
        return der
    point = key.public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
    return bytes.fromhex("3039301306072a8648ce3d020106082a8648ce3d030107032200") + point


def wrapped_version(name: str, spki: bytes, wrapping_key: str = "w") -> KeyVersion:
    blob = name.encode()
    key = WrappedKey(
        blob, hashlib.sha256(blob).digest(), WrapMechanism.AES_KEY_WRAP_PAD, wrapping_key, ("t",)
    )
    made = key_version()
    return replace(made, number=int(name), cka_id=blob, spki=spki, wrapped=key)


def test_the_key_of_one_version_is_never_that_of_another() -> None:
    known = WrappedStandings()
    first = wrapped_version("1", public())
    standing = standing_of_wrapped(first)
    assert standing is not None
    steps = [MakingStep("w", place_of(b"1"), place_of(b"2"))]
    assert steps_to(first, None, known.is_of_another, steps, new=True) == [
        (0, WrappedRow.of(first))
    ]
    known.put(first.name, standing)
    copied = wrapped_version("2", public())
    assert steps_to(copied, None, known.is_of_another, steps, new=True) is None
    again = wrapped_version("2", public(compressed=True))
    assert steps_to(again, None, known.is_of_another, steps, new=True) is None, "one text a key"
    assert steps_to(first, standing, known.is_of_another, [], new=False) == []


def test_of_a_key_that_was_wrapped_anew_each_step_is_known() -> None:
    version = wrapped_version("1", public(), "v")
    row = WrappedRow.of(version)
    assert row is not None
    steps = [MakingStep("w", place_of(b"1")), MakingStep("", anew={"w": "v"})]
    first = row._replace(sha256=b"", wrapping_key="w")
    assert steps_to(version, None, lambda *_: False, steps, new=True) == [(0, first), (1, row)]
    assert steps_to(version, first.standing, lambda *_: False, steps[1:], new=False) == [(0, row)]
    assert steps_to(version, first.standing, lambda *_: False, steps[:1], new=False) is None
    assert steps_to(version, None, lambda *_: False, steps[1:], new=True) is None
    assert steps_to(version, None, lambda *_: False, steps, new=False) is None, "it was there"


# --- another wrapping key --------------------------------------------------------------------


def wrapping_keys(stage: Stage) -> list[str]:
    """Those in use, the oldest first."""
    keys = [key for key in stage.registry.state().wrapping_keys if not key.destroyed]
    return [key.id for key in sorted(keys, key=lambda key: key.created)]


def test_a_wrapping_key_is_replaced_and_destroyed(stored: Stage) -> None:
    stored.key(OTHER)
    [first] = wrapping_keys(stored)
    before = stored.version(ONE)
    refused = stored.problems("destroy-wrapping-key", wrapping_key=first)
    assert "2 keys are wrapped by it" in refused[0]
    assert "it is the same" in stored.problems("rewrap", from_key=first)[-1]
    stored.done("create-wrapping-key")
    first, second = wrapping_keys(stored)
    stored.done("rewrap", from_key=first)
    after = served(stored)
    assert after is not None
    assert before.wrapped is not None
    assert after.wrapped is not None
    assert (before.wrapped.wrapping_key, after.wrapped.wrapping_key) == (first, second)
    assert replace(after, wrapped=before.wrapped) == before, "nothing else has changed"
    assert served(stored, f"{OTHER}/versions/1") is not None
    stored.done("destroy-wrapping-key", wrapping_key=first)
    assert wrapping_keys(stored) == [second]
    assert stored.token.wrapping_keys == {second}
    again = stored.problems("destroy-wrapping-key", wrapping_key=first)
    assert "or it is destroyed already" in again[0]
    stored.start()
    assert served(stored) == after
    assert stored.serving.reason == ""
    assert problems(stored) == ()


def test_a_wrapping_key_is_not_destroyed_by_what_somebody_wrote_in_the_registry(
    stored: Stage,
) -> None:
    [first] = wrapping_keys(stored)
    by_hand(stored, wrapping_key="x")
    stored.serving.follow()
    refused = stored.problems("destroy-wrapping-key", wrapping_key=first)
    assert any("otherwise than the log" in problem for problem in refused), refused
    stored.seen.seen.clear()


def test_another_token_that_has_the_wrapping_key_signs_once_it_was_tried(stored: Stage) -> None:
    [first] = wrapping_keys(stored)
    other = stored.add_token("other")
    asked: Any = {"wrapping_key": first, "token": "other"}
    failed = stored.do("place-wrapping-key", **asked)
    assert failed.state is OperationState.FAILED, "it does not hold the wrapping key"
    other.wrapped = dict(stored.token.wrapped)
    stored.done("place-wrapping-key", **asked)
    version = served(stored)
    assert version is not None
    assert [token for token, _ in version.placements] == ["other", "soft"]
    assert "it is on token other already" in stored.problems("place-wrapping-key", **asked)[0]
    stored.start()
    assert served(stored) == version
    assert stored.serving.reason == ""
    assert problems(stored) == ()


@pytest.mark.parametrize("away", [False, True])
def test_a_token_that_did_not_prove_that_it_holds_a_wrapping_key_is_not_used(
    stored: Stage, away: bool
) -> None:
    """Also on an appliance whose log does not have that the operation failed."""
    [first] = wrapping_keys(stored)
    other = stored.add_token("other")
    before = list(stored.log.records)
    failed = stored.do("place-wrapping-key", wrapping_key=first, token="other")
    assert failed.state is OperationState.FAILED
    created = stored.registry.state().wrapping_keys[0].created
    with stored.registry.writing() as write:
        write.add_wrapping_key(WrappingKey(first, "other", created))
    said = try_out(stored.token, stored.version(ONE), says=b"any message")
    said_to_end_now(stored, "place-wrapping-key", key_version=ONE, proof=said.hex())
    if away:
        stored.start_with(before)
    else:
        stored.serving.follow()
    assert tokens(stored) == ("soft",)
    assert any("on token other" in text for text in stored.serving.refused)
    stored.seen.seen.clear()
    with stored.registry.writing() as write:
        of_other = schema.wrapping_keys.c.token == "other"
        write.connection.execute(sa.delete(schema.wrapping_keys).where(of_other))
    stored.serving.follow()
    other.wrapped = dict(stored.token.wrapped)
    records = list(stored.log.records)
    stored.done("place-wrapping-key", wrapping_key=first, token="other")
    stored.start_with(records)
    assert (tokens(stored), stored.serving.reason) == (("other", "soft"), "")


def test_a_key_that_is_set_back_to_the_old_wrapping_key_is_not_served(stored: Stage) -> None:
    [first] = wrapping_keys(stored)
    before = stored.version(ONE).wrapped
    stored.done("create-wrapping-key")
    stored.done("rewrap", from_key=first)
    assert before is not None
    by_hand(stored, **{k: v for k, v in before._asdict().items() if k != "tokens"})
    assert served(stored) is None
    stored.seen.seen.clear()


def said_to_end_now(stage: Stage, *kinds: str, **result: str) -> None:
    """Somebody writes by hand that operations of these kinds have ended just now."""
    done = {"state": "DONE", "result": json.dumps(result)}
    with stage.registry.writing() as write:
        row = sa.update(schema.operations).where(schema.operations.c.kind.in_(kinds))
        write.connection.execute(row.values({**done, "ended_revision": write.revision}))


@pytest.mark.parametrize("restarted", [False, True])
def test_two_operations_there_and_back_do_not_account_for_other_bytes(
    stored: Stage, restarted: bool
) -> None:
    [first] = wrapping_keys(stored)
    stored.done("create-wrapping-key")
    _, second = wrapping_keys(stored)
    stored.clock.forward(2)
    stored.done("rewrap", from_key=first, to_key=second)
    stored.clock.forward(2)
    stored.done("rewrap", from_key=second, to_key=first)
    before = stored.version(ONE).wrapped
    assert before is not None
    assert problems(stored) == ()
    if restarted:
        stored.start()
    said_to_end_now(stored, "rewrap")
    by_hand(stored, blob=b"other", sha256=hashlib.sha256(b"other").digest())
    assert served(stored) is None
    assert any(ONE in text for text in stored.serving.refused)
    by_hand(stored, **{k: v for k, v in before._asdict().items() if k != "tokens"})
    assert served(stored) is not None
    stored.clock.forward(2)
    stored.done("rewrap", from_key=first, to_key=second)
    assert served(stored) is not None
    assert stored.serving.reason == ""
    stored.seen.seen.clear()


def test_an_operation_that_is_proposed_before_another_wraps_nothing_after_it(stored: Stage) -> None:
    [first] = wrapping_keys(stored)
    stored.done("create-wrapping-key")
    _, second = wrapping_keys(stored)
    back = stored.propose("rewrap", from_key=second, to_key=first)
    stored.clock.forward(2)
    stored.done("rewrap", from_key=first, to_key=second)
    stored.approve(back.id)
    ended = stored.operation(back.id)
    assert ended.state is OperationState.FAILED
    assert "propose this one again" in ended.note
    assert served(stored) is not None
    assert problems(stored) == ()


def begun(stage: Stage) -> str:
    """A rewrap that officers have approved, and of which nothing is done; returns its id."""
    *_, from_key, to_key = wrapping_keys(stage)
    stage.clock.forward(2)
    identity = stage.propose("rewrap", from_key=from_key, to_key=to_key).id
    stage.executor._stopping.set()
    stage.approve(identity)
    assert stage.operation(identity).state is OperationState.EXECUTING
    return identity


def row_of(stage: Stage, name: str = ONE) -> dict[str, object]:
    wrapped = stage.version(name).wrapped
    assert wrapped is not None
    return {column: value for column, value in wrapped._asdict().items() if column != "tokens"}


def test_an_operation_that_is_under_way_accounts_for_no_other_bytes(stored: Stage) -> None:
    stored.done("create-wrapping-key")
    identity, before = begun(stored), row_of(stored)
    other = {"blob": b"other", "sha256": hashlib.sha256(b"other").digest()}
    by_hand(stored, **other, wrapping_key=wrapping_keys(stored)[1])
    assert served(stored) is None
    assert any(ONE in text for text in stored.serving.refused)
    by_hand(stored, **before)
    assert served(stored) is not None
    stored.start()
    assert stored.operation(identity).state is OperationState.DONE
    assert served(stored) is not None
    assert stored.serving.reason == ""
    [told] = problems(stored)
    assert f"{ONE}: no operation accounts for" in told, "auditors are told of it"
    stored.seen.seen.clear()


@pytest.mark.parametrize("of", ["an earlier operation", "another key", "other bytes"])
def test_a_proof_counts_for_one_operation_one_key_and_these_bytes(stored: Stage, of: str) -> None:
    stored.key(OTHER)
    stored.done("create-wrapping-key")
    first, second = wrapping_keys(stored)
    stored.clock.forward(2)
    stored.done("rewrap", from_key=first, to_key=second)
    earlier, another = row_of(stored), row_of(stored, f"{OTHER}/versions/1")
    stored.clock.forward(2)
    stored.done("rewrap", from_key=second, to_key=first)
    begun(stored)
    other = {"blob": b"other", "sha256": hashlib.sha256(b"other").digest()}
    row = another if of == "another key" else earlier | (other if of == "other bytes" else {})
    by_hand(stored, **row)
    assert served(stored) is None
    assert any(ONE in text for text in stored.serving.refused)
    stored.seen.seen.clear()


@pytest.mark.parametrize("changed", [False, True])
def test_an_appliance_that_was_away_has_the_key_itself_prove_its_bytes(
    stored: Stage, changed: bool
) -> None:
    before = list(stored.log.records)
    stored.done("create-wrapping-key")
    stored.clock.forward(2)
    stored.done("rewrap", from_key=wrapping_keys(stored)[0])
    if changed:
        by_hand(stored, blob=b"other", sha256=hashlib.sha256(b"other").digest())
    stored.start_with(before)
    assert (served(stored) is None) is changed
    assert bool(stored.serving.reason) is changed
    stored.seen.seen.clear()


@pytest.mark.parametrize("points", every(3, range(0, 60, 3)))
def test_an_interrupted_rewrap_goes_on(
    stage: Stage, points: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kinds, "BATCH", 1)
    stage.done("create-wrapping-key")
    keys = [f"{STORED}-{number}" for number in range(3)]
    for key in keys:
        stage.key(key)
    [first] = wrapping_keys(stage)
    stage.done("create-wrapping-key")
    _, second = wrapping_keys(stage)
    identity = stage.propose("rewrap", from_key=first).id
    stage.fate.crash_after(points)
    with suppress(Crash):
        stage.approve(identity)
    stage.start()
    if stage.operation(identity).state is OperationState.PROPOSED:
        stage.approve(identity)
    assert stage.operation(identity).state is OperationState.DONE
    for key in keys:
        version = served(stage, f"{key}/versions/1")
        assert version is not None
        assert version.wrapped is not None
        assert version.wrapped.wrapping_key == second
    assert problems(stage) == ()


@pytest.mark.parametrize("points", every(3, range(0, 24, 2)))
def test_an_interrupted_destruction_of_a_wrapping_key_goes_on(stage: Stage, points: int) -> None:
    stage.done("create-wrapping-key")
    [first] = wrapping_keys(stage)
    identity = stage.propose("destroy-wrapping-key", wrapping_key=first).id
    stage.fate.crash_after(points)
    with suppress(Crash):
        stage.approve(identity)
    stage.start()
    if stage.operation(identity).state is OperationState.PROPOSED:
        stage.approve(identity)
    assert stage.operation(identity).state is OperationState.DONE, stage.operation(identity).note
    assert (wrapping_keys(stage), stage.token.wrapping_keys) == ([], set())
    assert problems(stage) == ()
    assert stage.serving.reason == ""


# --- rows of wrapping keys by hand -----------------------------------------------------------


BAD = "00000000-0000-4000-8000-000000000bad"


def placed_by_hand(stage: Stage, identity: str, token: str) -> None:
    row = {"id": identity, "token": token, "created": stage.clock.now() + 1, "destroyed": False}
    with stage.registry.writing() as write:
        write.connection.execute(sa.insert(schema.wrapping_keys).values(**row, revision=0))
    stage.serving.follow()


def wrapping_by_hand(stage: Stage, **values: object) -> None:
    with stage.registry.writing() as write:
        statement = sa.update(schema.wrapping_keys).values(**values, revision=write.revision)
        write.connection.execute(statement)
    stage.serving.follow()


def tokens(stage: Stage) -> tuple[str, ...]:
    version = served(stage)
    assert version is not None
    assert version.wrapped is not None
    return version.wrapped.tokens


def test_a_wrapping_key_is_used_on_no_token_where_only_a_row_has_it(stored: Stage) -> None:
    [first] = wrapping_keys(stored)
    stored.add_token("other")
    placed_by_hand(stored, first, "other")
    for _ in range(2):
        assert tokens(stored) == ("soft",)
        assert any("on token other" in text for text in stored.serving.refused)
        stored.start()
    assert any(f"{first} on token other" in problem for problem in problems(stored))
    refused = stored.problems("destroy-wrapping-key", wrapping_key=first)
    assert any("otherwise than the log" in problem for problem in refused), refused
    with stored.registry.writing() as write:
        other = schema.wrapping_keys.c.token == "other"
        write.connection.execute(sa.delete(schema.wrapping_keys).where(other))
    stored.serving.follow()
    assert stored.serving.reason == ""
    stored.seen.seen.clear()


@pytest.mark.parametrize("counts", [True, False], ids=["counts", "no revision"])
def test_nothing_is_wrapped_by_a_wrapping_key_of_a_row_alone(stored: Stage, counts: bool) -> None:
    [first] = wrapping_keys(stored)
    row = {"id": BAD, "token": "soft", "created": stored.clock.now() + 1, "destroyed": False}
    with stored.registry.writing(counts=counts) as write:
        write.connection.execute(sa.insert(schema.wrapping_keys).values(**row, revision=0))
    prepared = stored.prepare("create-key", key=OTHER, algorithm="ES256", activate=True)
    assert BAD not in prepared.content.decode()
    assert first in prepared.content.decode()
    stored.serving.compare()
    assert any(BAD in text for text in stored.serving.refused)
    stored.seen.seen.clear()


@pytest.mark.parametrize("values", [{"destroyed": True}, {"created": 1.0}], ids=str)
def test_what_is_changed_of_a_wrapping_key_is_shown_until_it_is_put_back(
    stored: Stage, values: dict[str, object]
) -> None:
    [before] = stored.registry.state().wrapping_keys
    wrapping_by_hand(stored, **values)
    for _ in range(2):
        assert tokens(stored) == ()
        assert any(before.id in text for text in stored.serving.refused)
        stored.start()
    assert any(before.id in problem for problem in problems(stored))
    wrapping_by_hand(stored, destroyed=False, created=before.created)
    assert tokens(stored) == ("soft",)
    assert stored.serving.reason == ""
    stored.seen.seen.clear()


def test_a_destroyed_wrapping_key_does_not_come_back_by_its_row(stage: Stage) -> None:
    stage.done("create-wrapping-key")
    [first] = wrapping_keys(stage)
    stage.done("destroy-wrapping-key", wrapping_key=first)
    wrapping_by_hand(stage, destroyed=False)
    with stage.registry.writing() as write:
        row = sa.update(schema.operations).where(schema.operations.c.kind == "create-wrapping-key")
        write.connection.execute(row.values(ended_revision=write.revision))
    for _ in range(2):
        assert any(first in text for text in stage.serving.refused)
        assert "no wrapping key" in stage.problems("create-key", key=STORED, algorithm="ES256")[0]
        stage.start()
    stage.seen.seen.clear()


def test_a_record_of_a_wrapping_key_that_no_operation_made_is_a_problem(stored: Stage) -> None:
    [record] = [r for r in stored.log.of(RecordKind.KEYS) if r.fields.get("wrapping")]
    [[first, token, created]] = record.fields["wrapping"]
    for fields in (
        {"wrapping": [[first, "other", created]]},
        {"wrapping": [[BAD, token, created]]},
        {"wrapping_ended": [[first, token]]},
    ):
        stored.log.records[record.seq] = record._replace(fields=record.fields | fields)
        assert any("and no operation of officers" in problem for problem in problems(stored))
    stored.log.records[record.seq] = record
    assert problems(stored) == ()


def test_a_log_of_an_earlier_version_takes_wrapping_keys_as_given_once(stored: Stage) -> None:
    [first] = wrapping_keys(stored)
    records = [
        record._replace(fields={n: v for n, v in record.fields.items() if n != "wrapping"})
        for record in stored.log.records
    ]
    assert records != stored.log.records
    stored.start_with(records)
    assert stored.serving.reason == ""
    assert tokens(stored) == ("soft",)
    given = [r for r in stored.log.of(RecordKind.KEYS) if r.fields.get("wrapping")]
    assert [row[:2] for record in given for row in record.fields["wrapping"]] == [[first, "soft"]]
    assert problems(stored) == ()
    placed_by_hand(stored, first, "other")
    stored.start()
    assert tokens(stored) == ("soft",)
    assert any("on token other" in text for text in stored.serving.refused)
    stored.seen.seen.clear()


def test_a_snapshot_of_the_log_holds_where_wrapping_keys_are_used(stored: Stage) -> None:
    fold = StandingFold(ApprovalFold())
    fold._load(stored.log.standings.snapshot()["standings"])
    assert fold.wrapping == stored.log.standings.wrapping
    assert fold.wrapping

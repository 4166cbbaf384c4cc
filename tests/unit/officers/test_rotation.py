"""Plans that replace the primary versions of keys, with and without certificates."""

from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import count
from typing import Any

import pytest

from signer.audit.format.record import RecordKind
from signer.errors import CallError
from signer.model import KeyState, KeyVersion
from signer.officers.kinds.rotation import plan_of, read_plan
from signer.officers.rotation_plan import plan_text
from signer.officers.store import OperationState, StoredOperation
from tests.torture import every
from tests.unit.officers.opstage import CLINIC, DAY, HOUR, MINISTRY, START, Stage
from tests.unit.officers.people import A, Authority, C, pem
from tests.unit.officers.test_enrolment import facilities

OTHER = "facilities/02-001/keys/records"
LATER = int(START) + DAY
PLAN: dict[str, Any] = {"activate_at": LATER, "overlap_seconds": HOUR}


def names(*keys: str) -> bytes:
    return "\n".join(keys).encode()


@pytest.fixture
def keys(stage: Stage) -> Sequence[str]:
    stage.key(CLINIC)
    stage.key(OTHER, algorithm="EdDSA")
    return CLINIC, OTHER


def certified(authority: Authority) -> dict[str, Any]:
    return PLAN | {"subject": "CN={facility} {key} {version},C=VN", "issuers": [authority.pem]}


def requested(stage: Stage, *keys: str) -> list[bytes]:
    """The public keys for which new versions have requests."""
    return [stage.version(f"{key}/versions/2").spki for key in keys]


def waiting(stage: Stage, authority: Authority, *keys: str) -> StoredOperation:
    operation = stage.do("rotate", names(*keys), **certified(authority))
    assert operation.state is OperationState.WAITING
    return operation


def test_keys_are_rotated(stage: Stage, keys: Sequence[str]) -> None:
    more: dict[str, Any] = {"sign_for_seconds": 30 * DAY, "destroy_after_seconds": 5 * DAY}
    assert stage.prepare("rotate", names(*keys), **PLAN, **more).difference == [
        "+ the next version of 2 keys on token soft",
        "~ it signs from 2026-01-06T00:00:00Z for 30 days",
        stage.prepare("rotate", names(*keys), **PLAN, **more).difference[2],
        "~ it may be destroyed 5 days after that (an operation of its own)",
        f"~ {CLINIC}: versions/1 is followed by versions/2",
        f"~ {OTHER}: versions/1 is followed by versions/2",
    ]
    stage.done("rotate", names(*keys), **PLAN, **more)
    for key in keys:
        assert stage.states(key) == ["ACTIVE", "PRE_ACTIVE"]
    stage.clock.time = LATER
    assert stage.states(CLINIC) == ["ACTIVE", "ACTIVE"]
    primary = stage.snapshot.keys.primary(stage.version(CLINIC).key, stage.clock.now())
    assert primary is not None
    assert primary.number == 2
    stage.clock.time = LATER + HOUR
    assert stage.states(CLINIC) == ["DESTROY_SCHEDULED", "ACTIVE"]
    stage.clock.time = LATER + 30 * DAY
    assert stage.states(CLINIC) == ["DESTROY_SCHEDULED", "DEACTIVATED"]


def test_an_end_that_comes_earlier_by_itself_stays(stage: Stage, keys: Sequence[str]) -> None:
    stage.done("deactivate", version=f"{CLINIC}/versions/1", at=LATER + 60)
    stage.done("rotate", names(*keys), **PLAN)
    assert stage.version(f"{CLINIC}/versions/1").deactivate_at == LATER + 60
    assert stage.version(f"{OTHER}/versions/1").deactivate_at == LATER + HOUR


@pytest.mark.parametrize(
    ("attachment", "told"),
    [
        (b"", "names 0 keys"),
        (b"x", "expected facilities/"),
        (b"\xff\xfe", "expected facilities/"),
        (names(f"{CLINIC}/versions/1"), "is a version: name the key"),
        (names(CLINIC, CLINIC), "a key is named twice"),
        (names("facilities/9/keys/k"), "has no active version to rotate"),
        (b"[", "is not a list of keys"),
        (b"[1]", "is not a list of keys"),
        (b'[["facilities/a/keys/k", 1, 2, "ES999", 0]]', "is not a list of keys"),
        (b'[[7, 1, 2, "ES256", 0]]', "is not a list of keys"),
        (b'[["facilities/a/keys/k", 1e999, 2, "ES256", 0]]', "is not a list of keys"),
        (b"[" * 100_000, "is not a list of keys"),
        (b"a " * 50_001, "names 50001 keys"),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else value,
)
def test_a_list_of_keys_is_refused(
    stage: Stage, keys: Sequence[str], attachment: bytes, told: str
) -> None:
    del keys
    assert told in "\n".join(stage.problems("rotate", attachment, **PLAN))


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"activate_at": LATER * 1000}, "32503680000"),
        ({"overlap_seconds": -1}, "overlap_seconds"),
        ({"overlap_seconds": 10**12}, "overlap_seconds"),
        ({"sign_for_seconds": 1e3}, "sign_for_seconds"),
        ({"subject": "CN=x"}, "subject and issuers go together"),
        ({"token": "hard"}, "name one of the tokens"),
        ({"issuers": ["x"]}, "not an X.509 certificate"),
        ({"plan": []}, "is not known"),
    ],
)
def test_a_plan_is_refused(
    stage: Stage, keys: Sequence[str], changed: dict[str, Any], told: str
) -> None:
    assert told in "\n".join(stage.problems("rotate", names(*keys), **PLAN | changed))


@pytest.mark.parametrize("subject", ["C=1", "CN=" + "x" * 60 + " {facility}", "C={facility}"])
def test_a_subject_must_suit_every_key(
    stage: Stage, keys: Sequence[str], authority: Authority, subject: str
) -> None:
    members = certified(authority) | {"subject": subject}
    assert "subject: C" in "\n".join(stage.problems("rotate", names(*keys), **members))


def test_the_authority_of_a_plan_is_one(
    stage: Stage, keys: Sequence[str], authority: Authority
) -> None:
    """A certificate of an end entity would be found out with the last certificate, not before."""
    leaf = Authority("CN=leaf", authority, ca=False)
    for issuers, told in (
        ([leaf.pem], "CN=leaf is not an authority: its certificate is not a CA certificate"),
        ([authority.pem, leaf.pem], "CN=authority,C=VN was not issued by CN=leaf"),
        ([Authority("CN=old", ends=datetime(2025, 6, 1, tzinfo=UTC)).pem], "is not valid now"),
    ):
        members = certified(authority) | {"issuers": issuers}
        assert told in "\n".join(stage.problems("rotate", names(*keys), **members))


@pytest.mark.parametrize("subject", ["CN={versoin}", "CN={facility} {Version}", "CN={", "CN=x}"])
def test_a_placeholder_that_nothing_replaces_is_refused(
    stage: Stage, keys: Sequence[str], authority: Authority, subject: str
) -> None:
    members = certified(authority) | {"subject": subject}
    [problem] = stage.problems("rotate", names(*keys), **members)
    assert "is not replaced by anything" in problem
    assert "CN={facility} {version},C=VN" in problem


def test_one_subject_for_several_keys_is_warned_of(
    stage: Stage, keys: Sequence[str], authority: Authority
) -> None:
    members = PLAN | certified(authority) | {"subject": "CN=DCC {version}"}
    lines = stage.prepare("rotate", names(*keys), **members).difference
    assert f"! the requests of all {len(keys)} keys name the same subject" in lines
    alone = stage.prepare("rotate", names(keys[0]), **members).difference
    assert not any(line.startswith("!") for line in alone)


def test_keys_that_are_in_no_state_to_be_rotated(stage: Stage, keys: Sequence[str]) -> None:
    stage.done("new-version", key=CLINIC)
    stage.emergency.suspend_key(C, OTHER, "seen elsewhere")
    problems = stage.problems("rotate", names(*keys), **PLAN)
    assert len(problems) == 2
    assert "not active yet" in problems[0]
    assert OTHER in problems[1]


def test_a_plan_reads_as_it_was_written(stage: Stage, keys: Sequence[str]) -> None:
    plan = plan_of(names(*keys), stage.context)
    assert read_plan(plan_text(plan)) == plan
    assert plan_of(plan_text(plan), stage.context) == plan


@pytest.mark.parametrize("changed", [{"keys": 1}, {"plan_sha256": "0" * 64}, {"token": ""}])
def test_what_an_officer_has_written_otherwise(
    stage: Stage, keys: Sequence[str], changed: dict[str, Any]
) -> None:
    attachment = names(*keys)
    good = stage.propose("rotate", attachment, **PLAN).proposal.details
    with pytest.raises(CallError, match="OPERATION_REFUSED"):
        stage.put(stage.crafted("rotate", **{**good, **changed}), attachment)
    assert stage.put(stage.crafted("rotate", **good), attachment).state is OperationState.PROPOSED


def test_another_version_that_was_made_since(stage: Stage, keys: Sequence[str]) -> None:
    identity = stage.propose("rotate", names(*keys), **PLAN).id
    stage.done("new-version", key=OTHER)
    stage.approve(identity)
    assert "another operation has created" in stage.operation(identity).note
    assert stage.states(CLINIC) == ["ACTIVE"]


# --- certificates ------------------------------------------------------------------------------


def test_new_versions_wait_for_their_certificates(
    stage: Stage, keys: Sequence[str], authority: Authority
) -> None:
    operation = waiting(stage, authority, *keys)
    assert operation.note == "2 of 2 versions wait for certificates"
    first, second = requested(stage, *keys)
    stage.proposals.import_certificates(C, operation.id, [pem(authority.certify(first)).encode()])
    after = stage.operation(operation.id)
    assert (after.state, after.note) == (
        OperationState.WAITING,
        "1 of 2 versions wait for certificates",
    )
    assert stage.version(f"{CLINIC}/versions/2").activate_at == LATER
    assert stage.version(f"{OTHER}/versions/2").activate_at is None
    stage.proposals.import_certificates(C, operation.id, [pem(authority.certify(second)).encode()])
    assert stage.operation(operation.id).state is OperationState.DONE
    with pytest.raises(CallError, match="is not a rotation that waits"):
        stage.proposals.import_certificates(C, operation.id, [b"x"])


def test_certificates_that_are_refused(
    stage: Stage, keys: Sequence[str], authority: Authority
) -> None:
    operation = waiting(stage, authority, *keys)
    good, other = requested(stage, *keys)
    old = stage.version(f"{CLINIC}/versions/1").spki
    wrong = {
        "not for a new key": authority.certify(old),
        "was not issued by": Authority().certify(good),
        "authority": authority.certify(good, ca=True),
    }
    certificates = [pem(each).encode() for each in wrong.values()]
    fine = pem(authority.certify(other)).encode()
    with pytest.raises(CallError) as refused:
        stage.proposals.import_certificates(C, operation.id, [fine, *certificates, b"x", b"-----x"])
    for place, told in enumerate([*wrong, "not an X.509", "not an X.509"], start=1):
        assert f"certificates[{place}]: " in refused.value.message
        assert told in refused.value.message
    assert "certificates[0]" not in refused.value.message
    # All of them or none.
    assert stage.version(f"{OTHER}/versions/2").certificate is None


def test_two_certificates_for_one_version(
    stage: Stage, keys: Sequence[str], authority: Authority
) -> None:
    operation = waiting(stage, authority, *keys)
    spki = requested(stage, CLINIC)[0]
    two = [pem(authority.certify(spki)).encode() for _ in range(2)]
    with pytest.raises(CallError, match=r"certificates\[1\]: .*has another certificate"):
        stage.proposals.import_certificates(C, operation.id, two)
    stage.proposals.import_certificates(C, operation.id, [two[0], two[0]])


def test_a_ministry_key_needs_certificates_that_last(stage: Stage, authority: Authority) -> None:
    stage.key(MINISTRY, activate=False)
    spki = stage.version(f"{MINISTRY}/versions/1").spki
    stage.done(
        "import-certificate",
        version=f"{MINISTRY}/versions/1",
        certificate=pem(authority.certify(spki)),
        issuers=[authority.pem],
    )
    stage.done("activate", version=f"{MINISTRY}/versions/1", sign_until=LATER + 90 * DAY)
    [problem] = stage.problems("rotate", names(MINISTRY), **PLAN)
    assert "signs HCERT and needs a certificate" in problem
    # Without an end it would outlive any certificate.
    operation = waiting(stage, authority, MINISTRY)
    answer = [pem(authority.certify(requested(stage, MINISTRY)[0])).encode()]
    with pytest.raises(CallError, match="must not outlive its certificate"):
        stage.proposals.import_certificates(C, operation.id, answer)


def test_a_version_that_an_officer_stopped_is_not_started_by_an_older_approval(
    stage: Stage, keys: Sequence[str], authority: Authority
) -> None:
    operation = waiting(stage, authority, *keys)
    first, second = (pem(authority.certify(s)).encode() for s in requested(stage, *keys))
    stage.proposals.import_certificates(C, operation.id, [first])
    stage.emergency.suspend_key(C, f"{CLINIC}/versions/2", "the ceremony was disturbed")
    assert stage.version(f"{CLINIC}/versions/2").activate_at is None
    stage.proposals.import_certificates(C, operation.id, [second])
    after = stage.operation(operation.id)
    assert after.state is OperationState.FAILED
    assert f"{CLINIC}/versions/2 was stopped since" in after.note
    assert stage.version(f"{CLINIC}/versions/2").activate_at is None
    stage.done("activate", version=f"{CLINIC}/versions/2", at=LATER)
    stage.proposals.retry(A, operation.id)
    assert stage.operation(operation.id).state is OperationState.DONE


def test_a_key_that_is_suspended_meanwhile_is_not_given_a_new_version_that_signs(
    stage: Stage, keys: Sequence[str], authority: Authority
) -> None:
    operation = waiting(stage, authority, *keys)
    stage.emergency.suspend_key(C, CLINIC, "seen elsewhere")
    answers = [pem(authority.certify(s)).encode() for s in requested(stage, *keys)]
    stage.proposals.import_certificates(C, operation.id, answers)
    assert f"{CLINIC}/versions/1 is suspended" in stage.operation(operation.id).note
    assert stage.version(f"{CLINIC}/versions/2").activate_at is None
    stage.done("resume", target=CLINIC)
    stage.proposals.retry(A, operation.id)
    assert stage.operation(operation.id).state is OperationState.DONE


@pytest.mark.parametrize("issued", [False, True], ids=["without-issuers", "with-issuers"])
@pytest.mark.parametrize("act", ["suspend_key", "compromise"])
@pytest.mark.parametrize("step", every(3, range(16)))
def test_a_stop_at_any_step_of_a_rotation_holds_until_officers_resume(
    stage: Stage, authority: Authority, step: int, act: str, issued: bool
) -> None:
    """The version before ends at once, so that only its own stop holds the next one back."""
    stage.key(CLINIC)
    plan = (certified(authority) if issued else PLAN) | {"activate_at": 0, "overlap_seconds": 0}
    identity = stage.propose("rotate", names(CLINIC), **plan).id
    stops = count()

    def stop() -> None:
        getattr(stage.emergency, act)(C, CLINIC, "the ceremony was disturbed")
        next(stops)

    stage.fate.meanwhile(step, stop)
    stage.approve(identity)
    if issued and stage.operation(identity).state is OperationState.WAITING:
        answers = [pem(authority.certify(s)).encode() for s in requested(stage, CLINIC)]
        stage.proposals.import_certificates(C, identity, answers)
    if not next(stops):
        return  # it has fewer steps
    _never_again(stage, identity, wait=step % 2 == 0)
    if act == "suspend_key":
        stage.done("resume", target=CLINIC)
        states = stage.states(CLINIC)
        assert "SUSPENDED" not in states
        if stage.operation(identity).state is OperationState.FAILED:
            stage.proposals.retry(A, identity)
            assert stage.operation(identity).state in (OperationState.DONE, OperationState.WAITING)


def _never_again(stage: Stage, identity: str, *, wait: bool) -> None:
    """Checks that no version signs, whatever is retried, also after time has passed."""
    for _ in range(2):
        if stage.operation(identity).state is OperationState.FAILED:
            stage.proposals.retry(A, identity)
        new = stage.states(CLINIC)[1:]
        assert "ACTIVE" not in new
        stage.clock.forward(HOUR if wait else 1)
        stage.serving.follow()
        assert stage.serving.refused == []


def test_a_rotation_ends_the_old_version_also_if_officers_activated_the_new_one(
    stage: Stage, keys: Sequence[str]
) -> None:
    """A stop held the rotation back; officers activate version 2 by an operation, then retry."""
    stage.token.room = 1
    identity = stage.propose("rotate", names(*keys), **PLAN).id
    stage.approve(identity)
    assert stage.operation(identity).state is OperationState.FAILED
    key = next(key for key in keys if len(stage.states(key)) == 2)
    stage.emergency.suspend_key(C, key, "seen forged")
    stage.done("resume", target=key)
    stage.done("activate", version=f"{key.partition('/versions/')[0]}/versions/2")
    stage.token.room = None
    stage.proposals.retry(A, identity)
    assert stage.operation(identity).state is OperationState.DONE
    old = stage.registry.versions(stage.version(key).key)[0]
    assert old.deactivate_at is not None
    assert stage.serving.refused == []


def test_an_appliance_that_was_down_meanwhile_accounts_for_what_a_failed_rotation_made(
    stage: Stage, keys: Sequence[str]
) -> None:
    """Officers activate version 2; the rotation that made it goes on later, or never."""
    known = list(stage.log.records)
    stage.token.room = 1
    identity = stage.propose("rotate", names(*keys), **PLAN).id
    stage.approve(identity)
    key = next(key for key in keys if len(stage.states(key)) == 2)
    stage.emergency.suspend_key(C, key, "seen forged")
    stage.done("resume", target=key)
    stage.done("activate", version=f"{key}/versions/2")
    stage.emergency.suspend_key(C, f"{key}/versions/2", "seen forged again")
    stage.done("resume", target=f"{key}/versions/2")
    for end in ("never", "later"):
        if end == "later":
            stage.token.room = None
            stage.proposals.retry(A, identity)
            assert stage.operation(identity).state is OperationState.DONE
        stage.start_with(known)
        assert stage.serving.refused == []
        assert [*stage.log.control.problems, *stage.log.standings.problems] == []
        served = stage.snapshot.keys.version(stage.version(key).key, 2)
        assert served is not None
        assert served.state_at(stage.clock.now()) is KeyState.ACTIVE
        accounted = stage.log.of(RecordKind.KEYS)
        stage.start()
        assert stage.log.of(RecordKind.KEYS) == accounted


def test_a_version_that_waits_stays_stopped_when_the_one_before_is_ended(
    stage: Stage, keys: Sequence[str]
) -> None:
    """Two officers end version 1; that lets one officer alone not go on with version 2."""
    stage.token.room = 1
    operation = stage.do("rotate", names(*keys), **PLAN)
    assert operation.state is OperationState.FAILED
    stage.token.room = None
    [made] = [key for key in keys if len(stage.states(key)) > 1]
    stage.emergency.suspend_key(C, made, "seen elsewhere")
    stage.done("deactivate", version=f"{made}/versions/1")
    stage.proposals.retry(A, operation.id)
    assert "was stopped since" in stage.operation(operation.id).note
    assert stage.states(made) == ["DEACTIVATED", "PRE_ACTIVE"]
    assert stage.version(f"{made}/versions/2").activate_at is None
    assert stage.problems("resume", target=made) == []
    assert "a rotation may activate it" in "".join(stage.prepare("resume", target=made).difference)
    stage.done("resume", target=made)
    stage.proposals.retry(A, operation.id)
    assert stage.operation(operation.id).state is OperationState.DONE
    assert stage.version(f"{made}/versions/2").activate_at == LATER
    assert stage.log.control.problems == ()


def test_what_officers_no_longer_stand_for_gets_no_certificates(
    stage: Stage, keys: Sequence[str], authority: Authority
) -> None:
    operation = waiting(stage, authority, *keys)
    stage.approve(stage.propose("officers", by=C, remove=[A]).id)
    answers = [pem(authority.certify(s)).encode() for s in requested(stage, *keys)]
    with pytest.raises(CallError, match="has not validly signed"):
        stage.proposals.import_certificates(C, operation.id, answers)
    assert stage.version(f"{CLINIC}/versions/2").certificate is None


def test_a_full_token_halfway(stage: Stage, keys: Sequence[str]) -> None:
    stage.token.room = 1
    operation = stage.do("rotate", names(*keys), **PLAN)
    assert operation.state is OperationState.FAILED
    states = [v.state_at(stage.clock.now()) for v in stage.registry.state().keys]
    assert states.count(KeyState.PRE_ACTIVE) == 1
    stage.token.room = None
    stage.proposals.retry(C, operation.id)
    assert stage.operation(operation.id).state is OperationState.DONE
    assert stage.states(OTHER) == ["ACTIVE", "PRE_ACTIVE"]


def test_the_keys_of_a_plan_are_not_compared_with_each_other(
    stage: Stage, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For 15,000 keys these would be 100 million comparisons, each time that it is looked at."""
    number = 120
    stage.done("enrol", facilities(number))
    keys = [f"facilities/n-{each}/keys/records" for each in range(number)]
    equal, compared = KeyVersion.__eq__, 0

    def counted(one: KeyVersion, other: object) -> bool:
        nonlocal compared
        compared += 1
        return equal(one, other)

    monkeypatch.setattr(KeyVersion, "__eq__", counted)
    operation = waiting(stage, authority, *keys)
    [spki] = requested(stage, keys[0])
    certificate = pem(authority.certify(spki)).encode()
    stage.proposals.import_certificates(C, operation.id, [certificate])
    assert stage.operation(operation.id).note == "119 of 120 versions wait for certificates"
    assert 0 < compared < 20 * number

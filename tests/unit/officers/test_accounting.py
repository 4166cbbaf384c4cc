"""What accounts for versions: a rotation for its own pairs alone, nothing for what is set back."""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import pytest

from signer.key_index import KeyIndex
from signer.keys.lifecycle import cka_id_of
from signer.keys.registry import RegistryState
from signer.model import Act, KeyName, KeyState, KeyVersion, Placement
from signer.officers.accounting import judge
from signer.officers.approval import Proposal, Signature
from signer.officers.judgement import Judgement, Known, VersionName
from signer.officers.keys_record import KeysRecord
from signer.officers.rotation_plan import Step, plan_text
from signer.officers.standing import standing_of
from signer.officers.store import OperationState, StoredOperation
from signer.x509 import cose_kid
from tests.stand_ins import key_version

ID = "00000000-0000-4000-8000-000000000002"
OFFICER, DEPLOYMENT = "spiffe://a/b", "a" * 32
ONE, OTHER = KeyName("f", "k"), KeyName("g", "k")
ACTIVE, PREPARED = KeyState.ACTIVE, KeyState.PRE_ACTIVE
OLD = [key_version(key=name, state=ACTIVE, activate_at=100.0) for name in (ONE, OTHER)]
PLAN = plan_text([Step(name, 1, 2, OLD[0].algorithm, 0) for name in (ONE, OTHER)])
SHA256 = hashlib.sha256(PLAN).hexdigest()


def made(name: KeyName, index: int) -> KeyVersion:
    """The new version of a key with the pair of one step of the plan."""
    cka_id, spki = cka_id_of(ID, index), b"pair %d" % index
    version = key_version(key=name, number=2, state=PREPARED, activate_at=None)
    return replace(version, cka_id=cka_id, spki=spki, certificate=None, kid=cose_kid(spki, None))


def rotation(issuers: Sequence[str]) -> StoredOperation:
    details: Mapping[str, object] = {
        "token": OLD[0].token,
        "plan_sha256": SHA256,
        "keys": 2,
        "activate_at": 1200,
        "sign_for_seconds": 0,
        "overlap_seconds": 0,
        "destroy_after_seconds": 0,
        "subject": "CN=x",
        "issuers": issuers,
    }
    proposal = Proposal("o", ID, "rotate", OFFICER, 1000, 2000, 2, dict(details), DEPLOYMENT)
    signed = (Signature(OFFICER, b"", 1100.0),)
    return StoredOperation(
        proposal,
        proposal.canonical(),
        state=OperationState.WAITING,
        signatures=signed,
        changed_at=1500.0,
        ended_revision=9,
    )


def resumption() -> StoredOperation:
    """Officers have approved it when the version had revision 10; it was never executed."""
    name = f"{ONE}/versions/1"
    details = {"target": name, "basis": {name: "SUSPENDED, changed at revision 10"}, "since": 0}
    proposal = Proposal("o", ID, "resume", OFFICER, 1000, 2000, 2, details, DEPLOYMENT)
    signed = (Signature(OFFICER, b"", 1100.0),)
    return StoredOperation(
        proposal,
        proposal.canonical(),
        state=OperationState.DONE,
        signatures=signed,
        changed_at=1500.0,
        ended_revision=20,
    )


def judged(
    before: Sequence[KeyVersion],
    after: Sequence[KeyVersion],
    issuers: Sequence[str] = (),
    operation: StoredOperation | None = None,
    acts: Sequence[tuple[int, Act]] = (),
) -> Judgement:
    state = RegistryState(KeyIndex(before, 15), {OFFICER: b""}, (), "p", 3, 2, DEPLOYMENT)

    def standing(name: VersionName) -> object:
        known = state.keys.version(*name)
        return None if known is None else standing_of(known)

    def placed(version: KeyVersion) -> Collection[Placement]:
        known = state.keys.version(version.key, version.number)
        return known.other_placements if known else ()

    known = Known(
        state=state,
        standing=standing,  # type: ignore[arg-type] # a standing or None
        placed=placed,
        wrapped=lambda _: None,
        wrapping={},
        pinned=lambda *_: False,
        unaccounted=(),
        used=lambda _: False,
        failed=lambda _: False,
        checked=lambda *_: True,
        policy_free=False,
        document={SHA256: PLAN}.get,
        needed={},
    )
    operations = [operation or rotation(issuers)]
    return judge(known, state._replace(keys=KeyIndex(after, 20)), operations, acts)


def test_the_pairs_of_a_plan_are_each_for_their_own_key() -> None:
    right = [made(ONE, 0), made(OTHER, 1)]
    assert judged(OLD, [*OLD, *right], ["MAAA"]).refused == []
    swapped = judged(OLD, [*OLD, made(ONE, 1), made(OTHER, 0)], ["MAAA"])
    assert len(swapped.refused) == 2
    assert len(swapped.state.keys) == 2, "neither is served"


@pytest.mark.parametrize(("issuers", "refused"), [([], 0), (["MAAA"], 1)])
def test_a_version_that_waits_for_its_certificate_is_not_activated(
    issuers: list[str], refused: int
) -> None:
    new = made(ONE, 0)
    signs = replace(new, state=ACTIVE, activate_at=1500.0, revision=20)
    assert len(judged([*OLD, new], [*OLD, signs], issuers).refused) == refused


def test_a_revision_that_was_set_back_is_unaccounted_and_stops_the_version() -> None:
    """Otherwise an approval from before a stop would undo it."""
    stopped = replace(OLD[0], state=KeyState.SUSPENDED, revision=20)
    back = replace(stopped, revision=10)
    for start in ([stopped], [replace(stopped, state=ACTIVE)]):
        after = [replace(start[0], revision=10)]
        result = judged(start, after, operation=resumption())
        assert len(result.refused) == 1
        [served] = result.state.keys
        assert (served.state, served.revision) == (KeyState.SUSPENDED, 20)
    resumed = replace(back, state=ACTIVE)
    assert len(judged([stopped], [resumed], operation=resumption()).refused) == 1
    again = replace(stopped, revision=21)
    assert judged([stopped], [again], operation=resumption()).refused == []


@pytest.mark.parametrize("act", ["suspend", "compromised"])
@pytest.mark.parametrize("revision", [10, 17], ids=["as it was", "written anew"])
@pytest.mark.parametrize("target", [str(ONE), f"{ONE}/versions/1"])
def test_a_stop_that_was_put_back_in_the_registry_is_in_force_and_recorded(
    act: str, revision: int, target: str
) -> None:
    before = replace(OLD[0], revision=10)
    stop = Act("id", act, target, OFFICER, "seen forged", 1500.0)
    result = judged([before], [replace(before, revision=revision)], acts=[(16, stop)])
    [served] = result.state.keys
    assert served.state is not ACTIVE
    assert len(result.refused) == 1
    [record] = result.records
    assert isinstance(record, KeysRecord)
    assert record.act == stop
    assert [row.standing.state for row in record.versions] != [ACTIVE]


def test_a_suspension_that_was_deleted_in_the_registry_is_in_force_and_recorded() -> None:
    stop = Act("id", "suspend", "facility f", OFFICER, "seen forged", 1500.0)
    result = judged(OLD, OLD, acts=[(16, stop)])
    assert [str(flag) for flag in result.state.suspensions] == ["facility f"]
    assert len(result.refused) == 1
    [record] = result.records
    assert isinstance(record, KeysRecord)
    assert (record.act, len(record.suspended)) == (stop, 1)


def test_a_stop_that_officers_have_ended_is_over() -> None:
    before = replace(OLD[0], revision=9)
    stop = Act("id", "suspend", str(ONE), OFFICER, "seen forged", 1500.0)
    after = replace(before, revision=20)
    result = judged([before], [after], operation=resumption(), acts=[(10, stop)])
    assert result.refused == []
    assert [version.state for version in result.state.keys] == [ACTIVE]
    assert len(result.records) == 2

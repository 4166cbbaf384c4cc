"""Whose signed records count: the policy's profiles, the states of keys, suspensions, the log."""

import base64
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from signer.audit.format.batch_records import IntentRecord
from signer.audit.format.record import RecordKind
from signer.clock import SystemClock
from signer.config.policy_documents import load_policy
from signer.errors import CallError, Reason
from signer.key_index import KeyIndex
from signer.model import Format, KeyName, KeyState, KeyVersion, Suspended
from signer.signing import cosigners
from signer.signing.request import BatchRequest
from signer.x509 import jwk_thumbprint, spki_of
from tests.stand_ins import key_version
from tests.unit.formats.conftest import YEAR, certify
from tests.unit.signing.stage import CLIENT, ID, Stage

POLICY = """
roles: {operator: []}
profiles:
  records: {formats: [JWS], algorithms: [ES256], max_batch_items: 10}
  others: {formats: [JWS], algorithms: [ES256], max_batch_items: 10}
  raw: {formats: [MESSAGE], algorithms: [ES256], max_batch_items: 10}
  certificates:
    formats: [HCERT]
    algorithms: [ES256]
    max_batch_items: 10
    hcert: {issuer: VN, validity_days: 30}
    content: {dcc_schema: false, qr_level: L}
    cosigning: {profiles: [records, raw], members: {v.0.ci: id}}
facilities:
  "clinic": {profile: records, clients: ["spiffe://x/clinic"]}
  "other": {profile: others, clients: ["spiffe://x/clinic"]}
  "raw": {profile: raw, clients: ["spiffe://x/clinic"]}
  "moh": {profile: certificates, clients: ["spiffe://x/issuer"]}
"""
DCC = KeyName("moh", "dcc")
PRIVATE = ec.generate_private_key(ec.SECP256R1())


def cosigner(facility: str, state: KeyState = KeyState.ACTIVE) -> KeyVersion:
    spki = spki_of(PRIVATE.public_key())
    return key_version(
        key=KeyName(facility, "records"),
        spki=spki,
        thumbprint=jwk_thumbprint(spki),
        cka_id=facility.encode(),
        state=state,
    )


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    now = int(time.time())
    der = certify(ec.generate_private_key(ec.SECP256R1()), (), now - YEAR, now + YEAR)
    made = Stage(tmp_path, POLICY, [key_version(key=DCC, certificate=der, cka_id=b"dcc")])
    yield made
    made.close()


def serve(stage: Stage, version: KeyVersion) -> None:
    snapshot = stage.served.snapshot
    keys = KeyIndex([*snapshot.keys.versions(DCC), version], 2)
    stage.served.snapshot = replace(snapshot, keys=keys)


def record(identifier: str) -> bytes:
    header = {"alg": "ES256", "kid": jwk_thumbprint(spki_of(PRIVATE.public_key()))}
    parts = [json.dumps(each).encode() for each in (header, {"id": identifier})]
    data = b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in parts)
    r, s = decode_dss_signature(PRIVATE.sign(data, ec.ECDSA(hashes.SHA256())))
    made = r.to_bytes(32) + s.to_bytes(32)
    return data + b"." + base64.urlsafe_b64encode(made).rstrip(b"=")


def payload(identifier: str) -> bytes:
    return json.dumps({"ver": "1", "nam": {}, "dob": "", "v": [{"ci": identifier}]}).encode()


def asked(*identifiers: str, records: list[bytes] | None = None, name: str = "") -> BatchRequest:
    given = [record(each) for each in identifiers] if records is None else records
    return BatchRequest(
        CLIENT,
        DCC,
        None,
        Format.HCERT,
        [payload(each) for each in identifiers],
        SystemClock().monotonic() + 30,
        name,
        cosignatures=given,
    )


def test_the_log_has_the_link_of_each_item_that_was_signed(stage: Stage) -> None:
    serve(stage, cosigner("clinic"))
    records = [record("a"), record("x"), record("c")]
    result = stage.sign(asked("a", "b", "c", records=records))
    assert {index: failure.reason for index, failure in result.failures.items()} == {
        1: Reason.CONTENT_DENIED
    }
    assert result.failures[1].rule == "profiles.certificates.cosigning"
    [intent] = [each for each in stage.log.records(0, 100) if each.kind is RecordKind.INTENT]
    links = IntentRecord.from_fields(intent.fields).cosigned
    assert links == sha256(records[0]).digest() + sha256(records[2]).digest()


@pytest.mark.parametrize("count", [0, 1, 3])
def test_without_a_record_for_each_payload_nothing_is_signed(stage: Stage, count: int) -> None:
    serve(stage, cosigner("clinic"))
    with pytest.raises(CallError, match=f"has {count} items? for 2 payloads") as caught:
        stage.sign(asked("a", "b", records=[record("a")] * count))
    assert caught.value.reason is Reason.FIELD_INVALID
    assert stage.hsm.signed == 0


def test_records_for_a_key_that_demands_none_are_refused(stage: Stage) -> None:
    policy = stage.folder.parent / "policy.yaml"
    lines = [line for line in POLICY.splitlines() if "cosigning" not in line]
    policy.write_text("\n".join(lines))
    stage.served.snapshot = replace(stage.served.snapshot, policy=load_policy(policy))
    with pytest.raises(CallError, match="send none"):
        stage.sign(asked("a"))
    assert not stage.sign(asked("a", records=[])).failures


@pytest.mark.parametrize(
    ("version", "words"),
    [
        (cosigner("other"), "the policy does not let other co-sign"),
        (cosigner("nowhere"), "the policy does not let nowhere co-sign"),
        (cosigner("raw"), "is not a key for JWS"),
        (cosigner("clinic", KeyState.SUSPENDED), "is SUSPENDED"),
        (cosigner("clinic", KeyState.COMPROMISED), "is COMPROMISED"),
        (cosigner("clinic", KeyState.PRE_ACTIVE), "is PRE_ACTIVE"),
        (cosigner("clinic", KeyState.DESTROYED), "is DESTROYED"),
    ],
)
def test_what_may_not_be_relied_on_does_not_count(
    stage: Stage, version: KeyVersion, words: str
) -> None:
    serve(stage, version)
    failure = stage.sign(asked("a")).failures[0]
    assert failure.reason is Reason.CONTENT_DENIED
    assert words in failure.message


def test_a_suspended_facility_does_not_co_sign(stage: Stage) -> None:
    serve(stage, cosigner("clinic"))
    stopped = Suspended("", {"clinic": "clinic is suspended by officers"})
    stage.served.snapshot = replace(stage.served.snapshot, suspended=stopped)
    assert "clinic is suspended" in stage.sign(asked("a")).failures[0].message


def test_signatures_of_a_version_that_has_ended_hold(stage: Stage) -> None:
    serve(stage, cosigner("clinic", KeyState.DEACTIVATED))
    assert not stage.sign(asked("a")).failures


def signed_here(stage: Stage, facility: str = "clinic", count: int = 1) -> list[bytes]:
    """Records that a facility signs by the appliance: the stand-in's signatures are all wrong.

    So a certificate beside one tells whether its signature was verified.
    """
    request = BatchRequest(
        "spiffe://x/clinic",
        KeyName(facility, "records"),
        None,
        Format.JWS,
        [json.dumps({"id": str(n)}).encode() for n in range(count)],
        SystemClock().monotonic() + 30,
    )
    return list(stage.sign(request).outputs)


def certified(stage: Stage, records: list[bytes]) -> list[str]:
    """Why certificates beside these records were refused, "" for each that was signed."""
    result = stage.sign(asked(*map(str, range(len(records))), records=records))
    return [result.failures[n].message if n in result.failures else "" for n in range(len(records))]


def checked(stage: Stage, every: int, profile: str = "records") -> None:
    policy = stage.folder.parent / "policy.yaml"
    begin = f"  {profile}: {{"
    policy.write_text(POLICY.replace(begin, f"{begin}check_every: {every}, "))
    stage.served.snapshot = replace(stage.served.snapshot, policy=load_policy(policy))


def test_what_was_signed_and_checked_here_is_not_verified_again(stage: Stage) -> None:
    serve(stage, cosigner("clinic"))
    checked(stage, 1)
    records = signed_here(stage, count=10)
    assert certified(stage, records) == [""] * 10
    assert certified(stage, records[3:4]) == [
        "rule cosigning: v.0.ci is not id of the signed record"
    ]


def test_a_signature_that_was_not_checked_is_verified(stage: Stage) -> None:
    serve(stage, cosigner("clinic"))
    checked(stage, 2)
    assert certified(stage, signed_here(stage)) == [
        "rule cosigning: the signature of the record is wrong"
    ]


def test_records_that_count_for_no_certificate_are_not_kept(stage: Stage) -> None:
    serve(stage, cosigner("other"))
    records = signed_here(stage, "other")
    policy = stage.folder.parent / "policy.yaml"
    policy.write_text(POLICY.replace("profiles: [records, raw]", "profiles: [records, others]"))
    stage.served.snapshot = replace(stage.served.snapshot, policy=load_policy(policy))
    assert certified(stage, records) == ["rule cosigning: the signature of the record is wrong"]


@pytest.mark.parametrize("part", [0, 1, 2], ids=["header", "payload", "signature"])
def test_anything_else_than_what_was_signed_is_verified(stage: Stage, part: int) -> None:
    serve(stage, cosigner("clinic"))
    [whole] = signed_here(stage)
    parts = whole.split(b".")
    header, payload = (base64.urlsafe_b64decode(each + b"==") for each in parts[:2])
    changed = [header.replace(b"{", b"{ ", 1), payload.replace(b"{", b"{ ", 1), (5).to_bytes(64)][
        part
    ]
    parts[part] = base64.urlsafe_b64encode(changed).rstrip(b"=")
    assert certified(stage, [b".".join(parts)]) == [
        "rule cosigning: the signature of the record is wrong"
    ]


@pytest.mark.parametrize("state", [KeyState.SUSPENDED, KeyState.COMPROMISED, KeyState.DESTROYED])
def test_a_stop_of_the_key_ends_what_was_known(stage: Stage, state: KeyState) -> None:
    serve(stage, cosigner("clinic"))
    records = signed_here(stage)
    snapshot = stage.served.snapshot
    keys = [*snapshot.keys.versions(DCC), cosigner("clinic", state)]
    stage.served.snapshot = replace(snapshot, keys=KeyIndex(keys, 3))
    assert certified(stage, records) == [
        f"rule cosigning: the signed record does not count: {cosigner('clinic').name} is {state}"
    ]


def test_only_the_newest_signatures_are_known(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cosigners, "KNOWN", 4)
    serve(stage, cosigner("clinic"))
    records = [signed_here(stage)[0] for _ in range(9)]
    wrong = "rule cosigning: the signature of the record is wrong"
    assert [certified(stage, [each])[0] for each in records] == [wrong] * 4 + [""] * 5


def test_a_repetition_names_the_same_records(stage: Stage) -> None:
    serve(stage, cosigner("clinic"))
    records = [record("a")]
    first = stage.sign(asked("a", records=records, name=ID))
    again = stage.sign(asked("a", records=records, name=ID))
    assert (again.outputs, again.audit_record) == (first.outputs, first.audit_record)
    with pytest.raises(CallError) as caught:
        stage.sign(asked("a", records=[record("a")], name=ID))
    assert caught.value.reason is Reason.REQUEST_ID_REUSED

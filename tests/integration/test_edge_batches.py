"""Batches as they come: limits, bad fields, and good items among bad ones."""

import hashlib
import json
import os
import uuid
from typing import Any

import cbor2
import grpc
import pytest

from signer.v1 import control_pb2, signing_pb2
from tests.integration import edge, outputs

DCC_KEY = "facilities/moh/keys/dcc"
DIGEST_KEY = "facilities/moh/keys/digest"
LIMIT = 4 * 1024 * 1024


def dcc(**changes: Any) -> dict[str, Any]:
    """A vaccination certificate of nobody."""
    entry = {
        "tg": "840539006",
        "vp": "1119349007",
        "mp": "EU/1/20/1528",
        "ma": "ORG-100030215",
        "dn": 2,
        "sd": 2,
        "dt": "2022-03-04",
        "co": "VN",
        "is": "MOH",
        "ci": "URN:UVCI:01:VN:0000",
    }
    whole: dict[str, Any] = {"ver": "1.3.0", "nam": {"fnt": "TEST"}, "dob": "1990-01-01"}
    return whole | {"v": [entry | changes.pop("entry", {})]} | changes


def packed(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


INVALID, DENIED = ("INVALID_ARGUMENT", "PAYLOAD_INVALID"), ("PERMISSION_DENIED", "CONTENT_DENIED")

# tests/unit/formats has every way in which a payload can be malformed.
JWS_ITEMS = {
    b'{"a":1}': None,
    b"": INVALID,
    b'{"a":{"b":1,"b":1}}': INVALID,
    b'{"a":"' + b"x" * 262_136 + b'"}': None,
    b'{"a":"' + b"x" * 262_137 + b'"}': INVALID,
    b'{"a":"\xff"}': INVALID,
    ' { "tên" : "Nguyễn" } '.encode(): None,
}


@pytest.mark.parametrize("name", ["records", "records-rsa", "records-rs256", "records-ed25519"])
def test_jws_good_and_bad(appliance: Any, issuer: edge.Stubs, name: str) -> None:
    key = appliance.key(f"01-001/{name}")
    response = issuer.sign(list(JWS_ITEMS), key=key["name"])
    for (payload, expected), output in verdicts(response, list(JWS_ITEMS.items())):
        if expected is None:
            outputs.check_jws(key, output, payload)


def verdicts(
    response: Any, items: list[tuple[bytes, Any]]
) -> list[tuple[tuple[bytes, Any], bytes]]:
    """Every item has its output or exactly its failure; returns items with their outputs."""
    assert len(response.signatures) == len(items)
    assert set(response.failures) == {i for i, item in enumerate(items) if item[1] is not None}
    for index, status in response.failures.items():
        refusal = edge.read(status)
        assert (refusal.code, refusal.reason) == items[index][1], items[index]
        assert response.signatures[index] == b""
        assert refusal.retry_after is None
        assert refusal.fields == ()
    return list(zip(items, response.signatures, strict=True))


@pytest.mark.parametrize("name", ["dcc", "dcc-rsa"])
def test_hcert_good_and_bad(appliance: Any, issuer: edge.Stubs, name: str) -> None:
    key = appliance.key(f"moh/{name}")
    good = dcc()
    items = [
        (packed(good), None),
        (cbor2.dumps(good), None),
        (packed(good)[:-1], INVALID),
        (cbor2.dumps(good) + b"\0", INVALID),
        (packed(dcc(t=[{}])), INVALID),
        (packed(dcc(entry={"dt": "in May"})), INVALID),
        (packed(dcc(entry={"dt": "2021-03-18T22:54:00+02:00"})), None),
        (packed(dcc(entry={"dt": "2999-03-18T22:54:00+02:00"})), DENIED),
        (packed(dcc(dob="yesterday")), INVALID),
        (packed(dcc(entry={"co": "vietnam"})), INVALID),
        (packed(dcc(note="x" * 300)), None),
        (packed(dcc(note=os.urandom(1500).hex())), INVALID),  # beyond a QR code of level Q
        (packed(dcc(unknown={"kept": ["as", 1, "is"]})), None),
    ]
    response = issuer.sign(
        [payload for payload, _ in items], key=key["name"], format="FORMAT_HCERT"
    )
    for (payload, expected), output in verdicts(response, items):
        if expected is None:
            decoded = json.loads(payload) if payload[:1] == b"{" else cbor2.loads(payload)
            assert outputs.check_hcert(key, output) == decoded


def test_an_item_names_the_member_that_is_wrong_or_the_rule(issuer: edge.Stubs) -> None:
    wrong: list[tuple[dict[str, Any], dict[str, str]]] = [
        (dcc(nam={"fn": "A"}), {"member": "nam"}),
        (dcc(entry={"dn": "2"}), {"member": "v.0.dn"}),
        (dcc(ver="9"), {"member": "ver"}),
        (dcc(note=os.urandom(1500).hex()), {"rule": "default.content.qr_level"}),
        (dcc(entry={"dt": "2999-01-01"}), {"rule": "profiles.ministry.content.future_dates"}),
    ]
    payloads = [packed(payload) for payload, _ in wrong]
    response = issuer.sign(payloads, key=DCC_KEY, format="FORMAT_HCERT")
    for index, (_, metadata) in enumerate(wrong):
        refusal = edge.read(response.failures[index])
        assert refusal.metadata == metadata
        assert refusal.message.startswith(metadata.get("member", ""))


def test_digests_of_the_wrong_length_fail_alone(appliance: Any, issuer: edge.Stubs) -> None:
    message = b"a document"
    right = hashlib.sha256(message).digest()
    items = [
        (right, None),
        (right[:31], INVALID),
        (right + b"\0", INVALID),
        (hashlib.sha384(message).digest(), INVALID),
        (right, None),
    ]
    response = issuer.sign([p for p, _ in items], key=DIGEST_KEY, format="FORMAT_DIGEST")
    for (_, expected), output in verdicts(response, items):
        if expected is None:
            outputs.check_raw(appliance.key("moh/digest"), output, message)


@pytest.mark.parametrize("name", ["records", "records-rsa", "records-rs256", "records-ed25519"])
def test_any_bytes_are_a_message(appliance: Any, issuer: edge.Stubs, name: str) -> None:
    key = appliance.key(f"01-001/{name}")
    messages = [b"", b"\0" * 100, bytes(range(256)) * 40, b"same", b"same"]
    raw = issuer.sign(messages, key=key["name"], format="FORMAT_MESSAGE")
    cose = issuer.sign(messages, key=key["name"], format="FORMAT_COSE_SIGN1")
    assert not raw.failures
    assert not cose.failures
    for message, signature, signed in zip(messages, raw.signatures, cose.signatures, strict=True):
        outputs.check_raw(key, signature, message)
        outputs.check_cose(key, signed, message)


def test_a_batch_of_nothing_but_bad_items_is_answered(issuer: edge.Stubs) -> None:
    response = issuer.sign([b"bad"] * 4096)
    assert len(response.failures) == 4096
    assert set(response.signatures) == {b""}


# --- fields -----------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signing_pb2.FORMAT_UNSPECIFIED, 9, 99, -1])
def test_formats_that_are_not_offered(issuer: edge.Stubs, number: int) -> None:
    told = field_invalid(issuer, "format", format=number).message
    wrong = f"{number} is not a format" if number else "is not stated"
    assert told.startswith(f"format: {wrong}: give one of FORMAT_DIGEST, FORMAT_MESSAGE, ")


def field_invalid(issuer: edge.Stubs, field: str, **changes: Any) -> edge.Refusal:
    refusal = edge.refused(lambda: issuer.sign(**changes), "FIELD_INVALID")
    assert refusal.fields == (field,)
    assert refusal.retry_after is None
    return refusal


@pytest.mark.parametrize(
    "name",
    [
        "",
        "facilities/01-001",
        "facilities/01-001/keys/records/versions/0",
        "facilities/01-001/keys/RECORDS",
    ],
)
def test_names_that_are_none(issuer: edge.Stubs, name: str) -> None:
    field_invalid(issuer, "key", key=name)


def test_a_name_beyond_its_limit(issuer: edge.Stubs) -> None:
    refusal = field_invalid(issuer, "key", key="facilities/" + "f" * 1_000_000)
    assert "256" in refusal.message
    assert len(refusal.message) < 200


@pytest.mark.parametrize(
    "text",
    [
        "1",
        "4BD9A2A5-9B0F-4B1B-8E0B-0A4F0C2F9B11",
        "4bd9a2a59b0f4b1b8e0b0a4f0c2f9b11",
        "{4bd9a2a5-9b0f-4b1b-8e0b-0a4f0c2f9b11}",
        "4bd9a2a5-9b0f-4b1b-8e0b-0a4f0c2f9b1",
        "x" * 100_000,
    ],
)
def test_request_ids_that_are_no_uuid(issuer: edge.Stubs, text: str) -> None:
    field_invalid(issuer, "request_id", request_id=text)


def test_the_request_id_comes_back_or_one_is_chosen(issuer: edge.Stubs) -> None:
    mine = str(uuid.uuid4())
    assert issuer.sign(request_id=mine).request_id == mine
    chosen = [issuer.sign().request_id for _ in range(2)]
    assert chosen[0] != chosen[1]
    assert [str(uuid.UUID(text)) for text in chosen] == chosen


def test_the_version_that_signed_is_named(issuer: edge.Stubs) -> None:
    assert issuer.sign().key_version == f"{edge.RECORDS}/versions/1"
    assert issuer.sign(key=f"{edge.RECORDS}/versions/1").key_version == (
        f"{edge.RECORDS}/versions/1"
    )


def test_an_empty_batch(issuer: edge.Stubs) -> None:
    field_invalid(issuer, "payloads", payloads=[])


def test_the_largest_batch_and_one_more(issuer: edge.Stubs) -> None:
    assert len(issuer.sign([b"{}"] * 4096).signatures) == 4096
    refusal = field_invalid(issuer, "payloads", payloads=[b"{}"] * 4097)
    assert "4096" in refusal.message


def test_an_answer_that_could_pass_its_limit(appliance: Any, issuer: edge.Stubs) -> None:
    payload = b'{"a":"' + b"x" * 250_000 + b'"}'
    assert 13 * len(payload) < LIMIT
    field_invalid(issuer, "payloads", payloads=[payload] * 13)
    signed = issuer.sign([payload] * 12).signatures
    assert len(signed) == 12
    for output in signed:
        outputs.check_jws(appliance.key("01-001/records"), output, payload)


def test_a_request_beyond_the_limit_is_refused_by_grpc(issuer: edge.Stubs) -> None:
    code, text = edge.refused_by_grpc(lambda: issuer.sign([b"x" * LIMIT], format="FORMAT_MESSAGE"))
    assert code == "RESOURCE_EXHAUSTED"
    assert str(LIMIT) in text
    assert len(issuer.sign([b"x" * (LIMIT - 200)], format="FORMAT_MESSAGE").signatures) == 1


def test_what_is_no_request_is_refused(issuer: edge.Stubs) -> None:
    call: Any = issuer.channel.unary_unary("/signer.v1.SigningService/SignBatch")
    refusal = edge.refused(lambda: call(b"\xff\xff\xff", timeout=edge.SECONDS), "FIELD_INVALID")
    assert refusal.fields == ("request",)
    assert len(issuer.sign().signatures) == 1


# --- keys and time ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["facilities/01-001/keys/none", f"{edge.RECORDS}/versions/2"], ids=["key", "version"]
)
def test_what_is_allowed_but_absent(issuer: edge.Stubs, name: str) -> None:
    refusal = edge.refused(lambda: issuer.sign(key=name), "KEY_NOT_FOUND")
    assert name in refusal.message


@pytest.mark.parametrize(
    ("key", "format_name", "rule"),
    [
        (edge.RECORDS, "FORMAT_DIGEST", "profiles.records.formats"),
        ("facilities/01-001/keys/none", "FORMAT_DIGEST", "profiles.records.formats"),
        (DCC_KEY, "FORMAT_DIGEST", "facilities.moh.keys.dcc.formats"),
        (DIGEST_KEY, "FORMAT_HCERT", "facilities.moh.keys.digest.formats"),
        (edge.RECORDS, "FORMAT_HCERT", "profiles.records.formats"),
    ],
)
def test_a_format_without_the_right(
    issuer: edge.Stubs, key: str, format_name: str, rule: str
) -> None:
    refusal = edge.refused(
        lambda: issuer.sign([bytes(32)], key=key, format=format_name), "POLICY_DENIED"
    )
    assert refusal.metadata == {"rule": rule}


def test_a_batch_that_its_deadline_cuts_is_not_signed_to_its_end(
    issuer: edge.Stubs, operator: edge.Stubs
) -> None:
    """Nothing is ahead of it, so only signing shows how long it takes."""
    before = signed(operator)
    with pytest.raises(grpc.RpcError) as cut:  # by us, or by gRPC if the machine is busy
        issuer.sign([b"x"] * 4096, key=edge.RSA, format="FORMAT_MESSAGE", timeout=0.6)
    assert cut.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert issuer.sign([b"x"], key=edge.RSA, format="FORMAT_MESSAGE").signatures  # it has left
    assert signed(operator) - before < 4096


def signed(operator: edge.Stubs) -> int:
    """Items that the workers have signed, checkpoints of the log among them."""
    status = operator.control.GetStatus(control_pb2.GetStatusRequest(), timeout=edge.SECONDS)
    return sum(worker.items for worker in status.workers)


def test_a_call_without_a_deadline_is_answered(issuer: edge.Stubs) -> None:
    future = issuer.signing.SignBatch.future(
        signing_pb2.SignBatchRequest(key=edge.RECORDS, format="FORMAT_JWS", payloads=[b"{}"])
    )
    assert len(future.result(timeout=edge.SECONDS).signatures) == 1

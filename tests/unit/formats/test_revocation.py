"""Handles of certificates and batches of them, computed here by other code from the texts."""

import base64
import json
import zlib
from hashlib import sha256
from typing import Any

import cbor2
import pytest

from signer.algorithms import Algorithm
from signer.format_terms import Handles
from signer.formats import FORMATS, base45
from signer.formats.payloads import MessageError
from signer.formats.revocation import (
    HANDLES,
    HandleKind,
    handle,
    handles_of_signed,
    handles_of_text,
    read_batch,
    revocation_batch,
)
from signer.model import Format
from tests.unit.formats.conftest import ContextMaker
from tests.unit.formats.test_formats import compact

UVCI = "URN:UVCI:01:VN:0A1B2C#Đ"
HCERT = FORMATS[Format.HCERT]


def certificate(kind: str = "v", **entry: Any) -> bytes:
    return compact({"ver": "1.3.0", "nam": {}, "dob": "", kind: [{"co": "LA", **entry}]})


def first_half(data: bytes) -> bytes:
    return sha256(data).digest()[:16]


@pytest.mark.parametrize("algorithm", [Algorithm.ES256, Algorithm.PS256])
@pytest.mark.parametrize("kind", "vtr")
def test_handles_are_those_that_a_verifier_computes_from_the_text(
    context: ContextMaker, algorithm: Algorithm, kind: str
) -> None:
    ctx = context(algorithm)
    made = bytes(range(1, 65)) * (1 if algorithm is Algorithm.ES256 else 4)
    prepared = HCERT.prepare([certificate(kind, ci=UVCI)], ctx)
    [text] = HCERT.finish(prepared, [made], ctx)
    message = cbor2.loads(zlib.decompress(base45.decode(text[4:]))).value
    issuer, counted = cbor2.loads(message[2])[1], message[3]
    if algorithm is Algorithm.ES256:
        counted = counted[:32]
    expected = Handles(
        first_half(UVCI.encode()), first_half((issuer + UVCI).encode()), first_half(counted)
    )
    assert issuer == "VN"  # that of the policy; the country of the vaccination is another
    assert handles_of_text(text) == expected
    assert handles_of_signed(prepared.to_sign[0], algorithm, made) == expected


@pytest.mark.parametrize("entry", [{}, {"ci": None}, {"ci": 7}, {"ci": [UVCI]}])
def test_a_certificate_without_a_uvci_has_only_the_handle_of_its_signature(
    context: ContextMaker, entry: dict[str, Any]
) -> None:
    prepared = HCERT.prepare([certificate(**entry)], context())
    found = handles_of_signed(prepared.to_sign[0], Algorithm.ES256, bytes(64))
    assert found == Handles(bytes(16), bytes(16), first_half(bytes(32)))


@pytest.mark.parametrize("text", [b"", b"HC1:", b"HC1:ABC", b"shc:/5676", UVCI.encode()])
def test_what_is_not_a_certificate_has_no_handles(text: bytes) -> None:
    with pytest.raises(MessageError):
        handles_of_text(text)


def test_a_batch_has_the_members_of_the_gateway() -> None:
    entries = [handle(b"a"), handle(b"b")]
    made = revocation_batch("VN", b"12345678", 1_800_000_000, HandleKind.SIGNATURE, entries)
    assert json.loads(made) == {
        "country": "VN",
        "expires": "2027-01-15T08:00:00Z",
        "kid": base64.b64encode(b"12345678").decode(),
        "hashType": "SIGNATURE",
        "entries": [{"hash": base64.b64encode(each).decode()} for each in entries],
    }
    assert json.loads(revocation_batch("VN", None, 1, HandleKind.UCI, []))["kid"] == "UNKNOWN_KID"


# --- lists, read ---------------------------------------------------------------------------------

ENTRY, OTHER, KID = b"\x01" * 16, b"\x02" * 16, b"\xff" * 8
BATCH = revocation_batch("VN", KID, 1_900_000_000, HandleKind.UCI, [ENTRY])
NONE = Handles(bytes(16), bytes(16), bytes(16))


@pytest.mark.parametrize("kind", HandleKind)
def test_a_list_has_the_handles_of_its_kind(kind: HandleKind) -> None:
    batch = read_batch(revocation_batch("VN", None, 1_900_000_000, kind, [ENTRY, OTHER]))
    assert (batch.expires, batch.kid, batch.kind) == (1_900_000_000, None, kind)
    for each in HandleKind:
        found = NONE._replace(**{HANDLES[each]: ENTRY})
        assert batch.has("VN", KID, found) is (each is kind)


def test_a_list_is_for_one_issuer_and_one_certificate() -> None:
    batch, found = read_batch(BATCH), NONE._replace(uvci=ENTRY)
    assert batch.has("VN", KID, found)
    assert batch.has("VN", b"", found), "a certificate that does not say which key signed it"
    assert not batch.has("LA", KID, found)
    assert not batch.has("VN", b"\0" * 8, found)
    assert not batch.has("VN", KID, NONE._replace(uvci=OTHER))


def test_what_has_no_uvci_is_in_no_list_of_uvcis() -> None:
    batch = read_batch(revocation_batch("VN", None, 1_900_000_000, HandleKind.UCI, [bytes(16)]))
    assert not batch.has("VN", KID, NONE)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"{", b"["),
        (b'"country"', b'"land"'),
        (b'"UCI"', b'"uci"'),
        (b'Z"', b'"'),
        (b'"2030-', b'"12030-'),
        (b'"kid":"', b'"kid":"!'),
        (b'"hash":"', b'"hash":"AQEB'),
        (b'"hash":"', b'"hash":7,"x":"'),
        (b'"entries":[', b'"entries":[7,'),
        (b'{"country"', b'{"country":"LA","country"'),
    ],
)
def test_what_is_not_a_list_is_refused(old: bytes, new: bytes) -> None:
    changed = BATCH.replace(old, new, 1)
    assert changed != BATCH
    with pytest.raises(MessageError, match="not a list of revoked certificates"):
        read_batch(changed)

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
    HandleKind,
    handle,
    handles_of_signed,
    handles_of_text,
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

"""The EU's Digital COVID Certificate vectors, reproduced byte for byte by our encoder."""

import base64
import hashlib
import json
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import cbor2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils
from cryptography.hazmat.primitives.hashes import SHA256

from signer import cbor
from signer.errors import Reason
from signer.format_terms import FormatContext, HcertTerms
from signer.formats import FORMATS, base45, dcc, hcert
from signer.formats.cose import Envelope
from signer.formats.payloads import PayloadError
from signer.formats.revocation import handles_of_text
from signer.model import Format, KeyName
from tests import vectors
from tests.stand_ins import key_version

VECTORS = vectors.FOLDER / vectors.CERTIFICATES

BASE45_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ $%*+-./:"


def load(path: Path) -> dict[str, Any]:
    vector: dict[str, Any] = json.loads(path.read_text(encoding="utf-8-sig"))
    return vector


def name(path: Path) -> str:
    return f"{path.parts[-4]}-{path.stem}"


ALL = sorted(VECTORS.glob("*/2DCode/raw/*.json"))

# Positive is what no expected result says a verifier must refuse. ("INVALID" in
# a description is about business rules: a test too old to travel with.)
POSITIVE = [p for p in ALL if False not in load(p)["EXPECTEDRESULTS"].values()]
SIGNED = [p for p in POSITIVE if "COSE" in load(p)]
UNSIGNED = [p for p in POSITIVE if "COSE" not in load(p)]
WITH_TEXT = [p for p in POSITIVE if "BASE45" in load(p)]
KEY_USAGE = [p for p in ALL if "EXPECTEDKEYUSAGE" in load(p)["EXPECTEDRESULTS"]]
UNDECODABLE = [p for p in ALL if load(p)["EXPECTEDRESULTS"].get("EXPECTEDDECODE") is False]


class Cose(NamedTuple):
    """A vector's COSE_Sign1, taken apart by other code than ours."""

    untagged_cwt: bytes
    protected: bytes
    unprotected: Mapping[int, object]
    payload: bytes
    signature: bytes


def cose(vector: Mapping[str, Any]) -> Cose:
    raw = bytes.fromhex(vector["COSE"])
    inner = raw.removeprefix(b"\xd8\x3d")  # CWT tag 61 (RFC 8392 section 6)
    return Cose(inner, *cbor2.loads(inner).value)


def like(template: object) -> cbor.Order:
    """Returns the order that has members where the template has them."""

    def arrange(value: Any, model: Any) -> Any:
        if isinstance(value, dict):
            assert value.keys() == model.keys()
            return {member: arrange(value[member], model[member]) for member in model}
        if isinstance(value, list):
            return [arrange(*pair) for pair in zip(value, model, strict=True)]
        return value

    return lambda value: arrange(value, template)


def payload_of(vector: Mapping[str, Any]) -> bytes:
    if "JSON" in vector:
        return json.dumps(vector["JSON"]).encode()
    return bytes.fromhex(vector["CBOR"])


def certificate_of(vector: Mapping[str, Any]) -> x509.Certificate:
    return x509.load_der_x509_certificate(base64.b64decode(vector["TESTCTX"]["CERTIFICATE"]))


def base45_decode(text: str) -> bytes:
    """RFC 9285 section 4, read literally."""
    out = b""
    for triple in re.findall(".{2,3}", text):
        number = sum(BASE45_ALPHABET.index(c) * 45**i for i, c in enumerate(triple))
        out += number.to_bytes(len(triple) - 1, "big")
    return out


def verify(certificate: x509.Certificate, signature: bytes, signed: bytes) -> None:
    key = certificate.public_key()
    if isinstance(key, rsa.RSAPublicKey):
        key.verify(signature, signed, padding.PSS(padding.MGF1(SHA256()), 32), SHA256())
    else:
        assert isinstance(key, ec.EllipticCurvePublicKey)
        half = len(signature) // 2
        r, s = (int.from_bytes(part, "big") for part in (signature[:half], signature[half:]))
        key.verify(utils.encode_dss_signature(r, s), signed, ec.ECDSA(SHA256()))


@pytest.mark.skipif(not VECTORS.is_dir(), reason="the vectors are not here")
def test_every_vector_is_accounted_for() -> None:
    assert len(ALL) == 42
    assert {name(path) for path in UNSIGNED} == {f"common-DGC{n}" for n in (3, 4, 5, 6)}
    assert len(SIGNED) == 16
    # What is not positive says itself which step a verifier must refuse.
    for path in set(ALL) - set(POSITIVE):
        assert False in load(path)["EXPECTEDRESULTS"].values()


@pytest.mark.parametrize("path", SIGNED, ids=name)
def test_cwt(path: Path) -> None:
    vector = load(path)
    expected = cose(vector).payload
    claims = cbor2.loads(expected)
    *registered, last = claims.items()
    assert last[0] == -260

    head = hcert.claims_head(dict(registered))
    document = dcc.read(payload_of(vector)).document
    ours = head + cbor.encode(document, like(claims[-260][1]))
    assert ours == expected


@pytest.mark.parametrize("path", SIGNED, ids=name)
def test_sig_structure_and_message(path: Path) -> None:
    vector = load(path)
    theirs = cose(vector)
    protected = cbor2.loads(theirs.protected) if theirs.protected else {}
    wrap = Envelope(protected, theirs.unprotected)

    signed = wrap.to_sign(theirs.payload)
    assert signed == cbor2.dumps(["Signature1", theirs.protected, b"", theirs.payload])
    verify(certificate_of(vector), theirs.signature, signed)
    assert wrap.message(signed, theirs.signature) == theirs.untagged_cwt


@pytest.mark.parametrize("path", WITH_TEXT, ids=name)
def test_text(path: Path) -> None:
    vector = load(path)
    compressed = bytes.fromhex(vector["COMPRESSED"])
    message = bytes.fromhex(vector["COSE"])
    assert base45.encode(compressed).decode() == vector["BASE45"]
    assert base45_decode(vector["BASE45"]) == compressed
    assert hcert.PREFIX.decode() + vector["BASE45"] == vector["PREFIX"]
    assert zlib.decompress(compressed) == message

    ours = hcert.text(message).decode()
    assert ours.startswith("HC1:")
    assert zlib.decompress(base45_decode(ours[4:])) == message
    # Ours is stored where theirs is deflated: that may cost 4 %, and no more.
    assert len(ours) <= len(vector["PREFIX"]) * 1.04


@pytest.mark.parametrize("path", WITH_TEXT, ids=name)
def test_revocation_handles(path: Path) -> None:
    vector = load(path)
    theirs = cose(vector)
    claims = cbor2.loads(theirs.payload)
    found = handles_of_text(vector["PREFIX"].encode())
    [entry] = [claims[-260][1][kind][0] for kind in "vtr" if claims[-260][1].get(kind)]
    rsa_key = isinstance(certificate_of(vector).public_key(), rsa.RSAPublicKey)
    counted = theirs.signature if rsa_key else theirs.signature[: len(theirs.signature) // 2]
    texts = [entry["ci"].encode(), (claims[1] + entry["ci"]).encode(), counted]
    assert list(found) == [hashlib.sha256(each).digest()[:16] for each in texts]


@pytest.mark.parametrize("path", UNSIGNED, ids=name)
def test_payload_with_indefinite_lengths(path: Path) -> None:
    vector = load(path)
    payload = bytes.fromhex(vector["CBOR"])
    document = dcc.read(payload).document
    assert document == vector["JSON"]
    ours = cbor.encode_deterministic(document)
    assert ours == cbor2.dumps(cbor2.loads(payload), canonical=True)
    assert ours == cbor.encode_deterministic(dcc.read(payload_of(vector)).document)


@pytest.mark.parametrize("path", KEY_USAGE, ids=name)
def test_key_usage(path: Path) -> None:
    vector = load(path)
    certificate = certificate_of(vector)
    context = hcert_context(vector, int(certificate.not_valid_before_utc.timestamp()))
    prepared = FORMATS[Format.HCERT].prepare([payload_of(vector)], context)
    if vector["EXPECTEDRESULTS"]["EXPECTEDKEYUSAGE"]:
        assert not prepared.failures
        assert prepared.to_sign[0]
    else:
        assert prepared.failures[0].reason is Reason.CONTENT_DENIED
        assert "key usage" in prepared.failures[0].message


@pytest.mark.parametrize("path", UNDECODABLE, ids=name)
def test_broken_cbor_is_refused(path: Path) -> None:
    with pytest.raises(PayloadError):
        dcc.read(bytes.fromhex(load(path)["CBOR"]))


@pytest.mark.skipif(not VECTORS.is_dir(), reason="the vectors are not here")
def test_several_certificates_in_one_are_refused() -> None:
    vector = load(VECTORS / "common/2DCode/raw/DGC2.json")
    for payload in (payload_of(vector), bytes.fromhex(vector["CBOR"])):
        with pytest.raises(PayloadError):
            dcc.read(payload)


def hcert_context(vector: Mapping[str, Any], now: int) -> FormatContext:
    der = base64.b64decode(vector["TESTCTX"]["CERTIFICATE"])
    version = key_version(
        key=KeyName("moh", "dcc"),
        token="signer",
        cka_id=b"\x01",
        spki=b"",
        certificate=der,
        kid=bytes(8),
        thumbprint="",
    )
    return FormatContext(version, now, HcertTerms("AT", 3600))

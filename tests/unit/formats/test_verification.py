"""Messages of every format verify with trusted keys, in whatever file; forged ones do not."""

import base64
import dataclasses
import json
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import cbor2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from signer.algorithms import Algorithm
from signer.client.key_files import KeysError, TrustedKey
from signer.client.verification import TrustedKeys, VerificationError
from signer.format_terms import FormatContext
from signer.formats import FORMATS, base45, shc
from signer.formats.finished import _SHORT_HEADER, _jose_again, finished
from signer.formats.hcert import text as hcert_text
from signer.model import Format, KeyVersion
from signer.x509 import cose_kid, jwk_members, jwk_thumbprint, public_key_pem, spki_of
from tests.unit.formats.conftest import NOW, YEAR, ContextMaker, SoftKey

DCC = json.dumps({"ver": "1.3.0", "nam": {}, "dob": "1950-01-01", "v": [{"dt": "2021-06-01"}]})
OTHER = DCC.replace("1950", "1990")
Keys = Mapping[Algorithm, SoftKey]


@pytest.fixture
def make(keys: Keys, context: ContextMaker) -> Callable[..., bytes]:
    """Signs one payload as the appliance does."""

    def sign(
        message_format: Format,
        payload: str = DCC,
        algorithm: Algorithm = Algorithm.ES256,
        terms: FormatContext | None = None,
    ) -> bytes:
        given = terms or context(version=_named(keys[algorithm].version))
        form = FORMATS[message_format]
        prepared = form.prepare([payload.encode()], given)
        assert not prepared.failures
        [output] = form.finish(prepared, [keys[algorithm].sign(prepared.to_sign[0])], given)
        return output

    return sign


def _named(version: KeyVersion) -> KeyVersion:
    return dataclasses.replace(version, thumbprint=jwk_thumbprint(version.spki))


def jwks(key: SoftKey) -> bytes:
    spki = key.version.spki
    named = {"kid": jwk_thumbprint(spki), "alg": key.version.algorithm, "use": "sig"}
    return json.dumps({"keys": [{**jwk_members(spki), **named}]}).encode()


def trust_list(key: SoftKey) -> bytes:
    raw = base64.b64encode(key.version.certificate or b"").decode()
    return json.dumps([{"kid": "", "rawData": raw}]).encode()


def certificate(key: SoftKey) -> bytes:
    made = x509.load_der_x509_certificate(key.version.certificate or b"")
    return b"# facilities/moh/keys/dcc\n" + made.public_bytes(serialization.Encoding.PEM)


FILES: Mapping[str, Callable[[SoftKey], bytes]] = {
    "jwks": jwks,
    "trust-list": trust_list,
    "certificate": certificate,
    "certificate in DER": lambda key: key.version.certificate or b"",
    "public key": lambda key: public_key_pem(key.version.spki).encode(),
    "public key in DER": lambda key: key.version.spki,
}
FINISHED = {Format.JWS: Algorithm, Format.COSE_SIGN1: Algorithm, Format.HCERT: ("ES256", "PS256")}


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize(
    ("message_format", "algorithm"),
    [(made, Algorithm(each)) for made, algorithms in FINISHED.items() for each in algorithms],
)
def test_finished_messages_verify_with_each_form_of_keys(
    make: Callable[..., bytes], keys: Keys, message_format: Format, algorithm: Algorithm, file: str
) -> None:
    trusted = TrustedKeys.read(FILES[file](keys[algorithm]))
    verified = trusted.verify(make(message_format, algorithm=algorithm), NOW)
    assert (verified.format, verified.algorithm) == (message_format, algorithm)
    if message_format is Format.HCERT:
        assert verified.claims is not None
        assert verified.claims.dcc == json.loads(DCC)
        assert (verified.claims.issuer, verified.claims.issued) == ("VN", NOW)
    else:
        assert verified.payload == DCC.encode()


@pytest.mark.parametrize("algorithm", Algorithm)
def test_raw_signatures_verify_and_others_do_not(keys: Keys, algorithm: Algorithm) -> None:
    trusted = TrustedKeys(TrustedKey(name, each.version.spki) for name, each in keys.items())
    made = keys[algorithm].sign(b"a message")
    verified = trusted.verify_raw(Format.MESSAGE, b"a message", made)
    assert verified.algorithm is algorithm
    for payload, signature in ((b"another", made), (b"a message", made[:-1]), (b"a message", b"")):
        with pytest.raises(VerificationError, match="not a signature of this message"):
            trusted.verify_raw(Format.MESSAGE, payload, signature)


# --- forged -----------------------------------------------------------------------------------


def changed(message_format: Format, made: bytes, other: bytes) -> bytes:
    """Returns the message ``made`` with the payload of ``other``, its signature as it was."""
    ours, theirs = finished(made), finished(other)
    assert ours is not None and theirs is not None  # noqa: PT018  both for mypy
    if message_format is Format.JWS:
        return other.rpartition(b".")[0] + b"." + made.rpartition(b".")[2]
    parts = [ours.protected, ours.unprotected, theirs.payload, ours.signature]
    whole = cbor2.dumps(cbor2.CBORTag(18, parts))
    return hcert_text(whole) if message_format is Format.HCERT else whole


@pytest.mark.parametrize("message_format", FINISHED)
def test_a_changed_payload_is_refused(
    make: Callable[..., bytes], keys: Keys, message_format: Format
) -> None:
    trusted = TrustedKeys.read(certificate(keys[Algorithm.ES256]))
    made, other = make(message_format), make(message_format, OTHER)
    forged = changed(message_format, made, other)
    assert forged not in {made, other}
    with pytest.raises(VerificationError, match="its signature is wrong: the message was changed"):
        trusted.verify(forged, NOW)


@pytest.mark.parametrize("file", ["jwks", "certificate", "public key"])
@pytest.mark.parametrize("message_format", FINISHED)
def test_a_message_of_another_key_is_refused(
    make: Callable[..., bytes], keys: Keys, message_format: Format, file: str
) -> None:
    theirs = keys[Algorithm.ES256].version
    stranger = ec.generate_private_key(ec.SECP256R1())
    spki = spki_of(stranger.public_key())
    text = {"jwks": FILES["jwks"](keys[Algorithm.PS256]), "public key": spki}.get(file)
    trusted = TrustedKeys.read(text or certificate(keys[Algorithm.ES384]))
    assert theirs.spki not in {key.spki for key in trusted}
    with pytest.raises(VerificationError, match=r"no key that is trusted|signature is wrong"):
        trusted.verify(make(message_format), NOW)


def jose(header: dict[str, Any], key: SoftKey, payload: bytes = b"{}") -> bytes:
    parts = (json.dumps(header).encode(), payload)
    signed = b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in parts)
    return signed + b"." + base64.urlsafe_b64encode(key.sign(signed)).rstrip(b"=")


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ({"alg": "none"}, "its algorithm is 'none'"),
        ({"alg": "HS256"}, "its algorithm is 'HS256'"),
        ({}, "its algorithm is None"),
        ({"alg": "ES256", "crit": ["b64"], "b64": False}, "`crit`"),
        ({"alg": "ES256", "b64": False}, "`b64`"),
        ({"alg": "ES256", "b64": True}, "`b64`"),
        ({"alg": "ES256", "kid": 7}, "`kid` that is not text"),
        ({"alg": "RS256"}, "its signature is wrong"),
        ({"alg": "ES256", "kid": "other"}, 'no key that is trusted has its key id "other"'),
    ],
)
def test_headers_that_a_verifier_must_refuse(keys: Keys, header: dict[str, Any], said: str) -> None:
    key = keys[Algorithm.ES256]
    trusted = TrustedKeys.read(jwks(key))
    assert trusted.verify(jose({"alg": "ES256"}, key), NOW).payload == b"{}"
    with pytest.raises(VerificationError, match=said):
        trusted.verify(jose(header, key), NOW)


def test_the_algorithm_of_a_jwk_binds_its_key(keys: Keys) -> None:
    """RS256 and PS256 share a key here; the set names only one of them."""
    trusted = TrustedKeys.read(jwks(keys[Algorithm.PS256]))
    with pytest.raises(VerificationError, match="its signature is wrong"):
        trusted.verify(jose({"alg": "RS256"}, keys[Algorithm.RS256]), NOW)


@pytest.mark.parametrize(
    ("moment", "limits", "said"),
    [
        (NOW + YEAR, {}, "genuine, but expired at 2023-01-15T12:00:00Z"),
        (NOW, {"not_after": NOW + YEAR - 1}, "its times are not within"),
        (NOW, {"not_before": NOW + 1}, "its times are not within"),
        (NOW, {"usages": ["1.3.6.1.4.1.1847.2021.1.1"]}, "is not for its type v"),
    ],
)
def test_an_hcert_must_be_valid_now_and_under_its_certificate(
    make: Callable[..., bytes],
    certified: Callable[..., Any],
    context: ContextMaker,
    moment: float,
    limits: dict[str, Any],
    said: str,
) -> None:
    good = context().version
    limited = certified(**limits) if limits else good
    # The appliance would refuse to sign under the limited certificate: it has only its key id.
    kid = cose_kid(good.spki, limited.certificate)
    signing = context(version=dataclasses.replace(good, kid=kid))
    text = make(Format.HCERT, terms=signing)
    wide = TrustedKey("k", good.spki, certificate=None)
    assert TrustedKeys([wide]).verify(text, NOW).claims is not None
    narrow = TrustedKey("k", good.spki, certificate=limited.certificate)
    with pytest.raises(VerificationError, match=said):
        TrustedKeys([narrow]).verify(text, moment)


def hcert(key: SoftKey, claims: object) -> bytes:
    """The text of an HCERT with any payload, genuinely signed."""
    protected, payload = cbor2.dumps({1: -7}), cbor2.dumps(claims)
    made = key.sign(cbor2.dumps(["Signature1", protected, b"", payload]))
    return hcert_text(cbor2.dumps(cbor2.CBORTag(18, [protected, {}, payload, made])))


GROUP = [{"dt": "2021-06-01"}]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({6: NOW + 301}, "genuine, but issued at 2022-01-15T12:05:01Z, which is in the future"),
        ({6: NOW + 5 * YEAR}, "genuine, but issued at 2027-01-14T12:00:00Z"),
        ({6: -1}, "its `iat` is not a time from 1970 to 9999"),
        ({6: -(1 << 62)}, "its `iat` is not a time"),
        ({6: 1 << 62}, "its `iat` is not a time"),
        ({6: True}, "its `iat` is not a time"),
        ({4: 253_402_300_800}, "its `exp` is not a time from 1970 to 9999"),
        ({4: 1 << 62}, "its `exp` is not a time"),
        ({4: True}, "its `exp` is not a time"),
        ({-260: {1: {}}}, "not exactly one type"),
        ({-260: {1: {"v": []}}}, "not exactly one type"),
        ({-260: {1: {"v": GROUP, "t": GROUP}}}, "not exactly one type"),
    ],
    ids=str,
)
def test_times_and_types_that_no_hcert_has_are_refused(
    keys: Keys, changed: dict[int, Any], said: str
) -> None:
    key = keys[Algorithm.ES256]
    trusted = TrustedKeys([TrustedKey("k", key.version.spki)])
    good = {1: "VN", 4: 253_402_300_799, 6: NOW + 300, -260: {1: {"v": GROUP, "t": [], "r": None}}}
    assert trusted.verify(hcert(key, good), NOW).claims is not None
    with pytest.raises(VerificationError, match=said):
        trusted.verify(hcert(key, good | changed), NOW)


@pytest.mark.parametrize(
    "changed",
    [
        lambda stream: stream + b"junk",
        lambda stream: stream + zlib.compress(b"more"),
        lambda stream: stream[:-4],
        lambda stream: stream[:-4] + bytes(4),
    ],
    ids=["bytes after it", "another one after it", "no checksum", "another checksum"],
)
def test_an_hcert_is_one_whole_zlib_stream(keys: Keys, changed: Callable[[bytes], bytes]) -> None:
    key = keys[Algorithm.ES256]
    trusted = TrustedKeys([TrustedKey("k", key.version.spki)])
    good = {1: "VN", 4: NOW + 300, 6: NOW, -260: {1: {"v": GROUP}}}
    stream = base45.decode(hcert(key, good).removeprefix(b"HC1:"))
    assert trusted.verify(b"HC1:" + base45.encode(stream), NOW).claims is not None
    with pytest.raises(
        VerificationError, match="it begins as the text of an HCERT, but is damaged"
    ):
        trusted.verify(b"HC1:" + base45.encode(changed(stream)), NOW)


@pytest.mark.parametrize(
    ("unprotected", "said"),
    [({2: [1]}, "`crit` where it is not signed"), ([], "but is damaged"), (b"", "but is damaged")],
    ids=str,
)
def test_what_a_header_that_is_not_signed_must_not_have(
    keys: Keys, unprotected: object, said: str
) -> None:
    """RFC 9052 section 3.1: ``crit`` must be in the protected header."""
    key = keys[Algorithm.ES256]
    trusted = TrustedKeys([TrustedKey("k", key.version.spki)])
    protected, payload = cbor2.dumps({1: -7}), b"{}"
    made = key.sign(cbor2.dumps(["Signature1", protected, b"", payload]))

    def message(header: object) -> bytes:
        return cbor2.dumps(cbor2.CBORTag(18, [protected, header, payload, made]))

    assert trusted.verify(message({4: b"any"}), NOW).payload == payload
    with pytest.raises(VerificationError, match=said):
        trusted.verify(message(unprotected), NOW)


def sign1(key: SoftKey, protected: bytes, unprotected: object, signed_header: bytes) -> list[Any]:
    made = key.sign(cbor2.dumps(["Signature1", signed_header, b"", b"{}"]))
    return [protected, unprotected, b"{}", made]


@pytest.mark.parametrize(
    ("wrap", "readable"),
    [
        (lambda parts: cbor2.CBORTag(18, parts), True),
        (lambda parts: cbor2.CBORTag(61, cbor2.CBORTag(18, parts)), True),  # RFC 8392 section 6
        (lambda parts: parts, True),
        (lambda parts: cbor2.CBORTag(61, parts), False),  # which comes before a tag of COSE
        (lambda parts: cbor2.CBORTag(17, parts), False),  # COSE_Mac0
        (lambda parts: cbor2.CBORTag(18, cbor2.CBORTag(61, parts)), False),
    ],
    ids=["COSE_Sign1", "CWT", "untagged", "CWT alone", "another", "in another order"],
)
def test_the_tags_of_a_cose_sign1(
    keys: Keys, wrap: Callable[[list[Any]], object], readable: bool
) -> None:
    key, protected = keys[Algorithm.ES256], cbor2.dumps({1: -7})
    trusted = TrustedKeys([TrustedKey("k", key.version.spki)])
    message = cbor2.dumps(wrap(sign1(key, protected, {}, protected)))
    if readable:
        assert trusted.verify(message, NOW).payload == b"{}"
        return
    with pytest.raises(VerificationError):
        trusted.verify(message, NOW)


@pytest.mark.parametrize("empty", [b"", cbor2.dumps({})], ids=["none", "an empty map"])
def test_an_algorithm_that_is_not_signed_is_that_of_the_key_or_wrong(
    keys: Keys, empty: bytes
) -> None:
    """RFC 9052 section 4.4: a header without members is signed as none."""
    key = keys[Algorithm.ES256]
    trusted = TrustedKeys(TrustedKey(name, each.version.spki) for name, each in keys.items())
    good = sign1(key, empty, {1: -7}, b"")
    assert trusted.verify(cbor2.dumps(good), NOW).algorithm is Algorithm.ES256
    for other in (-35, -37, -257, -8):
        with pytest.raises(VerificationError, match="its signature is wrong"):
            trusted.verify(cbor2.dumps([empty, {1: other}, *good[2:]]), NOW)


# --- SMART Health Cards -----------------------------------------------------------------------


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


def card(key: SoftKey, payload: bytes, **header: object) -> bytes:
    """A SMART Health Card with any payload as it is, genuinely signed."""
    made = jose({"alg": str(key.version.algorithm), "zip": "DEF"} | header, key, payload)
    return shc.text(made)


def claims(**changed: object) -> bytes:
    return raw_deflate(json.dumps({"iss": "x", "nbf": NOW, "vc": {}} | changed).encode())


def test_a_card_verifies_as_a_card_and_its_payload_is_inflated(
    make: Callable[..., bytes], keys: Keys
) -> None:
    entry = {"fullUrl": "resource:0", "resource": {"resourceType": "Patient"}}
    bundle = {"resourceType": "Bundle", "type": "collection", "entry": [entry]}
    key = keys[Algorithm.ES256]
    made = make(Format.SHC, json.dumps(bundle))
    for file in (jwks, certificate):
        verified = TrustedKeys.read(file(key)).verify(made, NOW)
        assert verified.format is Format.SHC
        held = json.loads(verified.payload)
        assert held["vc"]["credentialSubject"]["fhirBundle"] == bundle
        assert held["nbf"] == NOW
    # The same JWS is none of a card without the digits.
    assert TrustedKeys.read(jwks(key)).verify(shc.jws_of(made), NOW).format is Format.JWS


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        (b"junk", "not one raw DEFLATE stream"),
        (b"", "not one raw DEFLATE stream"),
        (zlib.compress(b"{}"), "not one raw DEFLATE stream"),
        (claims()[:-1], "not one raw DEFLATE stream"),
        (claims() + b"x", "not one raw DEFLATE stream"),
        (raw_deflate(bytes(8 << 20)), "not one raw DEFLATE stream of less than 4194304 bytes"),
        (raw_deflate(b"[]"), "its payload is not one JSON object"),
        (raw_deflate(b'{"nbf":1,"nbf":2}'), "its payload is not one JSON object"),
        (raw_deflate(b"{}"), "its `nbf` is not a time"),
        (claims(nbf="1"), "its `nbf` is not a time"),
        (claims(nbf=True), "its `nbf` is not a time"),
        (claims(nbf=-1), "its `nbf` is not a time"),
        (claims(nbf=253_402_300_800), "its `nbf` is not a time from 1970 to 9999"),
        (claims(nbf=NOW + 301), "genuine, but not valid before 2022-01-15T12:05:01Z"),
        (claims(nbf=NOW + 300.5), "genuine, but not valid before 2022-01-15T12:05:00Z"),
        (claims(exp=None), "its `exp` is not a time"),
        (claims(exp=NOW), "genuine, but expired at 2022-01-15T12:00:00Z"),
    ],
)
def test_cards_that_a_verifier_must_refuse(keys: Keys, payload: bytes, said: str) -> None:
    key = keys[Algorithm.ES256]
    trusted = TrustedKeys([TrustedKey("k", key.version.spki)])
    good = claims(nbf=NOW + 299.5, exp=NOW + 1)
    assert trusted.verify(card(key, good), NOW).format is Format.SHC
    with pytest.raises(VerificationError, match=said):
        trusted.verify(card(key, payload), NOW)


@pytest.mark.parametrize("packing", [None, "GZ", ["DEF"]])
def test_the_header_of_a_card_says_how_it_is_compressed(keys: Keys, packing: object) -> None:
    key = keys[Algorithm.ES256]
    trusted = TrustedKeys([TrustedKey("k", key.version.spki)])
    with pytest.raises(VerificationError, match="has not `zip` DEF"):
        trusted.verify(card(key, claims(), zip=packing), NOW)


def test_a_header_that_was_read_in_a_jws_is_judged_again_in_a_card(keys: Keys) -> None:
    """Headers are kept as they were read, since those of a key are all the same."""
    key = keys[Algorithm.ES256]
    trusted = TrustedKeys([TrustedKey("k", key.version.spki)])
    made = jose({"alg": "ES256"}, key, claims())
    for _ in range(2):
        assert trusted.verify(made, NOW).format is Format.JWS
        with pytest.raises(VerificationError, match="has not `zip` DEF"):
            trusted.verify(shc.text(made), NOW)


@pytest.mark.parametrize("length", [_SHORT_HEADER, _SHORT_HEADER + 1])
def test_only_short_headers_are_kept(keys: Keys, length: int) -> None:
    key = keys[Algorithm.ES256]
    header = {"alg": "ES256", "kid": ""}
    header["kid"] = "k" * (length - len(json.dumps(header)))
    made, kept = jose(header, key), _jose_again.cache_info().currsize
    read = [finished(made) for _ in range(3)]
    assert [one.header().kid for one in read if one] == [header["kid"]] * 3
    assert _jose_again.cache_info().currsize - kept == (length == _SHORT_HEADER)


def test_a_card_is_signed_with_es256(keys: Keys) -> None:
    key = keys[Algorithm.ES384]
    trusted = TrustedKeys([TrustedKey("k", key.version.spki)])
    with pytest.raises(VerificationError, match="a SMART Health Card is not signed with ES384"):
        trusted.verify(card(key, claims()), NOW)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            b"HC1:NCFOXN%TS3DH",
            "as the text of an HCERT, but is damaged or cut: what is in its Base",
        ),
        (b"HC1:ncfoxn", "but is damaged or cut: what comes after HC1: is not Base45"),
        (b"HC1:" + base45.encode(zlib.compress(b"a")), "its zlib stream is not a COSE_Sign1"),
        (b" shc:/5676290", "it begins as a SMART Health Card, but is damaged or cut"),
        (b"eyJhbGciOiJFUzI1NiJ9.eyJh", "it begins as a compact JWS, but is damaged or cut"),
        (b"\xd2\x84\x43\xa1\x01", "it begins as a tagged COSE_Sign1, but is damaged or cut"),
        (b"{}", "it is not a compact JWS"),
    ],
)
def test_what_is_damaged_is_told_by_its_beginning(keys: Keys, content: bytes, said: str) -> None:
    with pytest.raises(VerificationError, match=said):
        TrustedKeys.read(jwks(keys[Algorithm.ES256])).verify(content, NOW)


def test_a_packed_bomb_is_not_unpacked(keys: Keys) -> None:
    bomb = b"HC1:" + base45.encode(zlib.compress(bytes(64 << 20), 9))
    with pytest.raises(VerificationError, match="it begins as the text of an HCERT"):
        TrustedKeys.read(jwks(keys[Algorithm.ES256])).verify(bomb, NOW)


@given(st.binary(max_size=300))
def test_no_content_does_anything_but_fail(content: bytes) -> None:
    spki = spki_of(ec.derive_private_key(7, ec.SECP256R1()).public_key())
    trusted = TrustedKeys([TrustedKey("k", spki)])
    for each in (content, b"HC1:" + base45.encode(zlib.compress(content)), b"\xd2\x84" + content):
        with pytest.raises(VerificationError):
            trusted.verify(each, NOW)
    with pytest.raises(KeysError):
        TrustedKeys.read(content)


# --- files with keys --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "must be a JWK Set or a trust list"),
        (b'{"keys": []}', "it has none of RSA"),
        (b'{"keys": [{"kty": "EC", "crv": "P-521"}]}', "it must be an EC key on P-256"),
        (b'{"keys": [{"kty": "EC", "crv": "P-256", "x": "AQ", "y": "AQ"}]}', "cannot be read"),
        (b'{"kty": "OKP", "crv": "Ed25519", "x": "AQ", "d": "AQ"}', "it has a private key"),
        (b'[{"rawData": "AQ=="}]', "cannot be read"),
        (b"-----BEGIN PRIVATE KEY-----\nAQ==\n-----END PRIVATE KEY-----", "it has a private key"),
        (b"-----BEGIN PUBLIC KEY-----\nAQ==\n-----END PUBLIC KEY-----", "cannot be read"),
    ],
)
def test_what_is_wrong_with_a_file_of_keys_is_said(content: bytes, said: str) -> None:
    with pytest.raises(KeysError, match=said):
        TrustedKeys.read(content)


def test_keys_that_are_not_for_our_signatures_are_left_out(keys: Keys) -> None:
    ours = json.loads(jwks(keys[Algorithm.ES256]))["keys"]
    others = [{"kty": "EC", "use": "enc"}, {"kty": "EC", "crv": "P-521", "alg": "ES512"}]
    trusted = TrustedKeys.read(json.dumps({"keys": [*others, *ours]}).encode())
    assert [key.kid for key in trusted] == [ours[0]["kid"]]

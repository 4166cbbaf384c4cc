import base64
import hashlib
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa, x25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

from signer.algorithms import Algorithm
from signer.errors import OperatorError
from signer.model import KeyVersion
from signer.x509 import (
    certified,
    check_certificate,
    cose_kid,
    describe_certificate,
    extended_key_usages,
    fits,
    jwk_thumbprint,
    public_key_pem,
    read_certificate,
)

NOW = datetime(2026, 1, 15, tzinfo=UTC)


@pytest.fixture
def url(sqlite_url: str) -> str:
    return sqlite_url  # whatever holds the keys: these tests are of what is made of them


def spki(public_key: Any) -> bytes:
    der: bytes = public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return der


def unb64(text: str) -> int:
    return int.from_bytes(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)), "big")


def test_thumbprint_of_rfc_7638_section_3_1() -> None:
    n = unb64(
        "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECP"
        "ebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY"
        "368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0f"
        "M4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw"
    )
    key = rsa.RSAPublicNumbers(65537, n).public_key()
    assert jwk_thumbprint(spki(key)) == "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"


def test_thumbprint_of_rfc_8037_appendix_a_3() -> None:
    raw = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
    key = ed25519.Ed25519PublicKey.from_public_bytes(raw)
    assert jwk_thumbprint(spki(key)) == "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"


@pytest.mark.parametrize("size", [32, 48])
def test_thumbprint_pads_small_coordinates(size: int) -> None:
    # RFC 7518 section 6.2.1.2: coordinates have the length of the field.
    curve = ec.SECP256R1() if size == 32 else ec.SECP384R1()
    keys = (ec.derive_private_key(scalar, curve).public_key() for scalar in range(1, 3000))
    key = next(key for key in keys if key.public_numbers().x >> (8 * size - 8) == 0)
    point = key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    x, y = (
        base64.urlsafe_b64encode(part).rstrip(b"=").decode()
        for part in (point[1 : 1 + size], point[1 + size :])
    )
    text = f'{{"crv":"P-{size * 8}","kty":"EC","x":"{x}","y":"{y}"}}'
    digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest())
    assert jwk_thumbprint(spki(key)) == digest.rstrip(b"=").decode()


@pytest.mark.parametrize(
    "key",
    [x25519.X25519PrivateKey.generate(), ec.generate_private_key(ec.SECP521R1())],
    ids=["x25519", "p521"],
)
def test_other_keys_have_no_thumbprint(key: Any) -> None:
    with pytest.raises(TypeError):
        jwk_thumbprint(spki(key.public_key()))


def test_kid_is_of_the_certificate_if_there_is_one() -> None:
    assert cose_kid(b"key", None) == hashlib.sha256(b"key").digest()[:8]
    assert cose_kid(b"key", b"certificate") == hashlib.sha256(b"certificate").digest()[:8]


P256 = spki(ec.generate_private_key(ec.SECP256R1()).public_key())
P384 = spki(ec.generate_private_key(ec.SECP384R1()).public_key())
ED25519 = spki(ed25519.Ed25519PrivateKey.generate().public_key())
RSA = spki(rsa.generate_private_key(65537, 2048).public_key())
RSA_1536 = spki(rsa.RSAPublicNumbers(65537, 2**1535 + 1).public_key())
FITTING = {
    Algorithm.ES256: P256,
    Algorithm.ES384: P384,
    Algorithm.RS256: RSA,
    Algorithm.PS256: RSA,
    Algorithm.EDDSA: ED25519,
}


@pytest.mark.parametrize("algorithm", Algorithm)
@pytest.mark.parametrize(
    "key",
    [P256, P384, ED25519, RSA, RSA_1536, b"", b"\x30\x00"],
    ids=["p256", "p384", "ed25519", "rsa", "rsa-1536", "nothing", "no-key"],
)
def test_a_key_fits_its_own_algorithm_only(algorithm: Algorithm, key: bytes) -> None:
    assert fits(key, algorithm) == (FITTING[algorithm] == key)


def test_a_modulus_fits_its_own_length_only() -> None:
    assert fits(RSA, Algorithm.RS256, 2048)
    assert not fits(RSA, Algorithm.RS256, 3072)


def test_pem_and_der_are_read(version: KeyVersion, certify: Any) -> None:
    pem = certify(load_der_public_key(version.spki))
    der = x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)
    assert read_certificate(pem) == read_certificate(der)
    assert read_certificate(b"# from the authority\n" + pem) == read_certificate(der)


def test_what_is_no_single_certificate_is_refused(version: KeyVersion, certify: Any) -> None:
    pem = certify(load_der_public_key(version.spki))
    for data, message in [
        (pem + pem, "several"),
        (b"", "not an X.509"),
        (b"\x30\x03\x02\x01", "not an X.509"),
        (pem[: len(pem) // 2], "not an X.509"),
        (pem + b"\n" * 70_000, "65536 are allowed"),
    ]:
        with pytest.raises(OperatorError, match=message):
            read_certificate(data)


def test_a_good_certificate_is_accepted(version: KeyVersion, certify: Any) -> None:
    key = load_der_public_key(version.spki)
    check_certificate(read_certificate(certify(key)), version, NOW.timestamp())
    check_certificate(read_certificate(certify(key, key_usage=False)), version, NOW.timestamp())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"begins": NOW + timedelta(seconds=1)}, "not valid before 2026-01-15T00:00:01"),
        ({"ends": NOW - timedelta(seconds=1)}, "expired on 2026-01-14T23:59:59"),
        ({"ca": True}, "authority"),
        ({"digital_signature": False}, "digitalSignature"),
    ],
)
def test_a_wrong_certificate_is_refused(
    version: KeyVersion, certify: Any, changes: dict[str, Any], message: str
) -> None:
    certificate = read_certificate(certify(load_der_public_key(version.spki), **changes))
    with pytest.raises(OperatorError, match=message):
        check_certificate(certificate, version, NOW.timestamp())


def test_a_certificate_of_another_key_is_refused(version: KeyVersion, certify: Any) -> None:
    with pytest.raises(OperatorError, match="public key is not this version's"):
        check_certificate(
            read_certificate(certify(load_der_public_key(P256))), version, NOW.timestamp()
        )


def test_everything_wrong_is_listed_at_once(version: KeyVersion, certify: Any) -> None:
    certificate = read_certificate(
        certify(load_der_public_key(P256), ca=True, ends=NOW - timedelta(hours=1))
    )
    with pytest.raises(OperatorError) as refused:
        check_certificate(certificate, version, NOW.timestamp())
    assert len(str(refused.value).splitlines()) == 4


def test_a_description_says_what_verifiers_ask(certify: Any) -> None:
    oid = "1.3.6.1.4.1.1847.2021.1.2"
    certificate = read_certificate(certify(load_der_public_key(P256), usages=[oid]))
    der = certificate.public_bytes(Encoding.DER)
    described = describe_certificate(der)
    assert described["extended_key_usages"] == [oid]
    assert described["subject"] == "CN=test,C=VN"
    assert described["serial"] == "7"
    assert described["sha256"] == hashlib.sha256(der).hexdigest()
    assert extended_key_usages(read_certificate(certify(load_der_public_key(P256)))) == ()


def test_public_keys_in_pem() -> None:
    pem = public_key_pem(P256)
    assert pem.startswith("-----BEGIN PUBLIC KEY-----\n")


def test_a_certificate_becomes_the_kid(version: KeyVersion, certify: Any, now: float) -> None:
    pem = certify(load_der_public_key(version.spki))
    der = read_certificate(pem).public_bytes(Encoding.DER)
    changed = certified(version, pem, now)
    assert (changed.certificate, changed.kid) == (der, hashlib.sha256(der).digest()[:8])
    assert certified(changed, der, now) is changed


def test_another_certificate_replaces_it_only_where_asked(
    version: KeyVersion, certify: Any, now: float
) -> None:
    key = load_der_public_key(version.spki)
    changed = certified(version, certify(key), now)
    other = certify(key, key_usage=False)
    with pytest.raises(OperatorError, match="--replace"):
        certified(changed, other, now)
    assert certified(changed, other, now, replaces=True).kid != changed.kid

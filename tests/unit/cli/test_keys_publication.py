"""Public material: which versions, and forms that other programs read."""

import base64
import hashlib
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from signer.cli.keys.exporting import certificates, jwks, published, trust_list
from signer.client import KeyVersion
from signer.errors import OperatorError
from tests.unit.cli.operations_played import certify, der, of_key, version

V = "facilities/f/keys/k/versions/1"
SOON = datetime(2030, 1, 1, tzinfo=UTC)

KEYS: list[tuple[str, Any]] = [
    ("ES256", ec.generate_private_key(ec.SECP256R1())),
    ("ES384", ec.generate_private_key(ec.SECP384R1())),
    ("PS256", rsa.generate_private_key(65_537, 2048)),
    ("EdDSA", ed25519.Ed25519PrivateKey.generate()),
]


def number(text: str) -> int:
    return int.from_bytes(raw(text))


def raw(text: str) -> bytes:
    assert "=" not in text
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def load(jwk: dict[str, str]) -> Any:
    """A public key from a JWK, as RFC 7518 and RFC 8037 have it."""
    match jwk["kty"]:
        case "EC":
            curve: Any = {"P-256": ec.SECP256R1(), "P-384": ec.SECP384R1()}[jwk["crv"]]
            assert len(raw(jwk["x"])) == len(raw(jwk["y"])) == curve.key_size // 8
            return ec.EllipticCurvePublicNumbers(
                number(jwk["x"]), number(jwk["y"]), curve
            ).public_key()
        case "RSA":
            return rsa.RSAPublicNumbers(number(jwk["e"]), number(jwk["n"])).public_key()
        case _:
            assert (jwk["kty"], jwk["crv"]) == ("OKP", "Ed25519")
            return ed25519.Ed25519PublicKey.from_public_bytes(raw(jwk["x"]))


@pytest.mark.parametrize(("algorithm", "key"), KEYS, ids=[name for name, _ in KEYS])
def test_a_jwk_is_the_public_key(algorithm: str, key: Any) -> None:
    made = of_key(key, algorithm, V)
    [jwk] = json.loads(jwks([made]))["keys"]
    spki = load(jwk).public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert spki == made.public_key
    assert (jwk["alg"], jwk["use"]) == (algorithm, "sig")
    required = {"EC": "crv kty x y", "RSA": "e kty n", "OKP": "crv kty x"}[jwk["kty"]].split()
    text = json.dumps({name: jwk[name] for name in required}, separators=(",", ":"))
    thumbprint = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest())
    assert jwk["kid"] == thumbprint.rstrip(b"=").decode()


def test_a_wrong_thumbprint_is_not_published() -> None:
    with pytest.raises(OperatorError, match="thumbprint"):
        jwks([version(V, jwk_thumbprint="x")])


@pytest.mark.parametrize("country", ["VN", None])
def test_a_trust_list_is_read_as_verifiers_do(country: str | None) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = certify(key, "CN=DSC" + (f",C={country}" if country else ""))
    made = of_key(key, "ES256", V, certificate=der(certificate))
    [item] = json.loads(trust_list([made, version(V)]))
    raw_data = base64.b64decode(item["rawData"], validate=True)
    assert x509.load_der_x509_certificate(raw_data) == certificate
    assert base64.b64decode(item["kid"]) == hashlib.sha256(raw_data).digest()[:8] == made.kid
    assert item["thumbprint"] == hashlib.sha256(raw_data).hexdigest()
    assert (item["country"], item["certificateType"]) == (country or "", "DSC")
    assert datetime.fromisoformat(item["timestamp"]) == made.created


def test_a_bundle_is_read_as_pem() -> None:
    made = [certify(ec.generate_private_key(ec.SECP256R1()), f"CN={name}") for name in "ab"]
    versions = [version(V, certificate=der(each)) for each in made]
    text = certificates([versions[0], version(V), versions[1]])
    assert x509.load_pem_x509_certificates(text.encode()) == made
    assert certificates([version(V)]) == ""


def of_states() -> list[KeyVersion]:
    return [
        version("a", "PRE_ACTIVE"),
        version("b", "PRE_ACTIVE", activate_at=SOON),
        version("c", "ACTIVE"),
        version("d", "SUSPENDED"),
        version("e", "DEACTIVATED"),
        version("f", "COMPROMISED"),
        version("g", "DESTROY_SCHEDULED"),
        version("h", "DESTROY_SCHEDULED", activate_at=None),
        version("i", "DESTROYED"),
        version("j", "DESTROYED", activate_at=None),
        version("k", "A_NEWER_STATE"),
    ]


@pytest.mark.parametrize(("announced", "names"), [(True, "bcdegi"), (False, "cdegi")])
def test_versions_that_sign_or_have_signed(announced: bool, names: str) -> None:
    found = published(of_states(), announced=announced)
    assert "".join(each.name for each in found) == names

"""Key versions with software keys, so that what the formats make can be verified."""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa, utils
from cryptography.x509.oid import ExtensionOID

from signer.algorithms import Algorithm
from signer.format_terms import ContentRules, FormatContext, HcertTerms, ShcTerms, TimestampTerms
from signer.model import KeyName, KeyVersion
from tests.stand_ins import key_version

NOW = int(datetime(2022, 1, 15, 12, 0, tzinfo=UTC).timestamp())
CARDS = ShcTerms("https://cards.example/vn", frozenset({"immunization"}))
TIME_STAMPING = "1.3.6.1.5.5.7.3.8"
TSA = TimestampTerms("1.3.6.1.4.1.32473.1", 1)
YEAR = 365 * 24 * 3600

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey


@dataclass(frozen=True)
class SoftKey:
    """A private key that signs as the HSM would, and the version it belongs to."""

    private: PrivateKey
    version: KeyVersion

    def sign(self, message: bytes) -> bytes:
        algorithm = self.version.algorithm
        if isinstance(self.private, ed25519.Ed25519PrivateKey):
            return self.private.sign(message)
        if isinstance(self.private, rsa.RSAPrivateKey):
            return self.private.sign(message, rsa_padding(algorithm), hashes.SHA256())
        size = (self.private.key_size + 7) // 8
        der = self.private.sign(message, ec.ECDSA(ecdsa_hash(algorithm)))
        r, s = utils.decode_dss_signature(der)
        return r.to_bytes(size, "big") + s.to_bytes(size, "big")

    def verify(self, signature: bytes, message: bytes) -> None:
        algorithm = self.version.algorithm
        public = self.private.public_key()
        if isinstance(public, ed25519.Ed25519PublicKey):
            public.verify(signature, message)
        elif isinstance(public, rsa.RSAPublicKey):
            public.verify(signature, message, rsa_padding(algorithm), hashes.SHA256())
        else:
            half = len(signature) // 2
            der = utils.encode_dss_signature(
                int.from_bytes(signature[:half], "big"), int.from_bytes(signature[half:], "big")
            )
            public.verify(der, message, ec.ECDSA(ecdsa_hash(algorithm)))


def rsa_padding(algorithm: Algorithm) -> padding.AsymmetricPadding:
    if algorithm is Algorithm.PS256:
        return padding.PSS(padding.MGF1(hashes.SHA256()), 32)
    return padding.PKCS1v15()


def ecdsa_hash(algorithm: Algorithm) -> hashes.HashAlgorithm:
    return hashes.SHA384() if algorithm is Algorithm.ES384 else hashes.SHA256()


def certify(
    private: PrivateKey,
    usages: Sequence[str] = (),
    not_before: int = NOW - YEAR,
    not_after: int = NOW + 2 * YEAR,
    raw_usages: bytes | None = None,
    *,
    critical: bool = False,
) -> bytes:
    """Returns a self-signed certificate in DER with these extended key usages (or their DER)."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    builder = x509.CertificateBuilder(
        issuer_name=name,
        subject_name=name,
        public_key=private.public_key(),
        serial_number=1,
        not_valid_before=datetime.fromtimestamp(not_before, UTC),
        not_valid_after=datetime.fromtimestamp(not_after, UTC),
    )
    if usages:
        oids = [x509.ObjectIdentifier(usage) for usage in usages]
        builder = builder.add_extension(x509.ExtendedKeyUsage(oids), critical=critical)
    if raw_usages is not None:
        raw = x509.UnrecognizedExtension(ExtensionOID.EXTENDED_KEY_USAGE, raw_usages)
        builder = builder.add_extension(raw, critical=False)
    digest = None if isinstance(private, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    certificate = builder.sign(private, digest)
    return certificate.public_bytes(serialization.Encoding.DER)


def soft_key(algorithm: Algorithm, private: PrivateKey) -> SoftKey:
    certificate = certify(private)
    spki = private.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    version = key_version(
        key=KeyName("moh", "dcc"),
        algorithm=algorithm,
        token="signer",
        cka_id=b"\x01",
        spki=spki,
        certificate=certificate,
        kid=hashlib.sha256(certificate).digest()[:8],
        thumbprint="NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs",
    )
    return SoftKey(private, version)


@pytest.fixture(scope="session")
def keys() -> dict[Algorithm, SoftKey]:
    rsa_key = rsa.generate_private_key(65537, 2048)
    private: dict[Algorithm, PrivateKey] = {
        Algorithm.ES256: ec.generate_private_key(ec.SECP256R1()),
        Algorithm.ES384: ec.generate_private_key(ec.SECP384R1()),
        Algorithm.RS256: rsa_key,
        Algorithm.PS256: rsa_key,
        Algorithm.EDDSA: ed25519.Ed25519PrivateKey.generate(),
    }
    return {algorithm: soft_key(algorithm, key) for algorithm, key in private.items()}


@pytest.fixture(scope="session")
def certified(keys: dict[Algorithm, SoftKey]) -> Callable[..., KeyVersion]:
    """Makes ES256 versions with certificates as asked for (see ``certify``)."""
    key = keys[Algorithm.ES256]

    def make(**certificate: Any) -> KeyVersion:
        return dataclasses.replace(key.version, certificate=certify(key.private, **certificate))

    return make


ContextMaker = Callable[..., FormatContext]


@pytest.fixture(scope="session")
def context(keys: dict[Algorithm, SoftKey]) -> ContextMaker:
    """Makes a context with good defaults, of which a test changes one thing."""

    def make(
        algorithm: Algorithm = Algorithm.ES256,
        *,
        version: KeyVersion | None = None,
        now: int = NOW,
        content: ContentRules | None = None,
        hcert: HcertTerms | None = HcertTerms("VN", YEAR),  # noqa: B008 - frozen
        shc: ShcTerms | None = CARDS,
        timestamp: TimestampTerms | None = TSA,
        stamping: bool = False,
    ) -> FormatContext:
        chosen = version or keys[algorithm].version
        if stamping:
            made = certify(keys[algorithm].private, [TIME_STAMPING], critical=True)
            chosen = dataclasses.replace(chosen, certificate=made)
        content = content or ContentRules()
        return FormatContext(chosen, now, hcert, content, shc, timestamp, call_id="a call")

    return make

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa, utils
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from signer.algorithms import Algorithm
from signer.errors import OperatorError
from signer.keys.lifecycle import NewKey, TokenAdmin, create_key
from signer.keys.registry import Registry
from signer.model import KeyName, KeyVersion

NOW = datetime(2026, 1, 15, tzinfo=UTC)

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey


class SoftToken:
    """A token in memory: makes and uses keys as the HSM layer does."""

    token = "soft"

    def __init__(self) -> None:
        self.private: dict[bytes, PrivateKey] = {}
        self.labels: set[str] = set()

    def generate(self, algorithm: Algorithm, bits: int, cka_id: bytes, label: str) -> bytes:
        if cka_id in self.private or label in self.labels:
            raise OperatorError("it has such a key")
        key: PrivateKey
        if algorithm is Algorithm.ES256:
            key = ec.generate_private_key(ec.SECP256R1())
        elif algorithm is Algorithm.ES384:
            key = ec.generate_private_key(ec.SECP384R1())
        elif algorithm is Algorithm.EDDSA:
            key = ed25519.Ed25519PrivateKey.generate()
        else:
            key = rsa.generate_private_key(65537, bits)
        self.private[cka_id] = key
        self.labels.add(label)
        return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    def sign(
        self, algorithm: Algorithm, cka_id: bytes, spki: bytes, inputs: Sequence[bytes]
    ) -> list[bytes]:
        del spki
        return [self._sign(algorithm, self.private[cka_id], data) for data in inputs]

    @staticmethod
    def _sign(algorithm: Algorithm, key: PrivateKey, data: bytes) -> bytes:
        if isinstance(key, ed25519.Ed25519PrivateKey):
            return key.sign(data)
        if isinstance(key, rsa.RSAPrivateKey):
            pss = padding.PSS(padding.MGF1(hashes.SHA256()), 32)
            pad = pss if algorithm is Algorithm.PS256 else padding.PKCS1v15()
            return key.sign(data, pad, utils.Prehashed(hashes.SHA256()))
        hashed = hashes.SHA256() if algorithm is Algorithm.ES256 else hashes.SHA384()
        size = key.key_size // 8
        der = key.sign(data, ec.ECDSA(utils.Prehashed(hashed)))
        return b"".join(part.to_bytes(size, "big") for part in utils.decode_dss_signature(der))


Certify = Callable[..., bytes]


@pytest.fixture
def now() -> float:
    return NOW.timestamp()


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/registry.sqlite"


@pytest.fixture
def postgres_url(postgres: Any) -> Iterator[str]:
    url: str = postgres.database()
    yield url
    postgres.drop(url)


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest) -> str:
    """Where nothing is yet, on each kind of database."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


@pytest.fixture
def registry(url: str) -> Iterator[Registry]:
    with Registry.open(url, create=True) as opened:
        yield opened


@pytest.fixture
def token() -> SoftToken:
    return SoftToken()


@pytest.fixture
def version(registry: Registry, token: SoftToken, now: float) -> KeyVersion:
    """A registered ES256 key."""
    return create_key(
        registry, cast("TokenAdmin", token), NewKey(KeyName("moh", "dcc"), Algorithm.ES256), now
    )


@pytest.fixture(scope="session")
def authority_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@pytest.fixture
def certify(authority_key: ec.EllipticCurvePrivateKey) -> Certify:
    """Issues a certificate (PEM) that suits a signing key, but for what a test changes."""

    def issue(
        public_key: Any,
        *,
        begins: datetime = NOW - timedelta(days=1),
        ends: datetime = NOW + timedelta(days=730),
        digital_signature: bool = True,
        ca: bool = False,
        usages: Sequence[str] = (),
        key_usage: bool = True,
    ) -> bytes:
        name = x509.Name.from_rfc4514_string("CN=test,C=VN")
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(public_key)
            .serial_number(7)
            .not_valid_before(begins)
            .not_valid_after(ends)
        )
        if ca:
            builder = builder.add_extension(x509.BasicConstraints(True, None), critical=True)
        if key_usage:
            usage = x509.KeyUsage(digital_signature, not digital_signature, *([False] * 7))
            builder = builder.add_extension(usage, critical=True)
        if usages:
            oids = [x509.ObjectIdentifier(oid) for oid in usages]
            builder = builder.add_extension(x509.ExtendedKeyUsage(oids), critical=False)
        return builder.sign(authority_key, hashes.SHA256()).public_bytes(Encoding.PEM)

    return issue

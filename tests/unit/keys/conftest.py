from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from signer.algorithms import Algorithm
from signer.keys.lifecycle import NewKey, TokenAdmin, create_key
from signer.keys.registry import Registry
from signer.model import KeyName, KeyVersion
from tests.unit.officers.softtoken import Fate, SoftToken

NOW = datetime(2026, 1, 15, tzinfo=UTC)

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
    return SoftToken(Fate())


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
        builder = x509.CertificateBuilder(name, name, public_key, 7, begins, ends)
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

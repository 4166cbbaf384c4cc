"""Officers who sign, and authorities that certify."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, load_der_public_key

A, B, C, D, E = (f"spiffe://signer.example/officer/{name}" for name in "abcde")
BEGINS, ENDS = datetime(2025, 1, 1, tzinfo=UTC), datetime(2060, 1, 1, tzinfo=UTC)
E_ENDS = datetime(2026, 2, 10, tzinfo=UTC)
"""The certificate of officer E expires before long."""


@cache
def key_of(who: str) -> ec.EllipticCurvePrivateKey:
    del who
    return ec.generate_private_key(ec.SECP256R1())


def certificate_of(
    who: str,
    *,
    key: Any = None,
    uris: Sequence[str] | None = None,
    begins: datetime = BEGINS,
    ends: datetime | None = None,
    ca: bool = False,
) -> x509.Certificate:
    """An officer's certificate that is good but for what a test changes."""
    private = key or key_of(who)
    ends = ends or (E_ENDS if who == E else ENDS)
    name = x509.Name.from_rfc4514_string(f"CN=officer {who[-1]}")
    names = [x509.UniformResourceIdentifier(uri) for uri in ([who] if uris is None else uris)]
    builder = x509.CertificateBuilder(name, name, private.public_key(), 11, begins, ends)
    if ca:
        builder = builder.add_extension(x509.BasicConstraints(ca, None), critical=True)
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    hashed = None if isinstance(private, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(private, hashed)


@cache
def der_of(who: str) -> bytes:
    return certificate_of(who).public_bytes(Encoding.DER)


def pem_of(who: str) -> str:
    return pem(x509.load_der_x509_certificate(der_of(who)))


def pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(Encoding.PEM).decode()


OFFICERS: Mapping[str, bytes] = {who: der_of(who) for who in (A, B, C)}


def sign(who: str, data: bytes) -> bytes:
    return key_of(who).sign(data, ec.ECDSA(hashes.SHA256()))


class Authority:
    """Certifies keys; ``parent`` is the authority above it."""

    def __init__(
        self,
        name: str = "CN=authority,C=VN",
        parent: "Authority | None" = None,
        *,
        ca: bool = True,
        ends: datetime = ENDS,
    ) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name.from_rfc4514_string(name)
        above = parent or self
        self.certificate = _certificate(
            (self.name, above.name), self._key.public_key(), above._key, ca=ca, ends=ends
        )

    @property
    def pem(self) -> str:
        return pem(self.certificate)

    def certify(self, spki: bytes, **changed: Any) -> x509.Certificate:
        """A certificate that suits a signing key, but for what a test changes."""
        subject = x509.Name.from_rfc4514_string("CN=signer,C=VN")
        return _certificate((subject, self.name), load_der_public_key(spki), self._key, **changed)


def _certificate(
    names: tuple[x509.Name, x509.Name],
    public_key: Any,
    signs: ec.EllipticCurvePrivateKey,
    *,
    ca: bool = False,
    begins: datetime = BEGINS,
    ends: datetime = ENDS,
    digital_signature: bool = True,
    usages: Sequence[str] = (),
) -> x509.Certificate:
    number = x509.random_serial_number()
    subject, issuer = names
    builder = x509.CertificateBuilder(issuer, subject, public_key, number, begins, ends)
    usage = x509.KeyUsage(digital_signature, not digital_signature, *([False] * 7))
    builder = builder.add_extension(usage, critical=True)
    builder = builder.add_extension(x509.BasicConstraints(ca, None), critical=True)
    if usages:
        oids = [x509.ObjectIdentifier(oid) for oid in usages]
        builder = builder.add_extension(x509.ExtendedKeyUsage(oids), critical=False)
    return builder.sign(signs, hashes.SHA256())

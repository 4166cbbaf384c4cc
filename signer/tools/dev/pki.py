"""The small PKI of a development appliance: three authorities and their certificates.

Private keys are PKCS #8 in PEM, not encrypted, mode 0600, beside their certificates. A
certificate is written after its key, so the key exists where the certificate does.
"""

import ipaddress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_public_key,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from signer.files import SECRET, replace_file
from signer.tools.dev.key_plan import Purpose

SERVER_NAME = "localhost"

VACCINATION = x509.ObjectIdentifier("1.3.6.1.4.1.1847.2021.1.2")
"""Extended key usage of certificates that sign vaccination certificates (EU DCC)."""

USAGES = {
    Purpose.DCC: VACCINATION,
    Purpose.DOCUMENTS: None,
    Purpose.TIMESTAMPS: ExtendedKeyUsageOID.TIME_STAMPING,
}
"""The extended key usage of each kind of certificate."""

_AUTHORITY_DAYS, _CLIENT_DAYS, _SIGNER_DAYS = 3650, 825, 1095

PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey | ed25519.Ed25519PublicKey


class Authority(NamedTuple):
    """A certificate that issues others, and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    def issue(
        self,
        public_key: PublicKey,
        subject: x509.Name,
        usage: x509.ObjectIdentifier | None,
        names: list[x509.GeneralName],
        days: int,
    ) -> x509.Certificate:
        """Returns a certificate for digital signatures with one extended key usage or none."""
        builder = (
            _builder(public_key, subject, self.certificate.subject, days)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()),
                critical=False,
            )
        )
        if usage is not None:
            critical = usage == ExtendedKeyUsageOID.TIME_STAMPING  # RFC 3161 section 2.3
            builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=critical)
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self.key, hashes.SHA256())


def authority(folder: Path, name: str, common_name: str) -> Authority:
    """Returns the authority ``name``, created if it is not there."""
    path, key_path = folder / f"{name}.pem", folder / f"{name}.key"
    if path.exists():
        key = load_pem_private_key(key_path.read_bytes(), password=None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise TypeError(f"{key_path} is not an EC key")
        return Authority(x509.load_pem_x509_certificate(path.read_bytes()), key)
    key = _new_key(key_path)
    subject = _name(common_name)
    certificate = (
        _builder(key.public_key(), subject, subject, _AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    replace_file(path, certificate.public_bytes(Encoding.PEM))
    return Authority(certificate, key)


def server(folder: Path, issuer: Authority) -> None:
    """Creates the server's certificate and key if they are not there."""
    names = [x509.DNSName(SERVER_NAME), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    _leaf(folder, "server", issuer, ExtendedKeyUsageOID.SERVER_AUTH, names)


def client(folder: Path, issuer: Authority, name: str, principal: str) -> None:
    """Creates a client's certificate, with its principal as the one URI, and key."""
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(principal)]
    _leaf(folder, name, issuer, ExtendedKeyUsageOID.CLIENT_AUTH, names)


def signing_certificate(
    issuer: Authority, spki: bytes, common_name: str, usage: x509.ObjectIdentifier | None
) -> bytes:
    """Returns a certificate (PEM) for a key of the token; without ``usage`` it may be any."""
    key = load_der_public_key(spki)
    if not isinstance(key, PublicKey):
        raise TypeError("not a key of our algorithms")
    certificate = issuer.issue(key, _name(common_name), usage, [], _SIGNER_DAYS)
    return certificate.public_bytes(Encoding.PEM)


def _leaf(
    folder: Path,
    name: str,
    issuer: Authority,
    usage: x509.ObjectIdentifier,
    names: list[x509.GeneralName],
) -> None:
    path = folder / f"{name}.pem"
    if not path.exists():
        key = _new_key(folder / f"{name}.key")
        made = issuer.issue(key.public_key(), _name(name), usage, names, _CLIENT_DAYS)
        replace_file(path, made.public_bytes(Encoding.PEM))


def _new_key(path: Path) -> ec.EllipticCurvePrivateKey:
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    replace_file(path, pem, SECRET)
    return key


def _builder(
    public_key: PublicKey, subject: x509.Name, issuer: x509.Name, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.COUNTRY_NAME, "VN"),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Signer development"),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )

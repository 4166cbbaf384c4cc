"""Public keys and certificates: their names in messages, and what a certificate must be."""

from __future__ import annotations

import base64
import hashlib
import json
from datetime import UTC, datetime

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_public_key,
)

from signer.errors import OperatorError
from signer.model import Algorithm, KeyVersion

RSA_BITS = (2048, 3072, 4096)
"""Lengths of an RSA modulus that we make and accept."""

MAX_CERTIFICATE_BYTES = 65_536
_PEM_BEGIN = b"-----BEGIN CERTIFICATE-----"

_CRV = {"secp256r1": "P-256", "secp384r1": "P-384"}  # RFC 7518 section 6.2.1.1
_CURVES = {Algorithm.ES256: ec.SECP256R1, Algorithm.ES384: ec.SECP384R1}


def fingerprint(der: bytes) -> str:
    """Returns the SHA-256 of a public key or certificate in DER, as hex."""
    return hashlib.sha256(der).hexdigest()


def cose_kid(spki: bytes, certificate: bytes | None) -> bytes:
    """Returns the key id of COSE messages: 8 bytes of the SHA-256 of the certificate.

    Without a certificate, of the public key (DESIGN section 7).
    """
    return hashlib.sha256(spki if certificate is None else certificate).digest()[:8]


def jwk_members(spki: bytes) -> dict[str, str]:
    """Returns the members that a JWK must have: RFC 7518 section 6, RFC 8037 section 2.

    Raises TypeError for other kinds of keys than ours.
    """
    key = load_der_public_key(spki)
    if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in _CRV:
        numbers, size = key.public_numbers(), (key.curve.key_size + 7) // 8
        return {
            "crv": _CRV[key.curve.name],
            "kty": "EC",
            "x": _b64u(numbers.x.to_bytes(size, "big")),
            "y": _b64u(numbers.y.to_bytes(size, "big")),
        }
    if isinstance(key, rsa.RSAPublicKey):
        public = key.public_numbers()
        return {"e": _b64u_uint(public.e), "kty": "RSA", "n": _b64u_uint(public.n)}
    if isinstance(key, ed25519.Ed25519PublicKey):
        raw = key.public_bytes(Encoding.Raw, PublicFormat.Raw)
        return {"crv": "Ed25519", "kty": "OKP", "x": _b64u(raw)}
    raise TypeError("no JWK for this kind of key")


def jwk_thumbprint(spki: bytes) -> str:
    """Returns the key id of JWS headers: RFC 7638 with SHA-256, 43 characters of base64url.

    Raises TypeError for other kinds of keys.
    """
    # Section 3.3: no white space, members in the order of their names.
    text = json.dumps(jwk_members(spki), separators=(",", ":"), sort_keys=True)
    return _b64u(hashlib.sha256(text.encode()).digest())


def fits(spki: bytes, algorithm: Algorithm, bits: int | None = None) -> bool:
    """Whether a public key is one for the algorithm, with a modulus of ``bits`` if given."""
    try:
        key = load_der_public_key(spki)
    except (ValueError, UnsupportedAlgorithm):
        return False
    match algorithm:
        case Algorithm.ES256 | Algorithm.ES384:
            return isinstance(key, ec.EllipticCurvePublicKey) and isinstance(
                key.curve, _CURVES[algorithm]
            )
        case Algorithm.RS256 | Algorithm.PS256:
            allowed = RSA_BITS if bits is None else (bits,)
            return isinstance(key, rsa.RSAPublicKey) and key.key_size in allowed
        case Algorithm.EDDSA:
            return isinstance(key, ed25519.Ed25519PublicKey)


def read_certificate(data: bytes) -> x509.Certificate:
    """Parses the one certificate of a file, PEM or DER. Raises OperatorError."""
    if len(data) > MAX_CERTIFICATE_BYTES:
        raise OperatorError(
            f"the certificate file has {len(data)} bytes; {MAX_CERTIFICATE_BYTES} are allowed:"
            " give the signing certificate alone"
        )
    if data.count(_PEM_BEGIN) > 1:
        raise OperatorError(
            "the file has several certificates: give the signing certificate alone,"
            " without those of its issuers"
        )
    try:
        if _PEM_BEGIN in data:
            return x509.load_pem_x509_certificate(data)
        return x509.load_der_x509_certificate(data)
    except ValueError:
        raise OperatorError("the file is no X.509 certificate in PEM or DER") from None


def check_certificate(certificate: x509.Certificate, version: KeyVersion, now: float) -> None:
    """Checks that a certificate may stand for a key version from ``now`` on.

    Raises OperatorError that lists everything wrong with it.
    """
    problems = []
    if _spki(certificate) != version.spki:
        problems.append("its public key is not this version's; ask for one with `signer keys csr`")
    moment = datetime.fromtimestamp(now, UTC)
    if moment < certificate.not_valid_before_utc:
        problems.append(f"it is not valid before {certificate.not_valid_before_utc.isoformat()}")
    if moment > certificate.not_valid_after_utc:
        problems.append(f"it expired on {certificate.not_valid_after_utc.isoformat()}")
    problems += _extension_problems(certificate)
    if problems:
        raise OperatorError(
            f"the certificate is not accepted for {version.name}:\n  " + "\n  ".join(problems)
        )


def extended_key_usages(certificate: x509.Certificate) -> tuple[str, ...]:
    """Returns the OIDs of the extended key usage, none where it is absent."""
    try:
        usages = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage)
    except x509.ExtensionNotFound:
        return ()
    return tuple(usage.dotted_string for usage in usages.value)


def public_key_pem(spki: bytes) -> str:
    """Returns a public key as PEM text."""
    return (
        load_der_public_key(spki)
        .public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        .decode()
    )


def describe_certificate(der: bytes) -> dict[str, str | list[str]]:
    """Returns what people and programs ask of a certificate; times in ISO 8601 (UTC)."""
    certificate = x509.load_der_x509_certificate(der)
    return {
        "subject": certificate.subject.rfc4514_string(),
        "issuer": certificate.issuer.rfc4514_string(),
        "serial": f"{certificate.serial_number:x}",
        "not_before": certificate.not_valid_before_utc.isoformat(),
        "not_after": certificate.not_valid_after_utc.isoformat(),
        "extended_key_usages": list(extended_key_usages(certificate)),
        "sha256": fingerprint(der),
        "pem": certificate.public_bytes(Encoding.PEM).decode(),
    }


def _extension_problems(certificate: x509.Certificate) -> list[str]:
    try:
        extensions = certificate.extensions
    except (ValueError, x509.DuplicateExtension):
        return ["its extensions do not parse"]
    problems = []
    for extension in extensions:
        value = extension.value
        if isinstance(value, x509.KeyUsage) and not value.digital_signature:
            problems.append("its key usage (RFC 5280, 4.2.1.3) is without digitalSignature")
        if isinstance(value, x509.BasicConstraints) and value.ca:
            problems.append("it is the certificate of an authority (CA), not of a signing key")
    return problems


def _spki(certificate: x509.Certificate) -> bytes | None:
    try:
        key = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm):
        return None
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _b64u(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _b64u_uint(number: int) -> str:
    return _b64u(number.to_bytes((number.bit_length() + 7) // 8, "big"))

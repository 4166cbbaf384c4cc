"""Public keys and X.509 certificates: what they say, key ids in messages, who may have which."""

import base64
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

from signer.algorithms import PROPERTIES, RSA_BITS, Algorithm
from signer.errors import OperatorError
from signer.model import KeyVersion
from signer.text import utc

PEM_BEGIN = b"-----BEGIN CERTIFICATE-----"
MAX_CERTIFICATE_BYTES = 65_536

_CRV = {"secp256r1": "P-256", "secp384r1": "P-384"}  # RFC 7518 section 6.2.1.1


# --- public keys ---------------------------------------------------------------------------------


def spki_of(key: PublicKeyTypes) -> bytes:
    """Returns a public key as SubjectPublicKeyInfo in DER."""
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def fingerprint(der: bytes) -> str:
    """Returns the SHA-256 of a public key or certificate in DER, as hex."""
    return hashlib.sha256(der).hexdigest()


def cose_kid(spki: bytes, certificate: bytes | None) -> bytes:
    """Returns the COSE key id: 8 bytes of the SHA-256 of the certificate, else the public key."""
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


def spki_of_jwk(members: Mapping[str, object]) -> bytes:
    """Returns the public key of a JWK (RFC 7517) in DER, the inverse of ``jwk_members``.

    Raises ValueError for other kinds of keys than ours, and for numbers that are not a key.
    """
    values = {name: value for name, value in members.items() if isinstance(value, str)}
    number = {name: int.from_bytes(_unb64u(values.get(name, ""))) for name in ("x", "y", "n", "e")}
    match values:
        case {"kty": "EC", "crv": ("P-256" | "P-384") as crv}:
            curve = ec.SECP256R1() if crv == "P-256" else ec.SECP384R1()
            point = ec.EllipticCurvePublicNumbers(number["x"], number["y"], curve)
            return spki_of(point.public_key())
        case {"kty": "RSA"}:
            return spki_of(rsa.RSAPublicNumbers(number["e"], number["n"]).public_key())
        case {"kty": "OKP", "crv": "Ed25519", "x": x}:
            return spki_of(ed25519.Ed25519PublicKey.from_public_bytes(_unb64u(x)))
    raise ValueError("it must be an EC key on P-256 or P-384, an RSA key, or an Ed25519 key")


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
    match key:
        case rsa.RSAPublicKey():
            allowed = RSA_BITS if bits is None else (bits,)
            return PROPERTIES[algorithm].curve is None and key.key_size in allowed
        case ec.EllipticCurvePublicKey():
            return PROPERTIES[algorithm].curve == key.curve.name
        case ed25519.Ed25519PublicKey():
            return algorithm is Algorithm.EDDSA
        case _:
            return False


def is_canonical(spki: bytes) -> bool:
    """Returns whether a public key is written as this program writes it: one key, one text."""
    try:
        key = load_der_public_key(spki)
    except (ValueError, UnsupportedAlgorithm):
        return False
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) == spki


# --- certificates --------------------------------------------------------------------------------


def read_certificates(data: bytes) -> list[x509.Certificate]:
    """Reads the certificates of a file: one or several in PEM, or one in DER. Raises ValueError."""
    if PEM_BEGIN in data:
        return x509.load_pem_x509_certificates(data)
    return [x509.load_der_x509_certificate(data)]


def is_authority(certificate: x509.Certificate) -> bool:
    """Whether the certificate is that of an authority (basic constraints: CA)."""
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        return False
    return constraints.value.ca


def certifies(certificate: x509.Certificate) -> bool:
    """Whether the certificate's key may sign certificates or revocation lists, by what it says."""
    if is_authority(certificate):
        return True
    try:
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        return False
    return usage.key_cert_sign or usage.crl_sign


def uris_of(certificate: x509.Certificate) -> list[str]:
    """Returns the URIs among the subject's alternative names; none if they do not parse."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return list(names.get_values_for_type(x509.UniformResourceIdentifier))
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        return []


def read_certificate(data: bytes) -> x509.Certificate:
    """Parses the one certificate of a file, PEM or DER. Raises OperatorError."""
    if len(data) > MAX_CERTIFICATE_BYTES:
        raise OperatorError(
            f"the certificate file has {len(data)} bytes; {MAX_CERTIFICATE_BYTES} are allowed:"
            " give the signing certificate alone"
        )
    if data.count(PEM_BEGIN) > 1:
        raise OperatorError(
            "the file has several certificates: give the signing certificate alone,"
            " without those of its issuers"
        )
    try:
        return read_certificates(data)[0]
    except ValueError:
        raise OperatorError("the file is not an X.509 certificate in PEM or DER") from None


def certified(
    version: KeyVersion, data: bytes, now: float, *, replaces: bool = False
) -> KeyVersion:
    """Returns the version with a certificate (PEM or DER), or itself if it has that one.

    The certificate becomes the version's COSE key id, under which verifiers look it up;
    another one takes its place only with ``replaces``. Raises OperatorError.
    """
    certificate = read_certificate(data)
    der = certificate.public_bytes(Encoding.DER)
    if der == version.certificate:
        return version
    check_certificate(certificate, version, now)
    if version.certificate is not None and not replaces:
        raise OperatorError(
            f"{version.name} has another certificate, under whose key id its messages are verified;"
            " publish the new one to verifiers first, then repeat with --replace"
        )
    return replace(version, certificate=der, kid=cose_kid(version.spki, der))


def check_certificate(certificate: x509.Certificate, version: KeyVersion, now: float) -> None:
    """Raises OperatorError with every reason why a key version cannot have a certificate."""
    problems = []
    try:
        spki = spki_of(certificate.public_key())
    except (ValueError, UnsupportedAlgorithm):
        spki = b""
    if spki != version.spki:
        problems.append("its public key is not this version's; ask for one with `signer keys csr`")
    moment = datetime.fromtimestamp(now, UTC)
    if moment < certificate.not_valid_before_utc:
        begins = certificate.not_valid_before_utc.timestamp()
        problems.append(f"it is not valid before {utc(begins)}")
    if moment > certificate.not_valid_after_utc:
        problems.append(f"it expired on {utc(certificate.not_valid_after_utc.timestamp())}")
    problems += _extension_problems(certificate)
    if problems:
        raise OperatorError(
            f"the certificate is not accepted for {version.name}:\n  " + "\n  ".join(problems)
        )


def extended_key_usages(certificate: x509.Certificate) -> tuple[str, ...]:
    """Returns the OIDs of the extended key usage, none if it is absent."""
    try:
        usages = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage)
    except x509.ExtensionNotFound:
        return ()
    return tuple(usage.dotted_string for usage in usages.value)


def public_key_pem(spki: bytes) -> str:
    """Returns a public key as PEM text."""
    key = load_der_public_key(spki)
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def describe_certificate(
    der: bytes, time: Callable[[datetime], str | None] = datetime.isoformat
) -> dict[str, str | list[str] | None]:
    """Returns the parts of a certificate that commands print, its times as ``time`` writes them."""
    certificate = x509.load_der_x509_certificate(der)
    return {
        "subject": certificate.subject.rfc4514_string(),
        "issuer": certificate.issuer.rfc4514_string(),
        "serial": f"{certificate.serial_number:x}",
        "not_before": time(certificate.not_valid_before_utc),
        "not_after": time(certificate.not_valid_after_utc),
        "extended_key_usages": list(extended_key_usages(certificate)),
        "sha256": fingerprint(der),
        "pem": certificate.public_bytes(Encoding.PEM).decode(),
    }


def _extension_problems(certificate: x509.Certificate) -> list[str]:
    try:
        extensions = certificate.extensions
    except (ValueError, x509.DuplicateExtension):
        return ["its extensions do not parse"]
    problems = [
        "its key usage (RFC 5280, 4.2.1.3) is without digitalSignature"
        for extension in extensions
        if isinstance(extension.value, x509.KeyUsage) and not extension.value.digital_signature
    ]
    if is_authority(certificate):
        problems.append("it is the certificate of an authority (CA), not of a signing key")
    return problems


def _b64u(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _unb64u(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)


def _b64u_uint(number: int) -> str:
    return _b64u(number.to_bytes((number.bit_length() + 7) // 8, "big"))

"""What several parts of the product read from X.509 certificates and public keys."""

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

PEM_BEGIN = b"-----BEGIN CERTIFICATE-----"


def spki_of(key: PublicKeyTypes) -> bytes:
    """Returns a public key as SubjectPublicKeyInfo in DER."""
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


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
    """Returns the URIs among the subject's alternative names; none where they do not parse."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return list(names.get_values_for_type(x509.UniformResourceIdentifier))
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        return []

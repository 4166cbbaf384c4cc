"""ASN.1 of CMS signatures in DER: RFC 5652 section 5, signing-certificate-v2 of RFC 5035.

Algorithm identifiers stay encoded: there is a closed list of them, which is compared as bytes.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated, NamedTuple

from cryptography.hazmat import asn1
from cryptography.x509 import ObjectIdentifier

from signer.algorithms import Algorithm

DATA = ObjectIdentifier("1.2.840.113549.1.7.1")
SIGNED_DATA = ObjectIdentifier("1.2.840.113549.1.7.2")
CONTENT_TYPE = ObjectIdentifier("1.2.840.113549.1.9.3")
MESSAGE_DIGEST = ObjectIdentifier("1.2.840.113549.1.9.4")
SIGNING_TIME = ObjectIdentifier("1.2.840.113549.1.9.5")
SIGNING_CERTIFICATE = ObjectIdentifier("1.2.840.113549.1.9.16.2.47")  # version 2


# --- structures -----------------------------------------------------------------------------------


@asn1.sequence
class IssuerAndSerial:
    """A certificate by its issuer's name and its serial number; the name as it is encoded."""

    issuer: asn1.TLV
    serial: int


@asn1.sequence
class CmsAttribute:
    """An attribute of a signature."""

    type: ObjectIdentifier
    values: asn1.SetOf[asn1.TLV]


@asn1.sequence
class CmsAttributes:
    """The signed attributes, in a sequence: structures of the library are sequences."""

    items: asn1.SetOf[CmsAttribute]


@asn1.sequence
class CertificateId:
    """ESSCertIDv2 with its default hash, SHA-256."""

    sha256: bytes


@asn1.sequence
class SigningCertificate:
    """SigningCertificateV2: the certificate of the signing key is the first of the list."""

    certificates: list[CertificateId]


@asn1.sequence
class EncapsulatedContent:
    """What is signed; a detached signature is without it."""

    type: ObjectIdentifier
    content: Annotated[bytes | None, asn1.Explicit(0)]


@asn1.sequence
class SignerInfo:
    """One signature with its attributes."""

    version: int
    certificate: IssuerAndSerial
    digest_algorithm: asn1.TLV
    signed_attributes: Annotated[asn1.SetOf[CmsAttribute], asn1.Implicit(0)]
    signature_algorithm: asn1.TLV
    signature: bytes
    unsigned_attributes: Annotated[asn1.SetOf[CmsAttribute] | None, asn1.Implicit(1)] = None


@asn1.sequence
class SignedData:
    """Signatures, and the certificates of their keys."""

    version: int
    digest_algorithms: asn1.SetOf[asn1.TLV]
    content: EncapsulatedContent
    certificates: Annotated[asn1.SetOf[asn1.TLV] | None, asn1.Implicit(0)]
    crls: Annotated[asn1.SetOf[asn1.TLV] | None, asn1.Implicit(1)]
    signers: asn1.SetOf[SignerInfo]


@asn1.sequence
class ContentInfo:
    """A whole message."""

    type: ObjectIdentifier
    content: Annotated[SignedData, asn1.Explicit(0)]


@asn1.sequence
class _One:
    item: asn1.TLV


@asn1.sequence
class _Nested:
    items: list[asn1.TLV]


def tlv(der: bytes) -> asn1.TLV:
    """Returns an encoded value as the library's type for any value; raises ValueError."""
    return asn1.decode_der(asn1.TLV, der)


def elements(sequence: asn1.TLV) -> list[asn1.TLV]:
    """Returns the elements of a SEQUENCE, whatever they are; raises ValueError."""
    return asn1.decode_der(_Nested, asn1.encode_der(_One(item=sequence))).items


def attributes_der(items: asn1.SetOf[CmsAttribute]) -> bytes:
    """Returns attributes as they are signed: a SET OF, which in the message has another tag."""
    outer = asn1.decode_der(asn1.TLV, asn1.encode_der(CmsAttributes(items=items)))
    return bytes(outer.data)


@lru_cache(maxsize=4096)
def certificate_id(certificate: bytes) -> tuple[bytes, int]:
    """Returns issuer, in DER, and serial number of a certificate; raises ValueError."""
    try:
        tbs = elements(elements(tlv(certificate))[0])
        # The version comes first, with the tag [0]; it is absent in version 1.
        first = 1 if asn1.encode_der(tbs[0])[0] == _VERSION_TAG else 0
        serial, _, issuer = tbs[first : first + 3]
    except (IndexError, ValueError):
        raise ValueError("it is not a certificate in DER") from None
    return asn1.encode_der(issuer), int.from_bytes(serial.data, signed=True)


_VERSION_TAG = 0xA0


# --- algorithms -----------------------------------------------------------------------------------


@asn1.sequence
class _Plain:
    algorithm: ObjectIdentifier


@asn1.sequence
class _WithNull:
    algorithm: ObjectIdentifier
    parameters: asn1.Null


@asn1.sequence
class _WithHash:
    algorithm: ObjectIdentifier
    parameters: asn1.TLV


@asn1.sequence
class _PssParameters:
    hash: Annotated[asn1.TLV, asn1.Explicit(0)]
    mask: Annotated[asn1.TLV, asn1.Explicit(1)]
    salt: Annotated[int, asn1.Explicit(2)]


def _plain(oid: str) -> bytes:
    return asn1.encode_der(_Plain(algorithm=ObjectIdentifier(oid)))


def _null(oid: str) -> bytes:
    return asn1.encode_der(_WithNull(algorithm=ObjectIdentifier(oid), parameters=asn1.Null()))


def _pss(hash_identifier: bytes) -> bytes:
    """RSASSA-PSS with one hash for message and mask, and a salt of 32 bytes (RFC 4055)."""
    mgf1, pss = ObjectIdentifier("1.2.840.113549.1.1.8"), ObjectIdentifier("1.2.840.113549.1.1.10")
    mask = asn1.encode_der(_WithHash(algorithm=mgf1, parameters=tlv(hash_identifier)))
    parameters = _PssParameters(hash=tlv(hash_identifier), mask=tlv(mask), salt=32)
    whole = _WithHash(algorithm=pss, parameters=tlv(asn1.encode_der(parameters)))
    return asn1.encode_der(whole)


HASHES: Mapping[str, tuple[bytes, bytes]] = {
    name: (_plain(oid), _null(oid))
    for name, oid in {
        "sha256": "2.16.840.1.101.3.4.2.1",
        "sha384": "2.16.840.1.101.3.4.2.2",
        "sha512": "2.16.840.1.101.3.4.2.3",
    }.items()
}
"""Identifiers of hashes: that which is written, and one more that is read (RFC 5754)."""


class CmsAlgorithm(NamedTuple):
    """How CMS names an algorithm: the hash of the content, and identifiers in DER.

    The first identifier is written, all are read. ``numbers``: the signature is a sequence of
    r and s in DER, and not as the HSM makes it.
    """

    hash_name: str
    identifiers: tuple[bytes, ...]
    numbers: bool = False


CMS_ALGORITHMS: Mapping[Algorithm, CmsAlgorithm] = {
    Algorithm.ES256: CmsAlgorithm("sha256", (_plain("1.2.840.10045.4.3.2"),), numbers=True),
    Algorithm.ES384: CmsAlgorithm("sha384", (_plain("1.2.840.10045.4.3.3"),), numbers=True),
    # rsaEncryption, and sha256WithRSAEncryption (RFC 5754 section 3.2)
    Algorithm.RS256: CmsAlgorithm(
        "sha256", (_null("1.2.840.113549.1.1.1"), _null("1.2.840.113549.1.1.11"))
    ),
    Algorithm.PS256: CmsAlgorithm("sha256", (_pss(HASHES["sha256"][1]), _pss(HASHES["sha256"][0]))),
    Algorithm.EDDSA: CmsAlgorithm("sha512", (_plain("1.3.101.112"),)),  # RFC 8419
}

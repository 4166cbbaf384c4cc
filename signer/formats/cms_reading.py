"""CMS signatures, read back: what was signed, by which certificate, when. Nothing is verified.

Only the form that an appliance writes: DER, one signer, issuer and serial number, and the
attribute signing-certificate-v2.
"""

import hashlib
from collections.abc import Mapping
from typing import NamedTuple

from cryptography.hazmat import asn1
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509 import ObjectIdentifier

from signer.algorithms import PROPERTIES, Algorithm
from signer.formats.cms_asn1 import (
    CMS_ALGORITHMS,
    CONTENT_TYPE,
    HASHES,
    MESSAGE_DIGEST,
    SIGNED_DATA,
    SIGNING_CERTIFICATE,
    SIGNING_TIME,
    ContentInfo,
    SignerInfo,
    attributes_der,
    certificate_id,
    elements,
)
from signer.formats.payloads import MessageError

_SEQUENCE, _OCTETS = 0x30, 0x04
_UTC_TIME = 0x17
_HEAD = 6  # bytes of tag and length, at most
_TYPE = bytes.fromhex("06092a864886f70d0107")  # an object identifier, below that of PKCS #7
_BY_IDENTIFIER = {
    identifier: algorithm
    for algorithm, row in CMS_ALGORITHMS.items()
    for identifier in row.identifiers
}


class CmsParts(NamedTuple):
    """A CMS signature: ``signed`` are the attributes as they were signed.

    ``signature`` is raw. ``content`` is what the message contains, None if it is detached;
    ``digest`` is that of the content. ``time`` is in epoch seconds, as the signer says, or None.
    ``certificate_sha256`` identifies the certificate of the key; the message may hold it.
    """

    content_type: ObjectIdentifier
    content: bytes | None
    algorithm: Algorithm
    digest: bytes
    time: float | None
    certificate_sha256: bytes
    issuer: bytes
    serial: int
    certificates: tuple[bytes, ...]
    signed: bytes
    signature: bytes

    @property
    def hash_name(self) -> str:
        """The hash of the content."""
        return CMS_ALGORITHMS[self.algorithm].hash_name

    def holds(self, content: bytes) -> bool:
        """Whether the digest is that of a content."""
        return hashlib.new(self.hash_name, content).digest() == self.digest

    def certificate(self) -> bytes | None:
        """Returns the certificate of the key, if it is in the message."""
        for each in self.certificates:
            if hashlib.sha256(each).digest() == self.certificate_sha256:
                return each
        return None

    def names(self, certificate: bytes) -> bool:
        """Whether the signer is the subject of a certificate, by hash, issuer and serial number."""
        if hashlib.sha256(certificate).digest() != self.certificate_sha256:
            return False
        try:
            return certificate_id(certificate) == (self.issuer, self.serial)
        except ValueError:
            return False


def is_cms(content: bytes) -> bool:
    """Whether a file is CMS in DER, of whatever kind."""
    return content[:1] == bytes([_SEQUENCE]) and _TYPE in content[: _HEAD + len(_TYPE)]


def read_cms(content: bytes) -> CmsParts:
    """Reads a CMS signature; raises MessageError."""
    try:
        whole = asn1.decode_der(ContentInfo, content)
    except ValueError:
        raise MessageError("it is not a CMS signature in DER with signed attributes") from None
    signers = whole.content.signers.as_list()
    if whole.type != SIGNED_DATA or len(signers) != 1:
        raise MessageError(f"it has {len(signers)} signatures: only one is supported")
    [signer] = signers
    algorithm = _BY_IDENTIFIER.get(asn1.encode_der(signer.signature_algorithm))
    if algorithm is None:
        raise MessageError(
            f"its signature algorithm is not supported: it must be one of {', '.join(Algorithm)}"
        )
    hash_name = CMS_ALGORITHMS[algorithm].hash_name
    if asn1.encode_der(signer.digest_algorithm) not in HASHES[hash_name]:
        raise MessageError(f"its digest algorithm is not {hash_name}, as {algorithm} demands")
    attributes = _attributes(signer)
    _check_type(attributes, whole.content.content.type)
    certificates = whole.content.certificates
    return CmsParts(
        whole.content.content.type,
        whole.content.content.content,
        algorithm,
        _octets(attributes, MESSAGE_DIGEST, "a message digest"),
        _time(attributes),
        _certificate_sha256(attributes),
        asn1.encode_der(signer.certificate.issuer),
        signer.certificate.serial,
        tuple(asn1.encode_der(each) for each in certificates.as_list()) if certificates else (),
        attributes_der(signer.signed_attributes),
        _raw(signer.signature, algorithm),
    )


def _attributes(signer: SignerInfo) -> Mapping[ObjectIdentifier, asn1.TLV]:
    """Returns the one value of each attribute; raises MessageError for two of a kind."""
    values: dict[ObjectIdentifier, asn1.TLV] = {}
    for attribute in signer.signed_attributes.as_list():
        several = attribute.values.as_list()
        if attribute.type in values or len(several) != 1:
            name = attribute.type.dotted_string
            raise MessageError(f"its signed attribute {name} has not exactly one value")
        values[attribute.type] = several[0]
    return values


def _check_type(attributes: Mapping[ObjectIdentifier, asn1.TLV], wanted: ObjectIdentifier) -> None:
    value = attributes.get(CONTENT_TYPE)
    if value is None or asn1.encode_der(value) != asn1.encode_der(wanted):
        raise MessageError("its signed attribute content-type is not that of its content")


def _octets(
    attributes: Mapping[ObjectIdentifier, asn1.TLV], name: ObjectIdentifier, what: str
) -> bytes:
    value = attributes.get(name)
    if value is None or asn1.encode_der(value)[0] != _OCTETS:
        raise MessageError(f"its signed attributes are without {what}")
    return bytes(value.data)


def _time(attributes: Mapping[ObjectIdentifier, asn1.TLV]) -> float | None:
    value = attributes.get(SIGNING_TIME)
    if value is None:
        return None
    der = asn1.encode_der(value)
    try:
        if der[0] == _UTC_TIME:
            return asn1.decode_der(asn1.UTCTime, der).as_datetime().timestamp()
        return asn1.decode_der(asn1.GeneralizedTime, der).as_datetime().timestamp()
    except ValueError:
        raise MessageError("its signing time is not a time in DER") from None


def _certificate_sha256(attributes: Mapping[ObjectIdentifier, asn1.TLV]) -> bytes:
    """Returns the hash in signing-certificate-v2, whose default is SHA-256 (RFC 5035)."""
    value = attributes.get(SIGNING_CERTIFICATE)
    if value is None:
        raise MessageError("its signed attributes are without signing-certificate-v2 (CAdES)")
    try:
        first, *more = elements(elements(elements(value)[0])[0])
        # Where the default is written all the same, it comes before the hash.
        if asn1.encode_der(first) in HASHES["sha256"]:
            first = more[0]
    except (ValueError, IndexError):
        raise MessageError("its signing-certificate-v2 cannot be read") from None
    if asn1.encode_der(first)[0] != _OCTETS:
        raise MessageError("its signing-certificate-v2 has another hash than SHA-256")
    return bytes(first.data)


def _raw(signature: bytes, algorithm: Algorithm) -> bytes:
    """Returns a signature as the HSM makes it: r and s of equal lengths in place of DER."""
    length = PROPERTIES[algorithm].signature_bytes
    if length is None or not CMS_ALGORITHMS[algorithm].numbers:
        return signature
    try:
        r, s = decode_dss_signature(signature)
        half = length // 2
        return r.to_bytes(half) + s.to_bytes(half)
    except (ValueError, OverflowError):
        raise MessageError(f"its signature is not one of {algorithm} in DER") from None

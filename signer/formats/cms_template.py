"""CMS signatures around holes: the library encodes a message once, then only the holes are filled.

A template belongs to a certificate and an algorithm. Its holes are the time, the digest of the
content, the content where it is not detached, and the signature.
"""

import hashlib
import time
from datetime import UTC, datetime
from functools import lru_cache

from cryptography import x509
from cryptography.hazmat import asn1
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.x509 import ObjectIdentifier

from signer.algorithms import Algorithm
from signer.formats.cms_asn1 import (
    CMS_ALGORITHMS,
    CONTENT_TYPE,
    DATA,
    HASHES,
    MESSAGE_DIGEST,
    SIGNED_DATA,
    SIGNING_CERTIFICATE,
    SIGNING_TIME,
    CertificateId,
    CmsAttribute,
    ContentInfo,
    EncapsulatedContent,
    IssuerAndSerial,
    SignedData,
    SignerInfo,
    SigningCertificate,
    attributes_der,
    certificate_id,
    tlv,
)

_YEAR_2050 = 2_524_608_000  # from then on times are GeneralizedTime (RFC 5652 section 11.3)
_HOLE = hashlib.shake_256(b"hole").digest  # bytes that a message does not contain


class CmsTemplate:
    """Messages of one key version, with its certificate in them.

    ``not_before`` and ``not_after`` are the bounds of the certificate in epoch seconds.
    """

    def __init__(
        self,
        certificate: bytes,
        algorithm: Algorithm,
        content_type: ObjectIdentifier,
        *,
        late: bool,
    ) -> None:
        """``late``: the time of the signatures is from 2050 on. Raises ValueError."""
        self._certificate, self._algorithm = certificate, algorithm
        self._type = content_type
        self._numbers = CMS_ALGORITHMS[algorithm].numbers
        self._time_format = "%Y%m%d%H%M%SZ" if late else "%y%m%d%H%M%SZ"
        self._digest_size = hashlib.new(CMS_ALGORITHMS[algorithm].hash_name).digest_size
        self._issuer, self._serial = certificate_id(certificate)
        read = x509.load_der_x509_certificate(certificate)
        self.not_before = read.not_valid_before_utc.timestamp()
        self.not_after = read.not_valid_after_utc.timestamp()
        moment = datetime(2060 if late else 2000, 1, 1, tzinfo=UTC)
        self._attributes = self._encoded_attributes(moment, late=late)
        signed = attributes_der(self._attributes)
        # A SET OF is sorted, so these attributes by their lengths: the time is before the digest.
        self._head, _, rest = signed.partition(moment.strftime(self._time_format).encode())
        self._between, _, self._tail = rest.partition(_HOLE(self._digest_size))
        self._signed_hole = signed[1:]
        self._parts: dict[tuple[int, int | None, bool], tuple[bytes, bytes, bytes]] = {}

    def around_digest(self, now: int) -> tuple[bytes, bytes]:
        """Returns the attributes that are signed at a time, before and after the digest."""
        moment = time.strftime(self._time_format, time.gmtime(now)).encode()
        return self._head + moment + self._between, self._tail

    def message(
        self,
        signed: bytes,
        signature: bytes,
        content: bytes | None = None,
        *,
        certified: bool = True,
    ) -> bytes:
        """Returns the message for signed attributes and their raw signature.

        Without ``content`` it is detached; without ``certified`` it has no certificate.
        """
        if self._numbers:
            half = len(signature) // 2
            signature = encode_dss_signature(
                int.from_bytes(signature[:half]), int.from_bytes(signature[half:])
            )
        length = None if content is None else len(content)
        before, middle, after = self._around(len(signature), length, certified)
        # In the message the attributes have the tag [0] in place of that of a SET.
        return b"".join((before, content or b"", middle, signed[1:], after, signature))

    def most_bytes(self, signature: int, content: int | None = None) -> int:
        """Returns the length of the longest message, for lengths of raw signature and content."""
        if self._numbers:
            signature += 8  # two heads, two signs, and the head around them
        before, middle, after = self._around(signature, content, True)
        parts = (before, middle, self._signed_hole, after)
        return sum(map(len, parts)) + signature + (content or 0)

    def _around(
        self, signature: int, content: int | None, certified: bool
    ) -> tuple[bytes, bytes, bytes]:
        form = signature, content, certified
        parts = self._parts.get(form)
        if parts is None:
            parts = self._parts[form] = self._encoded(*form)
        return parts

    def _encoded_attributes(self, moment: datetime, *, late: bool) -> asn1.SetOf[CmsAttribute]:
        identity = CertificateId(sha256=hashlib.sha256(self._certificate).digest())
        values = {
            CONTENT_TYPE: self._type,
            SIGNING_TIME: asn1.GeneralizedTime(moment) if late else asn1.UTCTime(moment),
            MESSAGE_DIGEST: _HOLE(self._digest_size),
            SIGNING_CERTIFICATE: SigningCertificate(certificates=[identity]),
        }
        return asn1.SetOf(
            [
                CmsAttribute(type=oid, values=asn1.SetOf([tlv(asn1.encode_der(value))]))
                for oid, value in values.items()
            ]
        )

    def _encoded(
        self, signature: int, content: int | None, certified: bool
    ) -> tuple[bytes, bytes, bytes]:
        """Returns what is before the content, the attributes and the signature."""
        names = CMS_ALGORITHMS[self._algorithm]
        digest_algorithm = tlv(HASHES[names.hash_name][0])
        hole = None if content is None else _HOLE(content)
        signer = SignerInfo(
            version=1,
            certificate=IssuerAndSerial(issuer=tlv(self._issuer), serial=self._serial),
            digest_algorithm=digest_algorithm,
            signed_attributes=self._attributes,
            signature_algorithm=tlv(names.identifiers[0]),
            signature=bytes(signature),
        )
        whole = asn1.encode_der(
            ContentInfo(
                type=SIGNED_DATA,
                content=SignedData(
                    version=1 if self._type == DATA else 3,  # RFC 5652 section 5.1
                    digest_algorithms=asn1.SetOf([digest_algorithm]),
                    content=EncapsulatedContent(type=self._type, content=hole),
                    certificates=asn1.SetOf([tlv(self._certificate)]) if certified else None,
                    crls=None,
                    signers=asn1.SetOf([signer]),
                ),
            )
        )
        before, _, rest = whole[: len(whole) - signature].partition(self._signed_hole)
        if hole is None:
            return before, b"", rest
        before, _, middle = before.partition(hole)
        return before, middle, rest


def with_content(detached: bytes, content: bytes) -> bytes:
    """Returns a detached signature with its content in it; raises ValueError.

    The signature is of the digest: it stays as it is.
    """
    whole = asn1.decode_der(ContentInfo, detached)
    whole.content.content.content = content
    return asn1.encode_der(whole)


@lru_cache(maxsize=4096)
def _template(
    certificate: bytes, algorithm: Algorithm, content_type: ObjectIdentifier, late: bool
) -> CmsTemplate:
    return CmsTemplate(certificate, algorithm, content_type, late=late)


def template(
    certificate: bytes, algorithm: Algorithm, content_type: ObjectIdentifier, now: int
) -> CmsTemplate:
    """Returns the template for signatures made now; raises ValueError."""
    return _template(certificate, algorithm, content_type, now >= _YEAR_2050)

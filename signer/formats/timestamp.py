"""TIMESTAMP: RFC 3161 time-stamps with the certificate's identity of RFC 5816.

A serial number is made of the call's id, which is random and in the audit log, and the item's
place in the call. So it repeats nowhere: not after a restart, not on another appliance; and a
request that is repeated gets the same token.
"""

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import lru_cache

from cryptography import x509
from cryptography.hazmat import asn1
from cryptography.x509.oid import ExtendedKeyUsageOID

from signer.algorithms import Algorithm
from signer.errors import Failure
from signer.format_terms import Enclosed, FormatContext, PreparedBatch, TimestampTerms
from signer.formats.cms import certified_template, unfit
from signer.formats.cms_asn1 import CMS_ALGORITHMS, HASHES
from signer.formats.cms_template import CmsTemplate
from signer.formats.payloads import (
    ContentTerms,
    MessageFormat,
    PayloadError,
    signature_length,
    unreadable,
)
from signer.formats.timestamp_asn1 import (
    TST_INFO,
    MessageImprint,
    TimeAccuracy,
    TimestampRequest,
    TstInfo,
    granted,
)

MAX_BYTES = 1024  # longest request
ALGORITHMS = frozenset({Algorithm.ES256, Algorithm.ES384, Algorithm.RS256})
"""What verifiers know: OpenSSL's and rfc3161-client verify neither RSASSA-PSS nor Ed25519."""
_REQUEST_TO_INFO = 96  # by how many bytes what is signed may be longer than its request
_ANSWER = 16  # bytes around a token
_SERIAL_BITS = 126

_HASHES = {der: name for name, forms in HASHES.items() for der in forms}


class Timestamp(MessageFormat):
    """A TimeStampReq in DER becomes a TimeStampResp."""

    by_call = True

    def max_output(self, payloads: Sequence[bytes], context: FormatContext) -> int:
        """Bounds the answers by the lengths of the requests; raises CallError as ``prepare``."""
        terms, made = _terms(context), _template(context)
        longest = max(map(len, payloads), default=0) + _REQUEST_TO_INFO + len(terms.policy)
        each = made.most_bytes(signature_length(context.version), longest) + _ANSWER
        return len(payloads) * each

    def prepare(self, payloads: Sequence[bytes], context: FormatContext) -> PreparedBatch:
        """Returns the signed attributes over the time-stamps; raises CallError if none can be."""
        terms, made = _terms(context), _template(context)
        head, tail = made.around_digest(context.now)
        name = CMS_ALGORITHMS[context.version.algorithm].hash_name
        to_sign: list[bytes] = []
        enclosed: list[Enclosed] = []
        failures: dict[int, Failure] = {}
        for index, payload in enumerate(payloads):
            try:
                request = read_request(payload, terms)
            except PayloadError as error:
                failures[index] = error.failure
                to_sign.append(b"")
                enclosed.append(Enclosed(b""))
                continue
            serial = _serial(context.call_id, context.first + index)
            info = _info(request, terms, serial, context.now)
            to_sign.append(head + hashlib.new(name, info).digest() + tail)
            enclosed.append(Enclosed(info, bool(request.certificate)))
        return PreparedBatch(to_sign, failures, enclosed=enclosed)

    def finish(
        self, prepared: PreparedBatch, signatures: Sequence[bytes], context: FormatContext
    ) -> list[bytes]:
        message = _template(context).message
        return [
            granted(message(signed, made, inside.content, certified=inside.certified))
            if made
            else b""
            for signed, made, inside in zip(
                prepared.to_sign, signatures, prepared.enclosed, strict=True
            )
        ]

    def inspect(self, payload: bytes, terms: ContentTerms) -> None:
        """Checks the request against the policy of the time-stamps."""
        if terms.timestamp is not None:
            read_request(payload, terms.timestamp)


def read_request(payload: bytes, terms: TimestampTerms) -> TimestampRequest:
    """Reads a request that can be granted; raises PayloadError, which names the part."""
    if len(payload) > MAX_BYTES:
        raise unreadable(f"payload is longer than {MAX_BYTES} bytes")
    try:
        request = asn1.decode_der(TimestampRequest, payload)
    except ValueError:
        raise unreadable("payload is not a time-stamp request in DER (RFC 3161)") from None
    if request.version != 1:
        raise unreadable(f"version is {request.version}, not 1", member="version")
    name = _HASHES.get(asn1.encode_der(request.imprint.algorithm))
    if name is None:
        raise unreadable(
            f"hashAlgorithm is not one of {', '.join(HASHES)}",
            member="messageImprint.hashAlgorithm",
        )
    size = hashlib.new(name).digest_size
    if len(request.imprint.digest) != size:
        raise unreadable(
            f"hashedMessage is not a {name} digest of {size} bytes",
            member="messageImprint.hashedMessage",
        )
    if request.policy is not None and request.policy.dotted_string != terms.policy:
        raise unreadable(f"reqPolicy is not {terms.policy}, the only one here", member="reqPolicy")
    if request.extensions:
        raise unreadable("extensions are not supported", member="extensions")
    return request


def _info(request: TimestampRequest, terms: TimestampTerms, serial: int, now: int) -> bytes:
    return asn1.encode_der(
        TstInfo(
            version=1,
            policy=x509.ObjectIdentifier(terms.policy),
            imprint=MessageImprint(
                algorithm=request.imprint.algorithm, digest=request.imprint.digest
            ),
            serial=serial,
            time=asn1.GeneralizedTime(datetime.fromtimestamp(now, UTC)),
            accuracy=TimeAccuracy(seconds=terms.accuracy),
            ordering=False,
            nonce=request.nonce,
        )
    )


def _serial(call_id: str, index: int) -> int:
    """Returns a serial number of 16 bytes, positive."""
    digest = hashlib.sha256(f"{call_id}/{index}".encode()).digest()
    return int.from_bytes(digest) >> (256 - _SERIAL_BITS) | 1 << _SERIAL_BITS


def _terms(context: FormatContext) -> TimestampTerms:
    if context.timestamp is None:
        raise unfit("the policy gives this key no policy of time-stamps")
    if context.version.algorithm not in ALGORITHMS:
        names = ", ".join(sorted(ALGORITHMS))
        raise unfit(f"TIMESTAMP is signed with {names}, not with {context.version.algorithm}")
    return context.timestamp


def _template(context: FormatContext) -> CmsTemplate:
    made = certified_template(context, TST_INFO, "TIMESTAMP")
    if not is_for_timestamps(context.version.certificate or b""):
        raise unfit(
            "the certificate of the key version is not for time-stamps: RFC 3161 demands a critical"
            " extended key usage with timeStamping alone"
        )
    return made


@lru_cache(maxsize=4096)
def is_for_timestamps(der: bytes) -> bool:
    """Whether a certificate is for time-stamps and nothing else (RFC 3161 section 2.3)."""
    try:
        extensions = x509.load_der_x509_certificate(der).extensions
        usages = extensions.get_extension_for_class(x509.ExtendedKeyUsage)
    except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension):
        return False
    return usages.critical and list(usages.value) == [ExtendedKeyUsageOID.TIME_STAMPING]

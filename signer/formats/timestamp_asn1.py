"""ASN.1 of time-stamps in DER: requests, tokens and answers (RFC 3161, RFC 5816)."""

from collections.abc import Sequence
from typing import Annotated

from cryptography.hazmat import asn1
from cryptography.x509 import ObjectIdentifier

TST_INFO = ObjectIdentifier("1.2.840.113549.1.9.16.1.4")

GRANTED, REJECTION = 0, 2
FAILURES = {
    "badAlg": 0,
    "badRequest": 2,
    "badDataFormat": 5,
    "timeNotAvailable": 14,
    "unacceptedPolicy": 15,
    "unacceptedExtension": 16,
    "systemFailure": 25,
}
"""Bits of PKIFailureInfo."""


@asn1.sequence
class MessageImprint:
    """The digest of what is time-stamped."""

    algorithm: asn1.TLV
    digest: bytes


@asn1.sequence
class TimestampRequest:
    """TimeStampReq. Its ``certificate`` says whether the token shall have that of the key."""

    version: int
    imprint: MessageImprint
    policy: ObjectIdentifier | None
    nonce: int | None
    certificate: bool | None  # not a default: some clients write it out where it is false
    extensions: Annotated[list[asn1.TLV] | None, asn1.Implicit(0)]


@asn1.sequence
class TimeAccuracy:
    """By how much a time may differ from the true one."""

    seconds: int | None
    millis: Annotated[int | None, asn1.Implicit(0)] = None
    micros: Annotated[int | None, asn1.Implicit(1)] = None


@asn1.sequence
class TstInfo:
    """What is signed."""

    version: int
    policy: ObjectIdentifier
    imprint: MessageImprint
    serial: int
    time: asn1.GeneralizedTime
    accuracy: TimeAccuracy | None
    ordering: Annotated[bool, asn1.Default(value=False)]
    nonce: int | None


@asn1.sequence
class StatusInfo:
    """PKIStatusInfo: whether there is a token, or why not."""

    status: int
    texts: list[str] | None
    failure: asn1.BitString | None


@asn1.sequence
class GrantedTimestamp:
    """TimeStampResp with a token."""

    status: StatusInfo
    token: asn1.TLV


@asn1.sequence
class RefusedTimestamp:
    """TimeStampResp without one."""

    status: StatusInfo


def granted(token: bytes) -> bytes:
    """Returns the answer with a token."""
    status = StatusInfo(status=GRANTED, texts=None, failure=None)
    return asn1.encode_der(GrantedTimestamp(status=status, token=asn1.decode_der(asn1.TLV, token)))


def refused(failure: str, texts: Sequence[str]) -> bytes:
    """Returns the answer without a token; ``failure`` is one of FAILURES."""
    bit = FAILURES[failure]
    size = bit // 8 + 1
    bits = (1 << (8 * size - 1 - bit)).to_bytes(size)
    # Named bits: none that is zero at the end (X.690, section 11.2.2).
    status = StatusInfo(
        status=REJECTION, texts=list(texts), failure=asn1.BitString(bits, 7 - bit % 8)
    )
    return asn1.encode_der(RefusedTimestamp(status=status))

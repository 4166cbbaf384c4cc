"""Time-stamps, read back: what was stamped, when, under which policy. Nothing is verified."""

from typing import NamedTuple

from cryptography.hazmat import asn1

from signer.formats.cms_asn1 import HASHES, elements, tlv
from signer.formats.cms_reading import CmsParts, is_cms, read_cms
from signer.formats.payloads import MessageError
from signer.formats.timestamp_asn1 import TST_INFO, TstInfo
from signer.model import Format

_HASHES = {der: name for name, forms in HASHES.items() for der in forms}
_TST_INFO = asn1.encode_der(TST_INFO)
_HEAD = 80  # bytes of a token up to the type of its content, at most


class TimestampParts(NamedTuple):
    """A time-stamp. ``hash_name`` and ``digest`` are of what it stamps.

    ``time`` is in epoch seconds; ``accuracy``, in seconds, is 0 if it is not said.
    """

    cms: CmsParts
    policy: str
    serial: int
    hash_name: str
    digest: bytes
    time: float
    accuracy: int
    nonce: int | None


def detached_format(content: bytes) -> Format | None:
    """Returns what a file is that does not contain what it signs: CMS or TIMESTAMP; else None."""
    if is_cms(content):
        return Format.TIMESTAMP if _TST_INFO in content[:_HEAD] else Format.CMS
    try:
        status, *_ = elements(tlv(content))
        [number, *_] = elements(status)
    except ValueError:
        return None
    return Format.TIMESTAMP if asn1.encode_der(number)[:2] == b"\x02\x01" else None


def read_timestamp(content: bytes) -> TimestampParts:
    """Reads a TimeStampResp or a token alone; raises MessageError."""
    if detached_format(content) is not Format.TIMESTAMP:
        raise MessageError("it is not a time-stamp in DER (RFC 3161)")
    cms = read_cms(content if is_cms(content) else _token(content))
    if cms.content_type != TST_INFO or cms.content is None:
        raise MessageError("it is a CMS signature, and not of a time-stamp")
    try:
        info = asn1.decode_der(TstInfo, cms.content)
    except ValueError:
        raise MessageError("its TSTInfo cannot be read") from None
    hash_name = _HASHES.get(asn1.encode_der(info.imprint.algorithm))
    if hash_name is None:
        raise MessageError(f"it stamps another hash than one of {', '.join(HASHES)}")
    return TimestampParts(
        cms,
        info.policy.dotted_string,
        info.serial,
        hash_name,
        info.imprint.digest,
        info.time.as_datetime().timestamp(),
        (info.accuracy.seconds or 0) if info.accuracy else 0,
        info.nonce,
    )


def _token(answer: bytes) -> bytes:
    status, *rest = elements(tlv(answer))
    if not rest:
        number = int.from_bytes(elements(status)[0].data)
        raise MessageError(f"it is an answer without a time-stamp: its status is {number}")
    return asn1.encode_der(rest[0])

"""Cuts payloads into batches whose calls and answers the appliance takes."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from signer.client._errors import ItemError
from signer.client._values import Key
from signer.errors import Code, Reason
from signer.model import MESSAGE_BYTES, Format

LARGEST_BATCH = 500
"""Items of a call, unless the caller says otherwise: more is hardly faster."""

BATCH_BYTES = MESSAGE_BYTES - 64 * 1024
"""Bytes of all payloads, or outputs, of a call; the rest is for names and framing."""

FIELD_BYTES = 8  # tag and length of one bytes field
_RSA_4096 = 512  # the longest signature
_CMS = 4096  # a detached signature with a certificate of up to 3 KiB; larger ones are rare
_FAILURE = 640  # a google.rpc.Status with its details, in place of an output


class PayloadBatch(NamedTuple):
    """Payloads of one call; ``start`` is the index of the first in the stream.

    ``records`` are the facilities' signed records, one for each payload, or none.
    """

    start: int
    payloads: list[bytes]
    records: Sequence[bytes] = ()


def output_bound(size: int, message_format: Format) -> int:
    """Returns an upper bound in bytes of the output for a payload of ``size`` bytes.

    It may be too high: the appliance refuses a call whose answer *could* exceed
    the limit. JWS: base64url of payload and signature, and the header. HCERT:
    base45 makes 3 of 2; a number in JSON can grow threefold as CBOR (``1.5`` is
    nine bytes). SHC: two digits for each character of a JWS.
    """
    match message_format:
        case Format.DIGEST | Format.MESSAGE:
            output = _RSA_4096
        case Format.JWS:
            output = (size + _RSA_4096 + 256) * 4 // 3 + 4
        case Format.CMS | Format.CMS_DIGEST:
            output = _CMS
        case Format.TIMESTAMP:
            output = size + _CMS
        case Format.COSE_SIGN1:
            output = size + _RSA_4096 + 128
        case Format.SHC:
            output = 2 * ((size + size // 1000 + 1024) * 4 // 3 + 512)
        case Format.HCERT:
            output = (size * 3 + _RSA_4096 + 512) * 3 // 2
    return max(output, _FAILURE) + FIELD_BYTES


def fits(size: int, message_format: Format) -> bool:
    """Whether a payload of ``size`` bytes can be sent at all, alone in a call."""
    return size <= BATCH_BYTES and output_bound(size, message_format) <= BATCH_BYTES


def too_large(size: int) -> ItemError:
    """Returns the failure of a payload of ``size`` bytes that does not fit."""
    text = f"a payload of {size} bytes exceeds the limit of 4 MiB for a call or its answer"
    return ItemError(Code.INVALID_ARGUMENT.name, Reason.PAYLOAD_INVALID, text)


def octets(payload: bytes) -> bytes:
    """Returns a payload as bytes. Raises TypeError for text, and for numbers."""
    if type(payload) is bytes:
        return payload
    if isinstance(payload, str):
        raise TypeError("a payload must be bytes, not text: encode it, as in text.encode()")
    return bytes(memoryview(payload))


def several(payloads: object) -> None:
    """Raises TypeError for one payload in the place of several."""
    if isinstance(payloads, bytes | bytearray | memoryview | str):
        raise TypeError(
            f"payloads must be a list of payloads, not {type(payloads).__name__}:"
            " for one payload call sign_one, or give [payload]"
        )


def check(batch_items: int | None, in_flight: int) -> None:
    """Raises ValueError for numbers below 1."""
    if in_flight < 1 or (batch_items is not None and batch_items < 1):
        raise ValueError("batch_items and in_flight are at least 1")


def plan(key: Key, in_flight: int) -> tuple[int, int]:
    """Returns how many items a call has, and how many calls are in flight.

    No quota refuses such a call for its size. Calls as large as a quota follow each other: the
    last one, which is smaller, would take what an earlier one needs.
    """
    most = key.most_items or LARGEST_BATCH
    by_quota = any(quota.limit == most for quota in key.quotas) and most <= LARGEST_BATCH
    return min(LARGEST_BATCH, most), 1 if by_quota else in_flight


def cut(
    payloads: Iterable[bytes],
    message_format: Format,
    batch_items: int,
    records: Iterable[bytes] | None = None,
) -> Iterator[PayloadBatch]:
    """Cuts ``payloads`` into batches, reading no further than one batch and one payload.

    A batch has at most ``batch_items`` payloads, and neither its request nor the
    largest possible answer exceeds ``BATCH_BYTES``. A payload that does not fit
    (``fits``) is alone in its batch. Raises ValueError if there are fewer ``records``.
    """
    start, batch, sent, answered = 0, list[bytes](), 0, 0
    given_records, beside = None if records is None else iter(records), list[bytes]()
    for given in payloads:
        payload, record = octets(given), b""
        request = len(payload) + FIELD_BYTES
        if given_records is not None:
            record = _next_record(given_records)
            request += len(record) + FIELD_BYTES
        answer = output_bound(len(payload), message_format)
        full = len(batch) == batch_items
        if batch and (full or sent + request > BATCH_BYTES or answered + answer > BATCH_BYTES):
            yield PayloadBatch(start, batch, beside)
            start, batch, sent, answered = start + len(batch), [], 0, 0
            beside = []
        batch.append(payload)
        if given_records is not None:
            beside.append(record)
        sent, answered = sent + request, answered + answer
    if batch:
        yield PayloadBatch(start, batch, beside)


def _next_record(records: Iterator[bytes]) -> bytes:
    for record in records:
        return octets(record)
    raise ValueError("there are fewer signed records than payloads: give one for each")

"""Cuts a stream of payloads into calls within the message limits. Pure."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from signer.model import MESSAGE_BYTES, Format

BATCH_BYTES = MESSAGE_BYTES - 64 * 1024
"""Bytes of all payloads, or outputs, of a call; the rest is for names and framing."""

_OVERHEAD = 8  # tag and length of one bytes field
_RSA_4096 = 512  # the longest signature
_FAILURE = 640  # a google.rpc.Status with its details, in place of an output


class PayloadBatch(NamedTuple):
    """Payloads of one call; ``start`` is the index of the first in the stream."""

    start: int
    payloads: list[bytes]


def output_bound(size: int, message_format: Format) -> int:
    """Returns an upper bound in bytes of the output for a payload of ``size`` bytes.

    It may be too high: the appliance refuses a call whose answer *could* exceed
    the limit. JWS: base64url of payload and signature, and the header. HCERT:
    base45 makes 3 of 2; a number in JSON can grow threefold as CBOR (``1.5`` is
    nine bytes).
    """
    match message_format:
        case Format.DIGEST | Format.MESSAGE:
            output = _RSA_4096
        case Format.JWS:
            output = (size + _RSA_4096 + 256) * 4 // 3 + 4
        case Format.COSE_SIGN1:
            output = size + _RSA_4096 + 128
        case Format.HCERT:
            output = (size * 3 + _RSA_4096 + 512) * 3 // 2
    return max(output, _FAILURE) + _OVERHEAD


def fits(size: int, message_format: Format) -> bool:
    """Whether a payload of ``size`` bytes can be sent at all, alone in a call."""
    return size <= BATCH_BYTES and output_bound(size, message_format) <= BATCH_BYTES


def cut(
    payloads: Iterable[bytes], message_format: Format, batch_items: int
) -> Iterator[PayloadBatch]:
    """Cuts ``payloads`` into batches, reading no further than one batch and one payload.

    A batch has at most ``batch_items`` payloads, and neither its request nor the
    largest possible answer exceeds ``BATCH_BYTES``. A payload that does not fit
    (``fits``) is alone in its batch.
    """
    start, batch, sent, answered = 0, list[bytes](), 0, 0
    for payload in payloads:
        request = len(payload) + _OVERHEAD
        answer = output_bound(len(payload), message_format)
        full = len(batch) == batch_items
        if batch and (full or sent + request > BATCH_BYTES or answered + answer > BATCH_BYTES):
            yield PayloadBatch(start, batch)
            start, batch, sent, answered = start + len(batch), [], 0, 0
        batch.append(payload)
        sent, answered = sent + request, answered + answer
    if batch:
        yield PayloadBatch(start, batch)

"""The requests for signatures, read from bytes: items are counted before they are kept."""

from collections.abc import Iterator

from google.protobuf.message import DecodeError

from signer.errors import invalid
from signer.model import MAX_BATCH_ITEMS
from signer.v1.signing_pb2 import SignBatchRequest, SignStreamRequest

_BATCH = 2  # the number of the field of SignStreamRequest
UNCOUNTED_BYTES = 128 * 1024
"""A message up to this length is read without counting: it takes a few milliseconds."""
_LONGEST_NUMBER = 10  # bytes of a varint
_OTHER_FIELDS = 64  # beside the payloads: those of the message, and of later versions


def read_batch_request(message: bytes) -> SignBatchRequest:
    """Reads a message; raises DecodeError, and CallError for more items than any batch has.

    4 MiB of empty payloads are two million items, which would take 100 MB when read.
    """
    if len(message) > UNCOUNTED_BYTES:
        _count(message, 0, len(message))
    return SignBatchRequest.FromString(message)


def read_stream_request(message: bytes) -> SignStreamRequest:
    """Does so for a request of a stream."""
    if len(message) > UNCOUNTED_BYTES:
        for number, start, end in _fields(message, 0, len(message)):
            if number == _BATCH:
                _count(message, start, end)
    return SignStreamRequest.FromString(message)


def _count(message: bytes, start: int, end: int) -> None:
    """Raises CallError if the batch in these bytes has more payloads than any may have."""
    for count, _ in enumerate(_fields(message, start, end), 1):
        if count > MAX_BATCH_ITEMS + _OTHER_FIELDS:
            raise invalid(
                "payloads", f"has more than {MAX_BATCH_ITEMS} items, the limit everywhere: split it"
            )


def _fields(message: bytes, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yields number and bounds of each field. Raises DecodeError for other bytes.

    Protocol Buffers' encoding: a tag (number, and kind in the low 3 bits), then a varint
    (kind 0), 8 bytes (1), a length and so many bytes (2), or 4 bytes (5). Groups (3 and 4),
    which our messages do not have, could hide fields.
    """
    while at < end:
        tag, at = _varint(message, at)
        start = at
        match tag & 7:
            case 0:
                _, at = _varint(message, at)
            case 1:
                at += 8
            case 2:
                length, start = _varint(message, at)
                at = start + length
            case 5:
                at += 4
            case _:
                raise DecodeError("a group")
        yield tag >> 3, start, min(at, end)


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """Returns the number that begins at ``at``, and where it ends."""
    value = 0
    for shift, byte in enumerate(message[at : at + _LONGEST_NUMBER]):
        value |= (byte & 0x7F) << 7 * shift
        if byte < 0x80:
            return value, at + shift + 1
    raise DecodeError("a number that does not end")

"""The requests for signatures, read from bytes: items are counted before they are kept."""

from collections.abc import Iterator

from signer.errors import invalid
from signer.policy.document import MAX_BATCH_ITEMS
from signer.v1.signing_pb2 import SignBatchRequest, SignStreamRequest

_PAYLOADS, _BATCH = 3, 2  # numbers of the fields that hold payloads, and a stream's batch
_PAYLOAD_TAG = b"\x1a"  # field 3, with a length


def read_batch_request(message: bytes) -> SignBatchRequest:
    """Reads a message; raises DecodeError, and CallError for more items than any batch has.

    4 MiB of empty payloads are two million items, which would take 100 MB when read.
    """
    if message.count(_PAYLOAD_TAG) > MAX_BATCH_ITEMS:
        _count(message, 0, len(message))
    return SignBatchRequest.FromString(message)


def read_stream_request(message: bytes) -> SignStreamRequest:
    """Does so for a request of a stream."""
    if message.count(_PAYLOAD_TAG) > MAX_BATCH_ITEMS:
        for number, start, end in _fields(message, 0, len(message)):
            if number == _BATCH:
                _count(message, start, end)
    return SignStreamRequest.FromString(message)


def _count(message: bytes, start: int, end: int) -> None:
    """Raises CallError if the batch in these bytes has more payloads than any may have."""
    count = 0
    for number, _, _ in _fields(message, start, end):
        count += number == _PAYLOADS
        if count > MAX_BATCH_ITEMS:
            raise invalid(
                "payloads", f"has more than {MAX_BATCH_ITEMS} items, the limit everywhere: split it"
            )


def _fields(message: bytes, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yields number and bounds of the fields that have a length, up to what cannot be read.

    Protocol Buffers' encoding: a tag (number, and kind in the low 3 bits), then a varint
    (kind 0), 8 bytes (1), a length and so many bytes (2), or 4 bytes (5).
    """
    while at < end:
        tag, at = _varint(message, at, end)
        match tag & 7:
            case 0:
                _, at = _varint(message, at, end)
            case 1:
                at += 8
            case 5:
                at += 4
            case 2:
                length, at = _varint(message, at, end)
                yield tag >> 3, at, min(at + length, end)
                at += length
            case _:
                return


def _varint(message: bytes, at: int, end: int) -> tuple[int, int]:
    """Returns a number and where it ends; the end of the message if it is cut short."""
    value = shift = 0
    while at < end and shift < 64:
        byte = message[at]
        at, value, shift = at + 1, value | (byte & 127) << shift, shift + 7
        if byte < 128:
            return value, at
    return value, end

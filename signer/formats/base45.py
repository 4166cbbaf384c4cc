"""Base45 (RFC 9285): two bytes become three characters of a QR code's alphanumeric mode."""

import struct
from functools import cache
from operator import itemgetter

_ALPHABET = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ $%*+-./:"


def encode(data: bytes) -> bytes:
    """Returns the data in Base45 (RFC 9285 section 4)."""
    triples = _triples()
    count, odd = divmod(len(data), 2)
    pairs = struct.unpack_from(f">{count}H", data)
    # One call for all pairs; with fewer than two, itemgetter does not return a tuple.
    text = b"".join(itemgetter(*pairs)(triples) if count > 1 else [triples[p] for p in pairs])
    # A single byte is two characters: the first two of its value as a pair.
    return text + triples[data[-1]][:2] if odd else text


def decode(text: bytes) -> bytes:
    """Returns the bytes of a text in Base45; raises ValueError for another text."""
    values = [_ALPHABET.index(character) for character in text]
    decoded = bytearray()
    for start in range(0, len(values), 3):
        triple = values[start : start + 3]
        number = sum(value * 45**position for position, value in enumerate(triple))
        try:
            decoded += number.to_bytes(len(triple) - 1, "big")
        except OverflowError:
            raise ValueError("not Base45") from None
    return bytes(decoded)


def encoded_length(length: int) -> int:
    """Returns how many characters ``length`` bytes take."""
    return (3 * length + 1) // 2


def bytes_within(characters: int) -> int:
    """Returns how many bytes at most take so many characters."""
    return 2 * characters // 3


@cache
def _triples() -> list[bytes]:
    """Returns the characters of each 16-bit number, least significant first: 5 ms, once."""
    digits = [bytes((character,)) for character in _ALPHABET]
    low = [first + second for second in digits for first in digits]
    # 33 * 45**2 is the first such multiple above 65,535.
    return [pair + third for third in digits[:33] for pair in low][: 1 << 16]

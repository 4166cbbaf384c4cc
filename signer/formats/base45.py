"""Base45 (RFC 9285): two bytes become three characters of a QR code's alphanumeric mode."""

from collections.abc import Callable, Sequence

_ALPHABET = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ $%*+-./:"


def encode(data: bytes) -> bytes:
    """Returns the data in Base45 (RFC 9285 section 4)."""
    return encode_all([data])[0]


def encode_all(items: Sequence[bytes]) -> list[bytes]:
    """Returns each of the items in Base45, for less than half of what one after the other takes.

    A pair of bytes, high and low, is the number 256 * high + low, with three digits to the base 45.
    Its first digit is (31 * high + low) % 45, because 256 is 31 more than 5 * 45, and what is
    carried to the next one is 1 at most. So a digit of all pairs is the sum of long integers with a
    byte for each pair: none of these bytes is more than 88.
    """
    # A last byte alone is the pair with 0 before it, without the third digit, which is 0.
    even = [item if len(item) % 2 == 0 else item[:-1] + b"\0" + item[-1:] for item in items]
    whole = b"".join(even)
    high, low, count = whole[0::2], whole[1::2], len(whole) // 2
    first = _sum(count, high.translate(_HIGH[0]), low.translate(_LOW[0]))
    second = _sum(count, high.translate(_HIGH[1]), low.translate(_LOW[1]), first.translate(_CARRY))
    third = _sum(count, high.translate(_HIGH[2]), second.translate(_CARRY))
    text = bytearray(3 * count)
    for place, digits in enumerate((first, second, third)):
        text[place::3] = digits.translate(_CHARACTER)
    made, start = [], 0
    for item in items:
        made.append(bytes(text[start : start + encoded_length(len(item))]))
        start += (len(item) + 1) // 2 * 3
    return made


def _sum(count: int, *parts: bytes) -> bytes:
    """Returns the sums of the bytes of each place, of which none is more than 255."""
    return sum(map(int.from_bytes, parts)).to_bytes(count)


def _table(value: Callable[[int], int]) -> bytes:
    return bytes(map(value, range(256)))


# Of a byte in a pair: what it adds to each of the three digits.
_HIGH = (
    _table(lambda high: 31 * high % 45),
    _table(lambda high: 256 * high // 45 % 45),
    _table(lambda high: 256 * high // 2025),
)
_LOW = (_table(lambda low: low % 45), _table(lambda low: low // 45))
# Of a sum: its character, and what it carries to the next digit.
_CHARACTER = _table(lambda digit: _ALPHABET[digit % 45])
_CARRY = _table(lambda digit: digit // 45)


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

"""Writes CBOR (RFC 8949): heads by hand, values by cbor2, maps in the order asked for."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cbor2

from signer.formats.items import unreadable
from signer.formats.parse import MAX_INTEGER

Order = Callable[[Any], Any]
"""Arranges the members of a value and of all values inside it."""


def head(major: int, count: int) -> bytes:
    """Returns the shortest head of a data item (RFC 8949 section 3)."""
    kind = major << 5
    if count < 24:
        return bytes((kind | count,))
    if count < 1 << 8:
        return bytes((kind | 24, count))
    if count < 1 << 16:
        return bytes((kind | 25,)) + count.to_bytes(2, "big")
    if count < 1 << 32:
        return bytes((kind | 26,)) + count.to_bytes(4, "big")
    return bytes((kind | 27,)) + count.to_bytes(8, "big")


def byte_string(data: bytes) -> bytes:
    """Returns the data as a CBOR byte string."""
    return head(2, len(data)) + data


def encode(value: object, order: Order) -> bytes:
    """Encodes a value with its members in the given order and lengths definite.

    Raises ItemError for text that is no Unicode and for what the order refuses.
    """
    try:
        return cbor2.dumps(order(value), default=_encode_float)
    except UnicodeEncodeError:
        raise unreadable("payload has a text with half a surrogate pair") from None


def as_given(value: Any) -> Any:
    """The order that the members have."""
    return value


def deterministic(value: Any) -> Any:
    """The order of RFC 8949 section 4.2.1: names sorted by their encoded bytes.

    Raises ItemError for names that are not text, integers beyond 64 bits,
    numbers that are not finite, and kinds of values that JSON does not have,
    byte strings excepted.
    """
    kind = type(value)
    if kind is dict:
        return {
            name: member if type(member := value[name]) is str else deterministic(member)
            for name in _sorted_names(*value)
        }
    if kind is list:
        return [deterministic(member) for member in value]
    if kind in _CARRIED or (kind is int and abs(value) <= MAX_INTEGER):
        return value
    if kind is float and math.isfinite(value):
        return _Shortest(value)
    raise unreadable("payload has a value of a kind that is not carried, or beyond its range")


_CARRIED = frozenset({str, bool, type(None), bytes})


@lru_cache(maxsize=1024, typed=True)
def _sorted_names(*names: object) -> list[str]:
    """Names in the order of their encoded bytes; payloads of one kind share theirs."""
    if any(type(name) is not str for name in names):
        raise unreadable("payload has a map with a name that is not text")
    # Code points sort as their UTF-8 does; the head of a name grows with its length.
    in_order = sorted(str(name) for name in names)
    return sorted(in_order, key=lambda name: len(name.encode()))


@dataclass(frozen=True, slots=True)
class _Shortest:
    """A float, to be written in the shortest form that keeps its value."""

    value: float


def _encode_float(encoder: cbor2.CBOREncoder, wrapped: Any) -> None:
    # A marker and the default hook, because cbor2's own canonical mode takes
    # three times as long and a hook on float slows down every other value.
    encoder.write(cbor2.dumps(wrapped.value, canonical=True))

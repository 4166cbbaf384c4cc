"""Strict CBOR (RFC 8949), in its deterministic form (section 4.2.1), without tags.

Errors say what is wrong in a form that follows "it has", and never quote values.
"""

import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from operator import itemgetter
from typing import Any, NamedTuple, NoReturn

import cbor2

MAX_INTEGER = (1 << 64) - 1
"""Largest magnitude of an integer in payloads: what CBOR holds without a tag."""

KEPT_NAMES, KEPT_SIZE = 32, 512
"""Of a map whose names' order is kept in memory: how many names, and how many characters."""

Order = Callable[[Any], Any]
"""Arranges the members of a value and of all values inside it."""


class CborError(ValueError):
    """A value that is not encoded, or bytes that are not read."""


# --- payloads and messages -------------------------------------------------------------------


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


def load(data: bytes, depth: int, *, any_names: bool = False) -> Any:
    """Reads one data item and nothing after it; lengths may be indefinite. Raises CborError.

    Tags, duplicate names and more than ``depth`` maps and lists inside each other are
    refused; kinds of values only by ``encode_deterministic``. Names are texts and byte strings, or
    with ``any_names`` also what COSE and CWT have, integers.
    """
    stream = io.BytesIO(data)
    try:
        strict = {**_STRICT, "strict_hashable_types": not any_names}
        value = cbor2.load(stream, max_depth=depth, **strict)
    except cbor2.CBORError:
        raise CborError(f"tags, duplicate names or more than {depth} levels") from None
    if stream.tell() != len(data):
        raise CborError("bytes after its first data item")
    return value


def encode(value: object, order: Order) -> bytes:
    """Encodes a value with its members in the given order and lengths definite.

    Raises CborError for text that is not Unicode and for what the order refuses.
    """
    try:
        return cbor2.dumps(order(value))
    except UnicodeEncodeError:
        raise CborError(_HALF_A_PAIR) from None


def as_given(value: Any) -> Any:
    """Keeps the order of the members."""
    return value


def encode_deterministic(value: Any) -> bytes:
    """Encodes a value as JSON has them, or a byte string, in it names by their encoded bytes.

    RFC 8949 section 4.2.1. Raises CborError for names that are not text, text that is not
    Unicode, integers beyond 64 bits, numbers that are not finite, and other kinds of values.
    """
    parts: list[bytes] = []
    try:
        _write(value, parts)
    except UnicodeEncodeError:
        raise CborError(_HALF_A_PAIR) from None
    return b"".join(parts)


def _write(value: Any, parts: list[bytes]) -> None:
    kind = type(value)
    if kind is dict:
        start, names = _layout(*value)
        parts.append(start)
        for name, encoded in names:
            member = value[name]
            parts.append(encoded)
            if type(member) is str:  # most are: no call for these
                data = member.encode()
                length = len(data)
                parts += (_TEXT_HEADS[length] if length < 256 else head(3, length), data)
            else:
                _write(member, parts)
    elif kind is list:
        parts.append(head(4, len(value)))
        for member in value:
            _write(member, parts)
    else:
        parts.append(_simple(value, kind))


_TEXT_HEADS = [head(3, length) for length in range(256)]


def _simple(value: Any, kind: type) -> bytes:
    """Encodes a value that holds no others; raises CborError."""
    if kind is str:
        data: bytes = value.encode()
        return head(3, len(data)) + data
    if kind is int and abs(value) <= MAX_INTEGER:
        return head(0, value) if value >= 0 else head(1, -1 - value)
    if kind is float and math.isfinite(value):
        return cbor2.dumps(value, canonical=True)  # in the shortest form that keeps it
    if kind is bytes:
        return byte_string(value)
    if kind is bool or value is None:
        return cbor2.dumps(value)
    raise CborError("a value that JSON does not have, or a number beyond its range")


# --- records: each value has one encoding, and only that is read -----------------------------


def encode_record(value: Any, depth: int) -> bytes:
    """Encodes texts, bytes, booleans, None, integers of 64 bits and a sign, lists and maps.

    Maps have ASCII names, in any order, and at most ``depth`` maps and lists are inside
    each other. Raises CborError.
    """
    return encode(value, lambda whole: _arranged(whole, depth))


def encode_flat(values: list[str | bytes | None]) -> bytes:
    """Encodes a list as ``encode_record`` does, without a look at each of its values.

    What is known of a key is hashed so, at a start for all of them. Raises CborError.
    """
    return encode(values, as_given)


class MapEncoder:
    """Encodes maps that have the same ``names``, with values of the same kinds.

    What follows from these is found once. Making one raises CborError.
    """

    __slots__ = ("_depth", "_in_order", "_names", "_nested", "_numbers")

    def __init__(self, names: Sequence[str], kinds: Sequence[type], depth: int) -> None:
        """``depth`` is that of ``encode_record``; ``kinds`` are in the order of the names."""
        self._names, self._depth = _ascii_names(*names), depth
        self._in_order = itemgetter(*self._names)
        of_kind = list(zip(names, kinds, strict=True))
        self._numbers = [name for name, kind in of_kind if kind is int]
        self._nested = [name for name, kind in of_kind if not (kind in _PLAIN or kind is int)]

    def encode(self, members: Mapping[str, Any]) -> bytes:
        """Encodes a map as ``encode_record`` does; raises CborError."""
        for name in self._numbers:
            if not -MAX_INTEGER - 1 <= members[name] <= MAX_INTEGER:
                raise CborError(_TOO_LARGE)
        if self._nested:
            nested = {name: _arranged(members[name], self._depth - 1) for name in self._nested}
            members = {**members, **nested}
        return encode(dict(zip(self._names, self._in_order(members), strict=True)), as_given)


def decode_record(data: bytes, depth: int) -> Any:
    """Reads one value from its one encoding, see ``encode_record``; raises CborError."""
    try:
        value = cbor2.loads(data, max_depth=depth, allow_indefinite=False, **_STRICT)
    except cbor2.CBORError:
        raise CborError(
            f"tags, duplicate names, indefinite lengths or more than {depth} levels"
        ) from None
    _check(value)
    # Written again in the order in which it was read: long forms and bytes after it differ.
    if cbor2.dumps(value) != data:
        raise CborError("another form than the deterministic one")
    return value


def _check(value: Any) -> None:
    """Refuses values that ``encode_record`` would not write, or not in this order."""
    kind = type(value)
    if kind is dict:
        if _ascii_names(*value) != list(value):
            raise CborError("names out of order")
        members: Iterable[Any] = value.values()
    elif kind is list:
        members = value
    elif kind in _READ:
        return
    else:
        raise CborError(f"a {kind.__name__}")
    for member in members:
        if type(member) not in _READ:
            _check(member)


def _arranged(value: Any, depth: int) -> Any:
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind is int:
        if -MAX_INTEGER - 1 <= value <= MAX_INTEGER:
            return value
        raise CborError(_TOO_LARGE)
    if kind is not dict and kind is not list:  # the kinds that are usual are found quickly
        if isinstance(value, str):  # a StrEnum
            return str(value)
        if not isinstance(value, Mapping | list | tuple):
            raise CborError(f"a {kind.__name__}")
    if not depth:
        raise CborError("too many maps and lists inside each other")
    if kind is dict or (kind is not list and isinstance(value, Mapping)):
        return {name: _arranged(value[name], depth - 1) for name in _ascii_names(*value)}
    return [_arranged(member, depth - 1) for member in value]


@lru_cache(maxsize=32, typed=True)
def _ascii_names(*names: object) -> list[str]:
    """Returns the names of a record in order. Records of a kind have the same ones."""
    in_order = _in_order(*names)
    if not all(map(str.isascii, in_order)):
        raise CborError("a name that is not ASCII")
    return in_order


def _layout(*names: object) -> "_Layout":
    """Returns what maps with these names share; raises CborError.

    Payloads of one kind share theirs, so it is kept, but only of few and short names: these
    are what strangers send.
    """
    if len(names) > KEPT_NAMES:
        return _layout_of(*names)
    try:
        size = len("".join(names))  # type: ignore[arg-type] # what is not text is refused below
    except TypeError:
        raise CborError("a name that is not text") from None
    return (_kept_layout if size <= KEPT_SIZE else _layout_of)(*names)


class _Layout(NamedTuple):
    """A map without its values: its head, and each name with its encoding, in their order."""

    start: bytes
    names: Sequence[tuple[str, bytes]]


def _layout_of(*names: object) -> _Layout:
    in_order = _in_order(*names)
    encoded = [(name, head(3, len(name.encode())) + name.encode()) for name in in_order]
    return _Layout(head(5, len(encoded)), encoded)


_kept_layout = lru_cache(maxsize=1024, typed=True)(_layout_of)


def _in_order(*names: object) -> list[str]:
    """Returns names in the order of their encoded bytes; raises CborError."""
    if not all(isinstance(name, str) for name in names):
        raise CborError("a name that is not text")
    # Code points sort as their UTF-8 does; the head of a name grows with its length.
    in_order = sorted(str(name) for name in names)
    try:
        return sorted(in_order, key=lambda name: len(name.encode()))
    except UnicodeEncodeError:
        raise CborError(_HALF_A_PAIR) from None


class _NoTags(dict[int, Any]):
    """Refuses every tag before the library makes something of its content."""

    def __missing__(self, tag: int) -> NoReturn:
        raise ValueError("tags are refused")


_STRICT: dict[str, Any] = {
    "allow_duplicate_keys": False,
    "strict_hashable_types": True,
    "semantic_decoders": _NoTags(),
}
_TOO_LARGE = "an integer beyond 64 bits"
_HALF_A_PAIR = "a text with half a surrogate pair"
_PLAIN = frozenset({str, bytes, bool, type(None)})
_READ = _PLAIN | {int}  # any size: without tags, what is read has 64 bits and a sign

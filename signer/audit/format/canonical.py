"""Deterministic CBOR (RFC 8949 section 4.2.1) of values without floats and tags."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, NoReturn

import cbor2

_MAX_INTEGER = 1 << 64


class CanonicalError(Exception):
    """A value that has no such encoding, or bytes that are none. Never quotes values."""


def encode(value: Any, depth: int) -> bytes:
    """Encodes texts, bytes, booleans, None, integers of 64 bits and a sign, lists and maps.

    Maps have ASCII names, in any order; at most ``depth`` of maps and lists lie
    inside each other. Raises CanonicalError.
    """
    try:
        return cbor2.dumps(_arranged(value, depth))
    except UnicodeEncodeError:
        raise CanonicalError("a text has half a surrogate pair") from None


def decode(data: bytes, depth: int) -> Any:
    """Reads one value from its one encoding, see ``encode``; raises CanonicalError."""
    try:
        value = cbor2.loads(
            data,
            max_depth=depth,
            allow_indefinite=False,
            allow_duplicate_keys=False,
            strict_hashable_types=True,
            semantic_decoders=_NO_TAGS,
        )
    except cbor2.CBORError:
        raise CanonicalError(
            "no CBOR without tags, duplicate names and indefinite lengths, "
            f"nested at most {depth} deep"
        ) from None
    _check(value)
    # Written again in the order in which it was read: long forms and bytes behind it differ.
    if cbor2.dumps(value) != data:
        raise CanonicalError("it is not in its canonical form")
    return value


def _check(value: Any) -> None:
    """Refuses what was read, but ``encode`` would not write, or not in this order."""
    kind = type(value)
    if kind is dict:
        names = tuple(value)
        if _in_order(names) != names:
            raise CanonicalError("names are not in their order")
        members: Iterable[Any] = value.values()
    elif kind is list:
        members = value
    elif kind in _READ:
        return
    else:
        raise CanonicalError(f"a value is a {kind.__name__}")
    for member in members:
        if type(member) not in _READ:
            _check(member)


def _arranged(value: Any, depth: int) -> Any:
    """The value with the names of its maps in order; refuses what CBOR would write otherwise."""
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind is int:
        if -_MAX_INTEGER <= value < _MAX_INTEGER:
            return value
        raise CanonicalError("an integer goes beyond 64 bits")
    if isinstance(value, Mapping):
        names = _in_order(tuple(value))
        _descend(depth)
        return {name: _arranged(value[name], depth - 1) for name in names}
    if kind is list or kind is tuple:
        _descend(depth)
        return [_arranged(member, depth - 1) for member in value]
    if isinstance(value, str):  # a StrEnum
        return str(value)
    raise CanonicalError(f"a value is a {kind.__name__}")


@lru_cache(maxsize=32)
def _in_order(names: tuple[Any, ...]) -> tuple[str, ...]:
    """The names of a map in the order of their encodings. Records of a kind have the same ones."""
    if not all(isinstance(name, str) and name.isascii() for name in names):
        raise CanonicalError("a name is not ASCII text")
    # ASCII, so the shorter name and then the lower one has the lower encoding.
    return tuple(sorted(sorted(names), key=len))


def _descend(depth: int) -> None:
    if not depth:
        raise CanonicalError("maps and lists lie too deep inside each other")


_PLAIN = frozenset({str, bytes, bool, type(None)})
_READ = _PLAIN | {int}  # any size: without tags, what is read has 64 bits and a sign


class _NoTags(dict[int, Any]):
    """Refuses every tag before the library makes something of its content."""

    def __missing__(self, tag: int) -> NoReturn:
        raise ValueError("tags are refused")


_NO_TAGS = _NoTags()

"""Reads payloads of strangers: bounded in nesting and numbers, strict, without extensions."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

from signer import cbor
from signer.cbor import MAX_INTEGER
from signer.formats.items import unreadable

MAX_DEPTH = 64
"""Containers inside each other, the outermost included."""

_MAX_DIGITS = len(str(-MAX_INTEGER))


def json_object(payload: bytes) -> dict[str, Any]:
    """Reads one JSON object (RFC 8259) in UTF-8 without a byte order mark.

    Raises ItemError for anything else, and for duplicate members, NaN,
    Infinity, numbers beyond 64 bits, and nesting beyond MAX_DEPTH.
    """
    try:
        value = _decode_json(payload.decode("utf-8").strip(_WHITESPACE))
    except UnicodeDecodeError as error:
        raise unreadable(f"payload is not UTF-8 (byte {error.start})") from None
    except json.JSONDecodeError as error:
        raise unreadable(f"payload is not JSON (character {error.pos})") from None
    except RecursionError:
        raise _too_deep() from None
    if type(value) is not dict:
        raise unreadable("payload is not a JSON object")
    # Most payloads cannot nest too deep because they have too few brackets.
    if payload.count(b"{") + payload.count(b"[") > MAX_DEPTH and _depth_exceeded(value):
        raise _too_deep()
    return value


def cbor_map(payload: bytes) -> dict[Any, Any]:
    """Reads one CBOR map (RFC 8949); lengths may be indefinite.

    Raises ItemError for anything else, and for duplicate keys, tags, nesting
    beyond MAX_DEPTH, and bytes after the map. Kinds of values and names are
    judged where they are encoded again (``cbor.deterministic``).
    """
    try:
        value = cbor.load(payload, MAX_DEPTH)
    except cbor.CborError as error:
        raise unreadable(f"payload is not one CBOR map: it has {error}") from None
    if type(value) is not dict:
        raise unreadable("payload is not a CBOR map")
    return value


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise unreadable("payload has an object with duplicate members")
    return members


def _integer(digits: str) -> int:
    # The length first: reading a long number takes quadratic time.
    if len(digits) > _MAX_DIGITS or abs(number := int(digits)) > MAX_INTEGER:
        raise unreadable("payload has an integer beyond 64 bits")
    return number


def _float(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise unreadable("payload has a number beyond the range of a double")
    return number


def _constant(_name: str) -> NoReturn:
    raise unreadable("payload has NaN or Infinity, which are not JSON")


_WHITESPACE = " \t\n\r"  # RFC 8259, section 2

_DECODER = json.JSONDecoder(
    object_pairs_hook=_members,
    parse_int=_integer,
    parse_float=_float,
    parse_constant=_constant,
)


def _decode_json(text: str) -> Any:
    """Reads one value and nothing after it, without the decoder's own search for white space."""
    value, end = _DECODER.raw_decode(text)
    if end != len(text):
        raise json.JSONDecodeError("Extra data", text, end)
    return value


def _too_deep() -> Exception:
    return unreadable(f"payload is nested deeper than {MAX_DEPTH} levels")


def _depth_exceeded(value: object) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for container in level
            for child in (container.values() if isinstance(container, dict) else container)  # type: ignore[attr-defined]  # lists
            if isinstance(child, dict | list)
        ]
        if not level:
            return False
    return True

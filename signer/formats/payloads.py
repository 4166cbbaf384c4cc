"""What all formats share: methods, items and failures, payloads in JSON and CBOR, lengths.

Payloads are read strictly: bounded in nesting and numbers, without extensions.
"""

import json
import math
import re
from abc import ABC, abstractmethod
from codecs import BOM_UTF8
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, NoReturn

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_der_public_key

from signer import cbor
from signer.algorithms import PROPERTIES
from signer.cbor import MAX_INTEGER
from signer.errors import Failure, Reason
from signer.format_terms import (
    ContentRules,
    FormatContext,
    HcertTerms,
    PreparedBatch,
    ShcTerms,
    TimestampTerms,
)
from signer.model import KeyVersion

MAX_DEPTH = 64  # objects and lists inside each other, the outermost included
MAX_VALUES = 16_384  # commas and opening brackets of a JSON payload
_MARKS = b",[{"
_MAX_DIGITS = len(str(-MAX_INTEGER))


class PayloadError(Exception):
    """Refuses one item. The message names a member or a rule, never a value of the payload."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class MessageError(ValueError):
    """A finished message is not one of the formats, or asks for what is not supported."""


class ContentTerms(NamedTuple):
    """What the policy says about payloads of a key, and the time in epoch seconds."""

    content: ContentRules
    hcert: HcertTerms | None
    shc: ShcTerms | None
    now: int
    timestamp: TimestampTerms | None = None


class MessageFormat(ABC):
    """One format: pure functions; the same payloads and context give the same bytes.

    ``by_call``: the bytes depend on the call and the place in it, so that its items are prepared
    without those of other calls. ``part_bytes``: what is prepared or finished without a pause.
    """

    by_call = False
    part_bytes = 64 * 1024

    @abstractmethod
    def max_output(self, payloads: Sequence[bytes], context: FormatContext) -> int:
        """Returns an upper bound of the length in bytes of all outputs of the batch together."""

    @abstractmethod
    def prepare(self, payloads: Sequence[bytes], context: FormatContext) -> PreparedBatch:
        """Returns the bytes to sign; a payload that is refused fails its own item.

        Raises CallError if no payload could be signed in this context.
        """

    @abstractmethod
    def finish(
        self, prepared: PreparedBatch, signatures: Sequence[bytes], context: FormatContext
    ) -> list[bytes]:
        """Returns the outputs; an empty signature gives an empty output."""

    def inspect(self, payload: bytes, terms: ContentTerms) -> None:  # noqa: B027 - most accept all
        """Raises PayloadError for a payload that no key under these terms could sign.

        What depends on the key version (its certificate, the length of digests) is not seen.
        """


def unreadable(message: str, *, member: str = "", rule: str = "") -> PayloadError:
    """Returns the error for a payload that is not what its format says.

    ``member`` is the dotted path of the member that is wrong, ``rule`` that of a rule that
    demands it.
    """
    return PayloadError(Failure(Reason.PAYLOAD_INVALID, message, rule=rule, member=member))


def denied(rule: str, message: str) -> PayloadError:
    """Returns the error for a payload whose content breaks the rule of this dotted path."""
    return PayloadError(Failure(Reason.CONTENT_DENIED, message, rule=rule))


def prepare_each(payloads: Sequence[bytes], prepare: Callable[[bytes], bytes]) -> PreparedBatch:
    """Prepares item by item; a PayloadError fails only its own item."""
    to_sign: list[bytes] = []
    failures: dict[int, Failure] = {}
    for index, payload in enumerate(payloads):
        try:
            to_sign.append(prepare(payload))
        except PayloadError as error:
            to_sign.append(b"")
            failures[index] = error.failure
    return PreparedBatch(to_sign, failures)


def finish_each(
    prepared: PreparedBatch, signatures: Sequence[bytes], finish: Callable[[bytes, bytes], bytes]
) -> list[bytes]:
    """Makes each output of the signed bytes and their signature; of an empty signature, none."""
    return [
        finish(signed, signature) if signature else b""
        for signed, signature in zip(prepared.to_sign, signatures, strict=True)
    ]


def signature_length(version: KeyVersion) -> int:
    """Returns the length in bytes of the raw signatures of a key version."""
    return PROPERTIES[version.algorithm].signature_bytes or _modulus_length(version.spki)


@lru_cache(maxsize=1024)
def _modulus_length(spki: bytes) -> int:
    """Returns the length in bytes of an RSA modulus (RFC 8017 section 8). Raises TypeError."""
    key = load_der_public_key(spki)
    if not isinstance(key, RSAPublicKey):
        raise TypeError("the pinned public key of an RS256 or PS256 key version is not RSA")
    return (key.key_size + 7) // 8


def json_object(payload: bytes, most_values: int = MAX_VALUES) -> dict[str, Any]:
    """Reads one JSON object (RFC 8259) in UTF-8 without a byte order mark.

    Raises PayloadError for anything else, and for what two readers could read differently:
    duplicate members, half a surrogate pair, NaN, Infinity, numbers beyond 64 bits; and for
    nesting beyond MAX_DEPTH, and more than ``most_values`` commas and brackets, also in texts:
    reading one payload must not take long.
    """
    # One pass, however many there are: ``count`` stops at each.
    size = len(payload)
    if size > most_values and size - len(payload.translate(None, _MARKS)) > most_values:
        raise unreadable(f"payload has more than {most_values} members and list entries")
    try:
        value = _decode_json(payload.decode("utf-8").strip(_WHITESPACE))
    except UnicodeDecodeError as error:
        raise unreadable(f"payload is not UTF-8 (byte {error.start})") from None
    except json.JSONDecodeError as error:
        if payload.startswith(BOM_UTF8):
            raise unreadable("payload begins with a byte order mark: leave it out") from None
        raise unreadable(f"payload is not JSON (character {error.pos})") from None
    except RecursionError:
        raise _too_deep() from None
    if type(value) is not dict:
        raise unreadable("payload is not a JSON object")
    # Most payloads cannot nest too deep because they have too few brackets.
    if payload.count(b"{") + payload.count(b"[") > MAX_DEPTH and _depth_exceeded(value):
        raise _too_deep()
    if _has_surrogate(payload) and not _is_unicode(value):
        raise unreadable("payload has a text with half a surrogate pair")
    return value


def cbor_map(payload: bytes) -> dict[Any, Any]:
    """Reads one CBOR map (RFC 8949); lengths may be indefinite.

    Raises PayloadError for anything else, and for duplicate keys, tags, nesting
    beyond MAX_DEPTH, and bytes after the map. Kinds of values and names are
    judged where they are encoded again (``cbor.encode_deterministic``).
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

_scan = json.JSONDecoder(
    object_pairs_hook=_members, parse_int=_integer, parse_float=_float, parse_constant=_constant
).scan_once  # type: ignore[attr-defined]  # left out by its types


def _decode_json(text: str) -> Any:
    """Reads one value and nothing after it, without the decoder's own search for white space."""
    try:
        value, end = _scan(text, 0)
    except StopIteration as stop:
        raise json.JSONDecodeError("Expecting value", text, stop.value) from None
    if end != len(text):
        raise json.JSONDecodeError("Extra data", text, end)
    return value


_has_surrogate = re.compile(rb"\\u[dD][89a-fA-F]").search


def _is_unicode(value: object) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


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

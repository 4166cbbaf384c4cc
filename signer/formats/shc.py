"""SMART Health Cards: a FHIR bundle in a compressed JWS, as the digits of a QR code.

SMART Health Cards Framework 1.4 (spec.smarthealth.cards); JWS is RFC 7515, DEFLATE RFC 1951.
"""

import json
import re
import zlib
from collections.abc import Sequence
from operator import itemgetter
from typing import Any

from signer.algorithms import Algorithm
from signer.errors import CallError, Reason
from signer.format_terms import ContentRules, FormatContext, PreparedBatch, ShcTerms
from signer.formats.jws import base64url, encoded_length
from signer.formats.payloads import (
    ContentTerms,
    MessageFormat,
    finish_each,
    json_object,
    prepare_each,
    unreadable,
)
from signer.model import KeyVersion

PREFIX = b"shc:/"
MAX_BYTES = 16_384  # longest bundle
FHIR_VERSION = "4.0.1"
VOCABULARY = "https://smarthealth.cards#"  # of the types of a card
_SIGNATURE = 64  # bytes of ES256, the only algorithm of the framework

QR_BITS = {"L": 23_648, "M": 18_672, "Q": 13_328, "H": 10_208}
"""Data bits of the largest QR code (version 40), by its level (ISO/IEC 18004 table 7)."""
# shc:/ in byte mode, and the head of the digits' segment, which takes 10 bits for 3 digits.
_OTHER_BITS = (4 + 16 + 8 * len(PREFIX)) + (4 + 14)


class Shc(MessageFormat):
    """A FHIR bundle in JSON becomes the text of a QR code."""

    def max_output(self, payloads: Sequence[bytes], context: FormatContext) -> int:
        """Bounds the texts as if nothing could be compressed; raises CallError as ``prepare``."""
        head, tail = _claims(_terms(context), context.now)
        header = _header(context.version)
        total = 0
        for payload in payloads:
            size = len(head) + len(payload) + len(tail)
            size += (size >> 12) + (size >> 14) + 7  # zlib's deflateBound
            total += _text_length(len(header) + encoded_length(size))
        return total

    def prepare(self, payloads: Sequence[bytes], context: FormatContext) -> PreparedBatch:
        """Returns the JWS signing inputs; raises CallError if no card can be signed."""
        claims = _claims(_terms(context), context.now)
        header = _header(context.version)
        return prepare_each(
            payloads, lambda payload: _signing_input(payload, header, claims, context.content)
        )

    def inspect(self, payload: bytes, terms: ContentTerms) -> None:
        """Checks also whether a QR code holds the text."""
        if terms.shc is not None:
            header = _header_of("0" * 43)  # any kid: all have this length
            _signing_input(payload, header, _claims(terms.shc, terms.now), terms.content)

    def finish(
        self,
        prepared: PreparedBatch,
        signatures: Sequence[bytes],
        context: FormatContext,  # noqa: ARG002 - of all formats
    ) -> list[bytes]:
        def finish(signing_input: bytes, signature: bytes) -> bytes:
            return text(signing_input + b"." + base64url(signature))

        return finish_each(prepared, signatures, finish)


def text(jws: bytes) -> bytes:
    """Returns the text of the QR code for a compact JWS: two digits for each character."""
    return PREFIX + b"".join(itemgetter(*jws)(_DIGITS))


def jws_of(card: bytes) -> bytes:
    """Returns the compact JWS in the text of a QR code; raises ValueError for another text."""
    digits = card.removeprefix(PREFIX)
    if digits == card or len(digits) % 2 or not digits.isdigit():
        raise ValueError("not a SMART Health Card")
    return bytes(int(digits[i : i + 2]) + 45 for i in range(0, len(digits), 2))


# Of each character from "-" on, its number less 45 (the framework's "Encoding Chunks as QR Codes").
_DIGITS = [b""] * 45 + [b"%02d" % number for number in range(100)]


def _terms(context: FormatContext) -> ShcTerms:
    if context.shc is None:
        raise _unfit("the policy gives this key no issuer for SHC")
    if context.version.algorithm is not Algorithm.ES256:
        raise _unfit(f"SHC is signed with ES256, not with {context.version.algorithm}")
    return context.shc


def _unfit(message: str) -> CallError:
    return CallError(Reason.KEY_VERSION_NOT_ACTIVE, message)


def _header(version: KeyVersion) -> bytes:
    return _header_of(version.thumbprint)


def _header_of(kid: str) -> bytes:
    """Returns the first part of the JWS with its dot."""
    header = {"zip": "DEF", "alg": str(Algorithm.ES256), "kid": kid}
    return base64url(json.dumps(header, separators=(",", ":")).encode()) + b"."


def _claims(terms: ShcTerms, now: int) -> tuple[bytes, bytes]:
    """Returns the JWS payload before and after the bundle."""
    types = [VOCABULARY + name for name in ("health-card", *sorted(terms.types))]
    claims = {
        "iss": terms.issuer,
        "nbf": now,
        "vc": {
            "type": types,
            "credentialSubject": {"fhirVersion": FHIR_VERSION, "fhirBundle": None},
        },
    }
    head, _, tail = json.dumps(claims, separators=(",", ":")).encode().rpartition(b"null")
    return head, tail


def _signing_input(
    payload: bytes, header: bytes, claims: tuple[bytes, bytes], content: ContentRules
) -> bytes:
    if len(payload) > MAX_BYTES:
        raise unreadable(f"payload is longer than {MAX_BYTES} bytes")
    _check_bundle(json_object(payload))
    head, tail = claims
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    # Without white space between its tokens, else byte for byte: decimals keep their zeros.
    packed = packer.compress(head + _SPACE.sub(rb"\1", payload) + tail) + packer.flush()
    signing_input = header + base64url(packed)
    if content.qr_level is not None:
        most = (QR_BITS[content.qr_level] - _OTHER_BITS) // 10 * 3
        if (length := _text_length(len(signing_input)) - len(PREFIX)) > most:
            raise unreadable(
                f"the card would have {length} digits, but a QR code of level {content.qr_level} "
                f"holds {most} (content.qr_level of the policy)",
                rule=content.path("qr_level"),
            )
    return signing_input


_SPACE = re.compile(rb'("(?:[^"\\]|\\.)*")|[ \t\n\r]+')


def _text_length(signing_input: int) -> int:
    """Returns the length of a card with a signing input of this length."""
    return len(PREFIX) + 2 * (signing_input + 1 + encoded_length(_SIGNATURE))


def _check_bundle(bundle: dict[str, Any]) -> None:
    """Raises PayloadError unless this is a FHIR bundle as a card holds it."""
    for member, value in (("resourceType", "Bundle"), ("type", "collection")):
        if bundle.get(member) != value:
            raise unreadable(f"{member} should be {value}", member=member)
    entries = bundle.get("entry")
    if type(entries) is not list or not entries:
        raise unreadable("entry should be a list of at least one object", member="entry")
    for index, entry in enumerate(entries):
        place = f"entry.{index}"
        if type(entry) is not dict:
            raise unreadable(f"{place} should be an object", member=place)
        if type(entry.get("fullUrl")) is not str:
            raise unreadable(f"{place}.fullUrl should be a text", member=f"{place}.fullUrl")
        resource = entry.get("resource")
        if type(resource) is not dict or type(resource.get("resourceType")) is not str:
            raise unreadable(
                f"{place}.resource should be an object with resourceType",
                member=f"{place}.resource",
            )

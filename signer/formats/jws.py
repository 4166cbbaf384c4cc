"""JWS in compact form (RFC 7515 section 3.1) over one JSON object."""

import base64
import json
from collections.abc import Sequence
from functools import lru_cache

from signer.algorithms import Algorithm
from signer.format_terms import ContentRules, FormatContext, PreparedBatch
from signer.formats.payloads import (
    ContentTerms,
    MessageFormat,
    denied,
    finish_each,
    json_object,
    prepare_each,
    signature_length,
    unreadable,
)
from signer.model import KeyVersion

MAX_BYTES = 256 * 1024  # the slowest payload, of only brackets, takes tens of ms and 11 MiB
_NAME_BYTES = 80  # of a missing member's name in an error


class Jws(MessageFormat):
    """The payload's bytes unchanged, under a header of alg and kid."""

    def max_output(self, payloads: Sequence[bytes], context: FormatContext) -> int:
        """Adds header, two dots, and 4 characters for each 3 bytes or part of them."""
        fixed = (
            len(_header(context.version)) + 1 + encoded_length(signature_length(context.version))
        )
        # A sum of roundings is at most the rounded sum and one for each item.
        return len(payloads) * (fixed + 1) + encoded_length(sum(map(len, payloads)))

    def prepare(self, payloads: Sequence[bytes], context: FormatContext) -> PreparedBatch:
        """Returns the JWS signing inputs (RFC 7515 section 5.1)."""
        header = _header(context.version)
        content = context.content

        def prepare(payload: bytes) -> bytes:
            _check(payload, content)
            return header + base64url(payload)

        return prepare_each(payloads, prepare)

    def inspect(self, payload: bytes, terms: ContentTerms) -> None:
        _check(payload, terms.content)

    def finish(
        self,
        prepared: PreparedBatch,
        signatures: Sequence[bytes],
        context: FormatContext,  # noqa: ARG002 - of all formats
    ) -> list[bytes]:
        def finish(signing_input: bytes, signature: bytes) -> bytes:
            return signing_input + b"." + base64url(signature)

        return finish_each(prepared, signatures, finish)


def _check(payload: bytes, content: ContentRules) -> None:
    if len(payload) > MAX_BYTES:
        raise unreadable(f"payload is longer than {MAX_BYTES} bytes")
    document, required = json_object(payload), content.required_members
    if required and not document.keys() >= required:
        missing = min(required - document.keys())
        rule = content.path(f"required_members.{missing}")
        name = missing.encode()[:_NAME_BYTES].decode(errors="ignore")
        raise denied(rule, f"content rule required_members: {name} is missing")


def _header(version: KeyVersion) -> bytes:
    """Returns the first part of the message with its dot."""
    return _header_of(version.algorithm, version.thumbprint)


@lru_cache(maxsize=4096)
def _header_of(algorithm: Algorithm, kid: str) -> bytes:
    header = {"alg": algorithm.value, "kid": kid}
    return base64url(json.dumps(header, separators=(",", ":")).encode()) + b"."


def base64url(data: bytes) -> bytes:
    """Returns base64url without padding (RFC 7515 section 2)."""
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def encoded_length(length: int) -> int:
    """Returns how many characters ``length`` bytes take in base64url."""
    return (4 * length + 2) // 3

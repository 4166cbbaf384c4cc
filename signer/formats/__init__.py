"""Payload → bytes to sign → finished message: pure, one file a format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from signer.formats.cose import CoseSign1
from signer.formats.hcert import Hcert
from signer.formats.jws import Jws
from signer.formats.raw import Digest, Message
from signer.model import Format, FormatContext, PreparedBatch


class MessageFormat(Protocol):
    """One format: pure functions; the same payloads and context give the same bytes."""

    def max_output(self, payloads: Sequence[bytes], context: FormatContext) -> int:
        """Returns an upper bound of the length in bytes of all outputs of the batch together."""

    def prepare(self, payloads: Sequence[bytes], context: FormatContext) -> PreparedBatch:
        """Returns the bytes to sign; a payload that is refused fails its own item.

        Raises CallError where no payload could be signed in this context.
        """

    def finish(
        self, prepared: PreparedBatch, signatures: Sequence[bytes], context: FormatContext
    ) -> list[bytes]:
        """Returns the outputs; an empty signature gives an empty output."""


FORMATS: Mapping[Format, MessageFormat] = {
    Format.DIGEST: Digest(),
    Format.MESSAGE: Message(),
    Format.JWS: Jws(),
    Format.COSE_SIGN1: CoseSign1(),
    Format.HCERT: Hcert(),
}

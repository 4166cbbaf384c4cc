"""DIGEST and MESSAGE: the output is the raw signature."""

import hashlib
from collections.abc import Sequence

from signer.algorithms import PROPERTIES
from signer.errors import invalid
from signer.format_terms import FormatContext, PreparedBatch
from signer.formats.payloads import MessageFormat, signature_length, unreadable


class Message(MessageFormat):
    """Any bytes; the appliance hashes them."""

    def max_output(self, payloads: Sequence[bytes], context: FormatContext) -> int:
        """Returns the length of all signatures together."""
        return len(payloads) * signature_length(context.version)

    def prepare(self, payloads: Sequence[bytes], context: FormatContext) -> PreparedBatch:  # noqa: ARG002 - of all formats
        """Returns the payloads; an empty one is a message too."""
        return PreparedBatch(payloads, {})

    def finish(
        self,
        prepared: PreparedBatch,  # noqa: ARG002 - of all formats
        signatures: Sequence[bytes],
        context: FormatContext,  # noqa: ARG002 - of all formats
    ) -> list[bytes]:
        return list(signatures)


class Digest(Message):
    """A digest by the hash of the key's algorithm; its message is not seen."""

    def prepare(self, payloads: Sequence[bytes], context: FormatContext) -> PreparedBatch:
        """Accepts digests of exactly the right length: no PKCS#11 module checks it.

        Raises CallError for EdDSA, which signs messages.
        """
        hash_name = PROPERTIES[context.version.algorithm].hash_name
        if hash_name is None:
            raise invalid("format", "is DIGEST, which EdDSA cannot sign: send MESSAGE")
        size = hashlib.new(hash_name).digest_size
        wrong = unreadable(f"payload is not a {hash_name} digest of {size} bytes").failure
        failures = {i: wrong for i, payload in enumerate(payloads) if len(payload) != size}
        to_sign = [b"" if i in failures else p for i, p in enumerate(payloads)]
        return PreparedBatch(to_sign, failures, prehashed=True)

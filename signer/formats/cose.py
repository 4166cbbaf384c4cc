"""COSE_Sign1 (RFC 9052 sections 4.2 and 4.4), concatenated from encoded parts."""

from collections.abc import Mapping, Sequence
from functools import lru_cache

from signer import cbor
from signer.algorithms import PROPERTIES, Algorithm
from signer.format_terms import FormatContext, PreparedBatch
from signer.formats.payloads import MessageFormat, finish_each, signature_length
from signer.model import KeyVersion


class Envelope:
    """COSE_Sign1 around any payload: the parts that a batch shares, encoded once.

    The headers keep their order; an empty protected header is a byte string of length 0
    (RFC 9052 section 3). ``external`` is external_aad.
    """

    def __init__(
        self,
        protected: Mapping[int, object],
        unprotected: Mapping[int, object] | None = None,
        external: bytes = b"",
    ) -> None:
        header = cbor.encode(dict(protected), cbor.as_given) if protected else b""
        self._signed = b"\x84\x6aSignature1" + cbor.byte_string(header) + cbor.byte_string(external)
        self._message = (
            b"\xd2\x84"  # tag 18 and an array of 4
            + cbor.byte_string(header)
            + cbor.encode(dict(unprotected or {}), cbor.as_given)
        )

    def to_sign(self, payload: bytes) -> bytes:
        """Returns the Sig_structure of the payload."""
        return self._signed + cbor.byte_string(payload)

    def message(self, to_sign: bytes, signature: bytes) -> bytes:
        """Returns the tagged COSE_Sign1; both structures contain the payload as a byte string."""
        return self._message + to_sign[len(self._signed) :] + cbor.byte_string(signature)

    def message_length(self, to_sign: int, signature: int) -> int:
        """Returns the length of the message for a Sig_structure and signature of these lengths."""
        head = len(cbor.head(2, signature))
        return len(self._message) + to_sign - len(self._signed) + head + signature

    def length(self, payload: int, signature: int) -> int:
        """Returns the length of a message with a payload and a signature of these lengths."""
        return (
            len(self._message)
            + len(cbor.head(2, payload))
            + payload
            + len(cbor.head(2, signature))
            + signature
        )


def envelope(version: KeyVersion) -> Envelope:
    """Returns the envelope of a key version: protected alg and kid, in deterministic order."""
    return _envelope(version.algorithm, version.kid)


@lru_cache(maxsize=4096)
def _envelope(algorithm: Algorithm, kid: bytes) -> Envelope:
    """Made once for all parts of all batches: a part is often a few items."""
    return Envelope({1: PROPERTIES[algorithm].cose, 4: kid})


class CoseSign1(MessageFormat):
    """Any bytes as payload."""

    def max_output(self, payloads: Sequence[bytes], context: FormatContext) -> int:
        """Gives each message a payload head as long as that of the longest."""
        longest = max(map(len, payloads), default=0)
        signature = signature_length(context.version)
        fixed = envelope(context.version).length(longest, signature) - longest
        return len(payloads) * fixed + sum(map(len, payloads))

    def prepare(self, payloads: Sequence[bytes], context: FormatContext) -> PreparedBatch:
        """Returns the Sig_structures; every payload is accepted."""
        return PreparedBatch(list(map(envelope(context.version).to_sign, payloads)), {})

    def finish(
        self, prepared: PreparedBatch, signatures: Sequence[bytes], context: FormatContext
    ) -> list[bytes]:
        return finish_each(prepared, signatures, envelope(context.version).message)

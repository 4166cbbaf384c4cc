"""From payloads to inputs of the HSM, and from signatures to messages, in slices."""

import hashlib
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import sha256

from signer.algorithms import PROPERTIES, Algorithm
from signer.errors import Failure
from signer.event_loop import Turns
from signer.format_terms import HANDLE_BYTES, Enclosed, FormatContext, Handles, PreparedBatch
from signer.formats.payloads import MessageFormat
from signer.formats.revocation import handles_of_signed
from signer.model import KeyVersion
from signer.signing.request import BatchRequest

_NO_HANDLES = Handles(bytes(HANDLE_BYTES), bytes(HANDLE_BYTES), bytes(HANDLE_BYTES))


class HsmInputs:
    """The inputs of the HSM for the items that are still good, and their indexes in the batch.

    ``failures`` are those of the other items.
    """

    def __init__(self, algorithm: Algorithm) -> None:
        self.failures: dict[int, Failure] = {}
        self.inputs: list[bytes] = []
        self._hash_name = PROPERTIES[algorithm].hash_name
        self._to_sign: list[bytes] = []
        self._enclosed: list[Enclosed] = []  # of formats that have them
        self._digests: list[bytes] | None = None  # where they are not the inputs
        self._indexes: list[int] | None = None  # where not all items are good

    def add(self, part: PreparedBatch) -> None:
        """Adds the next items of the batch."""
        first, good = len(self._to_sign), part.to_sign
        self._to_sign += part.to_sign
        self._enclosed += part.enclosed
        if part.failures and self._indexes is None:
            self._indexes = list(range(first))
        if self._indexes is not None:
            indexes = [i for i in range(len(part.to_sign)) if i not in part.failures]
            good = [part.to_sign[i] for i in indexes]
            self._indexes += [first + i for i in indexes]
            self.failures |= {first + i: failure for i, failure in part.failures.items()}
        if part.prehashed:
            self.inputs += good
            return
        digests = [sha256(message).digest() for message in good]
        match self._hash_name:
            case "sha256":
                self.inputs += digests
                return
            case None:  # EdDSA signs messages as they are
                self.inputs += good
            case name:
                self.inputs += [hashlib.new(name, message).digest() for message in good]
        self._digests = [*(self._digests or ()), *digests]

    def digests(self) -> Sequence[bytes]:
        """Returns SHA-256 of the bytes to sign, or for DIGEST the digests that were sent."""
        return self.inputs if self._digests is None else self._digests

    def between(self, start: int, stop: int) -> tuple[int, int]:
        """Returns between which indexes the inputs of these items are."""
        if self._indexes is None:
            return start, stop
        return bisect_left(self._indexes, start), bisect_left(self._indexes, stop)

    def by_index(self, failures: dict[int, Failure]) -> dict[int, Failure]:
        """Returns failures of inputs by the index of their item in the batch."""
        if self._indexes is None:
            return failures
        return {self._indexes[i]: failure for i, failure in failures.items()}

    def indexes(self) -> Sequence[int]:
        """Returns the places in the batch of the items that go to the HSM."""
        return range(len(self._to_sign)) if self._indexes is None else self._indexes

    def spread(self, signatures: list[bytes]) -> list[bytes]:
        """Returns signatures at the indexes of their items, b"" elsewhere."""
        if self._indexes is None:
            return signatures
        spread = [b""] * len(self._to_sign)
        for index, signature in zip(self._indexes, signatures, strict=True):
            spread[index] = signature
        return spread

    @property
    def to_sign(self) -> Sequence[bytes]:
        """What is signed of each item of the batch, b"" for failed ones."""
        return self._to_sign

    def prepared(self, start: int, stop: int) -> PreparedBatch:
        """Returns these items as ``MessageFormat.finish`` takes them."""
        enclosed = self._enclosed[start:stop]
        return PreparedBatch(self._to_sign[start:stop], {}, enclosed=enclosed)


class Messages:
    """Prepares and finishes batches in the turns of their principals."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns

    async def prepare(
        self,
        message_format: MessageFormat,
        principal: str,
        payloads: Sequence[bytes],
        context: FormatContext,
        failed: Mapping[int, Failure] | None = None,
    ) -> HsmInputs:
        """Returns what the HSM signs; a payload that is refused fails its own item.

        Where ``failed`` is given, these items fail, and no others. Raises CallError if no
        payload could be signed in this context.
        """
        inputs = HsmInputs(context.version.algorithm)
        by_place = message_format.by_call or context.cosigned is not None

        def prepare(start: int, stop: int) -> bool:
            here = replace(context, first=start) if by_place and start else context
            part = message_format.prepare(payloads[start:stop], here)
            if failed is not None:
                indexes = range(start, stop)
                part = part._replace(
                    failures={i - start: failed[i] for i in indexes if i in failed}
                )
            inputs.add(part)
            return 2 * len(part.failures) > stop - start

        part_bytes = message_format.part_bytes
        await self._turns.each(principal, payloads, prepare, wasted=bool, part_bytes=part_bytes)
        return inputs

    async def finish(
        self,
        message_format: MessageFormat,
        principal: str,
        inputs: HsmInputs,
        signatures: list[bytes],
        context: FormatContext,
    ) -> list[bytes]:
        """Returns the outputs for the signatures of all inputs, b"" for failed items."""
        spread = inputs.spread(signatures)
        finished = await self._turns.each(
            principal,
            inputs.to_sign,
            lambda start, stop: message_format.finish(
                inputs.prepared(start, stop), spread[start:stop], context
            ),
            part_bytes=message_format.part_bytes,
        )
        return [output for part in finished for output in part]

    async def links(self, request: BatchRequest, inputs: HsmInputs) -> bytes:
        """Returns the SHA-256 of the signed record of each item that goes to the HSM."""
        records = [request.cosignatures[index] for index in inputs.indexes()]
        parts = await self._turns.each(
            request.principal,
            records,
            lambda start, stop: b"".join(sha256(each).digest() for each in records[start:stop]),
        )
        return b"".join(parts)

    async def handles(
        self, request: BatchRequest, inputs: HsmInputs, signatures: list[bytes], version: KeyVersion
    ) -> list[Handles]:
        """Returns the revocation handles where a request asks for them, zeros for failed items."""
        if not request.revocation:
            return []
        spread = inputs.spread(signatures)

        def handles(start: int, stop: int) -> list[Handles]:
            signed = inputs.prepared(start, stop).to_sign
            return [
                handles_of_signed(each, version.algorithm, made) if made else _NO_HANDLES
                for each, made in zip(signed, spread[start:stop], strict=True)
            ]

        found = await self._turns.each(request.principal, spread, handles)
        return [each for part in found for each in part]

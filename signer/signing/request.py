"""The values of a signing request: what is asked, what is answered, what is served now."""

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256

from signer.algorithms import PROPERTIES, Algorithm
from signer.errors import Failure
from signer.keys.index import KeyIndex
from signer.model import Format, KeyName, KeyVersion, PreparedBatch, Suspended
from signer.policy.rules import Policy, Terms


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Policy, keys and suspensions that belong together; replaced as a whole."""

    policy: Policy
    keys: KeyIndex
    suspended: Suspended = field(default_factory=Suspended)


class Served:
    """Holds the snapshot that is served now.

    Only the daemon's serving part assigns ``snapshot``. Everyone else reads it once for each
    call and keeps that snapshot until the call ends.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot


@dataclass(frozen=True, slots=True)
class BatchRequest:
    """One call of SignBatch.

    ``version`` None means the primary. ``deadline`` is in monotonic seconds. ``request_id`` is
    the caller's, empty without one; ``call_id`` is assigned by the appliance.
    """

    principal: str
    key: KeyName
    version: int | None
    format: Format
    payloads: Sequence[bytes]
    deadline: float
    request_id: str = ""
    call_id: str = ""

    def content_hash(self) -> bytes:
        """Returns the SHA-256 of everything that is asked: key, version, format and payloads."""
        count = len(self.payloads)
        head = f"{self.key}/versions/{self.version or 0}\n{self.format}\n{count}\n".encode()
        lengths = struct.pack(f">{count}Q", *map(len, self.payloads))
        return sha256(b"".join((head, lengths, *self.payloads))).digest()


@dataclass(frozen=True, slots=True)
class BatchResult:
    """Outputs in the order of the payloads, b"" if ``failures`` has the index."""

    version: KeyVersion
    terms: Terms
    rule: str
    outputs: Sequence[bytes]
    failures: dict[int, Failure]


class HsmInputs:
    """The inputs of the HSM for the items that are still good, and their indexes in the batch."""

    def __init__(self, prepared: PreparedBatch, algorithm: Algorithm) -> None:
        self._size = len(prepared.to_sign)
        self._indexes: Sequence[int] = range(self._size)
        self._good = prepared.to_sign
        if prepared.failures:
            self._indexes = [i for i in range(self._size) if i not in prepared.failures]
            self._good = [prepared.to_sign[i] for i in self._indexes]
        self._are_digests = prepared.prehashed or PROPERTIES[algorithm].hash_name == "sha256"
        self.inputs = self._good if prepared.prehashed else _hashed(algorithm, self._good)

    def digests(self) -> Sequence[bytes]:
        """Returns SHA-256 of the bytes to sign, or for DIGEST the digests that were sent."""
        if self._are_digests:
            return self.inputs
        return [sha256(message).digest() for message in self._good]

    def by_index(self, failures: dict[int, Failure]) -> dict[int, Failure]:
        """Returns failures of inputs by the index of their item in the batch."""
        return {self._indexes[i]: failure for i, failure in failures.items()}

    def spread(self, signatures: list[bytes]) -> list[bytes]:
        """Returns signatures at the indexes of their items, b"" elsewhere."""
        if len(signatures) == self._size:
            return signatures
        spread = [b""] * self._size
        for index, signature in zip(self._indexes, signatures, strict=True):
            spread[index] = signature
        return spread


def _hashed(algorithm: Algorithm, messages: Sequence[bytes]) -> Sequence[bytes]:
    """Returns the messages' digests with the key's hash; EdDSA signs messages as they are."""
    match PROPERTIES[algorithm].hash_name:
        case None:
            return messages
        case "sha256":
            return [sha256(message).digest() for message in messages]
        case name:
            return [hashlib.new(name, message).digest() for message in messages]

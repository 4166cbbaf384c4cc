"""The values of a signing request: what is asked, what is answered, what is served now."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import NamedTuple

from signer.errors import Failure
from signer.keys.index import KeyIndex
from signer.model import Format, KeyName, KeyVersion, Suspended
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


class Ticket(NamedTuple):
    """Who asks, under which id (empty: none), and the hash of all that is asked."""

    principal: str
    request_id: str
    content: bytes


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

    def ticket(self) -> Ticket:
        """Returns what distinguishes a repetition of this request from another request."""
        if not self.request_id:
            return Ticket(self.principal, "", b"")
        named = f"{self.key}/versions/{self.version or 0}"
        content = content_hash(named, self.format, self.payloads)
        return Ticket(self.principal, self.request_id, content)


@dataclass(frozen=True, slots=True)
class BatchResult:
    """Outputs in the order of the payloads, b"" where ``failures`` has the index."""

    version: KeyVersion
    terms: Terms
    rule: str
    outputs: Sequence[bytes]
    failures: dict[int, Failure]


def content_hash(key: str, requested: Format, payloads: Sequence[bytes]) -> bytes:
    """Returns the SHA-256 of everything that a request asks for; each part with its length."""
    head = f"{key}\n{requested}\n{len(payloads)}\n".encode()
    lengths = struct.pack(f">{len(payloads)}Q", *map(len, payloads))
    return sha256(b"".join((head, lengths, *payloads))).digest()

"""The values of a signing request: what is asked, what is answered, what is served now."""

import struct
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from typing import NamedTuple

from signer.errors import Failure
from signer.format_terms import Handles
from signer.key_index import KeyIndex
from signer.model import Format, KeyName, KeyVersion, Suspended, WrappingKey, parse_key_or_version
from signer.policy.rules import Policy, Terms


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Policy, keys and suspensions that belong together; replaced as a whole.

    ``wrapping_keys`` has one for each token that holds it, or did before it was destroyed.
    """

    policy: Policy
    keys: KeyIndex
    suspended: Suspended = field(default_factory=Suspended)
    wrapping_keys: tuple[WrappingKey, ...] = ()

    def known(self, name: str) -> str:
        """Returns the name of a key or version if the key exists or the policy lists it.

        Of any other name, which a caller may have chosen for what it says, it is a hash.
        """
        with suppress(ValueError):
            key, _ = parse_key_or_version(name)
            facility = self.policy.facilities.get(key.facility)
            if self.keys.versions(key) or (facility is not None and key.key in facility.keys):
                return name
        return f"sha256:{sha256(name.encode()).hexdigest()}"


class Served:
    """Holds the snapshot that is served now.

    Only the daemon's serving part assigns ``snapshot``. Everyone else reads it once for each
    call and keeps that snapshot until the call ends.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot


class BatchRequest(NamedTuple):
    """One call of SignBatch.

    ``version`` None means the primary. ``deadline`` is in monotonic seconds. ``request_id`` is
    the caller's, empty without one; ``call_id`` is assigned by the appliance. ``revocation``:
    the answer has the handles of the certificates. ``cosignatures``: the facilities' signed
    records, one for each payload, or none.
    """

    principal: str
    key: KeyName
    version: int | None
    format: Format
    payloads: Sequence[bytes]
    deadline: float
    request_id: str = ""
    call_id: str = ""
    revocation: bool = False
    cosignatures: Sequence[bytes] = ()

    def content_head(self) -> bytes:
        """Returns what the hash of everything that is asked begins with.

        That is key, version, format, the signed records and the payloads' lengths; the payloads
        follow.
        """
        count = len(self.payloads)
        head = f"{self.key}/versions/{self.version or 0}\n{self.format}\n{count}\n".encode()
        if self.cosignatures:
            head += b"cosignatures\n" + sha256(b"\n".join(self.cosignatures)).digest()
        return head + struct.pack(f">{count}Q", *map(len, self.payloads))


class BatchResult(NamedTuple):
    """Outputs in the order of the payloads, b"" if ``failures`` has the index.

    ``audit_record`` is the number of the intent in the audit log; None if nothing went to
    the HSM, so that there is none. ``handles``, where they are asked for, are in the order of
    the payloads, too.
    """

    version: KeyVersion
    terms: Terms
    rule: str
    outputs: Sequence[bytes]
    failures: dict[int, Failure]
    audit_record: int | None = None
    handles: Sequence[Handles] = ()

"""What a log has said of operations so far: their bytes, how far each came, which have failed.

Those that are over, or only proposed, are forgotten after a time; those that can still go on, not.
"""

import enum
import struct
from collections import OrderedDict
from hashlib import sha256
from typing import NamedTuple

from signer.audit.format.record import HASH_SIZE
from signer.officers.record_checks import Carried, ProblemError, operation_id

MEMORY_US = 30 * 24 * 3600 * 1_000_000  # how long an operation that is not under way is remembered
MAX_OPERATIONS = 4096  # remembered at once; the oldest are forgotten first
_ROW = struct.Struct(f">16sBQ{HASH_SIZE}s")  # the operation, its stage, its time, its content
_ID = 16  # bytes of an operation's id


class OperationStage(enum.IntFlag):
    """What is known of an operation."""

    BEGUN = 1
    DONE = 2
    IN_FORCE = 4  # its set of officers was put in force, or its confirmation of the clock


class KnownOperation(NamedTuple):
    """An operation: its stages, the time of its newest record, the SHA-256 of its bytes."""

    stage: int
    time_us: int
    content: bytes

    def has(self, stage: OperationStage) -> bool:
        """Returns whether it has come so far."""
        return bool(self.stage & stage)


class OperationMemory:
    """The operations that are remembered, by their ids in 16 bytes.

    ``begun`` has the SHA-256 of those that are approved and begun; ``contents`` the bytes of
    proposals, for their approvals.
    """

    def __init__(self) -> None:
        self.begun: dict[bytes, bytes] = {}
        self.contents: dict[bytes, bytes] = {}
        # In the order of their times: the oldest first.
        self._known: OrderedDict[bytes, KnownOperation] = OrderedDict()
        self._failed: dict[bytes, None] = {}  # they failed, and did not begin again

    def get(self, identity: bytes) -> KnownOperation | None:
        return self._known.get(identity)

    def has_failed(self, identity: bytes) -> bool:
        """Returns whether an operation has failed, and has not begun again since."""
        return identity in self._failed

    def remember(self, time_us: int, carried: Carried, stage: int = 0) -> KnownOperation | None:
        """Remembers the operation that a record carries; returns what was known of it before.

        Raises ProblemError if it had another content then: that remains.
        """
        identity, digest = operation_id(carried.operation), sha256(carried.content).digest()
        before = self._known.pop(identity, None)
        known = before or KnownOperation(0, 0, digest)
        self._known[identity] = known._replace(stage=known.stage | stage, time_us=time_us)
        if before is None and len(self._known) > MAX_OPERATIONS:
            self._drop(next(iter(self._known)))
        if known.content != digest:
            raise ProblemError(f"operation {carried.operation} had another content before")
        return before

    def begin(self, time_us: int, carried: Carried) -> None:
        """Notes that an operation, which is remembered, has begun."""
        identity = operation_id(carried.operation)
        self.begun[identity] = self._known[identity].content
        self._failed.pop(identity, None)
        self.remember(time_us, carried, OperationStage.BEGUN)

    def fail(self, identity: bytes) -> None:
        """Notes that an operation, which is remembered, has failed."""
        self._failed[identity] = None

    def finish(self, identity: bytes, time_us: int) -> None:
        """Notes that an operation, which is remembered, is done."""
        known = self._known[identity]
        done = known.stage | OperationStage.DONE
        self._known[identity] = known._replace(stage=done, time_us=time_us)
        self._known.move_to_end(identity)

    def forget(self, time_us: int) -> None:
        """Forgets operations that have been over, or only proposed, for long."""
        while self._known:
            identity, known = next(iter(self._known.items()))
            if time_us - known.time_us < MEMORY_US:
                return
            if known.has(OperationStage.BEGUN) and not known.has(OperationStage.DONE):
                self._known[identity] = known._replace(time_us=time_us)  # it can still go on
                self._known.move_to_end(identity)
            else:
                self._drop(identity)

    def _drop(self, identity: bytes) -> None:
        for known in (self._known, self.contents, self.begun, self._failed):
            known.pop(identity, None)

    # --- snapshots -------------------------------------------------------------------------

    @property
    def packed(self) -> bytes:
        """The operations as a snapshot holds them, without those that have failed."""
        return b"".join(_ROW.pack(identity, *known) for identity, known in self._known.items())

    @property
    def packed_failed(self) -> bytes:
        """The ids of those that have failed, as a snapshot holds them."""
        return b"".join(self._failed)

    @staticmethod
    def is_packed(rows: bytes) -> bool:
        """Returns whether bytes have the length of ``packed``."""
        return len(rows) % _ROW.size == 0

    def load(self, rows: bytes, failed: bytes) -> None:
        """Takes what a snapshot has: ``packed`` and ``packed_failed``."""
        for identity, *known in _ROW.iter_unpack(rows):
            self._known[identity] = KnownOperation(*known)
            if self._known[identity].has(OperationStage.BEGUN):
                self.begun[identity] = self._known[identity].content
        self._failed = dict.fromkeys(ids_in(failed))


def ids_in(packed: bytes) -> list[bytes]:
    """Returns the ids of operations that a snapshot holds, 16 bytes each."""
    return [packed[at : at + _ID] for at in range(0, len(packed), _ID)]


def are_ids(packed: bytes) -> bool:
    """Returns whether bytes have the length of ids."""
    return len(packed) % _ID == 0

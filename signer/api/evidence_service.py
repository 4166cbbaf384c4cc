"""EvidenceService: the audit log and its proofs, for auditors."""

import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from signer.api.guard import Caller
from signer.api.wire import PAGE_BYTES, bad_token, page_size
from signer.audit.format.merkle import leaf_hash
from signer.audit.format.record import Record, RecordError, RecordKind
from signer.audit.read.subtrees import Subtrees
from signer.audit.write.durable import DurableLog
from signer.clock import Clock
from signer.errors import CallError, Reason, invalid
from signer.v1 import evidence_pb2, evidence_pb2_grpc

AT_ONCE = 4
"""Calls for evidence at once: one reads the log, the others wait."""
LONGEST_SECONDS = 15.0
"""How long one call may compute: shorter than a drain."""
REST = 2
"""Seconds of sleep for each second of work, which holds the interpreter: signing goes first."""
_WORK_SECONDS = 0.001
_LONGEST_WORK_SECONDS = 0.05
_FIELD_BYTES = 6  # of a record in an answer: its tag and its length
_MARGIN_BYTES = 8192
"""Bytes of an answer besides the messages of its records."""
_RETRY_SECONDS = 1.0
_TOKEN = re.compile(r"0|[1-9][0-9]{0,17}")


class EvidenceService(evidence_pb2_grpc.EvidenceServiceServicer):
    """Reads the durable part of the log.

    All calls together take at most a third of one thread's time from signing, however long
    the log is.
    """

    def __init__(
        self, log: DurableLog, newest_note: Callable[[], str], clock: Clock, *, answer_bytes: int
    ) -> None:
        """``newest_note`` returns the newest checkpoint, or "" before the first."""
        self._log = log
        self._newest_note = newest_note
        self._clock = clock
        self._longest = answer_bytes - _MARGIN_BYTES
        self._places = threading.BoundedSemaphore(AT_ONCE)
        self._turn = threading.Lock()
        self._tree: Subtrees | None = None
        self._oldest = -1
        self._until = self._rested = 0.0

    def GetCheckpoint(
        self, _request: evidence_pb2.GetCheckpointRequest, _caller: Caller
    ) -> evidence_pb2.GetCheckpointResponse:
        """Answers with the newest checkpoint; raises CallError."""
        note = self._newest_note()
        if not note:
            raise CallError(
                Reason.AUDIT_UNAVAILABLE,
                "no checkpoint was signed since the start: try again; if this persists, the "
                "appliance's log says why",
                retry_after=_RETRY_SECONDS,
            )
        return evidence_pb2.GetCheckpointResponse(note=note)

    def ListRecords(
        self, request: evidence_pb2.ListRecordsRequest, caller: Caller
    ) -> evidence_pb2.ListRecordsResponse:
        """Answers with one page of the log; raises CallError."""
        log, size = self._log, self._log.size
        start = _start(request, log.first, size)
        stop = min(start + page_size(request.page_size), size)
        kinds = _kinds(request.kinds)
        found, room, seq = [], min(PAGE_BYTES, self._longest), start
        with self._reading("start"):
            while seq < stop:
                self._rest()
                [record] = log.records(seq, 1)
                shown = self._shown(record, omit_items=request.omit_items)
                room -= shown.ByteSize() + shown.omitted_bytes + _FIELD_BYTES
                if room < 0 and seq > start:
                    break
                if not kinds or record.kind in kinds:
                    found.append(shown)
                seq += 1
        caller.notes |= {"start": start, "stop": seq}
        return evidence_pb2.ListRecordsResponse(
            records=found, next_page_token=str(seq) if seq < size else ""
        )

    def GetInclusionProof(
        self, request: evidence_pb2.GetInclusionProofRequest, _caller: Caller
    ) -> evidence_pb2.GetInclusionProofResponse:
        """Answers with the audit path of one record; raises CallError."""
        self._check_size(request.size, least=1)
        if not 0 <= request.seq < request.size:
            raise invalid("seq", f"is {request.seq}, expected 0 to {request.size - 1}")
        with self._reading("seq"):
            hashes = self._subtrees().inclusion_proof(request.seq, request.size)
        return evidence_pb2.GetInclusionProofResponse(hashes=hashes)

    def GetConsistencyProof(
        self, request: evidence_pb2.GetConsistencyProofRequest, _caller: Caller
    ) -> evidence_pb2.GetConsistencyProofResponse:
        """Answers with the proof that one tree begins with another; raises CallError."""
        self._check_size(request.size, least=0)
        if not 0 <= request.old_size <= request.size:
            raise invalid("old_size", f"is {request.old_size}, expected 0 to {request.size}")
        with self._reading("old_size"):
            hashes = self._subtrees().consistency_proof(request.old_size, request.size)
        return evidence_pb2.GetConsistencyProofResponse(hashes=hashes)

    def _check_size(self, size: int, least: int) -> None:
        durable = self._log.size
        if not least <= size <= durable:
            raise invalid(
                "size", f"is {size}, expected {least} to {durable}, the records of the log"
            )

    def _subtrees(self) -> Subtrees:
        """Returns the tree of the log; it is computed again after segments were archived."""
        oldest = self._log.first
        if self._tree is None or oldest != self._oldest:
            self._tree = Subtrees(self._leaf_hashes, self._log.records(oldest, 1)[0])
            self._oldest = oldest
        return self._tree

    @contextmanager
    def _reading(self, field: str) -> Iterator[None]:
        """Waits for the call's turn; ``field`` names the record in the error if it is absent."""
        if not self._places.acquire(blocking=False):
            text = f"too many calls for evidence ({AT_ONCE} at once): try again"
            raise CallError(Reason.OVERLOADED, text, retry_after=_RETRY_SECONDS)
        try:
            with self._turn:
                self._rested = self._clock.monotonic()
                self._until = self._rested + LONGEST_SECONDS
                yield
                self._rest()
        except LookupError:
            raise invalid(field, "needs records that were archived: search the archive") from None
        except (OSError, RecordError) as error:
            raise CallError(
                Reason.AUDIT_UNAVAILABLE,
                "the audit log cannot be read at these records: run `signer audit verify` on the "
                "appliance",
            ) from error
        finally:
            self._places.release()

    def _leaf_hashes(self, start: int, stop: int) -> Sequence[bytes]:
        self._rest()
        if self._clock.monotonic() > self._until:
            raise CallError(
                Reason.OVERLOADED,
                "the tree of the log is still being computed, once after a start: try again; the "
                "computation continues where it stopped",
                retry_after=_RETRY_SECONDS,
            )
        return self._log.leaf_hashes(start, stop)

    def _rest(self) -> None:
        """Sleeps after each millisecond of work, so that other threads run."""
        worked = self._clock.monotonic() - self._rested
        if worked >= _WORK_SECONDS:
            time.sleep(min(worked, _LONGEST_WORK_SECONDS) * REST)
            self._rested = self._clock.monotonic()

    def _shown(self, record: Record, *, omit_items: bool) -> evidence_pb2.LogRecord:
        head = record.head()
        items = record.column.data if record.column else b""
        whole = len(head) + len(items)
        message = evidence_pb2.LogRecord(
            seq=record.seq, kind=str(record.kind), leaf_hash=leaf_hash(head)
        )
        message.record_time.FromMicroseconds(record.time_us)
        if len(head) <= self._longest:
            message.head = head
            if whole <= self._longest and not omit_items:
                message.items = items
        message.omitted_bytes = whole - len(message.head) - len(message.items)
        return message


def _start(request: evidence_pb2.ListRecordsRequest, first: int, size: int) -> int:
    """Returns the first record of a page; it may be the next record of the log."""
    start, field = request.start, "start"
    if request.page_token:
        field = "page_token"
        if not _TOKEN.fullmatch(request.page_token):
            raise bad_token()
        start = int(request.page_token)
    start = start or first
    if not 0 <= start <= size:
        raise invalid(field, f"is {start}, expected 0 to {size}, the records of the log")
    return start


def _kinds(names: Sequence[str]) -> frozenset[RecordKind]:
    try:
        return frozenset(map(RecordKind, names))
    except ValueError:
        kinds = ", ".join(RecordKind)
        raise invalid("kinds", f"contains an unknown kind: the kinds are {kinds}") from None

"""Compares what snapshots say of requests and usage with the records before them.

A start believes the newest snapshot: what it says of quotas and request ids is what the
daemon goes on with. Each part of a log is folded where it is read, from its snapshot on, so
that the snapshot of a part must hold what the part before it came to.
"""

from collections.abc import Callable, Mapping
from typing import ClassVar

from signer.audit.format.record import Record, RecordError, RecordKind, Value
from signer.audit.read.ledger import FIELDS, RESET, Ledger


class LedgerPart:
    """The ledger after one part of a log, and what the snapshot at the part's beginning says.

    ``begins`` is the number of the part's first record. ``said`` is None without a snapshot
    that has the fields of a ledger. ``problem`` says why the part cannot be folded.
    """

    def __init__(self) -> None:
        self.begins: int | None = None
        self.said: Mapping[str, Value] | None = None
        self.ledger = Ledger()
        self.problem = ""

    def take(self, record: Record) -> None:
        if self.begins is None:
            self.begins = record.seq
            if record.kind is RecordKind.SNAPSHOT:
                self._load(record)
                return
        if record.kind in Ledger.KINDS and not self.problem:
            self._apply(record)

    @property
    def follows_records(self) -> bool:
        """Whether the ledger holds all that the log says: from its beginning or a snapshot on."""
        return not self.problem and (self.begins == 0 or self.said is not None)

    def _load(self, snapshot: Record) -> None:
        if all(name in snapshot.fields for name in FIELDS):  # older logs have none
            known = self.ledger.snapshot().keys()
            self.said = {name: each for name, each in snapshot.fields.items() if name in known}
            self._apply(snapshot)

    def _apply(self, record: Record) -> None:
        try:
            self.ledger.apply(record)
        except RecordError as error:
            self.problem = f"record {record.seq}: {error}: quotas and request ids are not compared"


class LedgerFold:
    """Requests and usage in every snapshot equal the result of the records before it."""

    part: ClassVar[Callable[[], LedgerPart]] = LedgerPart

    def __init__(self) -> None:
        self.problems: list[str] = []
        self._before: LedgerPart | None = None

    def join(self, part: LedgerPart) -> None:
        """Continues with the next part of the log."""
        before, self._before = self._before, part
        if part.problem:
            self.problems.append(part.problem)
        if before is None or not before.follows_records or part.said is None:
            return
        if before.ledger.contradicts(part.said):
            self.problems.append(f"record {part.begins}: {RESET}")

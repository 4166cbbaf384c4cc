"""The end of a log: what its next record has to continue, while it is read or written."""

from typing import Any

from signer.audit.format.merkle import Frontier
from signer.audit.format.record import (
    CLOSING,
    FIRST_CHAIN,
    Fields,
    Record,
    RecordError,
    RecordKind,
    Value,
    number,
    wrong_from,
)


class Tip:
    """The end of the log: what the next record has to continue.

    ``chain`` is the chain hash of the last frame, ``time_us`` the time of the last record,
    ``frontier`` the tree so far, and ``open`` the numbers of intents without an outcome.
    """

    def __init__(self) -> None:
        self.chain = FIRST_CHAIN
        self.time_us = 0
        self.frontier = Frontier()
        self.open: set[int] = set()

    @property
    def size(self) -> int:
        """How many records the log has: the sequence number of the next."""
        return self.frontier.size

    def check(self, kind: RecordKind, fields: Fields) -> None:
        """Raises RecordError if such a record may not be the next."""
        if kind in CLOSING:
            if fields.get("intent") not in self.open:
                raise RecordError(f"an {kind} closes an intent that is not open")
        elif kind is RecordKind.SNAPSHOT and any(
            fields.get(name) != value for name, value in self.snapshot().items()
        ):
            raise RecordError("a snapshot differs from the records before it")

    def earliest(self, kind: RecordKind, fields: Fields) -> int:
        """Returns the time before which the next record may not be, in microseconds.

        That is the time of the last record. Only a CLOCK that declares times wrong may go back,
        to the last time that was right. Raises RecordError.
        """
        if kind is RecordKind.CLOCK and wrong_from(fields):
            return min(self.time_us, number(fields, "right_until"))
        return self.time_us

    def add(self, record: Record, leaf: bytes) -> None:
        """Adds the next record, which ``check`` has accepted."""
        if record.kind is RecordKind.INTENT:
            self.open.add(record.seq)
        elif record.kind in CLOSING:
            self.open.remove(record.fields["intent"])  # type: ignore[arg-type]  # checked
        self.time_us = record.time_us
        self.frontier.append(leaf)

    def snapshot(self) -> dict[str, Value]:
        """Returns the fields of a SNAPSHOT record that describe the log itself."""
        return {"frontier": self.frontier.to_list(), "open": sorted(self.open)}

    def continue_from(self, snapshot: Record) -> None:
        """Starts before a SNAPSHOT record that begins a segment; raises RecordError.

        The snapshot is unproven until a checkpoint beyond it has been compared: the
        checkpoint's root covers these subtrees and the snapshot's own leaf.
        """
        if snapshot.kind is not RecordKind.SNAPSHOT:
            raise RecordError("the log begins neither with record 0 nor with a snapshot")
        peaks = _list_of(bytes, snapshot.fields, "frontier")
        try:
            self.frontier = Frontier(snapshot.seq, peaks)
        except ValueError as error:
            raise RecordError(f"the snapshot is wrong: {error}") from None
        self.open = set(_list_of(int, snapshot.fields, "open"))
        self.time_us = snapshot.time_us


def _list_of(kind: type, fields: Fields, name: str) -> list[Any]:
    values = fields.get(name)
    if not isinstance(values, list) or any(type(value) is not kind for value in values):
        raise RecordError(f"{name} of the snapshot is not a list of the expected kind")
    return values

"""The real audit log in the place of the one in memory."""

from collections.abc import Mapping
from pathlib import Path

from signer.audit.format.record import Record, RecordKind, Value
from signer.audit.write.inbox import AuditUnavailable
from signer.audit.write.log import Listener, LogHooks
from signer.audit.write.recovery import open_audit_log
from signer.clock import FlooredClock
from signer.officers.offline_check import ApprovalFold
from signer.officers.standing_fold import StandingFold
from tests.unit.officers.softtoken import Fate


class DiskLog:
    """An audit log in a folder, whose records are kept in memory besides."""

    def __init__(self, folder: Path, clock: FlooredClock, fate: Fate) -> None:
        self._fate = fate
        self.control = ApprovalFold()
        self.standings = StandingFold(self.control)
        self.records: list[Record] = []
        self.full = False
        self.log = open_audit_log(
            folder,
            origin="signer.example/log",
            clock=clock,
            low_disk_bytes=1 << 20,
            ballast_bytes=1 << 20,
            listeners=[Listener(self._heard)],
            hooks=LogHooks(on_time=clock.raise_floor),
        )

    def append(
        self, kind: RecordKind, fields: Mapping[str, Value], *, time_us: int | None = None
    ) -> int:
        self._fate.at(f"before the record {kind}")
        if self.full:
            raise AuditUnavailable("the disk is full")
        seq = self.log.append(kind, fields, time_us=time_us)
        self._fate.at(f"after the record {kind}")
        return seq

    def of(self, *kinds: RecordKind) -> list[Record]:
        return [each for each in self.records if each.kind in kinds]

    def close(self) -> None:
        self.log.close()

    def _heard(self, record: Record) -> None:
        self.records.append(record)
        self.control.apply(record)
        self.standings.apply(record)

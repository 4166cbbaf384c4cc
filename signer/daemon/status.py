"""What operators and monitoring see of the running daemon: gauges, doubts and the status page."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from signer.api.server import Server
from signer.api.tls import Certificates
from signer.audit.write.log import AuditLog
from signer.clock import FlooredClock
from signer.config.models import Config
from signer.daemon.sealing import Sealing
from signer.daemon.serving import Serving
from signer.hsm.front.service import Hsm
from signer.observe.gauges import KeyReadings, Readings, officer_readings, readings
from signer.observe.history import History
from signer.observe.page import DaemonState, page
from signer.observe.reports import Reports
from signer.officers.execution import Executor
from signer.signing.request import Served

STUCK_SECONDS = 60.0  # the main loop may be silent so long before the process counts as dead


@dataclass
class StatusReader:
    """Reads the state of the daemon's parts, from any thread; one thread calls ``tick``."""

    config: Config
    clock: FlooredClock
    started_at: float
    reasons: Callable[[], Sequence[str]]  # why the daemon does not serve
    away: Callable[[], Sequence[str]]  # tokens that it serves without
    served: Served
    hsm: Hsm
    log: AuditLog
    sealing: Sealing
    serving: Serving
    executor: Executor
    server: Server
    certificates: Certificates
    reports: Reports
    _history: History = field(default_factory=History)
    _ticked: float | None = None
    _keys: KeyReadings = field(default_factory=KeyReadings)

    def tick(self) -> None:
        """Samples the totals of the metrics when that is due; the main loop calls this."""
        self._ticked = now = self.clock.monotonic()
        if self._history.due(now):
            self._history.add(now, self.reports.metrics.totals())

    def rest(self) -> None:
        """Expects no further tick: the daemon is stopping."""
        self._ticked = None

    def stuck(self) -> str:
        """Returns why the process counts as dead, "" if it is alive."""
        ticked = self._ticked
        silent = 0.0 if ticked is None else self.clock.monotonic() - ticked
        return f"the main loop is stuck for {silent:.0f} s" if silent > STUCK_SECONDS else ""

    def doubts(self) -> list[str]:
        """Returns what is wrong although the daemon serves."""
        return self._doubts(f"the registry is not followed: {self.serving.error}")

    def _doubts(self, unfollowed: str) -> list[str]:
        registry = unfollowed if self.serving.error else ""
        return [registry] if registry else []

    def readings(self) -> Readings:
        """Returns every gauge as it is now."""
        log, now = self.log, self.clock.now()
        values: dict[str, float] = {
            "signer_ready": not self.reasons(),
            "signer_calls_at_work": self.server.guard.places.taken,
            "signer_calls_limit": self.config.limits.calls,
            "signer_operations_pending": self.executor.pending,
            "signer_time_seconds": self.clock.machine(),
            "signer_clock_doubtful": bool(self.clock.doubt()),
            "signer_registry_unreadable": bool(self.serving.error),
            "signer_audit_stopped": bool(log.refusal),
            "signer_audit_open_intents": log.open_intents,
            "signer_audit_commit_started_timestamp_seconds": log.committing_since,
            "signer_audit_unsigned_since_timestamp_seconds": self.sealing.unsigned_since,
            "signer_disk_free_bytes": log.free_bytes,
            "signer_disk_low_bytes": self.config.audit.low_disk_bytes,
        }
        checkpoint = self.sealing.checkpoint_time
        expiries = self.certificates.expiries()
        monotonic = self.clock.monotonic()
        needed = max(self.config.operations.all_needed().values())
        return {
            **readings(self.served.snapshot, self.hsm, expiries, now=now, monotonic=monotonic),
            **self._keys(self.served.snapshot, self.hsm.serving(), now, monotonic),
            **officer_readings(self.serving.officers, needed, now),
            **{name: {(): value} for name, value in values.items()},
            "signer_audit_checkpoint_timestamp_seconds": {(): checkpoint} if checkpoint else {},
        }

    def page(self) -> str:
        """Returns the status page as HTML."""
        return page(
            DaemonState(
                name=self.config.audit.origin,
                now=self.clock.now(),
                monotonic=self.clock.monotonic(),
                started=self.started_at,
                reasons=self.reasons(),
                away=self.away(),
                # Without the database's text: everyone who reaches the port can read this.
                doubts=self._doubts("the registry is not followed: see the log"),
                gauges=self.readings(),
                workers=self.hsm.status(),
                samples=self._history.samples(),
                alarms=self.reports.alarms.newest(),
            )
        )

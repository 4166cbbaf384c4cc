"""What operators and monitoring see of the running daemon: whether it serves, gauges, the page."""

import socket
from collections import Counter
from dataclasses import dataclass, field
from heapq import nlargest

from signer.api.places import Places
from signer.api.tls import Certificates
from signer.audit.write.log import AuditLog
from signer.clock import FlooredClock
from signer.config.models import Config
from signer.daemon.inventory import Inventory
from signer.daemon.sealing import Sealing
from signer.daemon.serving import Serving
from signer.events import Degraded, NotReady, Ready
from signer.hsm.front.service import Hsm
from signer.model import Scope
from signer.observe.gauges import KeyReadings, Readings, officer_readings, readings
from signer.observe.history import History
from signer.observe.lifetimes import lifetimes
from signer.observe.page import EVERYTHING_STOPPED, DaemonState, page
from signer.observe.reports import Reports
from signer.officers.execution import Executor
from signer.officers.validity import Validity
from signer.policy.lifetime import NEARLY
from signer.policy.recent_usage import Busy, RecentUsage
from signer.policy.usage import Usage
from signer.signing.request import Served
from signer.text import count, utc

STARTING, STOPPING = "the daemon is starting", "the daemon is stopping"
MOST_SUSPENSIONS = 20  # that `signer top` lists
MOST_LIFETIMES = 20  # the same, of versions to rotate
STUCK_SECONDS = 60.0  # the silence of the main loop after which the process counts as dead


@dataclass
class Readiness:
    """Whether the daemon serves. It is ``listening`` once its ports are open."""

    hsm: Hsm
    log: AuditLog
    clock: FlooredClock
    serving: Serving
    listening: bool = False
    draining: bool = False

    def reasons(self) -> list[str]:
        """Returns why the daemon does not serve; empty while it does."""
        reasons = self.hsm.reasons()
        if refusal := self.log.refusal:
            reasons.append(refusal)
        if doubt := self.clock.doubt():
            reasons.append(
                f"{doubt}: nothing is signed until the machine's clock is right again or officers "
                "have confirmed it (`signer operations propose clock`)"
            )
        if unaccounted := self.serving.reason:
            reasons.append(unaccounted)
        if not self.listening:
            reasons.append(STARTING)
        if self.draining:
            reasons.append(STOPPING)
        return reasons

    def away(self) -> list[str]:
        """Returns which tokens do not serve, and why: the daemon may serve without them."""
        away = [f"token {token} is away: {why}" for token, why in self.hsm.away().items()]
        rested = "gets only what no other token can sign, until a test signature has come back"
        return [*away, *(f"token {token} {rested}" for token in self.hsm.breakers_open())]

    def suspended(self) -> list[str]:
        """Returns what officers have stopped, without names: everyone on the port reads this."""
        found = Counter(each.scope for each in self.serving.suspensions)
        everything = [each for each in self.serving.suspensions if each.scope is Scope.EVERYTHING]
        stopped = [
            (found[Scope.GROUP], "group is", "groups are"),
            (found[Scope.FACILITY], "facility is", "facilities are"),
        ]
        return [
            *(f"{EVERYTHING_STOPPED} since {utc(each.since)}" for each in everything),
            *(f"{count(number, one, many)} suspended" for number, one, many in stopped if number),
        ]

    def seen(self, reasons: list[str]) -> NotReady | Degraded | Ready:
        """Returns the event that says whether the daemon serves, and with all of its tokens."""
        if reasons:
            return NotReady(reasons)
        away = self.away()
        return Degraded(away) if away else Ready()


@dataclass
class StatusReader:
    """Reads the state of the daemon's parts, from any thread; one thread calls ``tick``."""

    config: Config
    clock: FlooredClock
    started_at: float
    readiness: Readiness
    served: Served
    hsm: Hsm
    log: AuditLog
    sealing: Sealing
    serving: Serving
    executor: Executor
    inventory: Inventory
    places: Places
    certificates: Certificates
    reports: Reports
    usage: Usage
    _recent: RecentUsage = field(default_factory=RecentUsage)
    _history: History = field(default_factory=History)
    _ticked: float | None = None
    _keys: KeyReadings = field(init=False)

    def __post_init__(self) -> None:
        self._keys = KeyReadings(self.usage)

    def tick(self) -> None:
        """Samples the totals of the metrics when that is due; the main loop calls this."""
        self._ticked = now = self.clock.monotonic()
        if self._history.due(now):
            self._history.add(now, self.reports.metrics.totals())
            self._recent.add(now, self.usage.totals())

    def busiest(self, count: int) -> list[Busy]:
        """Returns up to ``count`` facilities, those that ask for the most now first."""
        now = self.clock.monotonic()
        self._recent.add(now, self.usage.totals())
        return self._recent.busiest(now, count)

    def rest(self) -> None:
        """Expects no further tick: the daemon is stopping."""
        self._ticked = None

    def stuck(self) -> str:
        """Returns why the process counts as dead, "" if it is alive."""
        ticked = self._ticked
        silent = 0.0 if ticked is None else self.clock.monotonic() - ticked
        return f"the main loop is stuck for {silent:.0f} s" if silent > STUCK_SECONDS else ""

    def reasons(self) -> list[str]:
        """Returns why the daemon does not serve; empty while it does."""
        return self.readiness.reasons()

    @property
    def differences(self) -> list[str]:
        """Where registry and tokens differ, and what else is wrong although the daemon serves."""
        doubts = self._doubts(f"the registry is not followed: {self.serving.error}")
        away = [] if self.hsm.reasons() else self.readiness.away()
        validity = Validity.of(self.serving.officers, self.clock.now())
        return [
            *away,
            *(
                f"{each} is suspended since {utc(each.since)}, by {each.officer}: {each.reason}"
                for each in self.serving.suspensions[:MOST_SUSPENSIONS]
            ),
            *self.inventory.differences,
            *self.serving.refused,
            *doubts,
            *self._nearly_used(),
            *(f"the certificate of {who} has ended: renew it" for who in sorted(validity.ended)),
            *(f"the certificate of {who} ends on {utc(end)}" for who, end in validity.ending),
        ]

    def _nearly_used(self) -> list[str]:
        """Returns which key versions have little left of their lifetime, the least first."""
        uses = lifetimes(self.served.snapshot, self.usage, self.clock.now())
        near = (use for use in uses if use.share >= NEARLY)
        return [str(use) for use in nlargest(MOST_LIFETIMES, near, key=lambda use: use.share)]

    def _doubts(self, unfollowed: str) -> list[str]:
        doubts = [unfollowed] if self.serving.error else []
        if self.log.without_snapshot:
            doubts.append(f"the audit log has no new snapshot: {self.log.without_snapshot}")
        return doubts

    def readings(self) -> Readings:
        """Returns every gauge as it is now."""
        log, now = self.log, self.clock.now()
        values: dict[str, float] = {
            "signer_ready": not self.reasons(),
            "signer_calls_at_work": self.places.taken,
            "signer_calls_limit": self.config.limits.calls,
            "signer_operations_pending": self.executor.pending,
            "signer_time_seconds": self.clock.machine(),
            "signer_clock_doubtful": bool(self.clock.doubt()),
            "signer_registry_unreadable": bool(self.serving.error or self.serving.unreadable),
            "signer_audit_stopped": bool(log.refusal),
            "signer_audit_snapshot_missing": bool(log.without_snapshot),
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
            "signer_token_differences": {(t,): n for t, n in self.inventory.counts().items()},
        }

    def page(self) -> str:
        """Returns the status page as HTML."""
        return page(
            DaemonState(
                host=socket.gethostname(),
                name=self.config.audit.origin,
                now=self.clock.now(),
                monotonic=self.clock.monotonic(),
                started=self.started_at,
                reasons=self.reasons(),
                away=self.readiness.away(),
                suspended=self.readiness.suspended(),
                # Without the database's text: everyone who reaches the port can read this.
                doubts=self._doubts("the registry is not followed: see the log"),
                gauges=self.readings(),
                workers=self.hsm.status(),
                samples=self._history.samples(),
                alarms=self.reports.alarms.newest(),
            )
        )

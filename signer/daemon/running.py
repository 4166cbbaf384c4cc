"""The parts of one appliance, and how they run: start, serve until a signal, drain and stop.

Start order: workers, of which the first were spawned by ``app.build`` and wait for their token, the
HTTP port, operations, the gRPC port. An absent token or a latched PIN does not end the start: the
daemon then runs NOT_SERVING, says why on /readyz, and serves with its first worker. Where one of
several tokens serves, only the keys that no such token holds are away.
"""

import math
import queue
import signal
import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple

from signer.api.health import Health
from signer.api.server import Server, health_of
from signer.api.signing_service import SigningService
from signer.api.timestamp_port import TimestampPort
from signer.api.tls import Certificates
from signer.audit.read.ledger import Ledger
from signer.audit.write.log import AuditLog
from signer.clock import FlooredClock
from signer.config.models import Config
from signer.daemon.audit_log import DaemonLog
from signer.daemon.inventory import Inventory
from signer.daemon.reloading import Reloading
from signer.daemon.sealing import Sealing
from signer.daemon.serving import Serving
from signer.daemon.status import Readiness, StatusReader
from signer.errors import OperatorError
from signer.event_loop import EventLoop
from signer.events import Bug, Degraded, Events, Handlers, NotReady, Ready, Started, Stopped
from signer.hsm.front.service import Hsm
from signer.keys.registry import Registry
from signer.observe.http import HttpPort
from signer.observe.native_lines import NativeLines
from signer.observe.reports import Reports
from signer.officers.execution import Executor
from signer.officers.kinds.base import OperationDependencies
from signer.officers.offline_check import ApprovalFold
from signer.officers.standing_fold import StandingFold
from signer.policy.usage import Usage
from signer.signing.request import Served

TICK_SECONDS = 0.25  # between two checks of readiness and registry
COMPARE_SECONDS = 1.0  # between two comparisons of a part of the registry
SWEEP_SECONDS = 5.0  # between two searches for operations that have not ended


class Base(NamedTuple):
    """What every part uses. ``listeners`` get all events, ``started_at`` is in seconds."""

    config: Config
    clock: FlooredClock
    loop: EventLoop
    started_at: float
    reports: Reports
    listeners: Sequence[Handlers]
    events: Events
    native: NativeLines | None


class Records(NamedTuple):
    """The open audit log, and what its records add up to."""

    log: AuditLog
    daemon_log: DaemonLog
    ledger: Ledger
    approvals: ApprovalFold
    standings: StandingFold
    usage: Usage


class Core(NamedTuple):
    """Registry, log and HSM, and what uses them; ``recorded`` are events that the log gets, too."""

    registry: Registry
    certificates: Certificates
    health: Health
    records: Records
    served: Served
    recorded: Events
    hsm: Hsm
    sealing: Sealing
    inventory: Inventory
    serving: Serving
    operations: OperationDependencies
    executor: Executor


class Edge(NamedTuple):
    """What callers and operators reach."""

    readiness: Readiness
    status: StatusReader
    reloading: Reloading
    server: Server
    signing: SigningService


class Appliance:
    """Starts, runs and stops the parts that ``app.build`` has made."""

    def __init__(self, base: Base, core: Core, edge: Edge) -> None:
        self._base, self._core, self._edge = base, core, edge
        self._http: HttpPort | None = None
        self._timestamps: TimestampPort | None = None
        self._signals: queue.SimpleQueue[signal.Signals] = queue.SimpleQueue()
        # Two threads: no stop waits until the change before it is in the log.
        self._following = [
            threading.Thread(target=self._obey, name="stops", daemon=True),
            threading.Thread(target=self._follow, name="registry", daemon=True),
        ]
        self._closing = threading.Event()

    def start(self) -> None:
        """Starts the parts in their order; raises OperatorError if one cannot start."""
        self._receive(signal.SIGHUP)  # by default it would end a daemon that is still starting
        snapshot = self._core.served.snapshot
        self._core.serving.begin()
        self._core.records.daemon_log.started(snapshot.policy, snapshot.keys)
        self._core.hsm.start()
        longest = max(token.start_seconds for token in self._base.config.tokens)
        for label, (kind, text) in self._core.hsm.wait_for_outcomes(longest).items():
            if kind is not None and kind.ends_start:
                raise OperatorError(f"token {label}: {text}")
        self._core.sealing.start()
        # Once /readyz answers, a supervisor may end the daemon: from here on with a drain.
        self._receive(signal.SIGTERM, signal.SIGINT)
        self._http = HttpPort(
            self._base.config.metrics,
            self._base.reports.metrics.registry,
            self._edge.status.readings,
            reasons=self._edge.readiness.reasons,
            away=lambda: [*self._edge.readiness.away(), *self._edge.readiness.suspended()],
            page=self._edge.status.page,
            stuck=self._edge.status.stuck,
            events=self._base.events,
        )
        self._core.serving.follow()  # decisions since the parts were built, before any call
        self._edge.server.listen(str(self._base.config.listen), self._core.certificates)
        if (timestamps := self._base.config.timestamps) is not None:
            self._timestamps = TimestampPort(
                timestamps,
                self._edge.signing,
                self._edge.server.guard,
                self._base.loop,
                self._base.events,
            )
        self._edge.readiness.listening = True
        for thread in self._following:
            thread.start()
        self._core.inventory.start()
        self._base.events.emit(
            Started(str(self._base.config.listen), self._core.served.snapshot.policy.sha256)
        )

    def serve(self, on_ready: Callable[[], None]) -> None:
        """Runs the main loop until a signal ends it.

        Then health says NOT_SERVING at once, and calls are taken for ``drain_notice_seconds``
        more, so that load balancers have turned to another appliance before one is refused.
        """
        announced, leave = False, math.inf
        logged: NotReady | Degraded | Ready | None = None
        while (left := leave - self._base.clock.monotonic()) > 0:
            reasons = self._edge.readiness.reasons()
            away = self._core.hsm.away()
            self._core.health.set_serving(not reasons, [health_of(token) for token in away])
            self._edge.server.expire(self._base.clock.monotonic())
            self._core.records.daemon_log.tick()
            self._core.sealing.tick()
            self._edge.status.tick()
            if (seen := self._edge.readiness.seen(reasons)) != logged:
                logged = seen
                self._base.events.emit(seen)
            if not reasons and not announced:
                announced = True
                on_ready()
            try:
                received = self._signals.get(timeout=min(TICK_SECONDS, left))
            except queue.Empty:
                continue
            if received is signal.SIGHUP:
                self._edge.reloading.by_signal()
            elif self._edge.readiness.draining or reasons:
                return  # a second signal, or no calls were sent here anyway
            else:
                self._edge.readiness.draining = True
                leave = self._base.clock.monotonic() + self._base.config.limits.drain_notice_seconds

    def stop(self) -> None:
        """Drains: health first, then the calls under way, the audit log, workers last."""
        self._edge.readiness.draining = True
        self._edge.status.rest()
        if self._timestamps is not None:
            self._timestamps.close()
        self._edge.server.drain(self._base.config.limits.drain_seconds)
        self._closing.set()
        self._core.inventory.close()
        self._core.serving.changed.set()  # which ends the wait for a change
        for thread in self._following:
            if thread.is_alive():
                thread.join()
        self._core.executor.close()
        self._core.records.daemon_log.close()
        self._core.sealing.close()
        self._core.hsm.close()
        if self._http is not None:
            self._http.close()
        self._core.registry.close()
        self._base.loop.close()
        self._base.events.emit(Stopped())
        if self._base.native is not None:
            self._base.native.close()
        self._base.reports.lines.close()

    def _receive(self, *numbers: signal.Signals) -> None:
        for number in numbers:
            signal.signal(number, lambda received, _: self._signals.put(signal.Signals(received)))

    def _obey(self) -> None:
        """Stops what the registry stops, in a thread: a database may hang."""
        while not self._closing.wait(TICK_SECONDS):
            self._core.serving.obey()

    def _follow(self) -> None:
        """Serves changes and resumes operations, in a thread of its own: a disk may hang."""
        swept = compared = 0.0
        while not self._closing.is_set():
            self._core.serving.changed.wait(TICK_SECONDS)
            try:
                self._core.serving.serve()
                if self._base.clock.monotonic() - compared >= COMPARE_SECONDS:
                    compared = self._base.clock.monotonic()
                    self._core.serving.compare()
                if self._base.clock.monotonic() - swept >= SWEEP_SECONDS:
                    swept = self._base.clock.monotonic()
                    self._core.executor.sweep()
            except Exception as error:  # noqa: BLE001 - without this thread no change is served
                self._base.events.emit(Bug("follow the registry", error, {}))

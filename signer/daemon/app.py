"""The composition root: builds every part, starts them in order, reloads, drains.

Start order: configuration, registry, policy, audit log, workers, the HTTP port,
operations, the gRPC port. Wrong configuration and ambiguous tokens end the start
before anything listens; an absent token or a latched PIN does not: the daemon is
up, NOT_SERVING, says why on /readyz, and serves with the first worker.
"""

from __future__ import annotations

import math
import queue
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from pathlib import Path

from signer.api.control_service import ControlService, Reloaded
from signer.api.evidence_service import EvidenceService
from signer.api.guard import Guard
from signer.api.health import Health
from signer.api.key_service import KeyService
from signer.api.operation_service import OperationService
from signer.api.server import HEALTH_SERVICES, ROLES, Server
from signer.api.signing_service import SigningService
from signer.api.tls import Certificates
from signer.audit.read.ledger import Ledger
from signer.audit.write.log import Listener
from signer.clock import FlooredClock
from signer.config.loader import load_config
from signer.config.models import LEVELS, TokenConfig
from signer.daemon.audit_log import DaemonLog, open_log
from signer.daemon.catch_up import Decisions
from signer.daemon.inventory import Reconciler
from signer.daemon.sealing import Sealing
from signer.daemon.serving import Follower, check_tokens
from signer.daemon.status import Vitals
from signer.errors import ConfigError, OperatorError
from signer.events import Bug, Events, NotReady, Ready, ReloadEnded, ReloadRefused, Started, Stopped
from signer.hsm.front.admin import open_admin, wait_for_strays
from signer.hsm.front.pool import Pool
from signer.hsm.front.service import Hsm
from signer.hsm.front.slot import START_SECONDS
from signer.hsm.latch import make_state
from signer.hsm.spec import TokenSpec
from signer.keys.audit_key import audit_key
from signer.keys.registry import Registry
from signer.model import TokenAdmin
from signer.observe import logs, open_tracing
from signer.observe.http import HttpPort
from signer.observe.reports import Reports
from signer.officers.emergency import EmergencyStops
from signer.officers.execution import Executor
from signer.officers.kinds.base import OperationDependencies
from signer.officers.offline_check import ApprovalFold
from signer.officers.proposals import Proposals
from signer.officers.records import OperationRecords
from signer.policy.usage import Usage
from signer.signing.engine import Engine
from signer.signing.evidence import Evidence
from signer.signing.repeat import Repeats
from signer.signing.request import Served

STARTING, STOPPING = "the daemon is starting", "the daemon is stopping"
TICK_SECONDS = 0.25
"""How often readiness and registry are looked at."""
SWEEP_SECONDS = 5.0
"""How often operations are looked for that were begun and not ended."""
_SWITCH_SECONDS = 0.0005
"""Python's thread switch interval: its default of 5 ms stretched a worker's round trip."""


def run(
    config_path: Path,
    *,
    on_ready: Callable[[], None] | None = None,
    override_audit: bool = False,
    development: bool = False,
) -> int:
    """Serves until SIGTERM or SIGINT; returns the exit code.

    ``development``: the policy's files are in force without an operation of officers.
    ``override_audit`` goes on with an audit log that is not whole, and records that.
    ``on_ready`` is called once, when health first says SERVING. Raises
    ConfigError and OperatorError where the start is refused.
    """
    sys.setswitchinterval(_SWITCH_SECONDS)
    daemon = Daemon(config_path, override_audit=override_audit, development=development)
    try:
        daemon.start()
        daemon.serve(on_ready or (lambda: None))
    finally:
        daemon.stop()
    return 0


class Daemon:
    """All parts of one appliance, and their life."""

    def __init__(
        self, config_path: Path, *, override_audit: bool = False, development: bool = False
    ) -> None:
        """Builds everything and starts nothing; raises ConfigError or OperatorError."""
        self._config_path = config_path
        self._config = config = load_config(config_path)
        self._log_level = config.log_level
        logs.configure(config.log_level)
        self._clock = FlooredClock()
        self.started_at = self._clock.now()
        tracing = open_tracing(config.tracing, config.audit.origin)
        self._reports = Reports(
            [token.label for token in config.tokens], tracing.trace_id if tracing else str
        )
        listeners = [self._reports.handlers, *([tracing.handlers] if tracing else [])]
        self._events = Events(*listeners)
        self._registry = Registry.open(config.registry)
        self._certificates = Certificates(config.tls)
        self._follower = Follower(
            config,
            self._registry,
            self._clock,
            self._events,
            development=development,
        )
        self._served = Served(self._follower.snapshot())
        self._audit_key = audit_key(self._registry, self._clock.now())
        check_tokens([self._audit_key], config)
        self._health = Health(HEALTH_SERVICES)
        ledger, approvals = Ledger(), ApprovalFold(checking=False)
        self._log = open_log(
            config.audit,
            self._audit_key,
            self._clock,
            self._events,
            listeners=(
                Listener(ledger.apply, Ledger.KINDS, ledger.snapshot),
                Listener(approvals.apply, ApprovalFold.KINDS, approvals.snapshot),
            ),
            on_stop=self._health.fail,
            override=override_audit,
        )
        self._daemon_log = DaemonLog(
            self._log, ledger, config.audit.directory, self._clock, self._events
        )
        # What calls and workers emit is recorded in the log as well.
        self._recorded_events = Events(*listeners, self._daemon_log.handlers)
        self._hsm = Hsm({token.label: self._pool(token) for token in config.tokens})
        self._reconciler = Reconciler(
            self._hsm,
            lambda: [*self._served.snapshot.keys, self._audit_key],
            self._admin,
            self._events,
        )
        self._sealing = Sealing(
            config.audit,
            self._log,
            self._audit_key,
            hsm=self._hsm,
            clock=self._clock,
            events=self._events,
        )
        self._usage = _restored(ledger)
        self._engine = Engine(
            self._served,
            self._hsm,
            Evidence(self._log),
            Repeats(self._log, ledger, self._clock),
            usage=self._usage,
            events=self._events,
            clock=self._clock,
            answer_bytes=config.limits.message_bytes,
        )
        journal = OperationRecords(self._log)
        decisions = Decisions(
            self._registry, self._daemon_log, journal, approvals, development=development
        )
        self._follower.attach(self._hsm, self._served, self._daemon_log, decisions)
        self._without_strays: set[str] = set()
        self._waiting_for_strays = threading.Lock()
        self._executor = Executor(self._dependencies(journal))
        self._server = self._build_server(journal)
        self._vitals = self._build_vitals()
        self._http: HttpPort | None = None
        self._signals: queue.SimpleQueue[signal.Signals] = queue.SimpleQueue()
        self._following = threading.Thread(target=self._follow, name="registry", daemon=True)
        self._closing = threading.Event()
        self._reloading = threading.Lock()
        self._listening = self._draining = False

    def _build_vitals(self) -> Vitals:
        return Vitals(
            config=self._config,
            clock=self._clock,
            started_at=self.started_at,
            reasons=self.reasons,
            served=self._served,
            hsm=self._hsm,
            log=self._log,
            sealing=self._sealing,
            follower=self._follower,
            executor=self._executor,
            server=self._server,
            certificates=self._certificates,
            reports=self._reports,
        )

    def _pool(self, token: TokenConfig) -> Pool:
        config = self._config
        make_state(config.state)
        return Pool(
            TokenSpec.of(token, config.state),
            workers=token.workers,
            hang_seconds=token.hang_seconds,
            max_queued=config.limits.queued_items,
            events=self._recorded_events,
            clock=self._clock,
        )

    def _dependencies(self, journal: OperationRecords) -> OperationDependencies:
        return OperationDependencies(
            registry=self._registry,
            serving=self._follower,
            admin=self._admin_alone,
            records=journal,
            events=self._events,
            clock=self._clock,
            origin=self._config.audit.origin,
        )

    def _operations(self, journal: OperationRecords) -> OperationService:
        config = self._config
        return OperationService(
            Proposals(
                self._dependencies(journal),
                self._executor,
                expire_hours=config.operations.expire_hours,
            ),
            EmergencyStops(self._registry, journal, self._follower, self._clock),
            config.operations.all_needed(),
            config.audit.origin,
            self._clock,
        )

    def _build_server(self, journal: OperationRecords) -> Server:
        limits = self._config.limits
        guard = Guard(
            served=self._served,
            roles=ROLES,
            calls=limits.calls,
            calls_per_client=limits.calls_per_client,
            events=self._recorded_events,
            clock=self._clock,
        )
        return Server(
            signing=SigningService(self._engine),
            keys=KeyService(self._served, self._usage, self._clock),
            operations=self._operations(journal),
            evidence=EvidenceService(
                self._log,
                self._sealing.newest_note,
                self._clock,
                answer_bytes=limits.message_bytes,
            ),
            control=ControlService(self, self._served, self._usage, self._hsm),
            health=self._health,
            guard=guard,
            limits=limits,
            reflect=self._config.reflection,
        )

    def start(self) -> None:
        """Starts the parts in their order; raises OperatorError where that cannot go well."""
        self._hear(signal.SIGHUP)  # by default it would end a daemon that is still starting
        snapshot = self._served.snapshot
        self._follower.begin()
        self._daemon_log.started(snapshot.policy, snapshot.keys)
        self._hsm.start()
        for label, (kind, text) in self._hsm.wait_for_outcomes(START_SECONDS).items():
            if kind is not None and kind.ends_start:
                raise OperatorError(f"token {label}: {text}")
        self._sealing.start()
        self._hear(signal.SIGTERM, signal.SIGINT)  # who sees it ready may end it: with a drain
        self._http = HttpPort(
            self._config.metrics,
            self._reports.metrics.registry,
            self._vitals.readings,
            reasons=self.reasons,
            page=self._vitals.page,
            stuck=self._vitals.stuck,
            events=self._events,
        )
        self._follower.follow()  # what was decided since the constructor, before anybody calls
        self._server.listen(str(self._config.listen), self._certificates)
        self._listening = True
        self._following.start()
        self._events.emit(Started(str(self._config.listen), self._served.snapshot.policy.sha256))

    def serve(self, on_ready: Callable[[], None]) -> None:
        """Looks after the running parts until a signal ends it.

        Health says so first; calls are taken for ``drain_notice_seconds`` more, so that
        who balances between appliances has turned to another one before one is refused.
        """
        announced, leave = False, math.inf
        logged: list[str] | None = None
        while (left := leave - self._clock.monotonic()) > 0:
            reasons = self._tell_health()
            self._server.expire(self._clock.monotonic())
            self._daemon_log.tick()
            self._sealing.tick()
            self._vitals.tick()
            if reasons != logged:
                logged = reasons
                self._events.emit(NotReady(reasons) if reasons else Ready())
            if not reasons and not announced:
                announced = True
                on_ready()
            try:
                event = self._signals.get(timeout=min(TICK_SECONDS, left))
            except queue.Empty:
                continue
            if event is signal.SIGHUP:
                self._reload_by_signal()
            elif self._draining or reasons:
                return  # told twice, or nobody was sent here anyway
            else:
                self._draining = True
                leave = self._clock.monotonic() + self._config.limits.drain_notice_seconds

    def _tell_health(self) -> list[str]:
        """Sets the health status; returns why the daemon does not serve."""
        reasons = self.reasons()
        self._health.set_serving(not reasons)
        return reasons

    def _hear(self, *numbers: signal.Signals) -> None:
        for number in numbers:
            signal.signal(number, lambda received, _: self._signals.put(signal.Signals(received)))

    def stop(self) -> None:
        """Drains: health first, then calls at work, the audit log, workers last."""
        self._draining = True
        self._vitals.rest()
        self._server.drain(self._config.limits.drain_seconds)
        self._closing.set()
        if self._following.is_alive():
            self._following.join()
        self._executor.close()
        self._daemon_log.close()
        self._sealing.close()
        self._hsm.close()
        if self._http is not None:
            self._http.close()
        self._registry.close()
        self._events.emit(Stopped())

    @property
    def differences(self) -> list[str]:
        """Where registry and tokens differ, and what else is wrong though the daemon serves."""
        return [*self._reconciler.found, *self._vitals.doubts()]

    def reasons(self) -> list[str]:
        """Why the daemon does not serve; empty where it does."""
        reasons = self._hsm.reasons()
        if refusal := self._log.refusal:
            reasons.append(refusal)
        if not self._listening:
            reasons.append(STARTING)
        if self._draining:
            reasons.append(STOPPING)
        return reasons

    def reload(self) -> Reloaded:
        """Reads its files again; raises ConfigError with what is refused.

        All is in force then, or nothing has changed. But where officers decide the policy,
        a draft in its files, which is refused, holds up nothing else. Of signer.yaml the
        log's level changes; what else differs is named, and takes a restart.
        """
        with self._reloading:
            config = load_config(self._config_path)
            files_decide = self._follower.files_decide
            draft = self._follower.draft() if files_decide else None
            certificates = self._certificates.read()
            if draft is not None:
                self._follower.put(draft)
            changed = Reloaded(
                policy_changed=draft is not None,
                certificate_changed=self._certificates.use(certificates),
                log_level=config.log_level,
                log_level_changed=config.log_level != self._log_level,
                restart_needed=self._config.changed(config),
            )
            # The line is written under the level that lets more through.
            self._reports.set_level(min(config.log_level, self._log_level, key=LEVELS.index))
            sha256 = self._served.snapshot.policy.sha256
            self._events.emit(ReloadEnded(sha256, asdict(changed)))
            self._reports.set_level(config.log_level)
            self._log_level = config.log_level
            if not files_decide:
                self._follower.draft()
            return changed

    def _reload_by_signal(self) -> None:
        try:
            self.reload()
        except ConfigError as error:
            problems = [f"{each.field}: {each.description}" for each in error.problems]
            self._events.emit(ReloadRefused(error.source, problems))

    def _follow(self) -> None:
        """Follows the registry, and has operations go on that were left; in its own thread.

        A database that hangs must not hold up health and deadlines.
        """
        swept = 0.0
        while not self._closing.wait(TICK_SECONDS):
            try:
                self._follower.follow()
                self._reconciler.look()
                if self._clock.monotonic() - swept >= SWEEP_SECONDS:
                    swept = self._clock.monotonic()
                    self._executor.sweep()
            except Exception as error:  # noqa: BLE001 - who no longer follows misses suspensions
                self._events.emit(Bug("follow the registry", error, {}))

    def _admin(self, label: str) -> AbstractContextManager[TokenAdmin]:
        tokens = {token.label: token for token in self._config.tokens}
        return open_admin(tokens[label], self._config.state)

    @contextmanager
    def _admin_alone(self, label: str) -> Iterator[TokenAdmin]:
        """Opens an administrative worker, the first one when those before the start have left."""
        with self._waiting_for_strays:
            if label not in self._without_strays:
                tokens = {token.label: token for token in self._config.tokens}
                wait_for_strays(tokens[label], self._config.state)
                self._without_strays.add(label)
        with self._admin(label) as admin:
            yield admin


def _restored(ledger: Ledger) -> Usage:
    """Returns the usage that the log's intents add up to."""
    usage = Usage()
    totals = {facility: sum(keys.values()) for facility, keys in ledger.totals().items()}
    usage.restore(ledger.windows(), totals)
    return usage

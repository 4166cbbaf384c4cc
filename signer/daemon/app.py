"""The composition root: builds every part, starts them in order, reloads, drains.

Start order: configuration, registry, policy, audit log, workers, the HTTP port,
operations, the gRPC port. Wrong configuration and ambiguous tokens end the start
before anything listens. An absent token or a latched PIN does not: the daemon then
runs NOT_SERVING, says why on /readyz, and serves with its first worker. Where one of
several tokens serves, only the keys that no such token holds are away.
"""

import math
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from signer.api.control_service import ControlService, ReloadChanges
from signer.api.evidence_service import EvidenceService
from signer.api.guard import Guard
from signer.api.health import Health
from signer.api.key_service import KeyService
from signer.api.operation_service import OperationService
from signer.api.places import Bound, Places
from signer.api.server import HEALTH_SERVICES, ROLES, Server, health_of
from signer.api.signing_service import SigningService
from signer.api.streams import Streams
from signer.api.tls import Certificates
from signer.audit.read.ledger import Ledger
from signer.clock import Clock, FlooredClock
from signer.config.models import LEVELS, Config, LimitsConfig, load_config
from signer.daemon.accounts import Accounts
from signer.daemon.audit_log import DaemonLog, audit_key, open_log
from signer.daemon.inventory import Inventory
from signer.daemon.process_limits import KEPT, room_for
from signer.daemon.sealing import Sealing
from signer.daemon.serving import Serving, begin_serving, check_audit_token
from signer.daemon.status import StatusReader
from signer.errors import ConfigError, OperatorError
from signer.event_loop import EventLoop, Threads, Turns
from signer.events import (
    Bug,
    ConnectionsLimited,
    Degraded,
    Events,
    Handlers,
    NotReady,
    Ready,
    ReloadEnded,
    ReloadRefused,
    Started,
    Stopped,
)
from signer.hsm.front.admin import AdminWorkers
from signer.hsm.front.pool import Pool
from signer.hsm.front.process import token_spec
from signer.hsm.front.service import Hsm
from signer.hsm.front.slot import START_SECONDS
from signer.hsm.latch import make_state
from signer.keys.registry import Registry
from signer.observe import open_tracing
from signer.observe.http import HttpPort
from signer.observe.lines import LibraryMessages
from signer.observe.native_lines import NativeLines
from signer.observe.reports import Reports
from signer.officers.emergency import EmergencyStops
from signer.officers.execution import Executor
from signer.officers.kinds.base import OperationDependencies
from signer.officers.offline_check import ApprovalFold
from signer.officers.proposals import Proposals
from signer.officers.records import OperationRecords
from signer.officers.standing import StandingFold
from signer.policy.usage import Usage
from signer.signing.engine import Engine
from signer.signing.evidence import Evidence
from signer.signing.messages import Messages
from signer.signing.repeat import Repeats
from signer.signing.request import Served

STARTING, STOPPING = "the daemon is starting", "the daemon is stopping"
TICK_SECONDS = 0.25  # readiness and registry are checked so often
RECEIVING, RECEIVING_PER_CLIENT = 64, 4
"""Messages that are received at once; each may have up to `limits.message_bytes`."""
COMPARE_SECONDS = 1.0  # a part of the registry is compared with what was read so often
SWEEP_SECONDS = 5.0  # operations that have begun and not ended are searched for so often


class Appliance:
    """All parts of one appliance: built, started, served, reloaded and stopped."""

    def __init__(
        self,
        config_path: Path,
        refused: ExitStack,
        *,
        override_audit: bool = False,
        development: bool = False,
    ) -> None:
        """Builds every part and starts none; raises ConfigError or OperatorError.

        Then ``refused`` closes the registry and the log, where they are open.
        """
        # 1. What every part uses: configuration, clock, events.
        self._config_path = config_path
        self._config = config = load_config(config_path)
        self._log_level = config.log_level
        self._clock = clock = FlooredClock(config.clock.absence)
        self._loop = EventLoop()
        refused.callback(self._loop.close)
        self.started_at = clock.now()
        self._reports, listeners = _reporting(config)
        self._events = events = Events(*listeners)

        self._native = _native_lines(events)
        if self._native is not None:
            refused.callback(self._native.close)

        # 2. The registry, whose state is to be served under the policy in force.
        self._registry = registry = Registry.open(config.registry)
        refused.callback(registry.close)
        self._certificates = Certificates(config.tls)
        key = audit_key(registry, clock.now())
        check_audit_token(key, config)

        # 3. The audit log. When it stops, health says NOT_SERVING before any call is refused.
        tokens = {health_of(token.label) for token in config.tokens}
        self._health = Health(HEALTH_SERVICES | tokens, self._loop)
        ledger, approvals, standings = Ledger(), ApprovalFold(checking=False), StandingFold()
        self._log = log = open_log(
            config.audit,
            key,
            clock,
            events,
            folds=(ledger, approvals, standings),
            on_stop=self._health.fail,
            override=override_audit,
        )
        refused.callback(log.close)
        self._usage = Usage()  # what the intents in the log add up to
        totals = {facility: sum(keys.values()) for facility, keys in ledger.totals().items()}
        self._usage.restore(ledger.windows(), totals)
        self._daemon_log = DaemonLog(log, ledger, config.audit.directory, clock, events)
        # What of the registry is served is what the log accounts for.
        accounts = Accounts(
            registry,
            self._daemon_log,
            clock,
            events,
            standings=standings,
            approvals=approvals,
            development=development,
        )
        begun = begin_serving(
            config, registry, accounts, self._daemon_log, events, development=development
        )
        self._served = Served(begun.snapshot())
        # What calls and workers emit is recorded as well.
        recorded = Events(*listeners, self._daemon_log.handlers)

        # 4. The HSM, and what uses it beside requests.
        self._hsm = hsm = _hsm(config, self._loop, clock, recorded)
        self._sealing = Sealing(
            config.audit, log, key, hsm=hsm, loop=self._loop, clock=clock, events=events
        )
        admins = AdminWorkers(config.tokens, config.state)
        self._inventory = Inventory(hsm, self._served, key, admins.open, events)

        # 5. What follows the registry, the way of an operation, the way of a request.
        records = OperationRecords(log)
        self._serving = Serving(
            config,
            registry,
            begun,
            served=self._served,
            hsm=hsm,
            log=self._daemon_log,
            clock=clock,
            events=events,
        )
        dependencies = self._build_dependencies(records, admins)
        self._executor = Executor(dependencies)
        self._server = self._build_server(dependencies, ledger, recorded)
        self._status = self._build_status()
        self._http: HttpPort | None = None
        self._signals: queue.SimpleQueue[signal.Signals] = queue.SimpleQueue()
        self._following = threading.Thread(target=self._follow, name="registry", daemon=True)
        self._closing = threading.Event()
        self._reloading = threading.Lock()
        self._listening = self._draining = False

    def _build_dependencies(
        self, records: OperationRecords, admins: AdminWorkers
    ) -> OperationDependencies:
        return OperationDependencies(
            registry=self._registry,
            serving=self._serving,
            admin=admins.open_alone,
            records=records,
            events=self._events,
            clock=self._clock,
            origin=self._config.audit.origin,
            on_clock=self._usage.set_back,
        )

    def _build_server(
        self, dependencies: OperationDependencies, ledger: Ledger, recorded: Events
    ) -> Server:
        config, clock = self._config, self._clock
        limits = self._limits_with_room()
        usage = self._usage
        guard = Guard(
            served=self._served,
            roles=ROLES,
            places=Places(
                Bound(limits.calls, limits.calls_per_client),
                Bound(limits.bytes_in_flight, limits.bytes_in_flight_per_client),
                arriving=Bound(limits.calls, limits.calls_per_client),
                receiving=Bound(RECEIVING, RECEIVING_PER_CLIENT),
            ),
            events=recorded,
            clock=clock,
        )
        turns, threads = Turns(clock.monotonic), Threads()
        messages = Messages(turns)
        engine = Engine(
            self._served,
            self._hsm,
            Evidence(self._log, turns, self._loop, clock),
            Repeats(self._log, ledger, messages, threads, clock),
            messages=messages,
            turns=turns,
            usage=usage,
            events=self._events,
            clock=clock,
            answer_bytes=limits.message_bytes,
        )
        hours = config.operations.expire_hours
        operations = OperationService(
            Proposals(dependencies, self._executor, expire_hours=hours),
            EmergencyStops(self._registry, dependencies.records, self._serving, clock),
            config.operations.all_needed(),
            config.audit.origin,
            clock,
        )
        evidence = EvidenceService(
            self._log, self._sealing.newest_note, clock, answer_bytes=limits.message_bytes
        )
        streams = Streams(guard, self._served, limits, clock)
        return Server(
            self._loop,
            signing=SigningService(engine, turns, streams),
            keys=KeyService(self._served, usage, clock),
            operations=operations,
            evidence=evidence,
            control=ControlService(self, self._served, usage, self._hsm),
            health=self._health,
            guard=guard,
            threads=threads,
            limits=limits,
            reflect=config.reflection,
        )

    def _limits_with_room(self) -> LimitsConfig:
        """Returns the limits, with the connections for which there are descriptors."""
        limits = self._config.limits
        room = room_for(limits.connections)
        if room < limits.connections:
            text = (
                f"limits.connections is {limits.connections}, but the process may open few files: "
                f"the limit is {room} now; raise LimitNOFILE to {limits.connections + KEPT}"
            )
            self._events.emit(ConnectionsLimited(text))
        return limits.model_copy(update={"connections": room})

    def _build_status(self) -> StatusReader:
        return StatusReader(
            config=self._config,
            clock=self._clock,
            started_at=self.started_at,
            reasons=self.reasons,
            away=self.away,
            served=self._served,
            hsm=self._hsm,
            log=self._log,
            sealing=self._sealing,
            serving=self._serving,
            executor=self._executor,
            server=self._server,
            certificates=self._certificates,
            reports=self._reports,
        )

    def start(self) -> None:
        """Starts the parts in their order; raises OperatorError if one cannot start."""
        self._receive(signal.SIGHUP)  # by default it would end a daemon that is still starting
        snapshot = self._served.snapshot
        self._serving.begin()
        self._daemon_log.started(snapshot.policy, snapshot.keys)
        self._hsm.start()
        for label, (kind, text) in self._hsm.wait_for_outcomes(START_SECONDS).items():
            if kind is not None and kind.ends_start:
                raise OperatorError(f"token {label}: {text}")
        self._sealing.start()
        # Once /readyz answers, a supervisor may end the daemon: from here on with a drain.
        self._receive(signal.SIGTERM, signal.SIGINT)
        self._http = HttpPort(
            self._config.metrics,
            self._reports.metrics.registry,
            self._status.readings,
            reasons=self.reasons,
            away=self.away,
            page=self._status.page,
            stuck=self._status.stuck,
            events=self._events,
        )
        self._serving.follow()  # what was decided since the constructor, before any call
        self._server.listen(str(self._config.listen), self._certificates)
        self._listening = True
        self._following.start()
        self._events.emit(Started(str(self._config.listen), self._served.snapshot.policy.sha256))

    def serve(self, on_ready: Callable[[], None]) -> None:
        """Runs the main loop until a signal ends it.

        Then health says NOT_SERVING at once, and calls are taken for ``drain_notice_seconds``
        more, so that load balancers have turned to another appliance before one is refused.
        """
        announced, leave = False, math.inf
        logged: NotReady | Degraded | Ready | None = None
        while (left := leave - self._clock.monotonic()) > 0:
            reasons = self.reasons()
            away = self._hsm.away()
            self._health.set_serving(not reasons, [health_of(token) for token in away])
            self._server.expire(self._clock.monotonic())
            self._daemon_log.tick()
            self._sealing.tick()
            self._status.tick()
            if (seen := NotReady(reasons) if reasons else self._served_with()) != logged:
                logged = seen
                self._events.emit(seen)
            if not reasons and not announced:
                announced = True
                on_ready()
            try:
                received = self._signals.get(timeout=min(TICK_SECONDS, left))
            except queue.Empty:
                continue
            if received is signal.SIGHUP:
                self._reload_by_signal()
            elif self._draining or reasons:
                return  # a second signal, or no calls were sent here anyway
            else:
                self._draining = True
                leave = self._clock.monotonic() + self._config.limits.drain_notice_seconds

    def _receive(self, *numbers: signal.Signals) -> None:
        for number in numbers:
            signal.signal(number, lambda received, _: self._signals.put(signal.Signals(received)))

    def stop(self) -> None:
        """Drains: health first, then the calls under way, the audit log, workers last."""
        self._draining = True
        self._status.rest()
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
        self._loop.close()
        self._events.emit(Stopped())
        if self._native is not None:
            self._native.close()
        self._reports.lines.close()

    @property
    def differences(self) -> list[str]:
        """Where registry and tokens differ, and what else is wrong although the daemon serves."""
        unaccounted = self._serving.refused
        away = [] if self._hsm.reasons() else self.away()
        return [*away, *self._inventory.differences, *unaccounted, *self._status.doubts()]

    def reasons(self) -> list[str]:
        """Returns why the daemon does not serve; empty while it does."""
        reasons = self._hsm.reasons()
        if refusal := self._log.refusal:
            reasons.append(refusal)
        if doubt := self._clock.doubt():
            reasons.append(
                f"{doubt}: nothing is signed until the machine's clock is right again or officers "
                "have confirmed it (`signer operations propose clock`)"
            )
        if unaccounted := self._serving.reason:
            reasons.append(unaccounted)
        if not self._listening:
            reasons.append(STARTING)
        if self._draining:
            reasons.append(STOPPING)
        return reasons

    def away(self) -> list[str]:
        """Returns which tokens do not serve, and why: the daemon may serve without them."""
        return [f"token {token} is away: {why}" for token, why in self._hsm.away().items()]

    def _served_with(self) -> Degraded | Ready:
        away = self.away()
        return Degraded(away) if away else Ready()

    def reload(self) -> ReloadChanges:
        """Reads its files again; raises ConfigError with everything that is refused.

        Either all of it takes effect or nothing. But where officers decide the policy, a
        draft in its files, which is refused, does not hold up the rest. Of signer.yaml only
        the log level changes; other changed settings are named, and take a restart.
        """
        with self._reloading:
            config = load_config(self._config_path)
            files_decide = self._serving.files_decide
            draft = self._serving.draft() if files_decide else None
            certificates = self._certificates.read()
            if draft is not None:
                self._serving.put(draft)
            changed = ReloadChanges(
                policy_changed=draft is not None,
                certificate_changed=self._certificates.use(certificates),
                log_level=config.log_level,
                log_level_changed=config.log_level != self._log_level,
                restart_needed=self._config.changed(config),
            )
            # The line is written under the level that lets more through.
            self._reports.lines.set_level(min(config.log_level, self._log_level, key=LEVELS.index))
            sha256 = self._served.snapshot.policy.sha256
            self._events.emit(ReloadEnded(sha256, asdict(changed)))
            self._reports.lines.set_level(config.log_level)
            self._log_level = config.log_level
            if not files_decide:
                self._serving.draft()
            return changed

    def _reload_by_signal(self) -> None:
        try:
            self.reload()
        except ConfigError as error:
            problems = [f"{problem.field}: {problem.description}" for problem in error.problems]
            self._events.emit(ReloadRefused(error.source, problems))

    def _follow(self) -> None:
        """Follows the registry and resumes operations, in a thread: a database may hang."""
        swept = compared = 0.0
        while not self._closing.wait(TICK_SECONDS):
            try:
                self._serving.follow()
                self._inventory.compare()
                if self._clock.monotonic() - compared >= COMPARE_SECONDS:
                    compared = self._clock.monotonic()
                    self._serving.compare()
                if self._clock.monotonic() - swept >= SWEEP_SECONDS:
                    swept = self._clock.monotonic()
                    self._executor.sweep()
            except Exception as error:  # noqa: BLE001 - without this thread suspensions are missed
                self._events.emit(Bug("follow the registry", error, {}))


def _reporting(config: Config) -> tuple[Reports, list[Handlers]]:
    """Returns metrics, log lines and alarms, and all handlers of events: theirs and traces."""
    reports = Reports([token.label for token in config.tokens], level=config.log_level)
    LibraryMessages(reports.lines).capture()
    tracing = open_tracing(
        config.tracing, config.audit.origin, reports.lines, reports.spans_dropped
    )
    return reports, [reports.handlers, *([tracing.handlers] if tracing else [])]


def _native_lines(events: Events) -> NativeLines | None:
    """Takes what libraries write to stderr, unless an operator wants to see gRPC's own lines."""
    if sys.__stderr__ is None or "GRPC_VERBOSITY" in os.environ:
        return None
    return NativeLines(events.emit)


def _hsm(config: Config, loop: EventLoop, clock: Clock, events: Events) -> Hsm:
    make_state(config.state)
    return Hsm(
        {
            token.label: Pool(
                token_spec(token, config.state),
                workers=token.workers,
                hang_seconds=token.hang_seconds,
                max_queued=config.limits.queued_items,
                loop=loop,
                events=events,
                clock=clock,
            )
            for token in config.tokens
        }
    )

"""The composition root: builds every part, starts them in order, reloads, drains.

Start order: configuration, policy, registry, certificates, workers, the HTTP
port, the gRPC port. Wrong configuration and ambiguous tokens end the start
before anything listens; an absent token or a latched PIN does not: the daemon is
up, NOT_SERVING, says why on /readyz, and serves with the first worker.
"""

from __future__ import annotations

import queue
import signal
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

from signer.api.control import ControlService, Reloaded
from signer.api.evidence import EvidenceService
from signer.api.guard import Guard
from signer.api.keys import KeyService
from signer.api.server import ROLES, Server
from signer.api.signing import SigningService
from signer.api.tls import Certificates
from signer.clock import SystemClock
from signer.config import Config, TokenConfig, load_config, read_policy
from signer.engine import Engine, Snapshot
from signer.errors import ConfigError, OperatorError, Violation
from signer.hsm.pool import Pool
from signer.hsm.service import Hsm
from signer.hsm.slot import START_SECONDS
from signer.hsm.spec import TokenSpec
from signer.keys.audit import audit_key
from signer.keys.index import KeyIndex
from signer.keys.registry import Registry
from signer.model import KeyState, KeyVersion
from signer.observe import logs
from signer.observe.gauges import Reading, audit_readings, readings
from signer.observe.http import HttpPort
from signer.observe.reports import Reports
from signer.policy.rules import Policy
from signer.policy.usage import Usage
from signer.trail import Trail

TICK_SECONDS = 0.25
"""How often readiness and registry are looked at."""
_SWITCH_SECONDS = 0.0005
"""Python's thread switch interval: its default of 5 ms stretched a worker's round trip."""


def run(
    config_path: Path,
    *,
    on_ready: Callable[[], None] | None = None,
    override_audit: bool = False,
) -> int:
    """Serves until SIGTERM or SIGINT; returns the exit code.

    ``override_audit`` goes on with an audit log that is not whole, and records that.
    ``on_ready`` is called once, when health first says SERVING. Raises
    ConfigError and OperatorError where the start is refused.
    """
    sys.setswitchinterval(_SWITCH_SECONDS)
    daemon = Daemon(load_config(config_path), override_audit=override_audit)
    try:
        daemon.start()
        daemon.serve(on_ready or (lambda: None))
    finally:
        daemon.stop()
    return 0


class Daemon:
    """All parts of one appliance, and their life."""

    def __init__(self, config: Config, *, override_audit: bool = False) -> None:
        """Builds everything and starts nothing; raises ConfigError or OperatorError."""
        logs.configure(config.log_level)
        self._config = config
        self._clock = SystemClock()
        self.started_at = self._clock.now()
        self._reports = Reports()
        self._registry = Registry.open(config.registry)
        self._certificates = Certificates(config.tls)
        self._hsm = Hsm({token.label: self._pool(token) for token in config.tokens})
        policy, self._policy_text = read_policy(config.policy)
        keys = self._registry.snapshot()
        sealing = audit_key(self._registry, self._clock.now())
        _check_tokens([*keys, sealing], self._hsm)
        self._trail = Trail(
            config.audit, sealing, self._clock, self._reports, override=override_audit
        )
        usage = Usage()
        self._trail.evidence.attach(self._trail.log, usage)
        self._reports.keep(self._trail)
        self._engine = Engine(
            Snapshot(policy, keys),
            self._hsm,
            self._trail.evidence,
            usage=usage,
            observer=self._reports.metrics,
            clock=self._clock,
            answer_bytes=config.limits.message_bytes,
        )
        self._server = self._build_server()
        self._http: HttpPort | None = None
        self._events: queue.SimpleQueue[signal.Signals] = queue.SimpleQueue()
        self._reloading = threading.Lock()
        self._telling = threading.Lock()
        self._registry_error = ""
        self._draining = False

    def _pool(self, token: TokenConfig) -> Pool:
        config = self._config
        config.state.mkdir(mode=0o700, parents=True, exist_ok=True)
        return Pool(
            TokenSpec.of(token, config.state),
            workers=token.workers,
            hang_seconds=token.hang_seconds,
            max_queued=config.limits.queued_items,
            observer=self._reports,
            clock=self._clock,
        )

    def _build_server(self) -> Server:
        limits = self._config.limits
        guard = Guard(
            policy=lambda: self._engine.snapshot.policy,
            roles=ROLES,
            calls=limits.calls,
            calls_per_client=limits.calls_per_client,
            observer=self._reports,
            clock=self._clock,
        )
        return Server(
            signing=SigningService(self._engine),
            keys=KeyService(self._engine, self._clock),
            evidence=EvidenceService(
                self._trail.log,
                self._trail.newest_note,
                self._clock,
                answer_bytes=limits.message_bytes,
            ),
            control=ControlService(self, self._engine, self._hsm),
            guard=guard,
            limits=limits,
            reflect=self._config.reflection,
        )

    def start(self) -> None:
        """Starts the parts in their order; raises OperatorError where that cannot go well."""
        self._hear(signal.SIGHUP)  # by default it would end a daemon that is still starting
        snapshot = self._engine.snapshot
        self._trail.policy(snapshot.policy, self._policy_text)
        self._trail.started(snapshot.policy, snapshot.keys)
        self._hsm.start()
        for label, (kind, text) in self._hsm.wait_for_outcomes(START_SECONDS).items():
            if kind is not None and kind.ends_start:
                raise OperatorError(f"token {label}: {text}")
        self._trail.start(self._hsm, self._tell_health)
        address = self._config.metrics
        self._reports.watch(self._readings)
        self._http = HttpPort(
            address.host, address.port, self._reports.metrics.registry, self.reasons
        )
        self._server.listen(str(self._config.listen), self._certificates)
        self._reports.started(str(self._config.listen), self._engine.snapshot.policy.sha256)

    def serve(self, on_ready: Callable[[], None]) -> None:
        """Looks after the running parts until a signal ends it."""
        self._hear(signal.SIGTERM, signal.SIGINT)
        announced = False
        while True:
            reasons = self._tell_health()
            self._server.expire(self._clock.monotonic())
            self._trail.tick()
            self._reports.readiness(reasons)
            if not reasons and not announced:
                announced = True
                on_ready()
            try:
                event = self._events.get(timeout=TICK_SECONDS)
            except queue.Empty:
                self._follow_registry()
                continue
            if event is not signal.SIGHUP:
                return
            self._reload_by_signal()

    def _tell_health(self) -> list[str]:
        """Has health say what is so; returns why the daemon does not serve."""
        # Under the lock, or who looked before the audit log failed could speak after it.
        with self._telling:
            reasons = self.reasons()
            self._server.set_serving(not reasons)
        return reasons

    def _hear(self, *numbers: signal.Signals) -> None:
        for number in numbers:
            signal.signal(number, lambda received, _: self._events.put(signal.Signals(received)))

    def stop(self) -> None:
        """Drains: health first, then calls at work, the audit log, workers last."""
        self._draining = True
        self._server.drain(self._config.limits.drain_seconds)
        self._trail.close()
        self._hsm.close()
        if self._http is not None:
            self._http.close()
        self._registry.close()
        self._reports.stopped()

    def reasons(self) -> list[str]:
        """Why the daemon does not serve; empty where it does."""
        reasons = self._hsm.reasons()
        if refusal := self._trail.log.refusal:
            reasons.append(refusal)
        if self._draining:
            reasons.append("the daemon is stopping")
        return reasons

    def reload(self) -> Reloaded:
        """Reads policy and certificates again; all of it or, with ConfigError, nothing."""
        with self._reloading:
            policy, text = read_policy(self._config.policy)
            certificate_changed = self._certificates.reload()
            before = self._engine.snapshot
            if policy.sha256 != before.policy.sha256:
                self._record_policy(policy, text)
            self._engine.snapshot = Snapshot(policy, before.keys)
            changed = Reloaded(policy.sha256 != before.policy.sha256, certificate_changed)
        self._reports.reloaded(policy.sha256, changed.policy_changed, certificate_changed)
        return changed

    def _record_policy(self, policy: Policy, text: bytes) -> None:
        try:
            self._trail.policy(policy, text)
        except OperatorError as error:
            raise ConfigError(str(self._config.policy), [Violation("", str(error))]) from error

    def _reload_by_signal(self) -> None:
        try:
            self.reload()
        except ConfigError as error:
            self._reports.reload_refused(error)

    def _follow_registry(self) -> None:
        """Serves what the registry holds now; keeps the last snapshot while it cannot be read."""
        try:
            if self._registry.revision() != self._engine.snapshot.keys.revision:
                keys = self._registry.snapshot()
                _check_tokens(keys, self._hsm)
                # Workers must know a key before the first chunk that needs it.
                self._hsm.refresh()
                self._enforce(self._engine.snapshot.keys, keys)
                self._trail.keys_changed(self._engine.snapshot.keys, keys)
                with self._reloading:
                    self._engine.snapshot = Snapshot(self._engine.snapshot.policy, keys)
                self._reports.keys_changed(len(keys), keys.revision)
            self._registry_error = ""
        except OperatorError as error:
            if not self._registry_error:
                self._reports.registry_unreadable(error)
            self._registry_error = str(error)

    def _enforce(self, before: KeyIndex, after: KeyIndex) -> None:
        """Stops at once what the registry has stopped, also in batches that are under way."""
        now = self._clock.now()
        for old in before:
            new = after.version(old.key, old.number)
            state = new.state_at(now) if new else KeyState.DESTROYED
            if old.active(now) and state is not KeyState.ACTIVE:
                self._hsm.stop_key(old, f"{old.name} is {state}")
            elif state is KeyState.ACTIVE and not old.active(now):
                self._hsm.resume_key(old)

    def _readings(self) -> list[Reading]:
        log = self._trail.log
        return [
            *readings(
                self._engine.snapshot,
                self._hsm,
                self._certificates.expiries(),
                ready=not self.reasons(),
                now=self._clock.now(),
                monotonic=self._clock.monotonic(),
            ),
            *audit_readings(
                open_intents=log.open_intents,
                checkpoint_time=self._trail.checkpoint_time,
                committing_since=log.committing_since,
                free_bytes=log.free_bytes,
            ),
        ]


def _check_tokens(keys: Iterable[KeyVersion], hsm: Hsm) -> None:
    unknown = {version.token for version in keys} - set(hsm.pools)
    if unknown:
        raise OperatorError(
            f"the registry has keys on token {', '.join(sorted(unknown))}, which the "
            "configuration does not name: add it under `tokens`"
        )

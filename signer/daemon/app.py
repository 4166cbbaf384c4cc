"""The composition root: builds every part of one appliance, from the values to the edge.

Wrong configuration and ambiguous tokens are refused here, before anything listens.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from signer.api.control_service import ControlService
from signer.api.evidence_service import EvidenceService
from signer.api.guard import Guard
from signer.api.health import Health
from signer.api.key_service import KeyService
from signer.api.operation_service import OperationService
from signer.api.places import Bound, Places
from signer.api.server import HEALTH_SERVICES, METHOD_ROLES, ROLES, Server, health_of
from signer.api.signing_service import SigningService
from signer.api.streams import Streams
from signer.api.tls import Certificates
from signer.audit.read.ledger import Ledger
from signer.clock import FlooredClock
from signer.config.models import Config, LimitsConfig, load_config
from signer.daemon.accounts import Accounts
from signer.daemon.audit_log import DaemonLog, audit_key, open_log
from signer.daemon.inventory import Inventory
from signer.daemon.process_limits import KEPT, room_for
from signer.daemon.reloading import Reloading
from signer.daemon.running import Appliance, Base, Core, Edge, Records
from signer.daemon.sealing import Sealing
from signer.daemon.serving import Begun, Serving, begin_serving, check_audit_token
from signer.daemon.status import Readiness, StatusReader
from signer.event_loop import EventLoop, Threads, Turns
from signer.events import ConnectionsLimited, Events, Handlers
from signer.hsm.front.admin import AdminWorkers
from signer.hsm.front.pool import Pool
from signer.hsm.front.process import WorkerProcess, token_spec
from signer.hsm.front.service import Hsm
from signer.hsm.latch import make_state
from signer.keys.registry import Registry
from signer.model import KeyVersion
from signer.observe import open_tracing
from signer.observe.lines import LibraryMessages
from signer.observe.native_lines import NativeLines
from signer.observe.reports import Reports
from signer.officers.emergency import EmergencyStops
from signer.officers.execution import Executor
from signer.officers.kinds.base import OperationDependencies
from signer.officers.offline_check import ApprovalFold
from signer.officers.proposals import Proposals
from signer.officers.records import OperationRecords
from signer.officers.standing_fold import StandingFold
from signer.policy.usage import Usage
from signer.signing.cosigners import Cosigners
from signer.signing.engine import Engine
from signer.signing.evidence import Evidence
from signer.signing.messages import Messages
from signer.signing.repeat import Repeats
from signer.signing.request import Served

SPARES = 2  # workers of each token that are spawned first of all
RECEIVING, RECEIVING_PER_CLIENT = 64, 4
"""Messages that are received at once; each may have up to `limits.message_bytes`."""


def build(
    config_path: Path,
    refused: ExitStack,
    *,
    override_audit: bool = False,
    development: bool = False,
) -> Appliance:
    """Builds every part and starts none; raises ConfigError or OperatorError.

    Then ``refused`` closes the registry and the log, where they are open.
    """
    base = _base(load_config(config_path), refused)
    core = _core(base, refused, override_audit=override_audit, development=development)
    return Appliance(base, core, _edge(config_path, base, core))


# --- 1. what every part uses: configuration, clock, event loop, events ---------------------------


def _base(config: Config, refused: ExitStack) -> Base:
    clock = FlooredClock(config.clock.absence)
    loop = EventLoop()
    refused.callback(loop.close)
    started_at = clock.now()
    reports, listeners = _reporting(config)
    events = Events(*listeners)
    native = _native_lines(events)
    if native is not None:
        refused.callback(native.close)
    return Base(config, clock, loop, started_at, reports, listeners, events, native)


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


# --- 2. registry and log, what is served, the HSM, what follows the registry ---------------------


def _core(base: Base, refused: ExitStack, *, override_audit: bool, development: bool) -> Core:
    config, clock, loop, events = base.config, base.clock, base.loop, base.events
    spares = _spares(config, refused)
    registry = Registry.open(config.registry)
    refused.callback(registry.close)
    certificates = Certificates(config.tls, clock.machine)
    key = audit_key(registry, clock.now())
    check_audit_token(key, config)

    # When the log stops, health says NOT_SERVING before any call is refused.
    tokens = {health_of(token.label) for token in config.tokens}
    health = Health(HEALTH_SERVICES | tokens, loop)
    records = _records(base, key, health, refused, override=override_audit)
    begun = _begin(base, registry, records, development=development)
    served = Served(begun.snapshot())
    # What calls and workers emit is recorded as well.
    recorded = Events(*base.listeners, records.daemon_log.handlers)

    hsm = _hsm(base, recorded, served, spares)
    sealing = Sealing(
        config.audit, records.log, key, hsm=hsm, loop=loop, clock=clock, events=events
    )
    admins = AdminWorkers(config.tokens, config.state, recorded)
    inventory = Inventory(hsm, served, key, open_list=admins.open_list, events=events, clock=clock)
    serving = Serving(
        config,
        registry,
        begun,
        served=served,
        hsm=hsm,
        log=records.daemon_log,
        clock=clock,
        events=events,
    )
    operations = _operations(base, registry, serving, records, admins)
    return Core(
        registry=registry,
        certificates=certificates,
        health=health,
        records=records,
        served=served,
        recorded=recorded,
        hsm=hsm,
        sealing=sealing,
        inventory=inventory,
        serving=serving,
        operations=operations,
        executor=Executor(operations),
    )


def _records(
    base: Base, key: KeyVersion, health: Health, refused: ExitStack, *, override: bool
) -> Records:
    """Opens the audit log."""
    config, clock, events = base.config.audit, base.clock, base.events
    approvals = ApprovalFold(config.origin, checking=False)
    standings, ledger = StandingFold(approvals), Ledger(confirmed=approvals.confirmed)
    log = open_log(
        config,
        key,
        clock,
        events,
        folds=(approvals, standings, ledger),  # the first one judges what the others take
        confirmed=approvals.confirmed,
        on_stop=health.fail,
        override=override,
    )
    refused.callback(log.close)
    usage = Usage()  # what the intents in the log add up to
    usage.restore(ledger.windows(), ledger.keys())
    daemon_log = DaemonLog(log, ledger, config.directory, clock, events)
    return Records(log, daemon_log, ledger, approvals, standings, usage)


def _begin(base: Base, registry: Registry, records: Records, *, development: bool) -> Begun:
    """Returns what of the registry is served: what the log accounts for."""
    accounts = Accounts(
        registry,
        base.clock,
        base.events,
        standings=records.standings,
        approvals=records.approvals,
        needed=base.config.operations.all_needed(),
        development=development,
        looked=base.clock.log_ended,
    )
    return begin_serving(
        base.config, registry, accounts, records.daemon_log, base.events, development=development
    )


def _spares(config: Config, refused: ExitStack) -> dict[str, list[WorkerProcess]]:
    """Spawns the first workers of each token, which open it later.

    Their interpreters start while this process reads registry, policy and log.
    """
    spares: dict[str, list[WorkerProcess]] = {token.label: [] for token in config.tokens}
    for token in config.tokens:
        for _ in range(min(token.workers, SPARES)):
            with suppress(OSError):  # later there may be room for a process
                spare = WorkerProcess.spawn(token_spec(token, config.state))
                spares[token.label].append(spare)
                refused.callback(spare.end)
                refused.callback(spare.kill)  # first: it has logged in nowhere
    return spares


def _hsm(
    base: Base, events: Events, served: Served, spares: Mapping[str, Sequence[WorkerProcess]]
) -> Hsm:
    config = base.config
    make_state(config.state)
    return Hsm(
        {
            token.label: Pool.of(
                token,
                config,
                loop=base.loop,
                events=events,
                clock=base.clock,
                keys=lambda: served.snapshot.keys,
                spares=spares[token.label],
            )
            for token in config.tokens
        }
    )


def _operations(
    base: Base, registry: Registry, serving: Serving, records: Records, admins: AdminWorkers
) -> OperationDependencies:
    """Returns what the way of an operation uses."""
    return OperationDependencies(
        registry=registry,
        serving=serving,
        admin=admins.open_alone,
        records=OperationRecords(records.log),
        events=base.events,
        clock=base.clock,
        origin=base.config.audit.origin,
        on_clock=records.usage.set_back,
    )


# --- 3. the edge: status, services, the gRPC port ------------------------------------------------


def _edge(config_path: Path, base: Base, core: Core) -> Edge:
    config, clock, records = base.config, base.clock, core.records
    limits = _limits_with_room(config.limits, base.events)
    places = Places(
        Bound(limits.calls, limits.calls_per_client),
        Bound(limits.bytes_in_flight, limits.bytes_in_flight_per_client),
        arriving=Bound(limits.calls, limits.calls_per_client),
        receiving=Bound(RECEIVING, RECEIVING_PER_CLIENT),
    )
    readiness = Readiness(core.hsm, records.log, clock, core.serving)
    status = StatusReader(
        config=config,
        clock=clock,
        started_at=base.started_at,
        readiness=readiness,
        served=core.served,
        hsm=core.hsm,
        log=records.log,
        sealing=core.sealing,
        serving=core.serving,
        executor=core.executor,
        inventory=core.inventory,
        places=places,
        certificates=core.certificates,
        reports=base.reports,
        usage=records.usage,
    )
    reloading = Reloading(
        config_path,
        config,
        serving=core.serving,
        served=core.served,
        certificates=core.certificates,
        lines=base.reports.lines,
        events=base.events,
    )
    control = ControlService(status, reloading.reload, served=core.served, hsm=core.hsm)
    roles = {**ROLES, **METHOD_ROLES}
    guard = Guard(served=core.served, roles=roles, places=places, events=core.recorded, clock=clock)
    turns, threads = Turns(clock.monotonic), Threads()
    engine = _engine(base, core, limits, turns, threads)
    signing = SigningService(engine, turns, Streams(guard, core.served, limits, clock))
    server = _server(
        base, core, limits, guard=guard, signing=signing, control=control, threads=threads
    )
    return Edge(readiness, status, reloading, server, signing)


def _server(
    base: Base,
    core: Core,
    limits: LimitsConfig,
    *,
    guard: Guard,
    signing: SigningService,
    control: ControlService,
    threads: Threads,
) -> Server:
    clock, served, records = base.clock, core.served, core.records
    return Server(
        base.loop,
        signing=signing,
        keys=KeyService(served, records.usage, clock),
        operations=_operation_service(base, core),
        evidence=EvidenceService(
            records.log, core.sealing.newest_note, clock, answer_bytes=limits.message_bytes
        ),
        control=control,
        health=core.health,
        guard=guard,
        threads=threads,
        limits=limits,
        reflect=base.config.reflection,
    )


def _engine(base: Base, core: Core, limits: LimitsConfig, turns: Turns, threads: Threads) -> Engine:
    clock, records, messages = base.clock, core.records, Messages(turns)
    return Engine(
        core.served,
        core.hsm,
        Evidence(records.log, turns, base.loop, clock),
        Repeats(records.log, records.ledger, messages, threads, clock),
        messages=messages,
        cosigners=Cosigners(turns),
        turns=turns,
        usage=records.usage,
        events=base.events,
        clock=clock,
        loop=base.loop,
        answer_bytes=limits.message_bytes,
    )


def _operation_service(base: Base, core: Core) -> OperationService:
    config, operations = base.config.operations, core.operations
    return OperationService(
        Proposals(operations, core.executor, expire_hours=config.expire_hours),
        EmergencyStops(core.registry, operations.records, core.serving, base.clock),
        config.all_needed(),
        base.config.audit.origin,
        base.clock,
    )


def _limits_with_room(limits: LimitsConfig, events: Events) -> LimitsConfig:
    """Returns the limits, with the connections for which there are descriptors."""
    room = room_for(limits.connections)
    if room < limits.connections:
        text = (
            f"limits.connections is {limits.connections}, but the process may open few files: "
            f"the limit is {room} now; raise LimitNOFILE to {limits.connections + KEPT}"
        )
        events.emit(ConnectionsLimited(text))
    return limits.model_copy(update={"connections": room})

"""The parts of one appliance, by the stage of the composition root that builds them."""

from collections.abc import Sequence
from typing import NamedTuple

from signer.api.health import Health
from signer.api.server import Server
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
from signer.event_loop import EventLoop
from signer.events import Events, Handlers
from signer.hsm.front.service import Hsm
from signer.keys.registry import Registry
from signer.observe.native_lines import NativeLines
from signer.observe.reports import Reports
from signer.officers.execution import Executor
from signer.officers.kinds.base import OperationDependencies
from signer.officers.offline_check import ApprovalFold
from signer.officers.standing import StandingFold
from signer.policy.usage import Usage
from signer.signing.request import Served


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

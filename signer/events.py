"""What happens in the appliance: one record for each event, and the dispatch to listeners.

A part emits events and does not know who listens. The composition root wires the listeners
side by side: metrics, log lines and alarms (``signer.observe.reports``), traces
(``signer.observe.tracing``) and the audit log (``signer.daemon.audit_log``).

Many calls are in progress in one thread. ``CALL`` is the one for which the present task works.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple

Stages = list[tuple[str, float, float]]
"""The stages of a call that have ended: name, begin (monotonic seconds) and seconds."""


class CallTrace:
    """What listeners know of a call in progress; made by the guard, before CallBegan.

    ``span`` is the tracer's, ``trace_id`` in hexadecimal; None and "" if no trace is kept.
    ``work`` has the stages: the trace itself, or one that several ``calls`` share, because they
    are signed together. Its ``timings``, the seconds by stage, are kept once StagesEnded.
    """

    __slots__ = ("calls", "span", "stages", "timings", "trace_id", "work")

    def __init__(self, calls: int = 1) -> None:
        self.stages: Stages = []
        self.timings: dict[str, float] | None = None
        self.calls, self.work = calls, self
        self.span: Any = None
        self.trace_id = ""


CALL: ContextVar[CallTrace | None] = ContextVar("CALL", default=None)
"""The call to which events belong that are emitted in the present context, from CallBegan on.

A new task, and ``contextvars.copy_context().run`` in another thread, continue in the context
of their maker. Threads begin with None: what they emit belongs to no call.
"""


def stages() -> Stages:
    """Returns the stages of the call in ``CALL``, to add those that end, or an unused list."""
    call = CALL.get()
    return [] if call is None else call.work.stages


class TextEvent(NamedTuple):
    """What events that have only a text derive from."""

    text: str


class CallBegan(NamedTuple):
    """The beginning of a call of the API, which ``CALL`` names until CallEnded."""

    method: str
    metadata: Iterable[tuple[str, str | bytes]]


class StagesEnded(NamedTuple):
    """The end of the stages of ``work``; ``trace_id`` is that of one of its calls, or ""."""

    work: CallTrace
    trace_id: str


class CallEnded(NamedTuple):
    """The end of a call: gRPC code, reason ("ok" or one of the error table), seconds."""

    method: str
    code: str
    reason: str
    seconds: float
    notes: Mapping[str, object]  # the call's id; once known, the principal and the request


class CallDenied(NamedTuple):
    """A call that was refused, or all of whose items failed; unknown names are empty.

    ``caller`` is the principal, or the certificate if that names none. ``role`` and ``peer`` (its
    address) are those of a caller that was refused as such.
    """

    caller: str
    key: str
    reason: str
    method: str
    role: str
    peer: str


class HandshakesFailed(NamedTuple):
    """Clients that could not connect, because their TLS handshakes failed for one cause."""

    cause: str
    times: int


class LibraryLines(NamedTuple):
    """Lines that a library in C wrote from one place of its source; their text is not kept."""

    place: str
    times: int


class ItemsEnded(NamedTuple):
    """The items of a batch, counted by reason: "ok" or the reason of the failure."""

    group: str
    format: str
    algorithm: str
    reasons: Mapping[str, int]


class QuotaRefused(NamedTuple):
    """A batch that a quota refused."""

    group: str
    window: str


class Bug(NamedTuple):
    """An exception that nothing in ``where`` expects."""

    where: str
    error: Exception
    notes: Mapping[str, object]


class ChunkEnded(NamedTuple):
    """A chunk that a worker answered: busy seconds, and signatures checked and wrong."""

    token: str
    busy: float
    items: int
    checked: int
    wrong: int


class BreakerOpened(NamedTuple):
    """A token has lost its workers: others do the work that they can."""

    token: str


class BreakerClosed(NamedTuple):
    """A token has signed a canary: it gets work again."""

    token: str


class WrongSignatures(NamedTuple):
    """Signatures of one chunk that did not verify."""

    token: str
    key_version: str
    wrong: int


class KeyRefused(NamedTuple):
    """A token does not sign with a key: it has none, two, or refuses. Once until it signs again."""

    token: str
    key_version: str
    verdict: str
    text: str


class WorkerLeft(NamedTuple):
    """The end of a worker process."""

    token: str
    cause: str
    text: str


class WorkerFailedAgain(NamedTuple):
    """Another start of a worker failed as one in the last minute did: it is only counted."""

    token: str
    cause: str
    text: str


class LoginEnded(NamedTuple):
    """A worker's login to its token; ``result`` is "ok" or a failure kind."""

    token: str
    result: str


class AuditCommitted(NamedTuple):
    """A group commit of the audit log."""

    records: int
    seconds: float


class AuditStopped(TextEvent):
    """The audit log accepts no records until a restart."""


class AuditSlow(NamedTuple):
    """A commit that hangs, while it hangs; ``since`` is in seconds since the epoch."""

    since: float


class AuditProblem(TextEvent):
    """Something about the audit log's files that an operator should look at."""


class RequestsForgotten(NamedTuple):
    """Request ids that were forgotten before their 24 hours."""

    requests: int


class CheckpointMade(NamedTuple):
    """A signed checkpoint; outside the log, ``note`` proves later that records were cut off."""

    size: int
    note: str


class CheckpointFailed(TextEvent):
    """A checkpoint that could not be signed or stored; it is tried again, and said each minute."""


class CheckpointShipped(NamedTuple):
    """A checkpoint written to the second directory."""

    size: int


class ShippingFailed(TextEvent):
    """A checkpoint that could not be written to the second directory; it is tried again."""


class ConnectionsLimited(TextEvent):
    """Fewer connections may be open than the configuration says."""


class Started(NamedTuple):
    """The daemon listens."""

    address: str
    policy_sha256: str


class Stopped(NamedTuple):
    """The daemon has ended; the last event."""


class Ready(NamedTuple):
    """The daemon has begun to serve, or serves with all tokens again."""


class Degraded(NamedTuple):
    """The daemon serves without some tokens, or without others than before."""

    away: Sequence[str]


class NotReady(NamedTuple):
    """The daemon does not serve, or for other reasons than before."""

    reasons: Sequence[str]


class ReloadEnded(NamedTuple):
    """A reload that succeeded; ``changed`` says what it changed."""

    policy_sha256: str
    changed: Mapping[str, object]


class ReloadRefused(NamedTuple):
    """A reload that was refused: policy and certificates stay as they were."""

    source: str
    problems: Sequence[str]


class KeysChanged(NamedTuple):
    """Another revision of the registry is served."""

    versions: int
    revision: int


class PolicyChanged(NamedTuple):
    """Another policy is in force."""

    policy_sha256: str


class PolicyFilesDiffer(TextEvent):
    """The policy's files hold something else than the policy in force."""


class SuspensionsChanged(NamedTuple):
    """The suspensions in force have changed; these are all."""

    suspended: Sequence[str]


class RegistryUnreadable(TextEvent):
    """The registry cannot be followed."""


class Unaccounted(NamedTuple):
    """Changes of the registry for which no operation and no act accounts.

    ``refused`` are not served; ``obeyed`` are stops that were made by hand.
    """

    refused: Sequence[str]
    obeyed: Sequence[str]


class TokenDiffers(NamedTuple):
    """The keys on a token are not those in the registry."""

    differences: Sequence[str]


class OperationChanged(NamedTuple):
    """Another state of an operation of officers."""

    operation: str
    kind: str
    state: str
    note: str


class OperationFailed(OperationChanged):
    """An operation of officers whose execution failed."""


class OperationBug(NamedTuple):
    """An exception that the execution of an operation does not expect."""

    operation: str
    error: Exception


Event = NamedTuple
Handlers = Mapping[type[Any], Callable[[Any], object]]
"""What to call for an event, by its type; types that are missing are not listened to."""


class Events:
    """Calls the listeners of an event in the emitting thread, in the order of the arguments.

    A listener that raises does not disturb the emitter or the other listeners; its exception
    is emitted as a Bug.
    """

    def __init__(self, *listeners: Handlers) -> None:
        calls: defaultdict[type[Any], list[Callable[[Any], object]]] = defaultdict(list)
        for listener in listeners:
            for kind, call in listener.items():
                calls[kind].append(call)
        self._calls = {kind: tuple(found) for kind, found in calls.items()}

    def emit(self, event: Event) -> None:
        """Hands an event to its listeners."""
        for call in self._calls.get(type(event), ()):
            try:
                call(event)
            except Exception as error:  # noqa: BLE001 - a listener must not break the emitter
                if not isinstance(event, Bug):
                    self.emit(Bug(f"a listener of {type(event).__name__}", error, {}))


REPORT_SECONDS = 60.0
"""After which a failure that lasts is reported again: reports of its cause would drown in it."""
_MOST_FAILURES = 8  # that are remembered


class LastingFailures:
    """Which failures of something that is tried again and again are reported. For one thread."""

    def __init__(self, now: Callable[[], float]) -> None:
        """``now`` returns monotonic seconds."""
        self._now = now
        self._reported: dict[str, float] = {}  # when each was, the last one at the end

    def is_news(self, failure: str) -> bool:
        """Whether a failure is to be reported: it was not in the last minute."""
        now = self._now()
        if now - self._reported.get(failure, -REPORT_SECONDS) < REPORT_SECONDS:
            return False
        self._reported.pop(failure, None)
        self._reported[failure] = now
        if len(self._reported) > _MOST_FAILURES:
            del self._reported[next(iter(self._reported))]
        return True

    def over(self) -> None:
        """Nothing fails any more: the next failure is reported at once."""
        self._reported.clear()

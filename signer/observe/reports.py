"""What each event does: its metric, its log line, its alarm.

A call that was refused or failed is one log line at level warning, any other at
info. Lines carry ids, names, counts and times, never a payload.
"""

import threading
import traceback
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from signer import events
from signer.audit.write.log import SLOW_SECONDS
from signer.clock import Clock, SystemClock
from signer.errors import CLIENT_LIMITS, CallError, OperatorError, Reason
from signer.events import CALL, CallTrace, Handlers
from signer.model import Scope
from signer.observe.catalogue import OK, OVERLOADED_BY_CLIENT
from signer.observe.lines import DEBUG, ERROR, INFO, WARNING, LogLines, write_to_stderr
from signer.observe.metrics import Metrics
from signer.text import count

KEPT_ALARMS = 20


def _described(error: Exception) -> dict[str, object]:
    frames = traceback.extract_tb(error.__traceback__)
    places = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames]
    return {"error": type(error).__name__, "places": places}


def _chunk_ended(metrics: Metrics, event: events.ChunkEnded) -> None:
    metrics.busy(event.token).inc(event.busy)
    metrics.signatures(event.token, "C_Sign").observe(event.busy / event.items)
    metrics.checks("correct").inc(event.checked - event.wrong)
    metrics.checks("wrong").inc(event.wrong)


def _items_ended(metrics: Metrics, event: events.ItemsEnded) -> None:
    *labels, reasons = event
    metrics.begin_items(*labels)
    for reason, items in reasons.items():
        metrics.items(*labels, reason).inc(items)


_PLURALS = {Scope.GROUP: ("group", "groups"), Scope.FACILITY: ("facility", "facilities")}


def _scopes(suspended: Sequence[str]) -> str:
    """Returns what is suspended without its name, which everyone who reaches the page could read.

    The texts are those of suspensions: a scope, then a name.
    """
    found = Counter(Scope(each.partition(" ")[0]) for each in suspended)
    return ", ".join(
        count(number, *_PLURALS[scope]) if scope in _PLURALS else str(scope)
        for scope, number in sorted(found.items())
    )


COUNTS: Mapping[type[Any], Callable[[Metrics, Any], object]] = {
    events.HandshakesFailed: lambda metrics, event: metrics.handshakes_failed(event.cause).inc(
        event.times
    ),
    events.ItemsEnded: _items_ended,
    events.QuotaRefused: lambda metrics, event: metrics.quotas(event.group, event.window).inc(),
    events.ChunkEnded: _chunk_ended,
    events.WorkerLeft: lambda metrics, event: metrics.restarts(event.token, event.cause).inc(),
    events.WorkerFailedAgain: lambda metrics, event: metrics.restarts(
        event.token, event.cause
    ).inc(),
    events.LoginEnded: lambda metrics, event: metrics.logins(event.token, event.result).inc(),
    events.RequestsForgotten: lambda metrics, event: metrics.forgotten.inc(event.requests),
    events.CheckpointFailed: lambda metrics, _: metrics.audit_failures("checkpoint").inc(),
    events.ShippingFailed: lambda metrics, _: metrics.audit_failures("shipping").inc(),
}
"""What counts an event; calls, their stages and commits of the audit log are counted below."""

LINES: Mapping[type[Any], tuple[str, str, str | Callable[[Any], str]]] = {
    events.Bug: ("bug", ERROR, "an internal error: see the log"),
    # Clients.
    events.HandshakesFailed: ("handshakes_failed", WARNING, ""),
    events.LibraryLines: ("library", WARNING, ""),
    # Tokens.
    events.WrongSignatures: (
        "wrong_signatures",
        ERROR,
        "token {token} made {wrong} wrong signatures",
    ),
    events.KeyRefused: (
        "key_refused",
        WARNING,
        "token {token} does not sign with a key ({verdict}): see the log",
    ),
    events.WorkerLeft: ("worker_left", WARNING, "token {token}: {cause}"),
    events.LoginEnded: ("login", INFO, ""),
    # The audit log.
    events.AuditStopped: ("audit_stopped", ERROR, "{text}"),
    events.AuditSlow: (
        "audit_slow",
        WARNING,
        "a write to the audit log's disk hangs: calls wait for it",
    ),
    events.AuditProblem: ("audit_problem", WARNING, "{text}"),
    events.CheckpointMade: ("checkpoint", INFO, ""),
    events.CheckpointFailed: ("checkpoint_failed", ERROR, "{text}"),
    events.CheckpointShipped: ("checkpoint_shipped", DEBUG, ""),
    events.ShippingFailed: ("shipping_failed", ERROR, "{text}"),
    # The daemon.
    events.ConnectionsLimited: ("connections_limited", WARNING, "{text}"),
    events.Started: ("started", INFO, ""),
    events.Stopped: ("stopped", INFO, ""),
    events.Ready: ("ready", INFO, ""),
    events.BreakerOpened: ("breaker_opened", WARNING, "token {token} has lost its workers"),
    events.BreakerClosed: ("breaker_closed", INFO, ""),
    events.Degraded: ("degraded", WARNING, lambda event: "; ".join(event.away)),
    events.NotReady: ("not_ready", WARNING, lambda event: "; ".join(event.reasons)),
    events.ReloadEnded: ("reloaded", INFO, ""),
    events.ReloadRefused: (
        "reload_refused",
        ERROR,
        "a reload was refused, nothing has changed: see the log",
    ),
    events.KeysChanged: ("keys_changed", INFO, ""),
    events.PolicyChanged: ("policy_changed", INFO, ""),
    events.PolicyFilesDiffer: (
        "policy_files_differ",
        WARNING,
        "the policy files differ from the policy in force: see the log",
    ),
    events.SuspensionsChanged: (
        "suspensions_changed",
        WARNING,
        lambda event: f"suspended now: {_scopes(event.suspended) or 'nothing'}",
    ),
    events.RegistryUnreadable: (
        "registry_unreadable",
        ERROR,
        "the registry cannot be read, suspensions are not followed: see the log",
    ),
    events.Unaccounted: (
        "registry_unaccounted",
        ERROR,
        lambda event: (
            "the registry was changed by hand: "
            f"{count(len(event.refused), 'change is', 'changes are')} not served, "
            f"{count(len(event.obeyed), 'stop is', 'stops are')} obeyed; see the log"
        ),
    ),
    events.TokenDiffers: (
        "registry_and_token_differ",
        WARNING,
        lambda event: f"differences: {len(event.differences)}; see `signer top`",
    ),
    # Operations of officers.
    events.OperationChanged: ("operation", INFO, ""),
    events.OperationFailed: (
        "operation",
        ERROR,
        "an operation failed ({kind}): signer operations show {operation:.8}",
    ),
    events.OperationBug: (
        "operation_bug",
        ERROR,
        "operation {operation:.8} ended with an internal error: see the log",
    ),
}
"""The log line of an event: its name, its level, and its alarm (empty: none).

An alarm is shown on the status page, so it names no key and no facility. A text has the event's
fields in braces.
"""

FIELDS: Mapping[type[Any], Callable[[Any], Mapping[str, object]]] = {
    # Without the text of an error that is not ours, which could quote a payload.
    events.Bug: lambda event: {
        "method": event.where,
        "reason": Reason.INTERNAL,
        **_described(event.error),
        **event.notes,
    },
    events.LibraryLines: lambda event: {"library": "native", **event._asdict()},
    events.ReloadEnded: lambda event: {"policy_sha256": event.policy_sha256, **event.changed},
    events.OperationBug: lambda event: {
        "operation": event.operation,
        **_described(event.error),
        "text": str(event.error) if isinstance(event.error, OperatorError | CallError) else "",
    },
}
"""The fields of a log line, where they are not those of the event."""


class Alarm(NamedTuple):
    """An event that an operator should know of, and how often in a row it has happened.

    ``time`` is that of the last time, in seconds since the epoch.
    """

    time: float
    event: str
    text: str
    times: int = 1


class Alarms:
    """The last alarms, for the status page; a repetition counts up the newest one."""

    def __init__(self) -> None:
        self._kept: deque[Alarm] = deque(maxlen=KEPT_ALARMS)
        self._lock = threading.Lock()

    def add(self, time: float, event: str, text: str) -> None:
        """Adds an alarm."""
        with self._lock:
            repeated = self._kept and self._kept[-1][1:3] == (event, text)
            times = self._kept.pop().times + 1 if repeated else 1
            self._kept.append(Alarm(time, event, text, times))

    def newest(self) -> Sequence[Alarm]:
        """Returns the alarms, newest first."""
        with self._lock:
            return tuple(reversed(self._kept))


class Reports:
    """Counts events in the metrics, writes their log lines, and keeps their alarms."""

    def __init__(
        self,
        tokens: Sequence[str] = (),
        *,
        level: str = INFO,
        clock: Clock | None = None,
        write: Callable[[bytes], object] = write_to_stderr,
    ) -> None:
        """Takes the tokens' labels, the level of the log, and what writes its lines."""
        self.metrics = Metrics(tokens)
        self.alarms = Alarms()
        self._clock = clock or SystemClock()
        self.lines = LogLines(level, self._lines_dropped, write)
        self.handlers: Handlers = {
            **{kind: partial(count, self.metrics) for kind, count in COUNTS.items()},
            **{kind: self._writing(kind) for kind in LINES},
            events.CallEnded: self._call_ended,
            events.StagesEnded: self._stages_ended,
            events.AuditCommitted: self._audit_committed,
        }

    def _lines_dropped(self, number: int) -> None:
        self.metrics.lines_dropped.inc(number)
        text = "lines of the log are dropped: stderr is slow or cannot be written"
        self.alarms.add(self._clock.now(), "log_lines_dropped", text)

    def spans_dropped(self, number: int) -> None:
        """Counts spans that the collector of traces did not take, with an alarm."""
        self.metrics.spans_dropped.inc(number)
        text = "traces are dropped: their collector does not take them"
        self.alarms.add(self._clock.now(), "spans_dropped", text)

    def _writing(self, kind: type[Any]) -> Callable[[Any], None]:
        line, level, alarm = LINES[kind]
        count, fields = COUNTS.get(kind), FIELDS.get(kind)

        def write(event: Any) -> None:
            values = event._asdict()
            if count is not None:
                count(self.metrics, event)
            if alarm:
                text = alarm.format(**values) if isinstance(alarm, str) else alarm(event)
                self.alarms.add(self._clock.now(), line, text)
            self.lines.add(level, line, values if fields is None else fields(event))

        return write

    def _call_ended(self, event: events.CallEnded) -> None:
        method, code, reason, seconds, notes = event
        metrics, call = self.metrics, CALL.get()
        metrics.requests(method, code).inc()
        trace_id = "" if call is None else call.trace_id
        metrics.durations(method).observe(seconds, trace_id)
        timings = {} if call is None else call.work.timings or _timings(call.work)
        if reason != OK:
            failure = OVERLOADED_BY_CLIENT if notes.get("limit") in CLIENT_LIMITS else reason
            metrics.call_failures(method, failure).inc()
        fields = {
            "method": method,
            "code": code,
            "reason": reason,
            "seconds": round(seconds, 6),
            **notes,
        }
        if timings:
            fields["timings"] = timings
        if trace_id:
            fields["trace_id"] = trace_id
        # Refused calls are not faults: a flood of them must not displace the lines of faults.
        self.lines.add(INFO if reason == OK else WARNING, "call", fields, fault=False)

    def _stages_ended(self, event: events.StagesEnded) -> None:
        work, trace_id = event
        for stage, _, spent in work.stages:
            self.metrics.stages(stage).observe(spent, trace_id, work.calls)
        work.timings = _timings(work)

    def _audit_committed(self, event: events.AuditCommitted) -> None:
        self.metrics.records.inc(event.records)
        self.metrics.commits.observe(event.seconds)
        if event.seconds >= SLOW_SECONDS:
            self.lines.add(WARNING, "audit_slow_over", {"seconds": round(event.seconds, 3)})


def _timings(work: CallTrace) -> dict[str, float]:
    """Returns the seconds by stage."""
    timings: dict[str, float] = {}
    for stage, _, spent in work.stages:
        timings[stage] = timings.get(stage, 0.0) + spent
    return {stage: round(spent, 6) for stage, spent in timings.items()}

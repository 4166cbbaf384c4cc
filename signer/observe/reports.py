"""What each event does: its metric, its log line, its alarm.

A call that was refused or failed is one log line at level warning, any other at
info. Lines carry ids, names, counts and times, never a payload.
"""

from __future__ import annotations

import threading
import traceback
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from signer import events
from signer.audit.write.log import SLOW_SECONDS
from signer.clock import Clock, SystemClock
from signer.errors import CLIENT_LIMIT, CallError, OperatorError, Reason
from signer.events import Event, Handlers
from signer.observe import logs
from signer.observe.catalogue import OK, OVERLOADED_BY_CLIENT
from signer.observe.metrics import Metrics

KEPT_ALARMS = 20
DEBUG, INFO, WARNING, ERROR = "debug", "info", "warning", "error"

E = TypeVar("E", bound=Event)


AlarmText = str | Callable[[E], str]


class Reaction(NamedTuple):
    """What an event does here; empty parts do nothing.

    ``line`` names the log line and ``fields`` returns its fields; without it they are those of
    the event. ``alarm`` is shown on the status page, so it names no key and no facility.
    """

    measure: Callable[[Metrics, Any], object] | None
    line: str
    level: str
    fields: Callable[[Any], Mapping[str, object]] | None
    alarm: AlarmText[Any]


def _on(
    kind: type[E],
    line: str = "",
    level: str = INFO,
    *,
    count: Callable[[Metrics, E], object] | None = None,
    fields: Callable[[E], Mapping[str, object]] | None = None,
    alarm: AlarmText[E] = "",
) -> tuple[type[Any], Reaction]:
    return kind, Reaction(count, line, level, fields, alarm)


def _places(error: Exception) -> list[str]:
    return [
        f"{Path(frame.filename).name}:{frame.lineno}"
        for frame in traceback.extract_tb(error.__traceback__)
    ]


def _chunk_ended(metrics: Metrics, event: events.ChunkEnded) -> None:
    metrics.busy(event.token).inc(event.busy)
    metrics.signatures(event.token, "C_Sign").observe(event.busy / event.items)
    metrics.checks("correct").inc(event.checked - event.wrong)
    metrics.checks("wrong").inc(event.wrong)


def _items_ended(metrics: Metrics, event: events.ItemsEnded) -> None:
    *labels, reasons = event
    metrics.begin_items(*labels)
    for reason, count in reasons.items():
        metrics.items(*labels, reason).inc(count)


REACTIONS: Mapping[type[Any], Reaction] = dict(
    (
        # Calls; their begin, stages and end are below.
        _on(events.ItemsEnded, count=_items_ended),
        _on(
            events.QuotaRefused,
            count=lambda metrics, event: metrics.quotas(event.group, event.window).inc(),
        ),
        _on(
            events.Bug,
            "bug",
            ERROR,
            # Not the text of the error, which could quote a payload.
            fields=lambda event: {
                "method": event.where,
                "reason": Reason.INTERNAL,
                "error": type(event.error).__name__,
                "places": _places(event.error),
                **event.notes,
            },
            alarm="an internal error: see the log",
        ),
        # Tokens.
        _on(events.ChunkEnded, count=_chunk_ended),
        _on(
            events.WrongSignatures,
            "wrong_signatures",
            ERROR,
            alarm=lambda event: f"token {event.token} made {event.wrong} wrong signatures",
        ),
        _on(
            events.WorkerLeft,
            "worker_left",
            WARNING,
            count=lambda metrics, event: metrics.restarts(event.token, event.cause).inc(),
            alarm=lambda event: f"token {event.token}: {event.cause}",
        ),
        _on(
            events.LoginEnded,
            "login",
            count=lambda metrics, event: metrics.logins(event.token, event.result).inc(),
        ),
        # The audit log.
        _on(events.AuditStopped, "audit_stopped", ERROR, alarm=lambda event: event.text),
        _on(
            events.AuditSlow,
            "audit_slow",
            WARNING,
            alarm="a write to the audit log's disk hangs: calls wait for it",
        ),
        _on(events.AuditProblem, "audit_problem", WARNING),
        _on(
            events.RequestsForgotten,
            count=lambda metrics, event: metrics.forgotten.inc(event.requests),
        ),
        _on(events.CheckpointMade, "checkpoint"),
        _on(
            events.CheckpointFailed,
            "checkpoint_failed",
            ERROR,
            count=lambda metrics, _: metrics.audit_failures("checkpoint").inc(),
            alarm=lambda event: event.text,
        ),
        _on(events.CheckpointShipped, "checkpoint_shipped", DEBUG),
        _on(
            events.ShippingFailed,
            "shipping_failed",
            ERROR,
            count=lambda metrics, _: metrics.audit_failures("shipping").inc(),
            alarm=lambda event: event.text,
        ),
        # The daemon.
        _on(events.Started, "started"),
        _on(events.Stopped, "stopped"),
        _on(events.Ready, "ready"),
        _on(events.NotReady, "not_ready", WARNING, alarm=lambda event: "; ".join(event.reasons)),
        _on(
            events.ReloadEnded,
            "reloaded",
            fields=lambda event: {"policy_sha256": event.policy_sha256, **event.changed},
        ),
        _on(
            events.ReloadRefused,
            "reload_refused",
            ERROR,
            alarm="a reload was refused, nothing has changed: see the log",
        ),
        _on(events.KeysChanged, "keys_changed"),
        _on(events.PolicyChanged, "policy_changed"),
        _on(
            events.PolicyFilesDiffer,
            "policy_files_differ",
            WARNING,
            alarm="the policy files differ from the policy in force: see the log",
        ),
        _on(
            events.SuspensionsChanged,
            "suspensions_changed",
            WARNING,
            alarm=lambda event: "suspensions in force: " + str(len(event.suspended)),
        ),
        _on(
            events.RegistryUnreadable,
            "registry_unreadable",
            ERROR,
            alarm="the registry cannot be read, suspensions are not followed: see the log",
        ),
        _on(
            events.TokenDiffers,
            "registry_and_token_differ",
            WARNING,
            alarm=lambda event: f"differences: {len(event.differences)}; see `signer top`",
        ),
        # Operations of officers.
        _on(events.OperationChanged, "operation"),
        _on(
            events.OperationFailed,
            "operation",
            ERROR,
            alarm=lambda event: f"an operation failed ({event.kind}): see the log",
        ),
        _on(
            events.OperationBug,
            "operation_bug",
            ERROR,
            # The text of an error that is not ours could quote a payload.
            fields=lambda event: {
                "operation": event.operation,
                "error": type(event.error).__name__,
                "places": _places(event.error),
                "text": str(event.error)
                if isinstance(event.error, OperatorError | CallError)
                else "",
            },
            alarm="an operation ended with an internal error: see the log",
        ),
    )
)


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

    def add(self, time: float, event: str, text: str) -> None:
        """Adds an alarm."""
        if self._kept and self._kept[-1][1:3] == (event, text):
            times = self._kept.pop().times + 1
            self._kept.append(Alarm(time, event, text, times))
        else:
            self._kept.append(Alarm(time, event, text))

    def newest(self) -> Sequence[Alarm]:
        """Returns the alarms, newest first."""
        return tuple(reversed(self._kept))


class Reports:
    """Counts events in the metrics, writes their log lines, and keeps their alarms."""

    def __init__(
        self,
        tokens: Sequence[str] = (),
        trace_id: Callable[[], str] = str,
        clock: Clock | None = None,
    ) -> None:
        """Takes the tokens' labels; ``trace_id`` returns that of this thread's call, or ""."""
        self.metrics = Metrics(tokens)
        self.alarms = Alarms()
        self._trace_id = trace_id
        self._clock = clock or SystemClock()
        self._log = logs.logger()
        self._call = threading.local()
        self.handlers: Handlers = {
            **{kind: self._reacting(each) for kind, each in REACTIONS.items()},
            events.CallBegan: self._call_began,
            events.StageEnded: self._stage_ended,
            events.CallEnded: self._call_ended,
            events.AuditCommitted: self._audit_committed,
        }

    def set_level(self, level: str) -> None:
        """Writes lines of this level and above from now on."""
        logs.configure(level)
        self._log = logs.logger()

    def _reacting(self, reaction: Reaction) -> Callable[[Any], object]:
        measure, line, level, fields, alarm = reaction
        if measure is not None and not line:
            return partial(measure, self.metrics)

        def react(event: Any) -> None:
            if measure is not None:
                measure(self.metrics, event)
            if alarm:
                text = alarm if isinstance(alarm, str) else alarm(event)
                self.alarms.add(self._clock.now(), line, text)
            written = event._asdict() if fields is None else fields(event)
            getattr(self._log, level)(line, **written)

        return react

    def _call_began(self, _: events.CallBegan) -> None:
        self._call.timings = Counter[str]()

    def _stage_ended(self, event: events.StageEnded) -> None:
        self.metrics.stages(event.stage).observe(event.seconds, self._exemplar())
        if (timings := getattr(self._call, "timings", None)) is not None:
            timings[event.stage] += event.seconds

    def _call_ended(self, event: events.CallEnded) -> None:
        method, code, reason, seconds, notes = event
        metrics, fields = self.metrics, dict(notes)
        by_client = notes.get("limit") == CLIENT_LIMIT
        metrics.requests(method, code).inc()
        metrics.durations(method).observe(seconds, self._exemplar())
        if reason != OK:
            failure = OVERLOADED_BY_CLIENT if by_client else reason
            metrics.call_failures(method, failure).inc()
        if timings := getattr(self._call, "timings", None):
            fields["timings"] = {stage: round(value, 6) for stage, value in timings.items()}
        self._call.timings = None
        if trace_id := self._trace_id():
            fields["trace_id"] = trace_id
        write = self._log.info if reason == OK else self._log.warning
        write("call", method=method, code=code, reason=reason, seconds=round(seconds, 6), **fields)

    def _audit_committed(self, event: events.AuditCommitted) -> None:
        self.metrics.records.inc(event.records)
        self.metrics.commits.observe(event.seconds)
        if event.seconds >= SLOW_SECONDS:
            self._log.warning("audit_slow_over", seconds=round(event.seconds, 3))

    def _exemplar(self) -> dict[str, str] | None:
        """Leads from a bucket of a histogram to one trace."""
        trace_id = self._trace_id()
        return {"trace_id": trace_id} if trace_id else None

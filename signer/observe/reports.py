"""Where the parts of the daemon report to: metrics are counted, log lines written.

A call that was refused or failed is one log line at level warning, any other at
info; lines carry ids, names, counts and times, never a payload.
"""

from __future__ import annotations

import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

from signer.audit.format.checkpoint import Checkpoint
from signer.audit.write.log import SLOW_SECONDS
from signer.clock import Clock, SystemClock
from signer.errors import CLIENT_LIMIT, CallError, ConfigError, OperatorError, Reason
from signer.model import Algorithm, Format
from signer.observe import logs
from signer.observe.alarms import Alarms
from signer.observe.catalogue import OVERLOADED_BY_CLIENT
from signer.observe.gauges import LiveGauges, Reading
from signer.observe.metrics import Metrics


class Journal(Protocol):
    """The audit log, for what happens beside signatures."""

    def worker_left(self, token: str, cause: str) -> None: ...
    def login(self, token: str, result: str) -> None: ...
    def denied(self, principal: str, key: str, reason: str) -> None: ...


class TracingSettings(Protocol):
    """The section ``tracing`` of the configuration."""

    @property
    def endpoint(self) -> str: ...
    @property
    def sample(self) -> float: ...
    @property
    def ca(self) -> Path | None: ...


class Tracer(Protocol):
    """Who makes spans; ``note`` and ``stage`` return the trace id, "" where none is kept."""

    def call(
        self, method: str, metadata: Iterable[tuple[str, str | bytes]]
    ) -> AbstractContextManager[None]: ...
    def note(self, code: str, notes: Mapping[str, object]) -> str: ...
    def stage(self, name: str, began: float, seconds: float) -> str: ...
    def close(self) -> None: ...


def tracer(settings: TracingSettings | None, instance: str) -> Tracer | None:
    """Returns who makes spans for the appliance of this name; nobody where none are wanted.

    Raises OperatorError where the packages are missing, which are optional.
    """
    if settings is None:
        return None
    if find_spec("opentelemetry") is None:
        raise OperatorError(
            "tracing is configured, but its packages are not installed: install signer[tracing], "
            "or take `tracing` out of the configuration"
        )
    from signer.observe.tracing import Tracing  # noqa: PLC0415 - optional, as above

    return Tracing(settings, instance)


class Reports:
    """Observer of calls, pools and the daemon."""

    def __init__(self, tracer: Tracer | None = None, clock: Clock | None = None) -> None:
        self.metrics = Metrics()
        self.alarms = Alarms()
        self._clock = clock or SystemClock()
        self._tracer = tracer
        self._thread = threading.local()
        self._log = logs.logger()
        self._reasons: Sequence[str] | None = None
        self._journal: Journal | None = None

    def watch(self, read: Callable[[], Iterable[Reading]]) -> None:
        """Adds the gauges that are read when Prometheus asks."""
        self.metrics.registry.register(LiveGauges(read))

    def keep(self, journal: Journal) -> None:
        """Has what evidence is made of recorded as well, from now on."""
        self._journal = journal

    # --- calls -----------------------------------------------------------------------------

    @contextmanager
    def call(self, method: str, metadata: Iterable[tuple[str, str | bytes]]) -> Iterator[None]:
        """Has what the calling thread reports belong to this call, while the block lasts."""
        self._thread.timings = Counter[str]()
        try:
            with self._tracer.call(method, metadata) if self._tracer else nullcontext():
                yield
        finally:
            self._thread.timings = None

    def call_done(
        self, method: str, code: str, reason: str, seconds: float, notes: Mapping[str, object]
    ) -> None:
        """Counts and logs a call, from within its ``call``."""
        if timings := getattr(self._thread, "timings", None):
            rounded = {name: round(value, 6) for name, value in timings.items()}
            notes = {**notes, "timings": rounded}
        if trace_id := self._tracer.note(code, notes) if self._tracer else "":
            notes = {**notes, "trace_id": trace_id}
        by_client = notes.get("limit") == CLIENT_LIMIT
        failure = OVERLOADED_BY_CLIENT if by_client else reason
        self.metrics.request(method, code, failure, seconds, _exemplar(trace_id))
        if self._journal is not None and (denied := _denied(reason, notes)):
            principal, key = (str(notes.get(name, "")) for name in ("principal", "key"))
            self._journal.denied(principal, key, denied)
        write = self._log.info if reason == "ok" else self._log.warning
        write("call", method=method, code=code, reason=reason, seconds=round(seconds, 6), **notes)

    def our_bug(self, method: str, error: Exception, notes: Mapping[str, object]) -> None:
        """A defect: its type and places, for its text could quote a payload."""
        self._alarm("bug", "an internal error: the log has its place")
        self._log.error(
            "bug",
            method=method,
            reason=Reason.INTERNAL,
            error=type(error).__name__,
            places=_places(error),
            **notes,
        )

    def stage(self, name: str, began: float, seconds: float) -> None:
        """Books a stage of the calling thread's call; ``began`` is in monotonic seconds."""
        trace_id = self._tracer.stage(name, began, seconds) if self._tracer else ""
        self.metrics.stage(name, seconds, _exemplar(trace_id))
        if (timings := getattr(self._thread, "timings", None)) is not None:
            timings[name] += seconds

    def items(
        self, group: str, requested: Format, algorithm: Algorithm, reasons: Counter[str]
    ) -> None:
        self.metrics.items(group, requested, algorithm, reasons)

    def quota_rejected(self, group: str, window: str) -> None:
        self.metrics.quota_rejected(group, window)

    # --- tokens ----------------------------------------------------------------------------

    def chunk_done(self, token: str, busy: float, items: int, checked: int, wrong: int) -> None:
        self.metrics.chunk_done(token, busy, items, checked, wrong)

    def wrong_signatures(self, token: str, key_version: str, wrong: int) -> None:
        self._alarm("wrong_signatures", f"token {token} made {wrong} wrong signatures")
        self._log.error("wrong_signatures", token=token, key_version=key_version, wrong=wrong)

    def worker_left(self, token: str, cause: str, text: str) -> None:
        self.metrics.worker_left(token, cause)
        self._alarm("worker_left", f"token {token}: {cause}")
        self._log.warning("worker_left", token=token, cause=cause, text=text)
        if self._journal is not None:
            self._journal.worker_left(token, cause)

    def login(self, token: str, result: str) -> None:
        self.metrics.login(token, result)
        self._log.info("login", token=token, result=result)
        if self._journal is not None:
            self._journal.login(token, result)

    # --- the audit log ---------------------------------------------------------------------

    def audit_committed(self, records: int, seconds: float) -> None:
        self.metrics.audit_committed(records, seconds)
        if seconds >= SLOW_SECONDS:
            self._log.warning("audit_slow_over", seconds=round(seconds, 3))

    def audit_stopped(self, text: str) -> None:
        self._alarm("audit_stopped", text)
        self._log.error("audit_stopped", text=text)

    def audit_slow(self, since: float) -> None:
        """A commit hangs: calls wait for it, and nobody else would tell before it ends."""
        self._alarm("audit_slow", "the disk of the audit log hangs: calls wait for it")
        self._log.warning("audit_slow", since=since)

    def audit_problem(self, text: str) -> None:
        self._log.warning("audit_problem", text=text)

    def requests_forgotten(self, count: int) -> None:
        self.metrics.requests_forgotten(count)

    def checkpoint_made(self, checkpoint: Checkpoint, note: str) -> None:
        """The line that shows elsewhere when records are cut off here."""
        self._log.info("checkpoint", size=checkpoint.size, note=note)

    def checkpoint_failed(self, text: str) -> None:
        self.metrics.audit_failed("checkpoint")
        self._alarm("checkpoint_failed", text)
        self._log.error("checkpoint_failed", text=text)

    def checkpoint_shipped(self, size: int) -> None:
        self._log.debug("checkpoint_shipped", size=size)

    def shipping_failed(self, text: str) -> None:
        self.metrics.audit_failed("shipping")
        self._alarm("shipping_failed", text)
        self._log.error("shipping_failed", text=text)

    # --- the daemon ------------------------------------------------------------------------

    def started(self, address: str, policy_sha256: str) -> None:
        self._log.info("started", address=address, policy_sha256=policy_sha256)

    def stopped(self) -> None:
        self._log.info("stopped")
        if self._tracer is not None:
            self._tracer.close()

    def _alarm(self, event: str, text: str) -> None:
        """Puts what the log tells on the status page, without names of keys or facilities."""
        self.alarms.add(self._clock.now(), event, text)

    def set_level(self, level: str) -> None:
        """Writes lines of this level and above from now on."""
        logs.configure(level)
        self._log = logs.logger()

    def readiness(self, reasons: Sequence[str]) -> None:
        """Logs a change, not a state."""
        if reasons != self._reasons:
            self._reasons = list(reasons)
            if reasons:
                self._alarm("not_ready", "; ".join(self._reasons))
                self._log.warning("not_ready", reasons=self._reasons)
            else:
                self._log.info("ready")

    def reloaded(self, policy_sha256: str, changed: Mapping[str, object]) -> None:
        self._log.info("reloaded", policy_sha256=policy_sha256, **changed)

    def reload_refused(self, error: ConfigError) -> None:
        self._alarm("reload_refused", "what was in force stays in force: the log has the reasons")
        problems = [f"{each.field}: {each.description}" for each in error.problems]
        self._log.error("reload_refused", source=error.source, problems=problems)

    def keys_changed(self, versions: int, revision: int) -> None:
        self._log.info("keys_changed", versions=versions, revision=revision)

    def policy_changed(self, policy_sha256: str) -> None:
        self._log.info("policy_changed", policy_sha256=policy_sha256)

    def policy_files_differ(self, text: str) -> None:
        self._alarm("policy_files_differ", "the policy's files are not what is in force")
        self._log.warning("policy_files_differ", text=text)

    def suspensions_changed(self, suspended: list[str]) -> None:
        self._alarm("suspensions_changed", f"{len(suspended)} are in force")
        self._log.warning("suspensions_changed", suspended=suspended)

    def operation(self, identity: str, kind: str, state: str, note: str) -> None:
        write = self._log.error if state == "FAILED" else self._log.info
        if state == "FAILED":
            self._alarm("operation", f"an operation failed ({kind}): the log has the reasons")
        write("operation", operation=identity, kind=kind, state=state, note=note)

    def operation_bug(self, identity: str, error: Exception) -> None:
        """An execution that ended otherwise than it may; only our own texts are told."""
        self._alarm("operation_bug", "an operation ended with an internal error: see the log")
        text = str(error) if isinstance(error, OperatorError | CallError) else ""
        self._log.error(
            "operation_bug",
            operation=identity,
            error=type(error).__name__,
            places=_places(error),
            text=text,
        )

    def token_differences(self, differences: Sequence[str]) -> None:
        self._alarm("registry_and_token_differ", f"in {len(differences)} things: see `signer top`")
        self._log.warning("registry_and_token_differ", differences=list(differences))

    def registry_unreadable(self, error: Exception) -> None:
        self._alarm("registry_unreadable", "suspensions made elsewhere are not seen: see the log")
        self._log.error("registry_unreadable", text=str(error))


def _exemplar(trace_id: str) -> dict[str, str] | None:
    return {"trace_id": trace_id} if trace_id else None


def _places(error: Exception) -> list[str]:
    return [
        f"{Path(frame.filename).name}:{frame.lineno}"
        for frame in traceback.extract_tb(error.__traceback__)
    ]


def _denied(reason: str, notes: Mapping[str, object]) -> str:
    """The reason to record of a call: why it was refused, or that all its items were."""
    if reason != "ok":
        return reason
    return "ALL_ITEMS_FAILED" if notes.get("failed") and notes["failed"] == notes["items"] else ""

"""The metrics of DESIGN section 9, as far as their parts exist.

Labels come from closed sets only; the facility is never a label, its group is.
"""

from __future__ import annotations

from collections import Counter as Counts

from prometheus_client import (
    CollectorRegistry,
    Counter,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)

from signer.model import Algorithm, Format

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """Counters and histograms, and the observers that the parts of the daemon report to."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self.registry)
        count, time = self._counter, self._histogram
        self._requests = count("requests", "Calls by method and gRPC code.", "method", "code")
        self._items = count(
            "items",
            "Items by how they ended: ok, or the reason of their failure.",
            *("group", "format", "algorithm", "reason"),
        )
        self._stages = time("stage", "Time a batch spends in each stage.", "stage")
        self._durations = time("request", "Time of a call inside the daemon.", "method")
        self._restarts = count("worker_restarts", "Workers that ended, by cause.", "token", "cause")
        self._busy = count("worker_busy_seconds", "Time workers spent on chunks.", "token")
        self._logins = count("login_attempts", "Logins to tokens, by result.", "token", "result")
        self._calls = time(
            "hsm_call",
            "Mean time of one signature in a chunk, its check included.",
            *("token", "call"),
        )
        self._checks = count("signature_checks", "Signatures checked before release.", "result")
        self._quotas = count("quota_rejections", "Batches refused by a quota.", "group", "window")

        self._commits = time("audit_commit", "Time of one group commit of the audit log.")
        self._records = count("audit_records", "Records written to the audit log.")
        self._audit_failures = count(
            "audit_failures", "Checkpoints that could not be made, kept or shipped.", "step"
        )
        self._forgotten = count(
            "audit_requests_forgotten",
            "Request ids forgotten before their 24 hours, for their caller sends too many.",
        )

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"signer_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, *labels: str) -> Histogram:
        full = f"signer_{name}_duration_seconds"
        return Histogram(full, text, labels, buckets=_SECONDS, registry=self.registry)

    # --- observers of engine, pools and calls ----------------------------------------------

    def audit_committed(self, seconds: float) -> None:
        self._commits.observe(seconds)

    def audit_recorded(self) -> None:
        self._records.inc()

    def audit_failed(self, step: str) -> None:
        self._audit_failures.labels(step).inc()

    def requests_forgotten(self, count: int) -> None:
        self._forgotten.inc(count)

    def stage(self, name: str, seconds: float) -> None:
        self._stages.labels(name).observe(seconds)

    def items(
        self, group: str, requested: Format, algorithm: Algorithm, reasons: Counts[str]
    ) -> None:
        for reason, count in reasons.items():
            self._items.labels(group, requested, algorithm, reason).inc(count)

    def quota_rejected(self, group: str, window: str) -> None:
        self._quotas.labels(group, window).inc()

    def request(self, method: str, code: str, seconds: float) -> None:
        self._requests.labels(method, code).inc()
        self._durations.labels(method).observe(seconds)

    def chunk_done(self, token: str, busy: float, items: int, checked: int, wrong: int) -> None:
        self._busy.labels(token).inc(busy)
        self._calls.labels(token, "C_Sign").observe(busy / items)
        self._checks.labels("correct").inc(checked - wrong)
        self._checks.labels("wrong").inc(wrong)

    def worker_left(self, token: str, cause: str) -> None:
        self._restarts.labels(token, cause).inc()

    def login(self, token: str, result: str) -> None:
        self._logins.labels(token, result).inc()

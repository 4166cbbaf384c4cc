"""What is counted and timed as it happens; ``catalogue`` says what each metric tells."""

from __future__ import annotations

from collections import Counter as Counts
from collections.abc import Iterator, Sequence
from itertools import product

from prometheus_client import (
    CollectorRegistry,
    Counter,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.samples import Sample

from signer.model import Algorithm, Format
from signer.observe.catalogue import BY_NAME, OK, closed
from signer.observe.history import Totals

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


Exemplar = dict[str, str] | None
"""What leads from a bucket to one trace, as in {"trace_id": ...}; None where none is kept."""


SIGN_BATCH = "/signer.v1.SigningService/SignBatch"
_NO_CALLS = (0.0,) * (len(SECONDS) + 1)


def _samples(metric: Counter | Histogram, name: str) -> Iterator[Sample]:
    return (each for family in metric.collect() for each in family.samples if each.name == name)


class Metrics:
    """Counters and histograms, and the observers that the parts of the daemon report to.

    Prometheus sees a counter grow from one scrape to the next. One that begins with its first
    event has not grown, and nobody is told of that event. So counters of what goes wrong are
    there at 0 from the start, and those of items with the first of a kind.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self.registry)
        count, time = self._counter, self._histogram
        self._requests = count("requests")
        self._call_failures = count("call_failures")
        self._items = count("items")
        self._stages = time("stage")
        self._durations = time("request")
        self._restarts = count("worker_restarts")
        self._busy = count("worker_busy_seconds")
        self._logins = count("login_attempts")
        self._calls = time("hsm_call")
        self._checks = count("signature_checks")
        self._quotas = count("quota_rejections")
        self._commits = time("audit_commit")
        self._records = count("audit_records")
        self._audit_failures = count("audit_failures")
        self._forgotten = count("audit_requests_forgotten")
        self._counted: set[tuple[str, str, str]] = set()
        self.from_zero(())

    def from_zero(self, tokens: Sequence[str]) -> None:
        """Has the counters be there at 0 of which the values of all labels are known.

        ``tokens`` are labels, which only the configuration knows.
        """
        known = {"token": tokens, "method": (SIGN_BATCH,)}
        counters = {
            "signer_call_failures_total": self._call_failures,
            "signer_worker_restarts_total": self._restarts,
            "signer_login_attempts_total": self._logins,
            "signer_signature_checks_total": self._checks,
            "signer_audit_failures_total": self._audit_failures,
        }
        for name, counter in counters.items():
            sets = [each.values or known.get(each.name, ()) for each in BY_NAME[name].labels]
            for row in product(*sets):
                counter.labels(*row)

    def _counter(self, name: str) -> Counter:
        family = BY_NAME[f"signer_{name}_total"]
        labels = [label.name for label in family.labels]
        return Counter(family.name, family.text, labels, registry=self.registry)

    def _histogram(self, name: str) -> Histogram:
        family = BY_NAME[f"signer_{name}_duration_seconds"]
        labels = [label.name for label in family.labels]
        return Histogram(family.name, family.text, labels, buckets=SECONDS, registry=self.registry)

    def totals(self) -> Totals:
        """Returns what the status page's history is made of."""
        items = Counts[bool]()
        for sample in _samples(self._items, "signer_items_total"):
            items[sample.labels["reason"] == OK] += int(sample.value)
        calls = [
            sample
            for sample in _samples(self._durations, "signer_request_duration_seconds_bucket")
            if sample.labels["method"] == SIGN_BATCH
        ]
        counts = tuple(sample.value for sample in calls) or _NO_CALLS
        return Totals(items[True], items[False], SECONDS, counts)

    # --- observers of engine, pools and calls ----------------------------------------------

    def audit_committed(self, records: int, seconds: float) -> None:
        self._records.inc(records)
        self._commits.observe(seconds)

    def audit_failed(self, step: str) -> None:
        self._audit_failures.labels(step).inc()

    def requests_forgotten(self, count: int) -> None:
        self._forgotten.inc(count)

    def stage(self, name: str, seconds: float, exemplar: Exemplar = None) -> None:
        self._stages.labels(name).observe(seconds, exemplar)

    def items(
        self, group: str, requested: Format, algorithm: Algorithm, reasons: Counts[str]
    ) -> None:
        kind = group, requested, algorithm
        if kind not in self._counted:
            self._counted.add(kind)
            for reason in closed("signer_items_total", "reason"):
                self._items.labels(*kind, reason)
        for reason, count in reasons.items():
            self._items.labels(*kind, reason).inc(count)

    def quota_rejected(self, group: str, window: str) -> None:
        self._quotas.labels(group, window).inc()

    def request(
        self, method: str, code: str, reason: str, seconds: float, exemplar: Exemplar = None
    ) -> None:
        self._requests.labels(method, code).inc()
        self._durations.labels(method).observe(seconds, exemplar)
        if reason != OK:
            self._call_failures.labels(method, reason).inc()

    def chunk_done(self, token: str, busy: float, items: int, checked: int, wrong: int) -> None:
        self._busy.labels(token).inc(busy)
        self._calls.labels(token, "C_Sign").observe(busy / items)
        self._checks.labels("correct").inc(checked - wrong)
        self._checks.labels("wrong").inc(wrong)

    def worker_left(self, token: str, cause: str) -> None:
        self._restarts.labels(token, cause).inc()

    def login(self, token: str, result: str) -> None:
        self._logins.labels(token, result).inc()

"""Counters and histograms, made from ``catalogue``; ``reports`` counts events in them."""

import threading
import time
from bisect import bisect_left
from collections import Counter as Counts
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from itertools import accumulate, product
from typing import Generic, TypeVar

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar, Sample
from prometheus_client.utils import floatToGoString

from signer.observe.catalogue import BY_NAME, OK, Family, closed
from signer.observe.history import Totals

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
SIGN_BATCH = "/signer.v1.SigningService/SignBatch"


_BOUNDS = (*map(floatToGoString, SECONDS), "+Inf")


class Count:
    """The counter under one set of label values. Safe to use from any thread."""

    __slots__ = ("_created", "_lock", "_value")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._value, self._created = 0.0, time.time()

    def inc(self, amount: float = 1) -> None:
        with self._lock:
            self._value += amount

    def samples(self, name: str, labels: dict[str, str]) -> Iterator[Sample]:
        """Yields what Prometheus' own counter does."""
        yield Sample(f"{name}_total", labels, self._value)
        yield Sample(f"{name}_created", labels, self._created)


class Duration:
    """The histogram under one set of label values. Safe to use from any thread."""

    __slots__ = ("_counts", "_created", "_exemplars", "_lock", "_sum")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts = [0] * len(_BOUNDS)
        self._exemplars: list[Exemplar | None] = [None] * len(_BOUNDS)
        self._sum, self._created = 0.0, time.time()

    def observe(self, seconds: float, trace_id: str = "", times: int = 1) -> None:
        """Counts a duration, ``times`` over; the trace becomes the exemplar of its bucket."""
        bucket = bisect_left(SECONDS, seconds)
        with self._lock:
            self._counts[bucket] += times
            self._sum += seconds * times
        if trace_id:
            self._exemplars[bucket] = Exemplar({"trace_id": trace_id}, seconds, time.time())

    def samples(self, name: str, labels: dict[str, str]) -> Iterator[Sample]:
        """Yields what Prometheus' own histogram does."""
        with self._lock:
            counts, total = list(accumulate(self._counts)), self._sum
        for bound, count, exemplar in zip(_BOUNDS, counts, self._exemplars, strict=True):
            bucket = {**labels, "le": bound}
            yield Sample(f"{name}_bucket", bucket, float(count), None, exemplar)
        yield Sample(f"{name}_count", labels, float(counts[-1]))
        yield Sample(f"{name}_sum", labels, total)
        yield Sample(f"{name}_created", labels, self._created)


Child = TypeVar("Child", Count, Duration)


class Children(Collector, Generic[Child]):
    """A counter or histogram of the catalogue, by label values.

    prometheus_client's own take four times as long to count, and a call counts twenty times.
    """

    def __init__(self, family: Family, make: Callable[[], Child]) -> None:
        self._family = family
        self._make: Callable[[], Child] = make
        self._name = family.name.removesuffix("_total")  # as OpenMetrics names a counter
        self._labels = [label.name for label in family.labels]
        self._lock = threading.Lock()
        self._children: dict[tuple[str, ...], Child] = {}

    def labels(self, *values: str) -> Child:
        """Returns the child with these label values; it begins at 0."""
        with self._lock:
            return self._children.setdefault(tuple(map(str, values)), self._make())

    def collect(self) -> Iterable[Metric]:
        metric = Metric(self._name, self._family.text, self._family.kind)
        with self._lock:
            children = list(self._children.items())
        for values, child in children:
            named = dict(zip(self._labels, values, strict=True))
            metric.samples += child.samples(self._name, named)
        yield metric


def _samples(metric: Collector, name: str) -> Iterator[Sample]:
    return (each for family in metric.collect() for each in family.samples if each.name == name)


class Metrics:
    """The counters and histograms of the catalogue.

    Prometheus sees a counter grow from one scrape to the next. One that begins with its first
    event has not grown, so no alert fires for that event. Counters of faults are therefore
    there at 0 from the start, and those of items with the first batch of a kind. A child of a
    metric is looked up there only once, by its label values.
    """

    def __init__(self, tokens: Sequence[str] = ()) -> None:
        """Takes the labels of the tokens."""
        self.registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self.registry)
        counter, histogram = self._counter, self._histogram
        self._items, self._durations = counter("items"), histogram("request")
        self.requests = cache(counter("requests").labels)
        self._call_failures = counter("call_failures")
        self.call_failures = cache(self._call_failures.labels)
        self.handshakes_failed = cache(counter("tls_handshakes_failed").labels)
        self.durations = cache(self._durations.labels)
        self.items = cache(self._items.labels)
        self.begin_items = cache(self._begin_items)
        self.stages = cache(histogram("stage").labels)
        self.quotas = cache(counter("quota_rejections").labels)
        self.restarts = cache(counter("worker_restarts").labels)
        self.busy = cache(counter("worker_busy_seconds").labels)
        self.logins = cache(counter("login_attempts").labels)
        self.signatures = cache(histogram("hsm_call").labels)
        self.checks = cache(counter("signature_checks").labels)
        self.commits = histogram("audit_commit").labels()
        self.records = counter("audit_records").labels()
        self.audit_failures = cache(counter("audit_failures").labels)
        self.forgotten = counter("audit_requests_forgotten").labels()
        self.lines_dropped = counter("log_lines_dropped").labels()
        self.spans_dropped = counter("spans_dropped").labels()
        known = {"token": tokens, "method": (SIGN_BATCH,)}
        for name, counters in (
            ("call_failures", self.call_failures),
            ("tls_handshakes_failed", self.handshakes_failed),
            ("worker_restarts", self.restarts),
            ("login_attempts", self.logins),
            ("signature_checks", self.checks),
            ("audit_failures", self.audit_failures),
        ):
            labels = BY_NAME[f"signer_{name}_total"].labels
            for values in product(*(label.values or known.get(label.name, ()) for label in labels)):
                counters(*values)

    def _begin_items(self, *labels: str) -> None:
        """Starts the items of a group, format and algorithm at 0, whatever may become of them."""
        for reason in closed("signer_items_total", "reason"):
            self.items(*labels, reason)

    def _counter(self, name: str) -> Children[Count]:
        made = Children(BY_NAME[f"signer_{name}_total"], Count)
        self.registry.register(made)
        return made

    def _histogram(self, name: str) -> Children[Duration]:
        made = Children(BY_NAME[f"signer_{name}_duration_seconds"], Duration)
        self.registry.register(made)
        return made

    def totals(self) -> Totals:
        """Returns what the status page's history is made of."""
        items = Counts[bool]()
        for sample in _samples(self._items, "signer_items_total"):
            items[sample.labels["reason"] == OK] += int(sample.value)
        # A refused call counts once: its items are not looked at.
        for sample in _samples(self._call_failures, "signer_call_failures_total"):
            if sample.labels["method"] == SIGN_BATCH:
                items[False] += int(sample.value)
        calls = [
            sample
            for sample in _samples(self._durations, "signer_request_duration_seconds_bucket")
            if sample.labels["method"] == SIGN_BATCH
        ]
        counts = tuple(sample.value for sample in calls) or (0.0,) * (len(SECONDS) + 1)
        return Totals(items[True], items[False], SECONDS, counts)

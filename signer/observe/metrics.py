"""Counters and histograms, made from ``catalogue``; ``reports`` counts events in them."""

from collections import Counter as Counts
from collections.abc import Iterator, Sequence
from functools import cache
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

from signer.observe.catalogue import BY_NAME, OK, closed
from signer.observe.history import Totals

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
SIGN_BATCH = "/signer.v1.SigningService/SignBatch"


def _samples(metric: Counter | Histogram, name: str) -> Iterator[Sample]:
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
        self.call_failures = cache(counter("call_failures").labels)
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
        self.commits = histogram("audit_commit")
        self.records = counter("audit_records")
        self.audit_failures = cache(counter("audit_failures").labels)
        self.forgotten = counter("audit_requests_forgotten")
        known = {"token": tokens, "method": (SIGN_BATCH,)}
        for name, counters in (
            ("call_failures", self.call_failures),
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
        counts = tuple(sample.value for sample in calls) or (0.0,) * (len(SECONDS) + 1)
        return Totals(items[True], items[False], SECONDS, counts)

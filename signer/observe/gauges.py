"""Gauges, read from the living objects when Prometheus asks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import product

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from signer import __version__
from signer.hsm.front.service import Hsm
from signer.observe.catalogue import BY_NAME, closed
from signer.signing.request import Snapshot

Values = Mapping[tuple[str, ...], float]


@dataclass(frozen=True, slots=True)
class Reading:
    """One gauge of the catalogue as it is now: its values by label values."""

    name: str
    values: Values


class LiveGauges(Collector):
    """Asks the daemon for its readings whenever Prometheus scrapes."""

    def __init__(self, read: Callable[[], Iterable[Reading]]) -> None:
        self._read = read

    def collect(self) -> Iterable[Metric]:
        for reading in self._read():
            family = BY_NAME[reading.name]
            labels = [label.name for label in family.labels]
            metric = GaugeMetricFamily(family.name, family.text, labels=labels)
            for values, value in reading.values.items():
                metric.add_metric(values, value)
            yield metric


def scalars(values: Mapping[str, float]) -> list[Reading]:
    """Returns the gauges that have no labels."""
    return [Reading(name, {(): value}) for name, value in values.items()]


def readings(
    snapshot: Snapshot, hsm: Hsm, expiries: Mapping[str, float], *, now: float, monotonic: float
) -> list[Reading]:
    """Returns the gauges with labels, but for those of keys.

    ``now`` and ``monotonic`` are the two clocks.
    ``expiries`` are the ends of the server's certificates, seconds since the epoch.
    """
    states = closed("signer_workers", "state")
    workers: Counter[tuple[str, ...]] = Counter(dict.fromkeys(product(hsm.pools, states), 0))
    workers.update((worker.token, worker.state) for worker in hsm.status())
    latched: Values = {(label,): pool.pin_latched for label, pool in hsm.pools.items()}
    ends: Values = {(name,): expiry for name, expiry in expiries.items()}
    return [
        Reading("signer_workers", workers),
        Reading("signer_pin_latched", latched),
        *_queue(snapshot, hsm, now - monotonic),
        Reading("signer_tls_expiry_timestamp_seconds", ends),
        Reading("signer_config_info", {(snapshot.policy.sha256,): 1}),
        Reading("signer_build_info", {(__version__,): 1}),
    ]


def _queue(snapshot: Snapshot, hsm: Hsm, epoch: float) -> list[Reading]:
    """What waits, by priority class; ``epoch`` turns monotonic seconds into calendar time."""
    classes = closed("signer_queue_items", "class")
    items: Counter[tuple[str, ...]] = Counter({(each,): 0 for each in classes})
    oldest: dict[tuple[str, ...], float] = {}
    for pool in hsm.pools.values():
        for waiting in pool.waiting():
            facility = snapshot.policy.facilities.get(waiting.owner)
            label = (facility.terms.priority if facility else "normal",)
            items[label] += waiting.items
            since = waiting.since + epoch
            oldest[label] = min(oldest.get(label, since), since)
    return [
        Reading("signer_queue_items", items),
        Reading("signer_queue_oldest_timestamp_seconds", oldest),
    ]

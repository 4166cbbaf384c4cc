"""Gauges, read from the living objects when Prometheus asks."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import product

from cryptography import x509
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from signer import __version__
from signer.engine import Snapshot
from signer.hsm.service import Hsm
from signer.model import KeyState, KeyVersion
from signer.observe.catalogue import BY_NAME, closed

Values = Mapping[tuple[str, ...], float]
_NEVER = float("inf")


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
    """Returns the gauges with labels; ``now`` and ``monotonic`` are the two clocks.

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
        *_keys(snapshot, now),
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


def _keys(snapshot: Snapshot, now: float) -> list[Reading]:
    """Key versions by the state in force, and when the first key of a group ends."""
    states: Counter[tuple[str, ...]] = Counter()
    expiry: dict[tuple[str, ...], float] = {}
    for name in snapshot.keys.names():
        versions = snapshot.keys.versions(name)
        states.update((version.state_at(now),) for version in versions)
        ends = [_end(each) for each in versions if _told_to_sign(each, now)]
        if ends and (end := max(ends)) < _NEVER:
            facility = snapshot.policy.facilities.get(name.facility)
            label = ((facility.terms.group if facility else None) or "",)
            expiry[label] = min(end, expiry.get(label, end))
    return [
        Reading("signer_key_versions", states),
        Reading("signer_key_expiry_timestamp_seconds", expiry),
    ]


def _told_to_sign(version: KeyVersion, now: float) -> bool:
    """Whether a version signs, will, or would if its time had not run out.

    One that was deactivated has ended as its officers wished; one whose time ran out has not.
    """
    deactivated = version.deactivate_at is not None and version.deactivate_at <= now
    return version.state is KeyState.ACTIVE and version.activate_at is not None and not deactivated


def _end(version: KeyVersion) -> float:
    """When a version, or its certificate, ends."""
    certificate = _NEVER if version.certificate is None else _not_after(version.certificate)
    return min(certificate, _NEVER if version.ends_at is None else version.ends_at)


@functools.lru_cache(maxsize=100_000)
def _not_after(certificate: bytes) -> float:
    return x509.load_der_x509_certificate(certificate).not_valid_after_utc.timestamp()

"""Gauges, read from the living objects when Prometheus asks."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from cryptography import x509
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from signer import __version__
from signer.engine import Snapshot
from signer.hsm.service import Hsm


@dataclass(frozen=True, slots=True)
class Reading:
    """One gauge as it is now: its name, its help, and its values by label values."""

    name: str
    help: str
    labels: tuple[str, ...]
    values: Mapping[tuple[str, ...], float]


class LiveGauges(Collector):
    """Asks the daemon for its readings whenever Prometheus scrapes."""

    def __init__(self, read: Callable[[], Iterable[Reading]]) -> None:
        self._read = read

    def collect(self) -> Iterable[Metric]:
        for reading in self._read():
            family = GaugeMetricFamily(reading.name, reading.help, labels=reading.labels)
            for labels, value in reading.values.items():
                family.add_metric(labels, value)
            yield family


def readings(
    snapshot: Snapshot,
    hsm: Hsm,
    expiries: Mapping[str, float],
    *,
    ready: bool,
    now: float,
    monotonic: float,
) -> list[Reading]:
    """Returns every gauge; ``now`` and ``monotonic`` are the two clocks at this moment."""
    return [
        Reading("signer_ready", "1 while the daemon serves.", (), {(): ready}),
        Reading(
            "signer_workers",
            "Workers by state.",
            ("token", "state"),
            Counter((worker.token, worker.state) for worker in hsm.status()),
        ),
        Reading(
            "signer_pin_latched",
            "1 while a token waits for an operator because of its PIN.",
            ("token",),
            {(label,): pool.pin_latched for label, pool in hsm.pools.items()},
        ),
        *_queue(snapshot, hsm, now - monotonic),
        *_keys(snapshot, now),
        Reading(
            "signer_tls_expiry_timestamp_seconds",
            "notAfter of the certificates that the server uses.",
            ("certificate",),
            {(name,): expiry for name, expiry in expiries.items()},
        ),
        Reading(
            "signer_config_info",
            "The policy in force.",
            ("sha256",),
            {(snapshot.policy.sha256,): 1},
        ),
        Reading("signer_build_info", "The software.", ("version",), {(__version__,): 1}),
    ]


def audit_readings(
    *, open_intents: int, checkpoint_time: float, committing_since: float, free_bytes: int
) -> list[Reading]:
    """Returns the gauges of the audit log.

    ``checkpoint_time`` is 0 before the first, ``committing_since`` where none is under way.
    """
    checkpoints: dict[tuple[str, ...], float] = {(): checkpoint_time} if checkpoint_time else {}
    return [
        Reading(
            "signer_audit_open_intents",
            "Intents whose outcome is not durable yet.",
            (),
            {(): open_intents},
        ),
        Reading(
            "signer_audit_checkpoint_timestamp_seconds",
            "When the audit log was last signed; absent before the first time.",
            (),
            checkpoints,
        ),
        Reading(
            "signer_audit_commit_started_timestamp_seconds",
            "When the commit of the audit log that is under way began; 0 while none is.",
            (),
            {(): committing_since},
        ),
        Reading(
            "signer_disk_free_bytes",
            "Free bytes of the audit log's disk at its last commit.",
            (),
            {(): free_bytes},
        ),
    ]


def operation_readings(pending: int) -> list[Reading]:
    """Returns the gauge of officers' proposals."""
    text = "Proposals of officers that wait for signatures."
    return [Reading("signer_operations_pending", text, (), {(): pending})]


def _queue(snapshot: Snapshot, hsm: Hsm, epoch: float) -> list[Reading]:
    """What waits, by priority class; ``epoch`` turns monotonic seconds into calendar time."""
    items: Counter[tuple[str, ...]] = Counter()
    oldest: dict[tuple[str, ...], float] = {}
    for pool in hsm.pools.values():
        for waiting in pool.waiting():
            facility = snapshot.policy.facilities.get(waiting.owner)
            label = (facility.terms.priority if facility else "normal",)
            items[label] += waiting.items
            since = waiting.since + epoch
            oldest[label] = min(oldest.get(label, since), since)
    return [
        Reading("signer_queue_items", "Items that wait for a worker.", ("class",), items),
        Reading(
            "signer_queue_oldest_timestamp_seconds",
            "Since when the oldest of them waits; absent while none does.",
            ("class",),
            oldest,
        ),
    ]


def _keys(snapshot: Snapshot, now: float) -> list[Reading]:
    """Key versions by the state in force, and the soonest end of a signing certificate."""
    states: Counter[tuple[str, ...]] = Counter()
    expiry: dict[tuple[str, ...], float] = {}
    for version in snapshot.keys:
        states[(version.state_at(now),)] += 1
        ends = [version.sign_until] if version.sign_until is not None else []
        if version.certificate is not None:
            ends.append(_not_after(version.certificate))
        if ends and version.active(now):
            facility = snapshot.policy.facilities.get(version.key.facility)
            label = ((facility.terms.group if facility else None) or "",)
            expiry[label] = min([*ends, expiry.get(label, ends[0])])
    return [
        Reading("signer_key_versions", "Key versions by the state in force.", ("state",), states),
        Reading(
            "signer_key_expiry_timestamp_seconds",
            "When the first active key version of a group may sign no longer.",
            ("group",),
            expiry,
        ),
    ]


@functools.lru_cache(maxsize=100_000)
def _not_after(certificate: bytes) -> float:
    return x509.load_der_x509_certificate(certificate).not_valid_after_utc.timestamp()

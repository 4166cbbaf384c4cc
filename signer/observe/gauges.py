"""Gauges, read from the parts of the daemon at every scrape."""

import functools
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from itertools import product

from cryptography import x509
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from signer import __version__
from signer.hsm.front.service import Hsm
from signer.model import KeyState, KeyVersion
from signer.observe.catalogue import BY_NAME, closed
from signer.observe.lifetimes import LifetimeUse, lifetimes
from signer.officers.approval import Officers
from signer.officers.validity import Validity
from signer.policy.usage import Usage
from signer.signing.request import Snapshot

Values = Mapping[tuple[str, ...], float]
Readings = Mapping[str, Values]
"""Gauges of the catalogue: the present values of each by label values."""
KEYS_SECONDS = 10.0
"""How old the gauges of keys may get: reading all keys takes a while, and time ends some."""
KEYS_CHANGED_SECONDS = 2.0
"""The same after the policy or the registry has changed."""
_NEVER = float("inf")


class LiveGauges(Collector):
    """Calls ``read`` at every scrape."""

    def __init__(self, read: Callable[[], Readings]) -> None:
        self._read = read

    def collect(self) -> Iterable[Metric]:
        for name, values in self._read().items():
            labels = [label.name for label in BY_NAME[name].labels]
            metric = GaugeMetricFamily(name, BY_NAME[name].text, labels=labels)
            for each, value in values.items():
                metric.add_metric(each, value)
            yield metric


def readings(
    snapshot: Snapshot, hsm: Hsm, expiries: Mapping[str, float], *, now: float, monotonic: float
) -> Readings:
    """Returns the gauges with labels, without those of keys.

    ``expiries`` are the ends of the server's certificates and ``now`` the time, in seconds
    since the epoch; ``monotonic`` is the time in monotonic seconds.
    """
    states = closed("signer_workers", "state")
    workers: Counter[tuple[str, ...]] = Counter(dict.fromkeys(product(hsm.pools, states), 0))
    workers.update((worker.token, worker.state) for worker in hsm.status())
    latched: Values = {(label,): pool.pin_latched for label, pool in hsm.pools.items()}
    away = hsm.away()
    ends: Values = {(name,): expiry for name, expiry in expiries.items()}
    return {
        "signer_workers": workers,
        "signer_pin_latched": latched,
        "signer_breaker_open": {(label,): label in hsm.breakers_open() for label in hsm.pools},
        "signer_token_serving": {(label,): label not in away for label in hsm.pools},
        **_queue(snapshot, hsm, now - monotonic),
        "signer_tls_expiry_timestamp_seconds": ends,
        "signer_config_info": {(snapshot.policy.sha256,): 1},
        "signer_build_info": {(__version__,): 1},
    }


def officer_readings(officers: Officers, needed: int, now: float) -> Readings:
    """Returns the gauges of officers; an operation needs ``needed`` of them at most."""
    validity = Validity.of(officers, now)
    counts = {"valid": validity.valid, "ended": validity.ended, "early": validity.early}
    end = validity.next_end
    return {
        "signer_officers": {(name,): len(each) for name, each in counts.items()},
        "signer_officers_needed": {(): needed},
        "signer_officer_expiry_timestamp_seconds": {} if end is None else {(): end},
    }


def lifetime_readings(uses: Iterable[LifetimeUse]) -> Readings:
    """Returns for each group the largest part of its lifetime that a version has used."""
    shares: dict[tuple[str, ...], float] = {}
    for use in uses:
        shares[(use.group,)] = max(use.share, shares.get((use.group,), 0.0))
    return {"signer_key_lifetime_used_ratio": shares}


def _queue(snapshot: Snapshot, hsm: Hsm, epoch: float) -> Readings:
    """Returns the queue by priority class; ``epoch`` is when monotonic time was 0."""
    classes = closed("signer_queue_items", "class")
    items: Counter[tuple[str, ...]] = Counter({(name,): 0 for name in classes})
    oldest: dict[tuple[str, ...], float] = {}
    for pool in hsm.pools.values():
        for waiting in pool.waiting():
            facility = snapshot.policy.facilities.get(waiting.owner)
            label = (facility.terms.priority if facility else "normal",)
            items[label] += waiting.items
            since = waiting.since + epoch
            oldest[label] = min(oldest.get(label, since), since)
    return {"signer_queue_items": items, "signer_queue_oldest_timestamp_seconds": oldest}


class KeyReadings:
    """The gauges of keys as last read. Safe to call from any thread."""

    def __init__(self, usage: Usage) -> None:
        self._usage, self._lock = usage, threading.Lock()
        self._read: tuple[Snapshot, frozenset[str]] | None = None
        self._read_at = -_NEVER
        self._readings: Readings = {}

    def __call__(
        self, snapshot: Snapshot, serving: Collection[str], now: float, monotonic: float
    ) -> Readings:
        """Returns the gauges; ``serving`` are tokens, ``now`` is in seconds since the epoch."""
        with self._lock:
            read = snapshot, frozenset(serving)
            same = self._read and (self._read[0] is snapshot and self._read[1] == read[1])
            if monotonic - self._read_at >= (KEYS_SECONDS if same else KEYS_CHANGED_SECONDS):
                uses = lifetimes(snapshot, self._usage, now)
                self._readings = {**_read_keys(*read, now), **lifetime_readings(uses)}
                self._read, self._read_at = read, monotonic
            return self._readings


def _read_keys(snapshot: Snapshot, serving: Collection[str], now: float) -> Readings:
    """Returns key versions by state, those away, each group's next end and ended keys."""
    away = 0
    states: Counter[KeyState] = Counter()
    expiry: dict[tuple[str, ...], float] = {}
    ended: Counter[tuple[str, ...]] = Counter()
    for name, versions in snapshot.keys.by_key():
        states.update([version.state_at(now) for version in versions])
        away += sum(
            v.active(now) and all(token not in serving for token, _ in v.placements)
            for v in versions
        )
        facility = snapshot.policy.facilities.get(name.facility)
        label = ((facility.terms.group if facility else None) or "",)
        end = max([_end(v) for v in versions if _meant_to_sign(v, now)], default=_NEVER)
        ended[label] += end <= now
        if now < end < _NEVER:
            expiry[label] = min(end, expiry.get(label, end))
    return {
        "signer_key_versions": {(str(state),): count for state, count in states.items()},
        "signer_keys_away": {(): away},
        "signer_key_expiry_timestamp_seconds": expiry,
        "signer_keys_ended": ended,
    }


def _meant_to_sign(version: KeyVersion, now: float) -> bool:
    """Returns whether a version signs, will sign, or would if its time had not run out.

    A deactivated version has ended as officers decided; one whose time ran out has not.
    """
    deactivated = version.deactivate_at is not None and version.deactivate_at <= now
    return version.state is KeyState.ACTIVE and version.activate_at is not None and not deactivated


def _end(version: KeyVersion) -> float:
    """Returns when a version or its certificate ends, whichever is earlier."""
    end = _NEVER if version.ends_at is None else version.ends_at
    return end if version.certificate is None else min(end, _not_after(version.certificate))


@functools.lru_cache(maxsize=100_000)
def _not_after(certificate: bytes) -> float:
    return x509.load_der_x509_certificate(certificate).not_valid_after_utc.timestamp()

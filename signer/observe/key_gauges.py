"""Gauges of the keys: looking through all of them takes a while, so it is not done each time."""

from __future__ import annotations

import functools
import threading
from collections import Counter

from cryptography import x509

from signer.model import KeyState, KeyVersion
from signer.observe.gauges import Reading
from signer.signing.request import Snapshot

INTERVAL = 10.0
"""Keys are looked through again after so many seconds, for the clock ends some of them."""
CHANGED = 2.0
"""After so many where policy or registry have changed."""
_NEVER = float("inf")


class KeyReadings:
    """What was last read of the keys; anybody may ask as often as he likes, from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._snapshot: Snapshot | None = None
        self._read_at = -_NEVER
        self._readings: list[Reading] = []

    def __call__(self, snapshot: Snapshot, now: float, monotonic: float) -> list[Reading]:
        """Returns the gauges; ``now`` and ``monotonic`` are the two clocks."""
        with self._lock:
            good_for = INTERVAL if snapshot is self._snapshot else CHANGED
            if monotonic - self._read_at >= good_for:
                self._readings = _read(snapshot, now)
                self._snapshot, self._read_at = snapshot, monotonic
            return self._readings


def _read(snapshot: Snapshot, now: float) -> list[Reading]:
    """Key versions by the state in force; of each group the next end, and what has ended."""
    states: Counter[KeyState] = Counter()
    expiry: dict[tuple[str, ...], float] = {}
    ended: Counter[tuple[str, ...]] = Counter()
    for name, versions in snapshot.keys.by_key():
        states.update([version.state_at(now) for version in versions])
        facility = snapshot.policy.facilities.get(name.facility)
        label = ((facility.terms.group if facility else None) or "",)
        end = max([_end(each) for each in versions if _told_to_sign(each, now)], default=_NEVER)
        ended[label] += end <= now
        if now < end < _NEVER:
            expiry[label] = min(end, expiry.get(label, end))
    return [
        Reading("signer_key_versions", {(str(state),): count for state, count in states.items()}),
        Reading("signer_key_expiry_timestamp_seconds", expiry),
        Reading("signer_keys_ended", ended),
    ]


def _told_to_sign(version: KeyVersion, now: float) -> bool:
    """Whether a version signs, will, or would if its time had not run out.

    One that was deactivated has ended as its officers wished; one whose time ran out has not.
    """
    deactivated = version.deactivate_at is not None and version.deactivate_at <= now
    return version.state is KeyState.ACTIVE and version.activate_at is not None and not deactivated


def _end(version: KeyVersion) -> float:
    """When a version, or its certificate, ends."""
    end = version.ends_at
    told = _NEVER if end is None else end
    return told if version.certificate is None else min(told, _not_after(version.certificate))


@functools.lru_cache(maxsize=100_000)
def _not_after(certificate: bytes) -> float:
    return x509.load_der_x509_certificate(certificate).not_valid_after_utc.timestamp()

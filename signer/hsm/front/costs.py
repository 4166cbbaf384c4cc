"""What one signature of a kind costs the HSM, learned from the workers' results."""

from __future__ import annotations

from signer.hsm.front.scheduler import CHUNK_SECONDS
from signer.model import SignJob

_CHEAPEST = 1e-6
"""Seconds: no HSM signs faster, whatever a worker says."""
_FIRST_ITEMS = 16
"""Items of the first chunks of a kind."""
_WEIGHT = 0.1
"""Of the newest measurement."""


class Costs:
    """Seconds an item, by algorithm and length of the key. Its pool's lock guards it."""

    def __init__(self) -> None:
        self._seconds: dict[tuple[str, int], float] = {}

    def known(self, job: SignJob) -> float | None:
        """Returns what an item of this job costs, None before the first result of its kind."""
        return self._seconds.get(_kind(job))

    def guess(self, job: SignJob) -> float:
        """Returns the same; of an unknown kind, what makes a small first chunk.

        A slow HSM must finish it before it seems to hang.
        """
        return self._seconds.get(_kind(job), CHUNK_SECONDS / _FIRST_ITEMS)

    def learn(self, job: SignJob, seconds: float) -> None:
        """Takes a measurement into account; the first of a kind counts fully."""
        before = self._seconds.get(_kind(job), seconds)
        mean = (1 - _WEIGHT) * before + _WEIGHT * seconds
        self._seconds[_kind(job)] = max(_CHEAPEST, mean)


def _kind(job: SignJob) -> tuple[str, int]:
    return job.version.algorithm, len(job.version.spki)

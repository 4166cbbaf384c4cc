"""What a pool reports of itself on demand."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """One worker as operators see it; ``state`` is starting, serving, stopping or failed."""

    token: str
    pid: int
    state: str
    starts: int
    items: int
    reason: str


@dataclass(frozen=True, slots=True)
class Waiting:
    """Items of one owner's job that wait, and since when (monotonic seconds)."""

    owner: str
    items: int
    since: float

"""What a pool tells of itself: to operators on demand, to its observer as it happens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class Observer(Protocol):
    """Who counts what happens in a pool."""

    def chunk_done(self, token: str, busy: float, items: int, checked: int, wrong: int) -> None: ...
    def wrong_signatures(self, token: str, key_version: str, wrong: int) -> None: ...
    def worker_left(self, token: str, cause: str, text: str) -> None: ...
    def login(self, token: str, result: str) -> None: ...
    def stage(self, name: str, began: float, seconds: float) -> None: ...


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

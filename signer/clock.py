"""Where time comes from: everything else takes it as an argument."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol


class Clock(Protocol):
    """A source of time."""

    def now(self) -> float:
        """Seconds since the epoch, UTC: for decisions that are compared with calendars."""

    def monotonic(self) -> float:
        """Seconds that never go back: for deadlines and durations."""


class SystemClock:
    """The machine's own clocks."""

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()


class FlooredClock(SystemClock):
    """The machine's clock, but never behind ``floor``: seconds since the epoch, asked each time.

    A clock that was set back must not bring a version to life that has ended, nor
    reopen a quota: time does not go behind the log's last record (DESIGN section 6).
    """

    def __init__(self) -> None:
        self.floor: Callable[[], float] = lambda: 0.0

    def now(self) -> float:
        return max(time.time(), self.floor())

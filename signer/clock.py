"""Where time comes from: everything else takes it as an argument."""

from __future__ import annotations

import time
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

"""Where time comes from: everything else takes it as an argument."""

import time
from typing import Protocol

DEADLINE_MARGIN = 0.05
"""Seconds before its deadline from which on a call that is cancelled counts as late.

gRPC cancels a call at its deadline, and so does its client, by a clock of its own.
"""


class Clock(Protocol):
    """A source of time."""

    def now(self) -> float:
        """Seconds since the epoch, UTC: for decisions that are compared with calendars."""

    def monotonic(self) -> float:
        """Seconds that never go back: for deadlines and durations."""


class SystemClock:
    """The clocks of the machine."""

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()


JUMP_SECONDS = 10.0  # how far the system clock may drift from monotonic time since the start
BEHIND_SECONDS = 2.0  # how far it may be behind the log: other threads append meanwhile


class FlooredClock(SystemClock):
    """The system clock, but never before a floor: the time of the audit log's last record.

    A clock that was set back must not reactivate a version that has ended, nor reopen a quota.
    """

    def __init__(self) -> None:
        self._floor = 0.0
        self._epoch = time.time() - time.monotonic()

    def now(self) -> float:
        return max(time.time(), self._floor)

    def raise_floor(self, seconds: float) -> None:
        """Moves the floor forward, to seconds since the epoch; one thread calls this."""
        self._floor = max(self._floor, seconds)

    def machine(self) -> float:
        """Returns the time of the system clock, right or wrong."""
        return time.time()

    def doubt(self) -> str:
        """Returns a reason to distrust the system clock, or "".

        A jump counts until the process restarts. A suspended machine counts as a jump.
        """
        now = time.time()
        jump = now - time.monotonic() - self._epoch
        if (behind := self._floor - now) > BEHIND_SECONDS:
            return f"the clock is {behind:.0f} s behind the audit log"
        if abs(jump) > JUMP_SECONDS:
            return f"the clock has jumped {'forward' if jump > 0 else 'back'} by {abs(jump):.0f} s"
        return ""

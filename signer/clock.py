"""Where time comes from: everything else takes it as an argument."""

import math
import time
from typing import NamedTuple, Protocol

DEADLINE_MARGIN = 0.05
"""Seconds before its deadline from which on a call that is cancelled counts as late.

gRPC cancels a call at its deadline, and so does its client, by a clock of its own.
"""
JUMP_SECONDS = 10.0
"""How far the machine's clock may be from the appliance's time before it is in doubt."""


class Clock(Protocol):
    """A source of time."""

    def now(self) -> float:
        """Seconds since the epoch, UTC: for decisions that are compared with calendars."""

    def monotonic(self) -> float:
        """Seconds that never go back: for deadlines and durations."""

    def doubt(self) -> str:
        """Returns a reason to distrust the machine's clock, or ""."""

    def machine(self) -> float:
        """Returns the time of the machine's clock, right or wrong."""


class ClockReading(NamedTuple):
    """The appliance's time and the machine's, in seconds since the epoch, and their doubt."""

    now: float = 0.0
    machine: float = 0.0
    doubt: str = ""


class SystemClock:
    """The clocks of the machine."""

    monotonic = staticmethod(time.monotonic)  # as it is: a call of the API reads it twenty times

    def now(self) -> float:
        return time.time()

    def doubt(self) -> str:
        return ""

    def machine(self) -> float:
        return time.time()


class FlooredClock(SystemClock):
    """The machine's clock while it can be believed, and never before a floor.

    The floor is the time of the audit log's last record: a clock that was set back must not
    reactivate a version that has ended, nor reopen a quota. The machine's clock is in doubt
    while it differs by more than ``JUMP_SECONDS`` from the time that it had, counted on in
    monotonic seconds and those of sleep. Then the time that is counted on is the appliance's, so
    that a jump reaches no decision and no record. A jump that is undone leaves no trace.

    A machine that was off or asleep for up to ``absence`` seconds has not jumped. How long it
    was off is the time since the log's last record; how long it slept, the kernel knows.
    """

    def __init__(self, absence: float = math.inf) -> None:
        self._absence = absence
        self._floor = 0.0
        self.log_ended = 0.0  # the time of the log's last record when it was opened
        self._by_log = False
        self._anchor(self.machine())

    def now(self) -> float:
        """Returns the time in whole microseconds, as records have it.

        Otherwise what became active in the last microsecond before a restart would not be after it.
        """
        machine = self.machine()
        return max(round((machine - self._jump(machine)) * 1_000_000) / 1_000_000, self._floor)

    def asleep(self) -> float:
        """Returns how many seconds the machine has slept since it was started."""
        return time.clock_gettime(time.CLOCK_BOOTTIME) - time.monotonic()

    def raise_floor(self, seconds: float) -> None:
        """Moves the floor forward, to seconds since the epoch; one thread calls this.

        The first floor is the time of the log's last record when it was opened.
        """
        if seconds and not self._floor:
            self.log_ended = seconds
            self._open(seconds)
        self._floor = max(self._floor, seconds)

    def doubt(self) -> str:
        jump = self._jump(self.machine())
        if not jump:
            return ""
        if self._by_log:
            where = "ahead of" if jump > 0 else "behind"
            return f"the clock is {_seconds(jump)} {where} the audit log"
        return f"the clock has jumped {'forward' if jump > 0 else 'back'} by {_seconds(jump)}"

    def reading(self) -> ClockReading:
        """Returns both times."""
        return ClockReading(self.now(), self.machine(), self.doubt())

    def accept(self) -> None:
        """Believes the machine's clock as it is, also where that is behind the floor.

        Officers have said so, and the log has a record of it with the machine's time.
        """
        self._by_log = False
        self._floor = machine = self.machine()
        self._anchor(machine)

    def _open(self, last: float) -> None:
        """Compares the clock with the log's ``last`` record, at which time was right."""
        machine = self.machine()
        if not last - JUMP_SECONDS <= machine <= last + self._absence:
            self._by_log = True
            self._anchor(last)

    def _anchor(self, now: float) -> None:
        """Counts the appliance's time on from ``now``."""
        self._slept = asleep = self.asleep()
        self._epoch = now - self.monotonic() - asleep

    def _jump(self, machine: float) -> float:
        """Returns how far the machine's clock is ahead, behind if negative; 0 without a doubt."""
        asleep = self.asleep()
        ahead = machine - self.monotonic() - asleep - self._epoch
        if asleep - self._slept > self._absence:
            ahead += asleep - self._slept
        return ahead if abs(ahead) > JUMP_SECONDS else 0.0


def _seconds(jump: float) -> str:
    return f"{abs(jump):.0f} s"

"""The newest things that somebody should know of, for who has no dashboard."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

KEPT = 20


class Alarm(NamedTuple):
    """What happened when (seconds since the epoch), and how often in a row by now."""

    time: float
    event: str
    text: str
    times: int = 1


class Alarms:
    """A short list; the same again counts up and moves to its end."""

    def __init__(self) -> None:
        self._kept: deque[Alarm] = deque(maxlen=KEPT)

    def add(self, time: float, event: str, text: str) -> None:
        """Notes an alarm."""
        if self._kept and self._kept[-1][1:3] == (event, text):
            times = self._kept.pop().times + 1
            self._kept.append(Alarm(time, event, text, times))
        else:
            self._kept.append(Alarm(time, event, text))

    def newest(self) -> Sequence[Alarm]:
        """The alarms, newest first."""
        return tuple(reversed(self._kept))

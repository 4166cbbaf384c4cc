"""Whether a token gets work that another one could do."""

import asyncio
import itertools
import random
from collections.abc import Awaitable, Callable, Iterator

FAILURES = 2  # workers that are lost over chunks, none signing in between, open the breaker
PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.25, 2.0


class Breaker:
    """Opens when a token loses its workers, and closes once it has signed a canary.

    While it is open, other tokens do the work that they can; what no other token can sign is
    not affected. Everything but ``is_open`` is for the event loop.
    """

    def __init__(self) -> None:
        self._opened = asyncio.Event()
        self._failures = 0

    @property
    def is_open(self) -> bool:
        return self._opened.is_set()

    def signed(self) -> None:
        """Notes that the token has signed."""
        self._failures = 0

    def lost(self, *, at_work: bool, serving: bool) -> bool:
        """Notes that a worker is lost; returns whether that opens the breaker.

        ``at_work``: it had a chunk. ``serving``: others serve.
        """
        self._failures += at_work
        if self.is_open or (serving and self._failures < FAILURES):
            return False
        self._opened.set()
        return True

    async def keep(
        self, canary: Callable[[], Awaitable[bool]], closed: Callable[[], object]
    ) -> None:
        """Closes the breaker, whenever it has opened, once ``canary`` returns that it has signed.

        So a token that fails costs a canary now and then, and no caller anything. ``closed`` is
        called each time.
        """
        while True:
            await self._opened.wait()
            for pause in pauses():
                await asyncio.sleep(pause)
                if await canary():
                    break
            self._failures = 0
            self._opened.clear()
            closed()


def pauses() -> Iterator[float]:
    """Yields the seconds before each canary: longer each time, and not the same everywhere."""
    for attempt in itertools.count():
        longest = min(PAUSE_SECONDS * 2 ** min(attempt, 8), LONGEST_PAUSE_SECONDS)
        yield longest * random.uniform(0.5, 1)  # noqa: S311 - spreads appliances, hides nothing

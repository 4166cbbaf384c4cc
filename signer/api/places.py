"""Places: how many calls, and how many bytes of messages, are in progress at once.

A call has a place from the time when its message is there until its answer is out. The last
quarter of all places is for principals that hold less than their share, so that a few busy
clients never keep another one out. A stream does not ask for a place that it would not get:
it waits, and the appliance reads no further. For the event loop only.
"""

import asyncio
from collections import Counter

from signer.errors import CLIENT_LIMIT, CallError, Reason

KEPT = 0.25
"""The part of all places that only principals below their share may take."""
_HINT = 0.1  # seconds after which a refused call may come again


class Bound:
    """How much of one thing all principals together and one alone may hold."""

    def __init__(self, most: int, most_of_one: int) -> None:
        self.most, self.most_of_one = most, most_of_one
        self.total = 0
        self.held: Counter[str] = Counter()

    def add(self, principal: str, amount: int) -> None:
        """Adds to what a principal holds, or takes from it."""
        self.total += amount
        self.held[principal] += amount
        if self.held[principal] <= 0:
            del self.held[principal]

    def exceeded(self, principal: str, amount: int) -> tuple[bool, int] | None:
        """Returns None if the principal may hold so much more.

        Else whether the limit is its own, and the limit.
        """
        own, total = self.held[principal] + amount, self.total + amount
        if own > self.most_of_one:
            return True, self.most_of_one
        others = len(self.held) + (principal not in self.held)
        share = self.most // (others + 1)  # of those who are here and of one who may come
        if total > self.most or (total > self.most * (1 - KEPT) and own > max(share, amount)):
            return False, self.most
        return None


class Places:
    """The places of all principals: calls and the bytes of their messages."""

    def __init__(self, calls: Bound, message_bytes: Bound) -> None:
        self._calls, self._bytes = calls, message_bytes
        self._waiting: dict[str, list[asyncio.Future[None]]] = {}

    @property
    def taken(self) -> int:
        """Returns the number of calls that have a place."""
        return self._calls.total

    def take(self, principal: str, size: int) -> None:
        """Takes a place for a call whose message has ``size`` bytes; raises CallError."""
        if (exceeded := self._calls.exceeded(principal, 1)) is not None:
            own, most = exceeded
            raise _refused("calls", most, CLIENT_LIMIT if own else "calls", own=own)
        if (exceeded := self._bytes.exceeded(principal, size)) is not None:
            own, most = exceeded
            setting = "bytes_in_flight_per_client" if own else "bytes_in_flight"
            raise _refused("bytes", most, setting, own=own)
        self.add(principal, size)

    def add(self, principal: str, size: int) -> None:
        """Takes a place whatever is taken already: for a request that a stream has read."""
        self._calls.add(principal, 1)
        self._bytes.add(principal, size)

    def give_back(self, principal: str, size: int) -> None:
        """Gives a place back; streams that wait for one go on."""
        self._calls.add(principal, -1)
        self._bytes.add(principal, -size)
        for waiting in [one for one in self._waiting if self._free(one)]:
            for waiter in self._waiting.pop(waiting):
                if not waiter.done():  # its stream may have ended
                    waiter.set_result(None)

    async def free(self, principal: str) -> None:
        """Returns when a principal may take one more place.

        It is not kept for the stream that waits here, which may be idle for long: all streams
        of the principal go on, and each may pass the limits by one request.
        """
        while not self._free(principal):
            waiter = asyncio.get_running_loop().create_future()
            self._waiting.setdefault(principal, []).append(waiter)
            await waiter

    def _free(self, principal: str) -> bool:
        return not (self._calls.exceeded(principal, 1) or self._bytes.exceeded(principal, 1))


def _refused(what: str, most: int, setting: str, *, own: bool) -> CallError:
    text = f"too many of your {what}" if own else f"too many {what}"
    return CallError(
        Reason.OVERLOADED,
        f"{text} ({most} at once): try again",
        {"limit": setting},
        retry_after=_HINT,
    )

"""Places: how many calls, and how many bytes of messages, are in progress at once.

A call has a place from the time when its message is there until its answer is out; it holds the
bytes of the message, and then those of the answer. A call of a principal that holds too many
bytes waits, and its next messages are not received. The last quarter of all places is for
principals that hold less than their share, so that a few busy clients never keep another one
out. A stream does not ask for a place that it would not get: it waits, and the appliance reads
no further. For the event loop only.
"""

import asyncio
from collections import OrderedDict, deque
from contextlib import suppress

from signer.errors import CLIENT_LIMIT, CallError, Reason
from signer.model import MAX_BATCH_ITEMS

ITEM_BYTES = 200
"""What an item is expected to add to an answer besides its payload."""
SLACK_BYTES = 4096
"""What a call may hold too much: it is given back with its place, not before."""
SMALL_ITEMS = 8
"""A request of a stream holds from its begin what its answer takes, with up to so many items."""
KEPT = 0.25
"""The part of all places that only principals below their share may take."""
_HINT = 0.1  # seconds after which a refused call may come again


class Bound:
    """How much of one thing all principals together and one alone may hold."""

    def __init__(self, most: int, most_of_one: int) -> None:
        self.most, self.most_of_one = most, most_of_one
        self.total = 0
        self.held: dict[str, int] = {}
        self._free = int(most * (1 - KEPT))

    def add(self, principal: str, amount: int) -> None:
        """Adds to what a principal holds, or takes from it."""
        self.total += amount
        held = self.held.get(principal, 0) + amount
        if held > 0:
            self.held[principal] = held
        else:
            self.held.pop(principal, None)

    def exceeded(self, principal: str, amount: int) -> tuple[bool, int] | None:
        """Returns None if the principal may hold so much more.

        Else whether the limit is its own, and the limit.
        """
        own, total = self.held.get(principal, 0) + amount, self.total + amount
        if own > self.most_of_one:
            return True, self.most_of_one
        if total <= self._free:
            return None
        others = len(self.held) + (principal not in self.held)
        share = self.most // (others + 1)  # of those who are here and of one who may come
        if total > self.most or own > max(share, amount):
            return False, self.most
        return None


def held_by(message: int, items: int) -> int:
    """Returns the bytes that a call with so many items in a message of this size holds.

    That is for its answer as well, which is not larger but for failed items.
    """
    return 2 * message + ITEM_BYTES * items


class Place:
    """What one call holds until ``give_back``: a place, and bytes.

    ``message`` is the size of its message.
    """

    __slots__ = ("_firm", "_places", "_principal", "message", "size")

    def __init__(self, places: "Places", principal: str, size: int, *, firm: bool) -> None:
        """A ``firm`` place is never refused more bytes."""
        self._places, self._principal, self._firm = places, principal, firm
        self.size = self.message = size

    def resize(self, size: int) -> None:
        """Holds ``size`` bytes instead; raises CallError if that is too many, and keeps its own."""
        more = size - self.size
        if more > 0 and not self._firm:
            self._places.check_bytes(self._principal, more)
        self.answered(size)

    def answered(self, size: int) -> None:
        """Holds the bytes of the answer instead, however many are held already."""
        if 0 <= self.size - size <= SLACK_BYTES:
            return
        if size < self.size:
            self._places.release(self._principal, self.size - size)
        else:
            self._places.bytes.add(self._principal, size - self.size)
        self.size = size

    def give_back(self) -> None:
        """Gives the place back; streams that wait for one go on."""
        self._places.give_back(self._principal, self.size)


class Reads:
    """The messages that are received at once: a call waits until it may receive its own.

    gRPC keeps the part of a message that has come in memory, and does not report its size. So few
    calls of one principal receive at a time, however many it has opened.
    """

    def __init__(self, bound: Bound) -> None:
        self._bound = bound
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    async def begin(self, principal: str) -> None:
        """Returns when a call of this principal may receive its message, until ``end``."""
        if principal not in self._waiting and not self._bound.exceeded(principal, 1):
            self._bound.add(principal, 1)
            return
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(principal, deque()).append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if not waiter.cancelled():  # it was its turn
                self.end(principal)
            elif waiter in (waiters := self._waiting.get(principal, deque())):
                waiters.remove(waiter)
                if not waiters:
                    del self._waiting[principal]
            raise

    def end(self, principal: str) -> None:
        """Ends what ``begin`` has begun; those that wait and may begin now have their turn."""
        self._bound.add(principal, -1)
        while self._waiting and self._next():
            pass

    def _next(self) -> bool:
        """Gives one call that waits its turn; returns False if none may begin."""
        exceeded = self._bound.exceeded
        principal = next((one for one in self._waiting if not exceeded(one, 1)), None)
        if principal is None:
            return False
        waiters = self._waiting.pop(principal)
        waiter = waiters.popleft()
        if waiters:
            self._waiting[principal] = waiters  # behind the other principals
        if not waiter.done():  # it may have been cancelled
            self._bound.add(principal, 1)
            waiter.set_result(None)
        return True


class Places:
    """The places of all principals: calls, and the bytes of their messages and answers.

    ``arriving`` are the calls whose message is not there yet: they have no place. A few of them
    receive it at a time: ``reads``.
    """

    def __init__(self, calls: Bound, held_bytes: Bound, arriving: Bound, receiving: Bound) -> None:
        self._calls, self.bytes, self.arriving = calls, held_bytes, arriving
        self.reads = Reads(receiving)
        self._waiting: dict[str, list[asyncio.Future[None]]] = {}
        self._without_room: dict[str, asyncio.Future[None]] = {}

    @property
    def taken(self) -> int:
        """Returns the number of calls that have a place."""
        return self._calls.total

    def arrive(self, principal: str) -> None:
        """Counts a call that waits for its message, until ``arrived``; raises CallError."""
        _check(self.arriving, principal, 1, "calls without a message", _CALLS)
        self.arriving.add(principal, 1)

    def arrived(self, principal: str) -> None:
        """Stops counting the call: its message has come, or it has ended."""
        self.arriving.add(principal, -1)

    def take(self, principal: str, size: int) -> Place:
        """Takes a place for a call whose message has ``size`` bytes; raises CallError."""
        _check(self._calls, principal, 1, "calls", _CALLS)
        self.check_bytes(principal, size)
        return self._place(principal, size, firm=False)

    async def enter(self, principal: str, size: int, seconds: float) -> Place:
        """Takes a place for a message that was received, with all bytes that it may come to hold.

        Waits for that until the principal's other calls have given back enough, up to so many
        ``seconds``: it has few such calls, because each of them has a turn to receive, and no
        work is thrown away. Raises CallError.
        """
        most = held_by(size, min(MAX_BATCH_ITEMS, size // 2))  # an item takes two bytes or more
        wanted = max(size, min(most, self.bytes.most_of_one))
        if self._has_no_room(principal, wanted):
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._room(principal, wanted)
        place = self.take(principal, wanted)
        place.message = size
        return place

    async def _room(self, principal: str, size: int) -> None:
        """Returns when the principal's own calls leave room for so many bytes more."""
        while self._has_no_room(principal, size):
            given_back = self._without_room.get(principal)
            if given_back is None:
                given_back = asyncio.get_running_loop().create_future()
                self._without_room[principal] = given_back
            await asyncio.shield(given_back)

    def _has_no_room(self, principal: str, size: int) -> bool:
        """Whether so many bytes are too many only because of the principal's other calls."""
        exceeded = self.bytes.exceeded(principal, size)
        return exceeded is not None and exceeded[0] and size <= self.bytes.most_of_one

    def check_bytes(self, principal: str, more: int) -> None:
        """Raises CallError if a principal may not hold so many more bytes."""
        _check(self.bytes, principal, more, "bytes in calls", _BYTES)

    def add(self, principal: str, message: int) -> Place:
        """Takes a place whatever is taken already: for a request that a stream has read."""
        place = self._place(principal, held_by(message, SMALL_ITEMS), firm=True)
        place.message = message
        return place

    def _place(self, principal: str, size: int, *, firm: bool) -> Place:
        self._calls.add(principal, 1)
        self.bytes.add(principal, size)
        return Place(self, principal, size, firm=firm)

    def give_back(self, principal: str, size: int) -> None:
        """Gives a place back; streams that wait for one go on."""
        self._calls.add(principal, -1)
        self.release(principal, size)

    def release(self, principal: str, size: int) -> None:
        """Gives bytes back; calls and streams that wait for room go on."""
        self.bytes.add(principal, -size)
        if self._without_room and (waiter := self._without_room.pop(principal, None)) is not None:
            waiter.set_result(None)
        if self._waiting:
            for waiting in [one for one in self._waiting if self.free(one)]:
                for waiter in self._waiting.pop(waiting):
                    if not waiter.done():  # its stream may have ended
                        waiter.set_result(None)

    async def wait(self, principal: str) -> None:
        """Returns when a principal may take one more place.

        It is not kept for the stream that waits here, which may be idle for long: all streams
        of the principal go on, and each may pass the limits by one request.
        """
        while not self.free(principal):
            waiter = asyncio.get_running_loop().create_future()
            self._waiting.setdefault(principal, []).append(waiter)
            await waiter

    def free(self, principal: str) -> bool:
        """Returns whether a principal may take one more place."""
        return not (self._calls.exceeded(principal, 1) or self.bytes.exceeded(principal, 1))


_CALLS = ("calls", CLIENT_LIMIT)
_BYTES = ("bytes_in_flight", "bytes_in_flight_per_client")


def _check(bound: Bound, principal: str, amount: int, what: str, settings: tuple[str, str]) -> None:
    """Raises CallError if a principal may not hold so much more."""
    exceeded = bound.exceeded(principal, amount)
    if exceeded is None:
        return
    own, most = exceeded
    raise CallError(
        Reason.OVERLOADED,
        f"too many {'of your ' if own else ''}{what} ({most} at once): try again",
        {"limit": settings[own]},
        retry_after=_HINT,
    )

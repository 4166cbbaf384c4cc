"""Single items of one key and format become batches: which call takes which, what an answer means.

Pure: no clock, thread, loop or connection. ``_gathering_threads`` and ``_gathering_tasks``
drive it; each calls it from one thread at a time.

An item waits until a call is free, is in a parcel until its parcel is answered, and is given
its result exactly once; or its caller has gone, because its time is over or its task was
cancelled. A parcel that was sent keeps its content as long as its request id: the appliance
answers a repetition with the same signatures, and would refuse other content.
"""

import uuid
from collections import deque
from collections.abc import Callable, Sequence
from itertools import chain
from typing import NamedTuple

from signer.client._calls import Backoff
from signer.client._cutting import BATCH_BYTES, FIELD_BYTES, LARGEST_BATCH, output_bound
from signer.client._errors import InvalidRequestError, ItemError, SignerClientError
from signer.client._pipeline import Answer
from signer.errors import Code, Reason
from signer.model import Format

CALLS_OUT = 2
"""Calls in flight for one key and format: one is worked for while the other is on its way."""

SMALLEST = 16
"""So many items are not split between calls: a call costs more than they do."""

_REFUSED = (Reason.OVERLOADED, Reason.QUOTA_EXCEEDED)
"""The retryable reasons after which nothing was signed."""

_TOO_LONG = ("CLIENT: Sent message larger", "SERVER: Received message larger")
"""Requests that gRPC did not take. An answer that is too long was signed."""

_FIELD = "payloads"  # of violations that another batch of the same items may not have


class Single:
    """One item. ``deadline`` is monotonic, in seconds; ``taker`` is how its caller waits.

    ``over``: it has its result, or its caller has gone.
    """

    __slots__ = ("deadline", "over", "parcel", "payload", "taker")

    def __init__(self, payload: bytes, deadline: float, taker: object = None) -> None:
        self.payload = payload
        self.deadline = deadline
        self.taker = taker
        self.parcel: Parcel | None = None
        self.over = False


class Parcel:
    """Items that go in one call, and again in the same call until it is answered.

    ``living`` of them have a caller that still waits. ``uncertain``: an attempt under this
    request id was lost, so that they may have been signed under it, and go under no other.
    """

    __slots__ = ("backoff", "deadline", "items", "living", "request_id", "uncertain")

    def __init__(self, items: Sequence[Single], request_id: str) -> None:
        self.backoff = Backoff()
        self.renew(items, request_id)

    def renew(self, items: Sequence[Single], request_id: str) -> None:
        """Begins another call, with those that are left."""
        self.items = items
        self.request_id = request_id
        self.living = len(items)
        self.uncertain = False
        self.deadline = max(item.deadline for item in items)
        for item in items:
            item.parcel = self

    @property
    def payloads(self) -> list[bytes]:
        """What is sent."""
        return [item.payload for item in self.items]


Result = bytes | Exception
"""A signature, or why there is none."""


class Next(NamedTuple):
    """What follows the end of a call: results, and in how many seconds the parcel goes again.

    ``again`` is None if the parcel is over; then others may be due.
    """

    results: Sequence[tuple[Single, Result]]
    again: float | None


class Gathering:
    """The items of one key and format.

    The first goes at once; what comes while ``calls`` are out goes together when one of
    them ends. Until it is known how many items a call may have (``limit_known``), each goes
    alone: ``asks_limit`` says when to find out.
    """

    def __init__(
        self,
        message_format: Format,
        *,
        calls: int = CALLS_OUT,
        new_id: Callable[[], str] = lambda: str(uuid.uuid4()),
    ) -> None:
        self._format = message_format
        self._calls = calls
        self._new_id = new_id
        self._limit = 1
        self._limit_asked = False
        self._waiting: deque[Single] = deque()
        self._split: deque[list[Single]] = deque()
        self._out: set[Parcel] = set()

    def add(self, item: Single) -> None:
        """Takes an item, which alone must fit into a call."""
        self._waiting.append(item)

    def asks_limit(self) -> bool:
        """Whether the limit is to be found out now; True once, when first an item waits."""
        if self._limit_asked or not self._waiting:
            return False
        self._limit_asked = True
        return True

    def limit_known(self, allowed: int) -> None:
        """Takes the number of items that the policy allows; 0: not known."""
        self._limit = min(LARGEST_BATCH, allowed or LARGEST_BATCH)

    def leave(self, item: Single) -> Parcel | None:
        """Forgets the caller of an item; an item that was not sent never will be.

        Returns its parcel if the callers of all its items have left.
        """
        if item.over:
            return None
        item.over = True
        parcel = item.parcel
        if parcel is None:
            item.payload = b""  # it still has its place in the queue
            return None
        parcel.living -= 1
        return None if parcel.living else parcel

    def due(self) -> Parcel | None:
        """Returns what is to be sent now."""
        while len(self._out) < self._calls:
            items = self._split.popleft() if self._split else self._together()
            items = [item for item in items if not item.over]
            if items:
                parcel = Parcel(items, self._new_id())
                self._out.add(parcel)
                return parcel
            if not self._waiting and not self._split:
                break
        return None

    def _together(self) -> list[Single]:
        """Takes the items of the next call: one call's share of all waiting items.

        Were it all that waits, one call would be large and the others almost empty.
        """
        waiting, items, sent, answered = self._waiting, list[Single](), 0, 0
        there = len(waiting) + sum(parcel.living for parcel in self._out)
        share = max(SMALLEST, -(-there // self._calls))
        while waiting and len(items) < min(self._limit, share):
            item = waiting[0]
            if not item.over:
                size = len(item.payload)
                sent += size + FIELD_BYTES
                answered += output_bound(size, self._format)
                if items and (sent > BATCH_BYTES or answered > BATCH_BYTES):
                    break
                items.append(item)
            waiting.popleft()
        return items

    def answered(self, parcel: Parcel, answer: Answer, now: float) -> Next:
        """Takes an answer, which has as many signatures as the parcel has items.

        Items that an HSM dropped go again, under a new request id, while they have time.
        """
        if not answer.failures:
            living = zip(parcel.items, answer.signatures, strict=True)
            return self._end(parcel, [pair for pair in living if not pair[0].over])
        results, again = list[tuple[Single, Result]](), list[tuple[Single, ItemError]]()
        for index, item in enumerate(parcel.items):
            error = answer.failures.get(index)
            if item.over:
                continue
            if error is not None and error.retryable:
                again.append((item, error))
            else:
                results.append((item, error or answer.signatures[index]))
        pause = parcel.backoff.pause(max((e.retry_after or 0.0 for _, e in again), default=0.0))
        results += [(item, error) for item, error in again if now + pause >= item.deadline]
        left = [item for item, _ in again if now + pause < item.deadline]
        if not left:
            return self._end(parcel, results)
        self._mark(results)
        parcel.renew(left, self._new_id())
        return Next(results, pause)

    def failed(self, parcel: Parcel, error: Exception, now: float) -> Next:
        """Takes the failure of a call as a whole.

        It goes again, as it is, for the items that have time for that. If the reason may
        be that of one item, or the number of them, each half goes for itself.
        """
        living = [item for item in parcel.items if not item.over]
        if isinstance(error, SignerClientError) and error.retryable:
            parcel.uncertain |= error.reason not in _REFUSED
            pause = parcel.backoff.pause(error.retry_after)
            late = [item for item in living if now + pause >= item.deadline]
            if len(late) == len(living):
                return self._end(parcel, [(item, error) for item in late])
            results: list[tuple[Single, Result]] = [(item, error) for item in late]
            self._mark(results)
            parcel.living -= len(late)
            return Next(results, pause)
        if len(parcel.items) > 1 and living and not parcel.uncertain and _of_few(error):
            middle = (len(living) + 1) // 2
            self._split.extend(half for half in (living[:middle], living[middle:]) if half)
            self._limit_asked = False  # it may have changed
            for item in living:
                item.parcel = None
            return self._end(parcel, [])
        return self._end(parcel, [(item, error) for item in living])

    def left(self, parcel: Parcel) -> Next:
        """Takes that the call for a parcel without callers was given up."""
        return self._end(parcel, [])

    def close(self, error: Exception) -> Sequence[tuple[Single, Result]]:
        """Ends everything; returns the error as the result of all that wait."""
        parcels = (parcel.items for parcel in self._out)
        everything = chain(self._waiting, *self._split, *parcels)
        results: list[tuple[Single, Result]]
        results = [(item, error) for item in everything if not item.over]
        self._waiting.clear()
        self._split.clear()
        self._mark(results)
        return results

    def _end(self, parcel: Parcel, results: Sequence[tuple[Single, Result]]) -> Next:
        self._out.discard(parcel)
        self._mark(results)
        return Next(results, None)

    @staticmethod
    def _mark(results: Sequence[tuple[Single, Result]]) -> None:
        for item, _ in results:
            item.over = True


def _of_few(error: Exception) -> bool:
    """Whether a call may be refused for one of its items, or for their number."""
    if isinstance(error, InvalidRequestError):
        return any(violation.field.startswith(_FIELD) for violation in error.violations)
    if isinstance(error, SignerClientError) and error.code == error.reason:  # gRPC's own
        return error.code == Code.RESOURCE_EXHAUSTED.name and error.message.startswith(_TOO_LONG)
    return False

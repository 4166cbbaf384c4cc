"""Lots: small calls that come together, and go through the pipeline together.

Most of what a call costs does not depend on its number of items. So calls of one principal that
ask for the same key and format at about the same time are one lot: it is authorised, admitted and
charged once, its records go into one commit, and its items to the HSM as one job. Each call keeps
its own request id, its own records and its own answer. What would refuse a lot divides it: each
call is then a lot of its own, with its own answer or error. For the event loop only.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import Any

from signer.clock import Clock
from signer.errors import CallError
from signer.event_loop import FIRST_ITEMS, GATHER_ITEMS, PART_BYTES, EventLoop, Gatherer, Turns
from signer.events import CALL, Bug, CallTrace, Events, StagesEnded
from signer.formats import FORMATS
from signer.model import Format, KeyName
from signer.signing.request import BatchRequest, BatchResult

MOST_CALLS = 32
"""Calls of a lot: what the loop computes for them between two waits is about a slice."""
LONGEST_WAIT = 1.0
"""Seconds that a call has at least if it goes with others: a lot has the earliest deadline."""
LOG_WAIT = 0.02
"""The longest time in seconds for which a call waits for a commit of the log, to go with others."""
SAME_DEADLINE = 0.05
"""Seconds by which the deadlines of a lot differ at most."""

_Alike = tuple[str, KeyName, int | None, Format, bool, int]


class LotDivided(Exception):
    """The calls of a lot cannot be signed together: each goes alone."""


class Call:
    """One call that is signed: what it asks for, and the answer that its caller waits for.

    ``small``: it has few and short payloads; ``alone``: it does not go with others. ``content``
    is the hash of all that it asks for. Its payloads are those from ``start`` to ``stop`` of its
    lot; ``record`` is the number of its intent. ``failed``: it has ended with an error.
    """

    __slots__ = (
        "alone",
        "answer",
        "content",
        "failed",
        "lot",
        "record",
        "request",
        "small",
        "start",
        "stop",
        "trace",
    )

    def __init__(self, request: BatchRequest, answer: "asyncio.Future[BatchResult]") -> None:
        payloads = request.payloads
        self.request, self.answer = request, answer
        self.small = 0 < len(payloads) <= FIRST_ITEMS and sum(map(len, payloads)) <= PART_BYTES
        by_call = FORMATS[request.format].by_call or bool(request.cosignatures)
        self.alone = by_call or not self.small
        self.trace = CALL.get()
        self.lot: Lot | None = None
        self.content, self.failed = b"", False
        self.start = self.stop = 0
        self.record: int | None = None

    def succeed(self, result: BatchResult) -> None:
        """Answers the call, unless its caller has left."""
        if not self.answer.done():
            self.answer.set_result(result)

    def fail(self, error: Exception) -> bool:
        """Ends the call with an error; returns False if nobody gets it."""
        self.failed = True
        if self.answer.done():
            return False
        self.answer.set_exception(error)
        return True


class Lot:
    """Calls that are signed together: of one principal, for one key, in one format.

    ``divisible``: what refuses the lot may not refuse each of its calls. ``concluding``: the
    signatures are there, and their outcomes are recorded, also for callers that have left.
    """

    __slots__ = ("calls", "concluding", "deadline", "divisible", "first", "items", "task", "trace")

    def __init__(self, calls: list[Call]) -> None:
        self.calls, self.first = calls, calls[0].request
        self.deadline = min(call.request.deadline for call in calls)
        self.trace = CallTrace(len(calls))
        self.divisible = self.concluding = False
        self.task: asyncio.Task[None] | None = None
        self.items = 0
        for call in calls:
            call.lot = self
            if call.trace is not None:
                call.trace.work = self.trace
            call.start, self.items = self.items, self.items + len(call.request.payloads)
            call.stop = self.items

    def payloads(self) -> "list[bytes]":
        """Returns the payloads of all calls, in their order."""
        return [payload for call in self.calls for payload in call.request.payloads]

    def cuts(self, between: Callable[[int, int], tuple[int, int]]) -> list[int]:
        """Returns where in the HSM's inputs those of the second and further calls begin."""
        return [between(call.start, call.stop)[0] for call in self.calls[1:]]

    def ended(self, stage: str, began: float, now: float) -> None:
        """Notes a stage that has ended (monotonic seconds)."""
        self.trace.stages.append((stage, began, now - began))

    def end(self) -> None:
        """Lets go of its calls: references in a cycle would keep their payloads."""
        for call in self.calls:
            if call.lot is self:
                call.lot = None
        self.calls, self.task = [], None

    def left(self) -> None:
        """Ends the lot if all of its callers have left: what is unsigned is not signed."""
        if self.task is None or self.concluding:
            return
        if all(call.answer.cancelled() for call in self.calls):
            self.task.cancel()


class Lots:
    """Makes lots of the calls that come, and gives each call its answer or its error."""

    def __init__(
        self,
        loop: EventLoop,
        turns: Turns,
        sign: Callable[[Lot], Coroutine[Any, Any, None]],
        when_free: Callable[[Callable[[], None]], bool],
        *,
        clock: Clock,
        events: Events,
    ) -> None:
        """``sign`` answers the calls of a lot, or raises why it does not.

        ``when_free`` calls a function once the log's present commit has ended; it returns False,
        and does not, if there is none.
        """
        self._loop, self._clock, self._events, self._turns = loop.loop, clock, events, turns
        self._sign, self._when_free = sign, when_free
        self._gathering: dict[_Alike, list[Call]] = {}
        self._calls = 0  # that gather
        self._together = Gatherer(loop.loop, lambda: self._calls, self._look)
        self._waiting: dict[_Alike, list[Call]] = {}  # for the log
        self._since = 0.0  # when the first of them began to wait, monotonic seconds
        self._timer: asyncio.TimerHandle | None = None
        self._small: Counter[str] = Counter()  # lots in progress that could have had more calls
        self._tasks: set[asyncio.Task[None]] = set()  # of which asyncio keeps none

    async def sign(self, request: BatchRequest) -> BatchResult:
        """Returns the answer to a request, which goes with others if it is small."""
        call = Call(request, self._loop.create_future())
        if not call.alone and request.deadline - self._clock.monotonic() >= LONGEST_WAIT:
            self._add(call)
        else:
            self._begin([call])
        try:
            return await call.answer
        except asyncio.CancelledError:
            if call.lot is not None:
                call.lot.left()
            raise
        finally:
            del call  # or an error that is raised, which has this frame, would keep it

    def _add(self, call: Call) -> None:
        request = call.request
        alike = (
            request.principal,
            request.key,
            request.version,
            request.format,
            request.revocation,
            int(request.deadline / SAME_DEADLINE),
        )
        self._gathering.setdefault(alike, []).append(call)
        self._calls += 1
        self._together.soon()

    def _look(self) -> None:
        """Begins lots of the calls that gathered, or has them wait for the log.

        While it writes, their records would wait too. A call whose client has no other one in
        progress does not wait, nor does any for long, or while others wait for their turns.
        """
        gathered, self._gathering, self._calls = self._gathering, {}, 0
        for alike, calls in gathered.items():
            waiting, principal = self._waiting.get(alike, []), alike[0]
            few = len(waiting) + len(calls) < GATHER_ITEMS
            if few and self._small[principal] and not self._turns.others_wait(principal):
                self._waiting[alike] = waiting + calls
            else:
                self._waiting.pop(alike, None)
                self._begin_all({alike: waiting + calls})
        if not self._waiting or self._timer is not None:
            return
        self._since = self._clock.monotonic()
        if self._when_free(self._go_on):
            self._timer = self._loop.call_later(LOG_WAIT, self._go_on)
        else:
            self._go_on()

    def _go_on(self) -> None:
        """Begins lots of the calls that wait for the log: it is free, or takes long."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        waiting, self._waiting = self._waiting, {}
        self._begin_all(waiting, waited_since=self._since)

    def _begin_all(
        self, alike: Mapping[_Alike, list[Call]], *, waited_since: float | None = None
    ) -> None:
        for calls in alike.values():
            here = [call for call in calls if not call.answer.done()]  # whose caller has not left
            for start in range(0, len(here), MOST_CALLS):
                self._begin(here[start : start + MOST_CALLS], waited_since)

    def _begin(self, calls: list[Call], waited_since: float | None = None) -> None:
        lot = Lot(calls)
        if waited_since is not None:
            lot.ended("audit", waited_since, self._clock.monotonic())
        lot.task = task = self._loop.create_task(self._run(lot))
        self._tasks.add(task)
        task.add_done_callback(partial(self._ended, lot))

    def _ended(self, lot: Lot, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        lot.end()

    async def _run(self, lot: Lot) -> None:
        CALL.set(lot.trace)
        principal, small = lot.first.principal, not lot.calls[0].alone
        self._small[principal] += small
        try:
            await self._sign(lot)
        except asyncio.CancelledError:
            for call in lot.calls:
                call.answer.cancel()
            raise
        except Exception as error:  # noqa: BLE001 - the callers raise it
            if isinstance(error, CallError | LotDivided):
                error.__traceback__ = None  # whose frames have the calls
            self._refuse(lot, error)
        finally:
            self._small[principal] -= small
            if not self._small[principal]:
                del self._small[principal]
            if not lot.divisible:  # else those of each call alone are counted
                traces = (call.trace.trace_id for call in lot.calls if call.trace is not None)
                self._events.emit(StagesEnded(lot.trace, next(filter(None, traces), "")))

    def _refuse(self, lot: Lot, error: Exception) -> None:
        """Ends all calls of a lot with an error, or begins each alone where it may be another."""
        if lot.divisible:
            for call in lot.calls:
                if not call.answer.done():
                    self._begin([call])
            return
        taken = [call.fail(error) for call in lot.calls]
        if not (any(taken) or isinstance(error, CallError)):
            self._events.emit(Bug("signing for callers that have left", error, {}))

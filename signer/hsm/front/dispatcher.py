"""Gives chunks to the workers of one token, and takes their results.

Everything here is for the event loop, so that nothing is locked. What comes together goes to
the workers together.
"""

import asyncio
import threading
from collections.abc import Collection, Sequence

from signer.clock import Clock
from signer.errors import Failure, Reason
from signer.event_loop import EventLoop, Gatherer
from signer.events import (
    BreakerOpened,
    Bug,
    ChunkEnded,
    Events,
    KeyRefused,
    LastingFailures,
    LoginEnded,
    WorkerFailedAgain,
    WorkerLeft,
    WrongSignatures,
)
from signer.hsm.frames import FrameError, FrameKind, ResultFrame, ResultPart, Verdict, pack_ids
from signer.hsm.front.breaker import Breaker
from signer.hsm.front.chunks import Batch, Chunk, Part, Portion, kind_of
from signer.hsm.front.costs import Costs, Pace
from signer.hsm.front.process import WorkerProcess
from signer.hsm.front.scheduler import Scheduler
from signer.hsm.front.slot import Slot, WorkerEnd
from signer.hsm.front.stops import Stops
from signer.hsm.spec import FailureKind, TokenSpec
from signer.model import KeyVersion

ATTEMPTS = 2
WRONG_SIGNATURES_STOP_TOKEN = 3
WATCH_SECONDS = 0.1  # between two searches for workers that hang
AWAY_SECONDS = 5.0
"""How long no worker serves before what waits fails: its callers then still have time."""
FRAME_SECONDS = 0.0005
"""HSM time below which items are not spread over several workers."""
_LONG = 60.0  # seconds after which a caller may retry what only an operator can repair

# Failures as callers read them. Operators read causes in status and logs.
# Another token that holds the key may still sign what fails here: see the router.
NOT_SERVING = Failure(
    Reason.HSM_UNAVAILABLE, "the HSM does not serve now: try again later", retry_after=5.0
)
WRONG = Failure(
    Reason.HSM_UNAVAILABLE,
    "the HSM returned a wrong signature: the key is stopped",
    retry_after=_LONG,
)
LOST = Failure(Reason.HSM_UNAVAILABLE, "a worker died over this item: try again", retry_after=1.0)
TWO_WORKERS_DIED = Failure(
    Reason.HSM_UNAVAILABLE, "two workers died over this item: try again", retry_after=1.0
)
_REFUSED = {
    Verdict.NO_KEY: "the HSM does not hold the key of {}",
    Verdict.AMBIGUOUS: "the HSM holds two keys with the CKA_ID of {}",
    Verdict.REFUSED: "the HSM refuses to sign with the key of {}",
    Verdict.UNSUITABLE: "the public key pinned for {} does not fit its algorithm",
    Verdict.NO_WRAPPING_KEY: "the HSM does not hold the wrapping key of {}, or holds it twice",
    Verdict.NOT_UNWRAPPED: "the HSM does not unwrap the key of {}: it was changed, or it was"
    " wrapped by another key",
}


class Dispatcher:
    """The queue, the stops and the workers of one token."""

    def __init__(
        self,
        spec: TokenSpec,
        *,
        workers: int,
        start_seconds: float,
        hang_seconds: float,
        loop: EventLoop,
        events: Events,
        clock: Clock,
        breaker: Breaker,
        spares: Sequence[WorkerProcess] = (),
    ) -> None:
        self.breaker = breaker
        self.costs = Costs(clock)
        self.scheduler = Scheduler(self.costs.estimate)
        self.pace = Pace()
        self.stops = Stops()
        waiting = iter(spares)
        self.slots = [
            Slot(
                spec,
                self,
                start_seconds=start_seconds,
                hang_seconds=hang_seconds,
                clock=clock,
                spare=next(waiting, None),
            )
            for _ in range(workers)
        ]
        self.failed = ""  # why no worker serves, until one does
        self.halted = ""  # why no worker will serve until the daemon ends
        self.first_outcome = threading.Event()  # a worker serves, or has failed
        self.first_failure: FailureKind | None = None
        self.last_cause: FailureKind | None = None
        self._token = spec.label
        self._loop = loop.loop
        self._events = events
        self._now = clock.monotonic
        self._tasks: list[asyncio.Task[None]] = []
        self._served_at = self._now()  # when a worker was last seen to serve, or the start
        self._looked, self._waited = self._now(), False  # at the pace, and whether work waited then
        self._added = 0  # items since the queue was last looked at
        self._together = Gatherer(loop.loop, lambda: self._added, self._pump)
        self._next_chunk = 0
        self._start_failures = LastingFailures(clock.monotonic)
        self._refused: dict[bytes, Verdict] = {}  # by CKA_ID, since the last signature

    @property
    def serving(self) -> int:
        """How many workers serve; for any thread."""
        return sum(slot.state == "serving" for slot in self.slots)

    def in_flight(self) -> float:
        """Returns the HSM time of the chunks that workers have, about."""
        return sum(chunk.seconds for slot in self.slots for chunk in slot.in_flight.values())

    def start(self) -> None:
        """Starts all workers; does not wait for them."""
        for coroutine in (self._watch(), *(slot.keep() for slot in self.slots)):
            task = self._loop.create_task(coroutine)
            task.add_done_callback(self._report)
            self._tasks.append(task)

    def close(self) -> list[asyncio.Task[None]]:
        """Ends the service; returns the tasks that have not ended yet."""
        self.halt("the daemon is stopping")
        for slot in self.slots:
            slot.close()
        if self._tasks:
            self._tasks[0].cancel()  # the watch
        return [task for task in self._tasks if not task.done()]

    def _report(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and isinstance(error := task.exception(), Exception):
            self._events.emit(Bug(f"the workers of token {self._token}", error, {}))

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            self.costs.forget()
            self.look_at_pace()
            for slot in self.slots:
                slot.check()
            self._look_for_service()

    def look_at_pace(self) -> None:
        """Learns from the time since the last look if work has waited in all of it."""
        now, workers = self._now(), self.serving
        waits = bool(workers) and self.scheduler.seconds() >= WATCH_SECONDS * workers
        self.pace.look(workers * (now - self._looked), busy=waits and self._waited)
        self._looked, self._waited = now, waits

    def _look_for_service(self) -> None:
        """Fails what waits once no worker has served for long, whatever becomes of them."""
        now = self._now()
        if self.serving:
            self._served_at = now
        elif not self.failed and now - self._served_at > AWAY_SECONDS:
            self.failed = next((slot.reason for slot in self.slots if slot.reason), "starting")
            self._fail_all()

    def drop(self, versions: Collection[KeyVersion]) -> None:
        """Makes workers destroy session copies and unwrapped keys; one that signs comes again."""
        here = [i for version in versions if (i := version.cka_id_on(self._token)) is not None]
        if not here:
            return
        # Singly: to unwrap all others again would take a token longer than to look for these.
        body = pack_ids(here)
        for slot in self.slots:
            slot.send(FrameKind.DROP, body)

    def drop_at(self, slot: Slot, version: KeyVersion) -> None:
        """Makes one worker destroy the session copy or the unwrapped key of a version."""
        slot.send(FrameKind.DROP, pack_ids([version.cka_id_on(self._token) or version.cka_id]))

    def _fail_all(self) -> None:
        for portion in self.scheduler.remove(lambda _: True):
            portion.fail(NOT_SERVING)

    def halt(self, text: str) -> None:
        """Ends the pool's service until the daemon ends."""
        self.halted = self.halted or text
        self._fail_all()
        for slot in self.slots:
            slot.state, slot.reason = "failed", self.halted

    def fail_stopped(self) -> None:
        """Fails waiting items that may not be signed any more, in one pass over the queue."""
        reason = self.stops.reason
        for portion in self.scheduler.remove(lambda batch: bool(reason(batch.job.version))):
            portion.fail(self._verdict(portion.batch) or NOT_SERVING)

    def _verdict(self, batch: Batch) -> Failure | None:
        """Returns why no signature of a batch may be made or released here any more, or None."""
        version = batch.job.version
        if text := self.stops.reason(version):
            if batch.elsewhere and not self.stops.everywhere(version):
                return WRONG
            return Failure(Reason.KEY_VERSION_NOT_ACTIVE, text)
        return NOT_SERVING if self.halted else None

    def _evict(self) -> None:
        """Gives up what waits and another token can sign."""
        for portion in self.scheduler.remove(lambda batch: batch.elsewhere):
            portion.fail(NOT_SERVING)

    # --- chunks ----------------------------------------------------------------------------

    def add(self, batch: Batch) -> None:
        """Queues a batch."""
        self.scheduler.add(batch)
        self._added += batch.remaining
        self.wake()

    def wake(self) -> None:
        """Looks at the queue soon, once for all that comes together."""
        self._together.soon()

    def _pump(self) -> None:
        """Gives chunks to workers while there are both.

        Idle workers share what waits. One that has a chunk gets a second only if that is
        full: what comes meanwhile goes together in the next one.
        """
        scheduler, self._added = self.scheduler, 0
        if not scheduler.items:
            return
        serving = [slot for slot in self.slots if slot.state == "serving"]
        idle = [slot for slot in serving if not slot.in_flight]
        least = self._worth_a_frame() if idle else 0
        while idle and scheduler.items:
            share = -(-scheduler.items // len(idle))
            self._give(idle.pop(0), max(share, least))
        for slot in serving:
            if not (scheduler.items and scheduler.full()):
                return
            if len(slot.in_flight) == 1:
                self._give(slot, scheduler.items)

    def _worth_a_frame(self) -> int:
        """Returns how many items take as long to sign as a frame takes to come and go."""
        scheduler = self.scheduler
        seconds = scheduler.seconds()
        return int(FRAME_SECONDS * scheduler.items / seconds) if seconds else 1

    def _give(self, slot: Slot, most: int) -> None:
        """Gives a worker the next chunk, of at most ``most`` items."""
        chunk = self.scheduler.take(most)
        if chunk is None:
            return
        self._next_chunk += 1
        now = self._now()
        for portion in chunk.portions:
            batch = portion.batch
            batch.begun = batch.begun or now
            if batch.attempts <= chunk.attempts:
                batch.attempts = chunk.attempts + 1
        slot.send_chunk(self._next_chunk, chunk)

    def _settle(self, slot: Slot, part: Part, result: ResultPart) -> None:
        """Gives the items of a part what became of them."""
        version = part.version
        if self.halted or self.stops.reason(version):
            for portion in part.portions:
                portion.fail(self._verdict(portion.batch) or NOT_SERVING)
            # This part may have followed the order to drop the key's copy.
            self.drop_at(slot, version)
            return
        if result.verdict is not Verdict.SIGNED:
            text = _REFUSED[result.verdict].format(version.name)
            if self._refused.get(version.cka_id) is not result.verdict:
                self._refused[version.cka_id] = result.verdict
                self._events.emit(KeyRefused(self._token, version.name, result.verdict.name, text))
            failure = Failure(Reason.HSM_UNAVAILABLE, text, retry_after=_LONG)
            for portion in part.portions:
                portion.fail(failure)
            return
        self._refused.pop(version.cka_id, None)
        slot.items += part.items
        self.breaker.signed()
        self.costs.learn(kind_of(version), result.busy_us / 1e6, part.items, part.size())
        if result.wrong:
            self._distrust(version)
        signatures = result.split()
        at = 0
        for portion in part.portions:
            start, count = portion.start, portion.stop - portion.start
            failures = _wrong_items(result.wrong, at, count, start) if result.wrong else {}
            portion.batch.store(start, signatures[at : at + count], failures)
            at += count
        if result.wrong:
            self._events.emit(WrongSignatures(self._token, version.name, len(result.wrong)))
            self.drop([version])

    def _distrust(self, version: KeyVersion) -> None:
        """Stops the key of a wrong signature; the third such key stops the token.

        Keys are counted, not items: one wrong pin makes every signature of its
        part wrong, and must not stop the token for all others.
        """
        self.stops.distrust(version)
        self.fail_stopped()
        if len(self.stops.wrong) >= WRONG_SIGNATURES_STOP_TOKEN:
            self.halt(
                f"token {self._token} is stopped: {len(self.stops.wrong)} keys had wrong "
                "signatures; examine the HSM, then restart the daemon"
            )

    def _requeue(self, chunk: Chunk, blamed: bool) -> None:
        """Requeues a chunk whose worker died, or fails what may not be signed any more.

        A ``blamed`` chunk may have killed the worker, by one item of one call: the items of each
        call go on alone, as a chunk of their own. One that has killed two workers fails.
        """
        deaths = chunk.deaths + blamed
        kept: list[Portion] = []
        for portion in chunk.portions:
            batch = portion.batch
            failure = self._verdict(batch)
            if failure is None and deaths + batch.deaths >= ATTEMPTS:
                failure = TWO_WORKERS_DIED
            if failure is None and batch.elsewhere:
                failure = LOST if blamed else NOT_SERVING
            if failure is not None:
                portion.fail(failure)
            elif not batch.abandoned:
                kept.append(portion)
        alone = [[one] for portion in kept for one in portion.by_call()] if blamed else [kept]
        for portions in alone:
            if portions:
                self.scheduler.give_back(Chunk(portions, chunk.attempts + 1, deaths))

    # --- what slots report -----------------------------------------------------------------

    def logged_in(self, failed: FailureKind | None) -> None:
        """A worker has tried to log in: every attempt is counted, however it ends."""
        self._events.emit(login_ended(self._token, failed))

    def ready(self, slot: Slot) -> None:
        """A worker has opened its token: it serves from here on."""
        self.failed = ""
        self._start_failures.over()
        slot.state, slot.reason = "failed" if self.halted else "serving", self.halted
        self.first_outcome.set()
        self.wake()

    def result(self, slot: Slot, result: ResultFrame) -> None:
        """A chunk has come back. Raises FrameError if it is not the result of a chunk."""
        chunk = slot.in_flight.get(result.chunk)
        if chunk is None or len(result.parts) != len(chunk.parts):
            raise FrameError("a result that belongs to no chunk")
        busy_us = checked = wrong = 0
        for part, answer in zip(chunk.parts, result.parts, strict=True):
            if answer.verdict is Verdict.SIGNED and answer.items != part.items:
                raise FrameError("a result that belongs to no chunk")
            busy_us += answer.busy_us
            checked += answer.checked
            wrong += len(answer.wrong)
        del slot.in_flight[result.chunk]
        self.pace.done(chunk.seconds)
        for part, answer in zip(chunk.parts, result.parts, strict=True):
            self._settle(slot, part, answer)
        self._events.emit(ChunkEnded(self._token, busy_us / 1e6, chunk.items, checked, wrong))
        self.wake()

    def lost(self, slot: Slot) -> None:
        """A worker has stopped serving: its chunks go to others.

        It signed in order, so only the first chunk can have killed it, if it got that.
        """
        lost, slot.in_flight = list(slot.in_flight.values()), {}
        opened = self.breaker.lost(at_work=bool(lost), serving=self.serving > 0)
        for position, chunk in enumerate(lost):
            self._requeue(chunk, blamed=position == 0 and chunk.delivered)
        if opened and not self.halted:
            self._events.emit(BreakerOpened(self._token))
            self._evict()
        self.wake()

    def left(self, slot: Slot, end: WorkerEnd, failed_starts: int) -> None:
        """A worker is gone.

        What waits goes on waiting for the next worker, unless no worker serves and
        workers cannot start. While a token is away, the workers fail every few seconds for hours:
        that is reported once a minute, and counted each time.
        """
        again = failed_starts and not self._start_failures.is_news(end.text)
        event = WorkerFailedAgain if again else WorkerLeft
        self._events.emit(event(self._token, end.cause, end.text))
        slot.state, slot.reason = "failed", self.halted or end.text
        self.last_cause = end.cause
        hopeless = failed_starts > ATTEMPTS or (failed_starts and end.cause.lasting)
        if hopeless and not self.serving:
            self.failed = end.text
            self._fail_all()
        if not self.serving and failed_starts:
            self.first_failure = self.first_failure or end.cause
            self.first_outcome.set()


def login_ended(token: str, failed: FailureKind | None) -> LoginEnded:
    """Returns the event of a login; None: it succeeded.

    A worker that dies or hangs in its login has tried one as well.
    """
    if failed is None:
        return LoginEnded(token, "ok")
    rejected = failed is FailureKind.PIN_REJECTED
    return LoginEnded(token, failed if rejected else FailureKind.LOGIN_FAILED)


def _wrong_items(wrong: Sequence[int], at: int, count: int, start: int) -> dict[int, Failure]:
    """Returns the failures of a portion: ``count`` items from ``at`` on in its part.

    They are by their index in the batch, where the portion begins with the item ``start``.
    """
    return {index - at + start: WRONG for index in wrong if at <= index < at + count}

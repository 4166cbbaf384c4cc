"""The worker processes of one token, as the rest of the front process uses them.

Everything that changes runs on the event loop. Other threads call methods that pass the
change to the loop and wait for it.
"""

import asyncio
import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from signer.algorithms import PROPERTIES
from signer.clock import Clock
from signer.config.models import Config, TokenConfig
from signer.errors import CallError, Failure, Reason
from signer.event_loop import EventLoop
from signer.events import BreakerClosed, Events, stages
from signer.hsm.front.admission_check import AdmissionCheck
from signer.hsm.front.breaker import Breaker
from signer.hsm.front.chunks import LATE, Batch, Signed, SignJob, kind_of
from signer.hsm.front.dispatcher import NOT_SERVING, WRONG, Dispatcher
from signer.hsm.front.process import WorkerProcess, token_spec
from signer.hsm.front.scheduler import Waiting
from signer.hsm.front.slot import WorkerStatus
from signer.hsm.spec import FailureKind, TokenSpec
from signer.model import KeyVersion, Suspended

_CANARY, _CANARY_OWNER = b"signer.v1 canary", "_canary"  # no id of a facility begins so


@dataclass(slots=True, eq=False)
class Admission:
    """The answer to a job, which ``sign`` takes: ``refused`` is the failure of every item, or None.

    ``room`` items of the queue, with ``size`` bytes, are reserved for it. ``release`` gives back
    what has not been used; so does the end of a ``with`` block.
    ``elsewhere``: what the pool loses of it goes to another token; over what comes from there
    ``deaths`` workers have died. ``shares`` are the admissions of several tokens' pools, which
    together are that of the job.
    """

    job: SignJob
    refused: Failure | None = None
    room: int = 0
    size: int = 0
    pool: "Pool | None" = None
    elsewhere: bool = False
    deaths: int = 0
    shares: "Sequence[Admission]" = ()

    def release(self) -> None:
        for share in self.shares:
            share.release()
        if self.pool is not None:
            self.pool.release(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class Pool:
    """All workers of one token.

    ``admit`` and ``sign`` are for the event loop. The other methods and the properties are for
    any thread; ``wait_for_outcome`` and ``close`` block, and are not for the loop.
    """

    def __init__(
        self,
        spec: TokenSpec,
        *,
        workers: int,
        start_seconds: float,
        hang_seconds: float,
        max_queued: int,
        loop: EventLoop,
        events: Events,
        clock: Clock,
        keys: Callable[[], Iterable[KeyVersion]] = tuple,
        spares: Sequence[WorkerProcess] = (),
    ) -> None:
        """``keys`` returns the versions of which one may sign a canary.

        ``spares`` are workers that were spawned already; see Slot.
        """
        self.token = spec.label
        self.breaker = Breaker()
        self._keys, self._clock, self._canary_seconds = keys, clock, hang_seconds + 1
        self._canaries: asyncio.Task[None] | None = None
        self._loop = loop
        self._events = events
        self._now = clock.monotonic
        self._dispatcher = Dispatcher(
            spec,
            workers=workers,
            start_seconds=start_seconds,
            hang_seconds=hang_seconds,
            loop=loop,
            events=events,
            clock=clock,
            breaker=self.breaker,
            spares=spares,
        )
        self._scheduler = self._dispatcher.scheduler
        self._admissions = AdmissionCheck(self._dispatcher, max_queued, clock)

    @classmethod
    def of(
        cls,
        token: TokenConfig,
        config: Config,
        *,
        loop: EventLoop,
        events: Events,
        clock: Clock,
        keys: Callable[[], Iterable[KeyVersion]],
        spares: Sequence[WorkerProcess] = (),
    ) -> Self:
        """Returns the workers of a token as the configuration has them."""
        return cls(
            token_spec(token, config.state),
            workers=token.workers,
            start_seconds=token.start_seconds,
            hang_seconds=token.hang_seconds,
            max_queued=config.limits.queued_items,
            loop=loop,
            events=events,
            clock=clock,
            keys=keys,
            spares=spares,
        )

    # --- for any thread --------------------------------------------------------------------

    def start(self) -> None:
        """Starts all workers; does not wait for them."""

        def start() -> None:
            self._dispatcher.start()
            self._canaries = self._loop.loop.create_task(
                self.breaker.keep(self._sign_canary, self._work_again)
            )

        self._loop.call(start)

    def wait_for_outcome(self, seconds: float) -> tuple[FailureKind | None, str]:
        """Waits until a worker serves or one has failed; returns the failure, if any."""
        self._dispatcher.first_outcome.wait(seconds)
        return self._dispatcher.first_failure, self.reason

    @property
    def settled(self) -> bool:
        """Whether a worker serves, or one has failed."""
        return self._dispatcher.first_outcome.is_set()

    def close(self) -> None:
        """Ends all workers and waits for that; what waits, or is with them, fails."""
        if self._canaries is not None:
            self._loop.call(self._canaries.cancel)
        if ended := self._loop.call(self._dispatcher.close):
            self._loop.run(asyncio.wait(ended))

    @property
    def inventory(self) -> bytes:
        """Digest of the keys in a worker's index; empty before the first start, or without one."""
        return next((slot.inventory for slot in self._dispatcher.slots if slot.inventory), b"")

    @property
    def serving(self) -> int:
        return self._dispatcher.serving

    @property
    def reason(self) -> str:
        """Why no worker serves; empty where one does."""
        if self.serving:
            return ""
        return (
            self._dispatcher.halted
            or self._dispatcher.failed
            or next((slot.reason for slot in self._dispatcher.slots if slot.reason), "starting")
        )

    def status(self) -> list[WorkerStatus]:
        return [slot.status() for slot in self._dispatcher.slots]

    def waiting(self) -> list[Waiting]:
        """Returns what waits for a worker, batch by batch."""
        return self._loop.call(lambda: list(self._scheduler.waiting()))

    @property
    def pin_latched(self) -> bool:
        """Whether the last worker could not log in because of the PIN."""
        return (
            self._dispatcher.last_cause is not None
            and self._dispatcher.last_cause.about_pin
            and not self.serving
        )

    def keys_changed(self, ids: Collection[bytes]) -> None:
        """Passes on the CKA_IDs of keys that were created or destroyed.

        Every worker looks them up again when it uses them after the chunks that it has now.
        """

        def pass_on() -> None:
            for slot in self._dispatcher.slots:
                slot.keys_changed(ids)

        self._loop.call(pass_on)

    def stop_keys(self, versions: Mapping[KeyVersion, str]) -> None:
        """Stops versions at once, each for its reason.

        Their waiting items fail, their session copies are destroyed, and no signature
        that comes back later is released.
        """

        def stop() -> None:
            self._dispatcher.stops.stop(versions)
            self._dispatcher.fail_stopped()
            self._dispatcher.drop(versions)

        self._loop.call(stop)

    def resume_keys(self, versions: Iterable[KeyVersion]) -> None:
        """Lets versions sign again; one with a wrong signature stays stopped."""
        self._loop.call(self._dispatcher.stops.resume, versions)

    def suspend(self, suspended: Suspended, stopped: Sequence[KeyVersion]) -> None:
        """Replaces what is suspended, at once.

        ``stopped`` are the versions on this token that were not suspended before: their
        session copies are destroyed. No signature that comes back later is released.
        """

        def suspend() -> None:
            self._dispatcher.stops.suspended = suspended
            self._dispatcher.fail_stopped()
            self._dispatcher.drop(stopped)

        self._loop.call(suspend)

    def drop(self, versions: Collection[KeyVersion]) -> None:
        """Makes workers destroy session copies; a key that still signs is copied again."""
        self._loop.call(self._dispatcher.drop, versions)

    # --- the way of a batch ----------------------------------------------------------------

    def admit(self, job: SignJob, *, elsewhere: bool = False, deaths: int = 0) -> Admission:
        """Decides whether a job may be signed now, and reserves its room in the queue.

        ``refused`` of the answer is the failure of every item, None if the job is
        admitted. An empty job always is. Raises CallError: OVERLOADED,
        DEADLINE_TOO_SHORT, KEY_VERSION_NOT_ACTIVE.
        """
        count = len(job.inputs)
        if not count:
            return Admission(job)
        if (refused := self._refusal(job.version)) is not None:
            return Admission(job, refused)
        self._admissions.check_room(job)
        hashed = PROPERTIES[job.version.algorithm].hash_name
        size = 0 if hashed else sum(map(len, job.inputs))
        self._admissions.check_time(job, size)
        self._scheduler.promise(job.owner, kind_of(job.version), count, size)
        return Admission(job, None, count, size, self, elsewhere, deaths)

    def release(self, admission: Admission) -> None:
        """Gives back the room of an admission that is not used."""
        if admission.room:
            job = admission.job
            kind, items, size = kind_of(job.version), admission.room, admission.size
            admission.room = 0
            self._scheduler.promise(job.owner, kind, -items, -size)

    async def sign(self, admission: Admission) -> Signed:
        """Signs an admitted batch; returns when every item has its signature or its failure.

        Raises CallError: DEADLINE_TOO_SHORT where the deadline passes meanwhile (of a job of
        several calls, the items that are not signed then have the failure LATE),
        KEY_VERSION_NOT_ACTIVE where the version was stopped after its admission. What is
        unsigned leaves the queue at the deadline, and where the waiting task is cancelled.
        """
        job = admission.job
        if admission.refused is not None:
            return Signed.all_failed(job, admission.refused)
        self.release(admission)
        if admission.elsewhere and self._distrusts_alone(job.version):
            return Signed.all_failed(job, WRONG)  # which goes on to another token
        if (refused := self._refusal(job.version)) is not None:
            return Signed.all_failed(job, refused)
        now, count = self._now(), len(job.inputs)
        if not count:
            return Signed([], {}, 0)
        if job.deadline <= now:
            raise too_late(count, count)
        loop = self._loop.loop
        done: asyncio.Future[None] = loop.create_future()
        batch = Batch(job, now, done, elsewhere=admission.elsewhere, deaths=admission.deaths)
        self._dispatcher.add(batch)
        timer = loop.call_later(job.deadline - now, _expire, done)
        try:
            await done
        finally:
            timer.cancel()
            remaining = batch.remaining
            if remaining:
                self._scheduler.abandon(batch)
            stages().append(("queue", now, (batch.begun or self._now()) - now))
        if not remaining:
            return Signed(batch.signatures, batch.failures, batch.attempts)
        if job.cuts is None:
            raise too_late(remaining, count)
        # What is there belongs to calls that are done; what comes later is not taken any more.
        signatures, failures = list(batch.signatures), dict(batch.failures)
        late = {i: LATE for i, made in enumerate(signatures) if not made and i not in failures}
        return Signed(signatures, failures | late, batch.attempts)

    def can_sign(self, version: KeyVersion) -> bool:
        """Returns whether a version may sign here, or may once a worker serves again."""
        dispatcher = self._dispatcher
        away = dispatcher.halted or dispatcher.failed
        return not away and not dispatcher.stops.distrusts(version)

    def ahead(self) -> float:
        """Returns the seconds until the workers have done what waits and is admitted, about."""
        return self._admissions.ahead()

    def rate(self, version: KeyVersion) -> float:
        """Returns how many items a second the workers sign with a version, about."""
        costs = self._dispatcher.costs
        return self._admissions.workers() / costs.estimate(kind_of(version)).item

    def _work_again(self) -> None:
        self._events.emit(BreakerClosed(self.token))

    async def _sign_canary(self) -> bool:
        """Returns whether the token signs again. What it signs is checked, and not released."""
        if not self.serving:
            return False
        version = self._canary()
        if version is None:
            return True
        job = canary_job(version, self._now() + self._canary_seconds)
        try:
            with self.admit(job) as admission:
                return admission.refused is None and not (await self.sign(admission)).failures
        except CallError:
            return False

    def _canary(self) -> KeyVersion | None:
        """Returns a version that may sign here now, None if there is none."""
        now, reason = self._clock.now(), self._dispatcher.stops.reason
        return next(
            (
                version
                for version in self._keys()
                if version.cka_id_on(self.token) and version.active(now) and not reason(version)
            ),
            None,
        )

    def _refusal(self, version: KeyVersion) -> Failure | None:
        """Returns why the pool takes no job now; raises CallError if the version is stopped."""
        if text := self._dispatcher.stops.reason(version):
            raise CallError(Reason.KEY_VERSION_NOT_ACTIVE, text)
        return NOT_SERVING if self._dispatcher.halted or self._dispatcher.failed else None

    def _distrusts_alone(self, version: KeyVersion) -> bool:
        """Returns whether a version is stopped at this token only, for a wrong signature."""
        stops = self._dispatcher.stops
        return stops.distrusts(version) and not stops.everywhere(version)


def canary_job(version: KeyVersion, deadline: float) -> SignJob:
    """Returns a job for a signature that shows whether a token signs, and is thrown away.

    It is one of bytes that no message of any format begins with, and is always checked.
    """
    name = PROPERTIES[version.algorithm].hash_name
    data = hashlib.new(name, _CANARY).digest() if name else _CANARY
    return SignJob(version, [data], _CANARY_OWNER, 1, 1, deadline)


def _expire(done: asyncio.Future[None]) -> None:
    """Wakes the task that waits for a batch: its deadline has passed."""
    if not done.done():
        done.set_result(None)


def too_late(remaining: int, count: int) -> CallError:
    """Returns the error of a call of which so many items were not signed in time."""
    late = "not signed within the deadline"
    text = f"{remaining} of {count} items were {late}: send smaller batches or allow more time"
    if count == 1:
        text = f"the item was {late}: allow more time"
    return CallError(Reason.DEADLINE_TOO_SHORT, text)

"""The worker processes of one token, supervised.

One thread for each worker starts it, reads its answers and starts another when it has
gone. Callers block in ``sign`` until their whole batch is done. The lock guards the
queue and all counts; no thread waits for the HSM while it holds the lock.
"""

import threading
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

from signer.clock import Clock
from signer.errors import CallError, Failure, Reason
from signer.events import ChunkEnded, Events, LoginEnded, StageEnded, WorkerLeft, WrongSignatures
from signer.hsm.frames import FrameError, FrameKind, ResultFrame, Verdict, pack_ids
from signer.hsm.front.scheduler import Batch, Costs, Scheduler, Stops, Waiting
from signer.hsm.front.slot import Slot, WorkerEnd, WorkerStatus
from signer.hsm.spec import FailureKind, TokenSpec
from signer.model import KeyVersion, Signed, SignJob, Suspended

CHUNKS_IN_FLIGHT = 2
ATTEMPTS = 2
WRONG_SIGNATURES_STOP_TOKEN = 3
COPIES_DROPPED_SINGLY = 64
"""Of more versions, a worker drops all copies: each costs about a signature to make again."""
_LONG = 60.0  # seconds after which a caller may retry what only an operator can repair

# Failures as callers read them. Operators read causes in status and logs.
_NOT_SERVING = Failure(
    Reason.HSM_UNAVAILABLE, "the HSM does not serve now: try again later", retry_after=5.0
)
_WRONG = Failure(
    Reason.HSM_UNAVAILABLE,
    "the HSM returned a wrong signature: the key is stopped",
    retry_after=_LONG,
)
_TWO_WORKERS_DIED = Failure(
    Reason.HSM_UNAVAILABLE, "two workers died over this item: try again", retry_after=1.0
)
_REFUSED = {
    Verdict.NO_KEY: "the HSM does not hold the key of {}",
    Verdict.REFUSED: "the HSM refuses to sign with the key of {}",
    Verdict.UNSUITABLE: "the public key pinned for {} does not fit its algorithm",
}


@dataclass(slots=True, eq=False)
class Admission:
    """The answer to a job, which ``sign`` takes: ``refused`` is the failure of every item, or None.

    ``room`` items of the queue are reserved for it. A ``with`` block gives back what has
    not been used by its end.
    """

    job: SignJob
    refused: Failure | None = None
    room: int = 0
    pool: "Pool | None" = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.pool is not None:
            self.pool.release(self)


class Pool:
    """All workers of one token."""

    def __init__(
        self,
        spec: TokenSpec,
        *,
        workers: int,
        hang_seconds: float,
        max_queued: int,
        events: Events,
        clock: Clock,
    ) -> None:
        self.token = spec.label
        self._max_queued = max_queued
        self._events = events
        self._clock = clock
        self._lock = threading.Lock()
        self._costs = Costs()
        self._scheduler = Scheduler(self._costs.estimate)
        self._slots = [Slot(n, spec, self, hang_seconds, clock) for n in range(workers)]
        self._stops = Stops()
        self._next_chunk = 0
        self._reserved = 0  # items that are admitted and not queued yet
        self._failed = ""  # why no worker serves, until one does
        self._halted = ""  # why no worker will serve until the daemon ends
        self._first_outcome = threading.Event()
        self._first_failure: FailureKind | None = None
        self._last_cause: FailureKind | None = None

    # --- for the front process -------------------------------------------------------------

    def start(self) -> None:
        for slot in self._slots:
            slot.start()

    def wait_for_outcome(self, seconds: float) -> tuple[FailureKind | None, str]:
        """Waits until a worker serves or one has failed; returns the failure, if any."""
        self._first_outcome.wait(seconds)
        return self._first_failure, self.reason

    def close(self) -> None:
        """Ends all workers; what waits, or is with them, fails."""
        with self._lock:
            self._halt("the daemon is stopping")
        for slot in self._slots:
            slot.close()
        for slot in self._slots:
            slot.join()
        with self._lock:
            for slot in self._slots:
                self._lose(slot)

    @property
    def inventory(self) -> bytes:
        """Digest of the keys that a worker found at its start; empty before the first."""
        return next((slot.inventory for slot in self._slots if slot.inventory), b"")

    @property
    def serving(self) -> int:
        return sum(slot.state == "serving" for slot in self._slots)

    @property
    def reason(self) -> str:
        """Why no worker serves; empty where one does."""
        if self.serving:
            return ""
        return (
            self._halted
            or self._failed
            or next((slot.reason for slot in self._slots if slot.reason), "starting")
        )

    def status(self) -> list[WorkerStatus]:
        return [slot.status() for slot in self._slots]

    def waiting(self) -> list[Waiting]:
        """Returns what waits for a worker, batch by batch."""
        with self._lock:
            return list(self._scheduler.waiting())

    @property
    def pin_latched(self) -> bool:
        """Whether the last worker could not log in because of the PIN."""
        return self._last_cause is not None and self._last_cause.about_pin and not self.serving

    def admit(self, job: SignJob) -> Admission:
        """Decides whether a job may be signed now, and reserves its room in the queue.

        ``refused`` of the answer is the failure of every item, None if the job is
        admitted. An empty job always is. Raises CallError: OVERLOADED,
        DEADLINE_TOO_SHORT, KEY_VERSION_NOT_ACTIVE.
        """
        count = len(job.inputs)
        if not count:
            return Admission(job)
        with self._lock:
            if (refused := self._refusal(job.version)) is not None:
                return Admission(job, refused)
            self._check_room(count)
            self._check_time(job)
            self._reserved += count
        return Admission(job, None, count, self)

    def release(self, admission: Admission) -> None:
        """Gives back the room of an admission that is not used."""
        with self._lock:
            self._give_back(admission)

    def sign(self, admission: Admission) -> Signed:
        """Signs an admitted batch; blocks until every item has its signature or its failure.

        Raises CallError: DEADLINE_TOO_SHORT where the deadline passes meanwhile,
        KEY_VERSION_NOT_ACTIVE where the version was stopped after its admission.
        """
        job = admission.job
        if admission.refused is not None:
            return Signed.all_failed(job, admission.refused)
        now = self._clock.monotonic()
        batch = Batch(job, now)
        with self._lock:
            self._give_back(admission)
            if (refused := self._refusal(job.version)) is not None:
                return Signed.all_failed(job, refused)
            self._scheduler.add(batch)
        self._pump()
        batch.done.wait(max(0.0, job.deadline - self._clock.monotonic()))
        queued = (batch.begun or self._clock.monotonic()) - now
        self._events.emit(StageEnded("queue", now, queued))
        with self._lock:
            if remaining := batch.remaining:  # nobody waits for these items any more
                batch.abandoned = True
                self._scheduler.remove(lambda other: other is batch)
        if remaining:
            raise CallError(
                Reason.DEADLINE_TOO_SHORT,
                f"{remaining} of {len(job.inputs)} items were not signed within the "
                "deadline: send smaller batches or allow more time",
            )
        return Signed(batch.signatures, batch.failures, batch.attempts)

    def refresh(self) -> None:
        """Makes every worker look for new keys before it gets another chunk."""
        for slot in self._slots:
            slot.refresh()

    def stop_keys(self, versions: Mapping[KeyVersion, str]) -> None:
        """Stops versions at once, each for its reason.

        Their waiting items fail, their session copies are destroyed, and no signature
        that comes back later is released.
        """
        with self._lock:
            self._stops.stop(versions)
            self._fail_stopped()
        self.drop(versions)

    def resume_keys(self, versions: Iterable[KeyVersion]) -> None:
        """Lets versions sign again; one with a wrong signature stays stopped."""
        with self._lock:
            self._stops.resume(versions)

    def suspend(self, suspended: Suspended, stopped: Sequence[KeyVersion]) -> None:
        """Replaces what is suspended, at once.

        ``stopped`` are the versions on this token that were not suspended before: their
        session copies are destroyed. No signature that comes back later is released.
        """
        with self._lock:
            self._stops.suspended = suspended
            self._fail_stopped()
        self.drop(stopped)

    def drop(self, versions: Collection[KeyVersion]) -> None:
        """Makes workers destroy session copies; a key that still signs is copied again."""
        if not versions:
            return
        # One frame for each worker: a full socket of a hung one must not block the caller.
        single = len(versions) <= COPIES_DROPPED_SINGLY
        body = pack_ids(version.cka_id for version in versions) if single else b""
        for slot in self._slots:
            slot.send(FrameKind.DROP, body)

    # --- the queue (all under the lock) ----------------------------------------------------

    def _refusal(self, version: KeyVersion) -> Failure | None:
        """Returns why the pool takes no job now; raises CallError if the version is stopped."""
        if text := self._stops.reason(version):
            raise CallError(Reason.KEY_VERSION_NOT_ACTIVE, text)
        return _NOT_SERVING if self._halted or self._failed else None

    def _check_room(self, count: int) -> None:
        # A batch above the limit passes where nothing waits, or it never could.
        waiting = self._scheduler.items + self._reserved
        if waiting and waiting + count > self._max_queued:
            text = f"{waiting} items wait already: try again a little later"
            raise CallError(Reason.OVERLOADED, text, {"limit": "queued_items"}, retry_after=1.0)

    def _check_time(self, job: SignJob) -> None:
        needed = len(job.inputs) * self._costs.measured(job) / max(1, self.serving)
        if job.deadline - self._clock.monotonic() < needed:
            raise CallError(
                Reason.DEADLINE_TOO_SHORT,
                f"signing {len(job.inputs)} items takes about {needed:.3f} s, more than the "
                "deadline leaves: send smaller batches or allow more time",
            )

    def _give_back(self, admission: Admission) -> None:
        self._reserved -= admission.room
        admission.room = 0

    def _fail_all(self) -> None:
        for chunk in self._scheduler.remove(lambda _: True):
            chunk.batch.fail(chunk, _NOT_SERVING)

    def _halt(self, text: str) -> None:
        """Ends the pool's service until the daemon ends."""
        self._halted = self._halted or text
        self._fail_all()
        for slot in self._slots:
            slot.state, slot.reason = "failed", self._halted

    def _fail_stopped(self) -> None:
        """Fails what waits and may not sign any more, in one pass over the queue."""
        reason = self._stops.reason
        for chunk in self._scheduler.remove(lambda batch: bool(reason(batch.job.version))):
            text = reason(chunk.batch.job.version)
            chunk.batch.fail(chunk, Failure(Reason.KEY_VERSION_NOT_ACTIVE, text))

    def _verdict(self, version: KeyVersion) -> Failure | None:
        """Returns why no signature of this version may be made or released any more, or None."""
        if text := self._stops.reason(version):
            return Failure(Reason.KEY_VERSION_NOT_ACTIVE, text)
        return _NOT_SERVING if self._halted else None

    def _lose(self, slot: Slot) -> None:
        """Requeues the chunks of a dead worker; a chunk that has killed two workers fails.

        A worker signs in order, so only the first chunk can have killed it.
        """
        lost, slot.in_flight = list(slot.in_flight.values()), {}
        for position, chunk in enumerate(lost):
            deaths = chunk.deaths + (position == 0)
            failure = self._verdict(chunk.batch.job.version)
            if failure is None and deaths >= ATTEMPTS:
                failure = _TWO_WORKERS_DIED
            if failure is not None:
                chunk.batch.fail(chunk, failure)
            elif not chunk.batch.abandoned:
                again = replace(chunk, attempts=chunk.attempts + 1, deaths=deaths)
                self._scheduler.give_back(again)

    # --- chunks ----------------------------------------------------------------------------

    def _pump(self) -> None:
        """Sends chunks to the least busy workers while there are both."""
        while True:
            with self._lock:
                free = [
                    slot
                    for slot in self._slots
                    if slot.state == "serving" and len(slot.in_flight) < CHUNKS_IN_FLIGHT
                ]
                chunk = self._scheduler.take() if free else None
                if chunk is None:
                    return
                slot = min(free, key=lambda slot: len(slot.in_flight))
                self._next_chunk += 1
                number = self._next_chunk
                now = self._clock.monotonic()
                if not slot.in_flight:
                    slot.since = now
                slot.in_flight[number] = chunk
                batch = chunk.batch
                batch.attempts = max(batch.attempts, chunk.attempts + 1)
                batch.begun = batch.begun or now
                worker = slot.process
            slot.send_chunk(worker, number, chunk)

    def _distrust(self, version: KeyVersion) -> None:
        """Stops the key of a wrong signature; the third such key stops the token.

        Keys are counted, not items: one wrong pin makes every signature of its
        chunk wrong, and must not stop the token for all others.
        """
        self._stops.distrust(version)
        self._fail_stopped()
        if len(self._stops.wrong) >= WRONG_SIGNATURES_STOP_TOKEN:
            self._halt(
                f"token {self.token} is stopped: {len(self._stops.wrong)} keys had wrong "
                "signatures; examine the HSM, then restart the daemon"
            )

    # --- what slots report -----------------------------------------------------------------

    def ready(self, slot: Slot) -> None:
        """A worker has logged in: it serves from here on."""
        self._events.emit(LoginEnded(self.token, "ok"))
        with self._lock:
            self._failed = ""
            slot.state, slot.reason = "failed" if self._halted else "serving", self._halted
        self._first_outcome.set()
        self._pump()

    def result(self, slot: Slot, result: ResultFrame) -> None:
        """A chunk has come back. Raises FrameError if it is not the result of a chunk."""
        signatures = result.split()
        with self._lock:
            chunk = slot.in_flight.get(result.chunk)
            signed = result.verdict is Verdict.SIGNED
            if chunk is None or (signed and len(signatures) != len(chunk)):
                raise FrameError("a result that belongs to no chunk")
            del slot.in_flight[result.chunk]
            slot.since = self._clock.monotonic()
            version = chunk.batch.job.version
            if (stopped := self._verdict(version)) is not None:
                chunk.batch.fail(chunk, stopped)
            elif not signed:
                text = _REFUSED[result.verdict].format(version.name)
                chunk.batch.fail(chunk, Failure(Reason.HSM_UNAVAILABLE, text, retry_after=_LONG))
            else:
                slot.items += len(chunk)
                self._costs.learn(chunk.batch.job, result.busy_us / 1e6 / len(chunk))
                if result.wrong:
                    self._distrust(version)
                chunk.batch.store(chunk, signatures, dict.fromkeys(result.wrong, _WRONG))
        busy, wrong = result.busy_us / 1e6, len(result.wrong)
        self._events.emit(ChunkEnded(self.token, busy, len(chunk), result.checked, wrong))
        if result.wrong:
            self._events.emit(WrongSignatures(self.token, version.name, wrong))
            self.drop([version])
        elif stopped is not None:  # this chunk may have followed the order to drop its copy
            slot.send(FrameKind.DROP, pack_ids([version.cka_id]))
        self._pump()

    def left(self, slot: Slot, end: WorkerEnd, failed_starts: int) -> None:
        """A worker has gone and is reaped: its chunks go to others once, then fail.

        What waits goes on waiting for the next worker, unless no worker serves and
        workers cannot start.
        """
        self._events.emit(WorkerLeft(self.token, end.cause, end.text))
        if end.cause is FailureKind.PIN_REJECTED:
            self._events.emit(LoginEnded(self.token, end.cause))
        with self._lock:
            slot.state, slot.reason = "failed", self._halted or end.text
            self._last_cause = end.cause
            self._lose(slot)
            hopeless = failed_starts > ATTEMPTS or (failed_starts and end.cause.lasting)
            if hopeless and not self.serving:
                self._failed = end.text
                self._fail_all()
        if not self.serving and failed_starts:
            self._first_failure = self._first_failure or end.cause
            self._first_outcome.set()
        self._pump()

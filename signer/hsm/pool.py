"""The worker processes of one token, supervised.

One thread a worker starts it, reads its answers and starts another when it has
gone. Callers block in ``sign`` until their whole batch is done. The lock guards
the queue and the books; nothing waits for the HSM while holding it.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace

from signer.clock import Clock
from signer.errors import CallError, Failure, Reason
from signer.hsm.costs import Costs
from signer.hsm.frames import FrameError, Kind, ResultFrame, SignFrame, Verdict, pack_sign
from signer.hsm.refusals import NOT_SERVING, WRONG, refusal
from signer.hsm.scheduler import Chunk, Pending, Scheduler
from signer.hsm.slot import End, Slot
from signer.hsm.spec import FailureKind, TokenSpec
from signer.hsm.status import Observer, Waiting, WorkerStatus
from signer.model import KeyVersion, Signed, SignJob

CHUNKS_IN_FLIGHT = 2
ATTEMPTS = 2
WRONG_SIGNATURES_STOP_TOKEN = 3


class _Batch:
    """A caller's job and what has come back of it."""

    def __init__(self, job: SignJob, now: float) -> None:
        count = len(job.inputs)
        self.pending = Pending(job, now)
        self.signed = Signed([b""] * count, {})
        self.attempts = 0
        self.remaining = count
        self.done = threading.Event()


class Pool:
    """All workers of one token."""

    def __init__(
        self,
        spec: TokenSpec,
        *,
        workers: int,
        hang_seconds: float,
        max_queued: int,
        observer: Observer,
        clock: Clock,
    ) -> None:
        self.token = spec.label
        self._max_queued = max_queued
        self._observer = observer
        self._clock = clock
        self._lock = threading.Lock()
        self._costs = Costs()
        self._scheduler = Scheduler(self._costs.guess)
        self._slots = [Slot(n, spec, self, hang_seconds, clock) for n in range(workers)]
        self._batches: dict[Pending, _Batch] = {}
        self._suspended: dict[bytes, str] = {}  # as the registry says
        self._stopped: dict[bytes, str] = {}  # for this daemon's life
        self._wrong = 0
        self._next_chunk = 0
        self._failed = ""  # why nobody serves, until somebody does
        self._halted = ""  # why nobody will serve any more in this daemon's life
        self._first_outcome = threading.Event()
        self._first_failure: FailureKind | None = None
        self._last_cause: FailureKind | None = None

    # --- for the front process -------------------------------------------------------------

    def start(self) -> None:
        """Starts the workers; does not wait for them."""
        for slot in self._slots:
            slot.start()

    def wait_for_outcome(self, seconds: float) -> tuple[FailureKind | None, str]:
        """Waits until a worker serves or one has failed; returns the failure, if any."""
        self._first_outcome.wait(seconds)
        return self._first_failure, self.reason

    def close(self) -> None:
        """Ends all workers; what still waits, or was with them, fails."""
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
    def serving(self) -> int:
        """How many workers serve."""
        return sum(slot.state == "serving" for slot in self._slots)

    @property
    def reason(self) -> str:
        """Why nobody serves; empty where somebody does."""
        if self.serving:
            return ""
        return (
            self._halted
            or self._failed
            or next((slot.reason for slot in self._slots if slot.reason), "starting")
        )

    def status(self) -> list[WorkerStatus]:
        """The workers, one by one."""
        return [
            WorkerStatus(self.token, slot.pid, slot.state, slot.starts, slot.items, slot.reason)
            for slot in self._slots
        ]

    def waiting(self) -> list[Waiting]:
        """What waits for a worker, job by job."""
        with self._lock:
            return [
                Waiting(each.job.owner, items, each.queued_at)
                for each, items in self._scheduler.waiting()
            ]

    @property
    def pin_latched(self) -> bool:
        """Whether the last worker could not log in because of the PIN."""
        return self._last_cause is not None and self._last_cause.about_pin and not self.serving

    def admit(self, job: SignJob) -> Failure | None:
        """Returns why no item of a job would be signed now, None where they would.

        Raises CallError: OVERLOADED, DEADLINE_TOO_SHORT, KEY_VERSION_NOT_ACTIVE.
        """
        with self._lock:
            return self._admit(job, self._clock.monotonic())

    def sign(self, job: SignJob) -> Signed:
        """Signs a batch; blocks until every item has its signature or its failure.

        Raises what ``admit`` raises.
        """
        now = self._clock.monotonic()
        batch = _Batch(job, now)
        with self._lock:
            if (failure := self._admit(job, now)) is not None:
                return Signed.all_failed(job, failure)
            self._batches[batch.pending] = batch
            self._scheduler.add(batch.pending)
        self._pump()
        batch.done.wait(max(0.0, job.deadline - self._clock.monotonic()))
        if self._abandon(batch):
            raise CallError(
                Reason.DEADLINE_TOO_SHORT,
                f"{batch.remaining} of {len(job.inputs)} items were not signed within the "
                "deadline: send smaller batches or allow more time",
            )
        return batch.signed._replace(attempts=batch.attempts)

    def refresh(self) -> None:
        """Has every worker look for new keys before it gets another chunk."""
        for slot in self._slots:
            slot.refresh()

    def stop_key(self, version: KeyVersion, text: str) -> None:
        """Stops a version at once: what waits of it fails, session copies go, nothing new signs."""
        with self._lock:
            self._suspended[version.cka_id] = text
            self._fail_key(version, text)
        self._drop(version)

    def resume_key(self, version: KeyVersion) -> None:
        """Lets a version sign again; one with a wrong signature stays stopped."""
        with self._lock:
            self._suspended.pop(version.cka_id, None)

    def _drop(self, version: KeyVersion) -> None:
        for slot in self._slots:
            slot.send(Kind.DROP, version.cka_id)

    # --- books (all under the lock) --------------------------------------------------------

    def _admit(self, job: SignJob, now: float) -> Failure | None:
        if (text := self._reason_of(job.version)) is not None:
            raise CallError(Reason.KEY_VERSION_NOT_ACTIVE, text)
        if self._halted or self._failed:
            return NOT_SERVING
        # A batch above the limit passes where nothing waits, or it never could.
        if self._scheduler.items and self._scheduler.items + len(job.inputs) > self._max_queued:
            text = f"{self._scheduler.items} items wait already: try again a little later"
            raise CallError(Reason.OVERLOADED, text, retry_after=1.0)
        needed = len(job.inputs) * (self._costs.known(job) or 0.0) / max(1, self.serving)
        if job.deadline - now < needed:
            raise CallError(
                Reason.DEADLINE_TOO_SHORT,
                f"signing {len(job.inputs)} items takes about {needed:.3f} s, more than the "
                "deadline leaves: send smaller batches or allow more time",
            )
        return None

    def _reason_of(self, version: KeyVersion) -> str | None:
        return self._stopped.get(version.cka_id) or self._suspended.get(version.cka_id)

    def _fail(self, chunk: Chunk, failure: Failure) -> None:
        batch = self._batches.get(chunk.pending)
        if batch is not None:
            batch.signed.failures.update(dict.fromkeys(range(chunk.start, chunk.stop), failure))
            self._settle(batch, len(chunk))

    def _settle(self, batch: _Batch, items: int) -> None:
        batch.remaining -= items
        if not batch.remaining:
            del self._batches[batch.pending]
            batch.done.set()

    def _abandon(self, batch: _Batch) -> bool:
        """Gives up what is left of a batch; False where nothing is left."""
        with self._lock:
            if batch.done.is_set():
                return False
            del self._batches[batch.pending]
            self._scheduler.remove(lambda pending: pending is batch.pending)
            return True

    def _fail_all(self) -> None:
        for chunk in self._scheduler.remove(lambda _: True):
            self._fail(chunk, NOT_SERVING)

    def _halt(self, text: str) -> None:
        """Ends the pool's service for good."""
        self._halted = self._halted or text
        self._fail_all()
        for slot in self._slots:
            slot.state, slot.reason = "failed", self._halted

    def _fail_key(self, version: KeyVersion, text: str) -> None:
        for chunk in self._scheduler.remove(lambda p: p.job.version.cka_id == version.cka_id):
            self._fail(chunk, Failure(Reason.KEY_VERSION_NOT_ACTIVE, text))

    def _verdict(self, version: KeyVersion) -> Failure | None:
        """Why nothing of this version may sign or leave any more, if so."""
        if (text := self._reason_of(version)) is not None:
            return Failure(Reason.KEY_VERSION_NOT_ACTIVE, text)
        if self._halted:
            return NOT_SERVING
        return None

    def _lose(self, slot: Slot) -> None:
        """Takes the chunks of a worker that has gone: to another one, once, or they fail.

        A worker signs in order, so it left over the first; those behind it are blameless.
        """
        lost, slot.in_flight = list(slot.in_flight.values()), {}
        for place, chunk in enumerate(lost):
            deaths = chunk.deaths + (place == 0)
            again = replace(chunk, attempts=chunk.attempts + 1, deaths=deaths)
            failure = self._verdict(chunk.pending.job.version)
            if failure is None and deaths >= ATTEMPTS:
                text = "two workers died over this item: try again"
                failure = Failure(Reason.HSM_UNAVAILABLE, text, retry_after=1.0)
            if failure is not None:
                self._fail(chunk, failure)
            elif chunk.pending in self._batches:
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
                batch = self._batches[chunk.pending]
                batch.attempts = max(batch.attempts, chunk.attempts + 1)
                worker = slot.process
            if not chunk.start:
                self._observer.stage("queue", now - chunk.pending.queued_at)
            job = chunk.pending.job
            version, inputs = job.version, job.inputs[chunk.start : chunk.stop]
            frame = SignFrame(
                number, version.algorithm, job.check_every, version.cka_id, version.spki, inputs
            )
            slot.send_to(worker, Kind.SIGN, *pack_sign(frame))

    def _store(self, chunk: Chunk, signatures: Sequence[bytes], wrong: Sequence[int]) -> None:
        batch = self._batches.get(chunk.pending)
        if batch is None:
            return  # its caller has gone
        batch.signed.signatures[chunk.start : chunk.stop] = signatures
        for index in wrong:
            batch.signed.signatures[chunk.start + index] = b""
            batch.signed.failures[chunk.start + index] = WRONG
        self._settle(batch, len(chunk))

    def _distrust(self, version: KeyVersion) -> None:
        """Stops the key of a wrong signature; the third such key stops the token.

        Keys are counted, not items: one wrong pin makes every signature of its
        chunk wrong, and must not take the token from everybody else.
        """
        text = f"{version.name} is stopped: the HSM returned a wrong signature"
        self._stopped[version.cka_id] = text
        self._fail_key(version, text)
        self._wrong += 1
        if self._wrong >= WRONG_SIGNATURES_STOP_TOKEN:
            self._halt(
                f"token {self.token} is stopped: {self._wrong} keys had wrong signatures; "
                "examine the HSM, then restart the daemon"
            )

    # --- what slots report -----------------------------------------------------------------

    def ready(self, slot: Slot) -> None:
        """A worker has logged in: it serves from here on."""
        self._observer.login(self.token, "ok")
        with self._lock:
            self._failed = ""
            if self._halted:
                slot.state, slot.reason = "failed", self._halted
            else:
                slot.state, slot.reason = "serving", ""
        self._first_outcome.set()
        self._pump()

    def result(self, slot: Slot, result: ResultFrame) -> None:
        """A chunk has come back. Raises FrameError where it is none of ours."""
        signatures = result.split()
        with self._lock:
            chunk = slot.in_flight.get(result.chunk)
            signed = result.verdict is Verdict.SIGNED
            if chunk is None or (signed and len(signatures) != len(chunk)):
                raise FrameError("a result for no chunk of ours")
            del slot.in_flight[result.chunk]
            slot.since = self._clock.monotonic()
            version = chunk.pending.job.version
            if (failure := self._verdict(version)) is not None:
                self._fail(chunk, failure)
            elif signed:
                slot.items += len(chunk)
                self._costs.learn(chunk.pending.job, result.busy_us / 1e6 / len(chunk))
                if result.wrong:
                    self._distrust(version)
                self._store(chunk, signatures, result.wrong)
            else:
                self._fail(chunk, refusal(result.verdict, version))
        self._observer.chunk_done(
            self.token, result.busy_us / 1e6, len(chunk), result.checked, len(result.wrong)
        )
        if result.wrong:
            self._drop(version)
        self._pump()

    def left(self, slot: Slot, end: End, failed_starts: int) -> None:
        """A worker has gone and is reaped: its chunks are given to others once, then fail.

        What waits goes on waiting for the next worker, unless nobody serves and
        workers cannot start.
        """
        self._observer.worker_left(self.token, end.cause, end.text)
        if end.cause is FailureKind.PIN_REJECTED:
            self._observer.login(self.token, end.cause)
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

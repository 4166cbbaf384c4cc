"""The worker processes of one token, supervised.

One thread a worker starts it, reads its answers and starts another when it has
gone. Callers block in ``sign`` until their whole batch is done. The lock guards
the queue and the books; nothing waits for the HSM while holding it.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from signer.clock import Clock
from signer.errors import CallError, Failure, Reason
from signer.hsm.frames import (
    FrameError,
    Kind,
    ResultFrame,
    SignFrame,
    Verdict,
    pack_sign,
)
from signer.hsm.scheduler import Chunk, Pending, Scheduler
from signer.hsm.slot import Slot
from signer.hsm.spec import FailureKind, TokenSpec
from signer.model import Algorithm, KeyVersion, Signed, SignJob

CHUNKS_IN_FLIGHT = 2
ATTEMPTS = 2
WRONG_SIGNATURES_STOP_TOKEN = 3
_FIRST_COSTS = {Algorithm.RS256: 1e-3, Algorithm.PS256: 1e-3, Algorithm.ES384: 5e-4}


class Observer(Protocol):
    """Who counts what happens here."""

    def chunk_done(self, token: str, busy: float, items: int, checked: int, wrong: int) -> None: ...
    def worker_left(self, token: str, cause: str, text: str) -> None: ...
    def login(self, token: str, result: str) -> None: ...
    def stage(self, name: str, seconds: float) -> None: ...


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """One worker as operators see it; ``state`` is starting, serving, stopping or failed."""

    token: str
    pid: int
    state: str
    starts: int
    items: int
    reason: str


@dataclass(frozen=True, slots=True)
class Waiting:
    """Items of one owner's job that wait, and since when (monotonic seconds)."""

    owner: str
    items: int
    since: float


class _Batch:
    """A caller's job and what has come back of it."""

    def __init__(self, job: SignJob, now: float) -> None:
        count = len(job.inputs)
        self.pending = Pending(job, now)
        self.signed = Signed([b""] * count, {})
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
        self._costs: dict[tuple[Algorithm, int], float] = {}
        self._scheduler = Scheduler(self._cost)
        self._slots = [Slot(n, spec, self, hang_seconds, clock) for n in range(workers)]
        self._batches: dict[Pending, _Batch] = {}
        self._stopped: dict[bytes, str] = {}
        self._wrong = 0
        self._next_chunk = 0
        self._failed = ""
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
        """Ends all workers; what still waits fails."""
        for slot in self._slots:
            slot.close()
        for slot in self._slots:
            slot.join()
        with self._lock:
            self._fail_all("the daemon is stopping")

    @property
    def serving(self) -> int:
        """How many workers serve."""
        return sum(slot.state == "serving" for slot in self._slots)

    @property
    def reason(self) -> str:
        """Why nobody serves; empty where somebody does."""
        if self.serving:
            return ""
        return self._failed or next(
            (slot.reason for slot in self._slots if slot.reason), "starting"
        )

    def status(self) -> list[WorkerStatus]:
        """The workers, one by one."""
        return [
            WorkerStatus(
                self.token,
                slot.pid,
                slot.state,
                slot.starts,
                slot.items,
                slot.reason,
            )
            for slot in self._slots
        ]

    def waiting(self) -> list[Waiting]:
        """What waits for a worker, job by job."""
        with self._lock:
            return [
                Waiting(each.job.owner, each.left, each.queued_at)
                for each in self._scheduler.waiting()
            ]

    @property
    def pin_latched(self) -> bool:
        """Whether the last worker could not log in because of the PIN."""
        return self._last_cause is not None and self._last_cause.about_pin and not self.serving

    def sign(self, job: SignJob) -> Signed:
        """Signs a batch; blocks until every item has its signature or its failure.

        Raises CallError: OVERLOADED, DEADLINE_TOO_SHORT, KEY_VERSION_NOT_ACTIVE.
        """
        now = self._clock.monotonic()
        batch = _Batch(job, now)
        with self._lock:
            self._admit(job, now)
            if self._failed:
                failure = Failure(Reason.HSM_UNAVAILABLE, self._failed, retry_after=5.0)
                return Signed(
                    [b""] * len(job.inputs), dict.fromkeys(range(len(job.inputs)), failure)
                )
            self._batches[batch.pending] = batch
            self._scheduler.add(batch.pending)
        self._pump()
        if not batch.done.wait(max(0.0, job.deadline - self._clock.monotonic())):
            self._abandon(batch)
            raise CallError(
                Reason.DEADLINE_TOO_SHORT,
                f"{batch.remaining} of {len(job.inputs)} items were not signed within the "
                "deadline: send smaller batches or allow more time",
            )
        return batch.signed

    def refresh(self) -> None:
        """Has every worker look for new keys before it gets another chunk."""
        for slot in self._slots:
            slot.refresh()

    def stop_key(self, version: KeyVersion, text: str) -> None:
        """Stops a version at once: what waits of it fails, session copies go, nothing new signs."""
        with self._lock:
            self._stopped[version.cka_id] = text
            lost = self._scheduler.remove(lambda p: p.job.version.cka_id == version.cka_id)
            for chunk in lost:
                self._fail(chunk, Failure(Reason.KEY_VERSION_NOT_ACTIVE, text))
        for slot in self._slots:
            slot.send(Kind.DROP, version.cka_id)

    # --- books (all under the lock) --------------------------------------------------------

    def _cost(self, job: SignJob) -> float:
        version = job.version
        first = _FIRST_COSTS.get(version.algorithm, 5e-5)
        return self._costs.get((version.algorithm, len(version.spki)), first)

    def _learn_cost(self, job: SignJob, seconds: float) -> None:
        kind = (job.version.algorithm, len(job.version.spki))
        self._costs[kind] = 0.9 * self._cost(job) + 0.1 * seconds

    def _admit(self, job: SignJob, now: float) -> None:
        if (text := self._stopped.get(job.version.cka_id)) is not None:
            raise CallError(Reason.KEY_VERSION_NOT_ACTIVE, text)
        if self._scheduler.items + len(job.inputs) > self._max_queued:
            raise CallError(
                Reason.OVERLOADED,
                f"{self._scheduler.items} items wait already: try again a little later",
                retry_after=1.0,
            )
        needed = len(job.inputs) * self._cost(job) / max(1, self.serving)
        if job.deadline - now < needed:
            raise CallError(
                Reason.DEADLINE_TOO_SHORT,
                f"signing {len(job.inputs)} items takes about {needed:.3f} s, more than the "
                "deadline leaves: send smaller batches or allow more time",
            )

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

    def _abandon(self, batch: _Batch) -> None:
        with self._lock:
            self._batches.pop(batch.pending, None)
            self._scheduler.remove(lambda pending: pending is batch.pending)

    def _fail_all(self, text: str) -> None:
        for chunk in self._scheduler.remove(lambda _: True):
            self._fail(chunk, Failure(Reason.HSM_UNAVAILABLE, text, retry_after=5.0))

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
            if not chunk.start:
                self._observer.stage("queue", now - chunk.pending.queued_at)
            job = chunk.pending.job
            version, inputs = job.version, job.inputs[chunk.start : chunk.stop]
            frame = SignFrame(
                number, version.algorithm, job.check_every, version.cka_id, version.spki, inputs
            )
            slot.send(Kind.SIGN, *pack_sign(frame))

    def _store(self, chunk: Chunk, signatures: Sequence[bytes], wrong: Sequence[int]) -> None:
        batch = self._batches.get(chunk.pending)
        if batch is None:
            return  # its caller has gone
        batch.signed.signatures[chunk.start : chunk.stop] = signatures
        for index in wrong:
            batch.signed.signatures[chunk.start + index] = b""
            batch.signed.failures[chunk.start + index] = Failure(
                Reason.HSM_UNAVAILABLE, "the HSM returned a wrong signature: the key is stopped"
            )
        self._settle(batch, len(chunk))

    def _distrust(self, version: KeyVersion, wrong: int) -> None:
        """Stops the key of a wrong signature; the third in a daemon's life stops the token."""
        self.stop_key(version, f"{version.name} is stopped: the HSM returned a wrong signature")
        with self._lock:
            self._wrong += wrong
            if self._wrong >= WRONG_SIGNATURES_STOP_TOKEN:
                self._failed = (
                    f"token {self.token} is stopped after {self._wrong} wrong signatures: "
                    "examine the HSM, then restart the daemon"
                )
                self._fail_all(self._failed)
                for slot in self._slots:
                    slot.state = "failed"
                    slot.reason = self._failed

    # --- what slots report -----------------------------------------------------------------

    def ready(self, slot: Slot) -> None:
        """A worker has logged in: it serves from here on."""
        self._observer.login(self.token, "ok")
        with self._lock:
            if self._wrong < WRONG_SIGNATURES_STOP_TOKEN:
                self._failed = ""
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
            if signed:
                slot.items += len(chunk)
                self._learn_cost(chunk.pending.job, result.busy_us / 1e6 / len(chunk))
                self._store(chunk, signatures, result.wrong)
            else:
                self._fail(chunk, _refusal(result.verdict, chunk.pending.job.version))
        self._observer.chunk_done(
            self.token, result.busy_us / 1e6, len(chunk), result.checked, len(result.wrong)
        )
        if result.wrong:
            self._distrust(chunk.pending.job.version, len(result.wrong))
        self._pump()

    def left(self, slot: Slot, cause: FailureKind, text: str, failures: int) -> None:
        """A worker has gone and is reaped: its chunks are given to others once, then fail."""
        self._observer.worker_left(self.token, cause, text)
        if cause.about_pin and cause is not FailureKind.PIN_LATCHED:
            self._observer.login(self.token, cause)
        with self._lock:
            slot.state, slot.reason = "failed", text
            self._last_cause = cause
            lost, slot.in_flight = list(slot.in_flight.values()), {}
            for chunk in lost:
                again = replace(chunk, attempts=chunk.attempts + 1)
                if again.attempts < ATTEMPTS and chunk.pending in self._batches:
                    self._scheduler.give_back(again)
                else:
                    text_of_two = "two workers died over this item: try again"
                    self._fail(chunk, Failure(Reason.HSM_UNAVAILABLE, text_of_two, 1.0))
            hopeless = cause is not FailureKind.DIED or failures > ATTEMPTS
            if hopeless and not self.serving:
                self._failed = self._failed or f"token {self.token} does not serve: {text}"
                self._fail_all(self._failed)
        if not self.serving:
            self._first_failure = self._first_failure or cause
            self._first_outcome.set()
        self._pump()


def _refusal(verdict: Verdict, version: KeyVersion) -> Failure:
    what = "does not hold the key" if verdict is Verdict.NO_KEY else "refuses to sign with the key"
    return Failure(Reason.HSM_UNAVAILABLE, f"token {version.token} {what} of {version.name}")

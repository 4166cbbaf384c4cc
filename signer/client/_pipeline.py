"""Sends batches: several at once, each until it is answered or its time is up."""

from __future__ import annotations

import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from threading import Event
from typing import NamedTuple

from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    sleep_using_event,
    stop_before_delay,
    stop_when_event_set,
    wait_random_exponential,
)

from signer.client._batches import Batch, fits
from signer.client._errors import InternalError, ItemError, SignerClientError, of_call
from signer.client._values import ItemResult
from signer.errors import Code, Reason
from signer.model import Format

_BACKOFF = wait_random_exponential(multiplier=0.05, max=2)


class Answer(NamedTuple):
    """One answer of the appliance, still in the order of its request."""

    key_version: str
    signatures: Sequence[bytes]
    failures: Mapping[int, ItemError]


class Outcome(NamedTuple):
    """The results of one batch; ``error`` where the call itself failed for good."""

    results: list[ItemResult]
    error: SignerClientError | None


class Job(NamedTuple):
    """What all batches of one ``sign`` share.

    ``call`` takes payloads, request id and time-out in seconds. ``base`` names
    the job: the id of each call derives from it, so that a job that is repeated
    with the same base and payloads repeats its ids.
    """

    call: Callable[[Sequence[bytes], str, float], Answer]
    message_format: Format
    base: uuid.UUID
    timeout: float
    stop: Event


class _UnfinishedError(Exception):
    """Some items failed in a way that another try may mend."""

    def __init__(self, retry_after: float | None) -> None:
        super().__init__()
        self.retry_after = retry_after


def _may_help(error: BaseException) -> bool:
    return isinstance(error, _UnfinishedError) or (
        isinstance(error, SignerClientError) and error.retryable
    )


def pause(state: RetryCallState) -> float:
    """Seconds until the next try: the server's hint, and a random part on top.

    Without the random part all clients that were refused together would come
    back together.
    """
    error = state.outcome.exception() if state.outcome is not None else None
    return (getattr(error, "retry_after", None) or 0.0) + _BACKOFF(state)


class _Delivery:
    """One batch on its way: what is signed stays, what is pending goes out again."""

    def __init__(self, batch: Batch, job: Job) -> None:
        self._batch = batch
        self._job = job
        self._results: dict[int, ItemResult] = {}
        self._pending: Sequence[int] = range(len(batch.payloads))
        self._round = 0
        self._deadline = time.monotonic() + job.timeout

    def attempt(self) -> None:
        """Sends what is pending once. Raises what ``_may_help`` decides about.

        The request id changes only with the content: after a refused or lost call
        the same id goes with the same payloads; after an answer the rest is a
        new call.
        """
        payloads = [self._batch.payloads[place] for place in self._pending]
        request_id = str(uuid.uuid5(self._job.base, f"{self._batch.start}/{self._round}"))
        left = max(0.0, self._deadline - time.monotonic())
        answer = self._job.call(payloads, request_id, left)
        if len(answer.signatures) != len(payloads):
            text = f"{len(answer.signatures)} signatures came back for {len(payloads)} payloads"
            raise InternalError(Code.INTERNAL.name, Reason.INTERNAL, text)
        self._round += 1
        self._accept(answer)

    def _accept(self, answer: Answer) -> None:
        again, hints = list[int](), list[float]()
        for place, position in enumerate(self._pending):
            error = answer.failures.get(place)
            index = self._batch.start + position
            self._results[position] = ItemResult(
                index, answer.signatures[place], answer.key_version, error
            )
            if error is not None and error.retryable:
                again.append(position)
                hints.append(error.retry_after or 0.0)
        self._pending = again
        if again:
            raise _UnfinishedError(max(hints))

    def outcome(self, error: SignerClientError | None) -> Outcome:
        """All items in order; those without a result failed as the call did."""
        if error is not None:
            for position in self._pending:
                index = self._batch.start + position
                self._results[position] = ItemResult(index, b"", "", of_call(error))
        results = [self._results[position] for position in range(len(self._batch.payloads))]
        return Outcome(results, error)


def deliver(batch: Batch, job: Job) -> Outcome:
    """Has one batch signed, trying again while that can help and time is left."""
    if not fits(len(batch.payloads[0]), job.message_format):  # then it stands alone
        size = len(batch.payloads[0])
        text = f"a payload of {size} bytes passes the limit of 4 MiB for a call or its answer"
        error = ItemError(
            Code.INVALID_ARGUMENT.name, Reason.PAYLOAD_INVALID, text, None, retryable=False
        )
        return Outcome([ItemResult(batch.start, b"", "", error)], None)
    delivery = _Delivery(batch, job)
    retrying = Retrying(
        retry=retry_if_exception(_may_help),
        wait=pause,
        stop=stop_before_delay(job.timeout) | stop_when_event_set(job.stop),
        sleep=sleep_using_event(job.stop),
        reraise=True,
    )
    try:
        retrying(delivery.attempt)
    except _UnfinishedError:
        return delivery.outcome(None)
    except SignerClientError as error:
        return delivery.outcome(error)
    return delivery.outcome(None)


def run(batches: Iterable[Batch], job: Job, in_flight: int) -> Iterator[ItemResult]:
    """Yields the results of all batches in order, ``in_flight`` of them on their way.

    Every payload that was sent gets its result; then, if a call failed for good,
    its error is raised and no more batches are read. ``batches`` is read in the
    caller's thread. Closing the generator ends the waiting of the others.
    """
    window: deque[Future[Outcome]] = deque()
    failed: SignerClientError | None = None
    executor = ThreadPoolExecutor(in_flight, thread_name_prefix="signer-client")
    try:
        source = iter(batches)
        while True:
            if failed is None and len(window) < in_flight and (batch := next(source, None)):
                window.append(executor.submit(copy_context().run, deliver, batch, job))
                if not window[0].done():
                    continue
            if not window:
                break
            outcome = window.popleft().result()
            failed = failed or outcome.error
            yield from outcome.results
        if failed is not None:
            raise failed
    finally:
        job.stop.set()
        executor.shutdown(wait=False, cancel_futures=True)

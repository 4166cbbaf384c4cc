"""Sends batches: several at once, each until it is answered or its time is over."""

import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from threading import Event
from typing import NamedTuple

from signer.client._batches import PayloadBatch, fits
from signer.client._calls import retry
from signer.client._errors import InternalError, ItemError, SignerClientError, of_call
from signer.client._values import ItemResult
from signer.errors import Code, Reason
from signer.model import Format


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
    """Some items failed in a way that another attempt may fix."""

    def __init__(self, retry_after: float | None) -> None:
        super().__init__()
        self.retry_after = retry_after


def _may_help(error: Exception) -> bool:
    return isinstance(error, _UnfinishedError) or (
        isinstance(error, SignerClientError) and error.retryable
    )


class _Delivery:
    """One batch: signed items are kept, pending ones are sent again."""

    def __init__(self, batch: PayloadBatch, job: Job) -> None:
        self._batch = batch
        self._job = job
        self._results: dict[int, ItemResult] = {}
        self._pending: Sequence[int] = range(len(batch.payloads))
        self._round = 0
        self._deadline = time.monotonic() + job.timeout

    def attempt(self) -> None:
        """Sends the pending items once. Raises the errors that ``_may_help`` decides about.

        The request id changes only with the content: a call that was refused or lost is
        repeated with the same id and payloads; after an answer the rest is a new call.
        """
        payloads = [self._batch.payloads[position] for position in self._pending]
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
        for index_sent, position in enumerate(self._pending):
            error = answer.failures.get(index_sent)
            index = self._batch.start + position
            self._results[position] = ItemResult(
                index, answer.signatures[index_sent], answer.key_version, error
            )
            if error is not None and error.retryable:
                again.append(position)
                hints.append(error.retry_after or 0.0)
        self._pending = again
        if again:
            raise _UnfinishedError(max(hints))

    def outcome(self, error: SignerClientError | None) -> Outcome:
        """Returns all items in order; those without a result failed with the call."""
        if error is not None:
            for position in self._pending:
                index = self._batch.start + position
                self._results[position] = ItemResult(index, b"", "", of_call(error))
        results = [self._results[position] for position in range(len(self._batch.payloads))]
        return Outcome(results, error)


def deliver(batch: PayloadBatch, job: Job) -> Outcome:
    """Sends one batch until it is signed, fails for good or has no time left."""
    if not fits(len(batch.payloads[0]), job.message_format):  # it is alone in its batch
        size = len(batch.payloads[0])
        text = f"a payload of {size} bytes exceeds the limit of 4 MiB for a call or its answer"
        error = ItemError(
            Code.INVALID_ARGUMENT.name, Reason.PAYLOAD_INVALID, text, None, retryable=False
        )
        return Outcome([ItemResult(batch.start, b"", "", error)], None)
    delivery = _Delivery(batch, job)
    try:
        retry(delivery.attempt, job.timeout, may_help=_may_help, stop=job.stop)
    except _UnfinishedError:
        return delivery.outcome(None)
    except SignerClientError as error:
        return delivery.outcome(error)
    return delivery.outcome(None)


def run(batches: Iterable[PayloadBatch], job: Job, in_flight: int) -> Iterator[ItemResult]:
    """Yields the results of all batches in order, with ``in_flight`` calls at a time.

    Every payload that was sent gets its result; then, if a call failed for good,
    its error is raised and no more batches are read. ``batches`` is read in the
    caller's thread. Closing the generator ends all pauses between attempts.
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

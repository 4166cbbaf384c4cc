"""Cuts payloads into batches and sends them: several at once, each until its time is over."""

import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from threading import Event
from typing import NamedTuple

from signer.client._calls import retry
from signer.client._errors import InternalError, ItemError, SignerClientError, of_call
from signer.client._values import ItemResult
from signer.errors import Code, Reason
from signer.model import MESSAGE_BYTES, Format

BATCH_BYTES = MESSAGE_BYTES - 64 * 1024
"""Bytes of all payloads, or outputs, of a call; the rest is for names and framing."""

_OVERHEAD = 8  # tag and length of one bytes field
_RSA_4096 = 512  # the longest signature
_FAILURE = 640  # a google.rpc.Status with its details, in place of an output


class PayloadBatch(NamedTuple):
    """Payloads of one call; ``start`` is the index of the first in the stream."""

    start: int
    payloads: list[bytes]


def output_bound(size: int, message_format: Format) -> int:
    """Returns an upper bound in bytes of the output for a payload of ``size`` bytes.

    It may be too high: the appliance refuses a call whose answer *could* exceed
    the limit. JWS: base64url of payload and signature, and the header. HCERT:
    base45 makes 3 of 2; a number in JSON can grow threefold as CBOR (``1.5`` is
    nine bytes).
    """
    match message_format:
        case Format.DIGEST | Format.MESSAGE:
            output = _RSA_4096
        case Format.JWS:
            output = (size + _RSA_4096 + 256) * 4 // 3 + 4
        case Format.COSE_SIGN1:
            output = size + _RSA_4096 + 128
        case Format.HCERT:
            output = (size * 3 + _RSA_4096 + 512) * 3 // 2
    return max(output, _FAILURE) + _OVERHEAD


def fits(size: int, message_format: Format) -> bool:
    """Whether a payload of ``size`` bytes can be sent at all, alone in a call."""
    return size <= BATCH_BYTES and output_bound(size, message_format) <= BATCH_BYTES


def cut(
    payloads: Iterable[bytes], message_format: Format, batch_items: int
) -> Iterator[PayloadBatch]:
    """Cuts ``payloads`` into batches, reading no further than one batch and one payload.

    A batch has at most ``batch_items`` payloads, and neither its request nor the
    largest possible answer exceeds ``BATCH_BYTES``. A payload that does not fit
    (``fits``) is alone in its batch.
    """
    start, batch, sent, answered = 0, list[bytes](), 0, 0
    for payload in payloads:
        request = len(payload) + _OVERHEAD
        answer = output_bound(len(payload), message_format)
        full = len(batch) == batch_items
        if batch and (full or sent + request > BATCH_BYTES or answered + answer > BATCH_BYTES):
            yield PayloadBatch(start, batch)
            start, batch, sent, answered = start + len(batch), [], 0, 0
        batch.append(payload)
        sent, answered = sent + request, answered + answer
    if batch:
        yield PayloadBatch(start, batch)


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

    def __init__(self, retry_after: float) -> None:
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
        with suppress(_UnfinishedError):
            retry(delivery.attempt, job.timeout, may_help=_may_help, stop=job.stop)
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

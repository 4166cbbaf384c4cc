"""Sends batches of payloads: several at once, each until its time is over."""

import asyncio
import time
import uuid
from collections import deque
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from threading import Event
from typing import NamedTuple

from signer.client._calls import retry, retry_awaited
from signer.client._cutting import PayloadBatch, fits, several, too_large
from signer.client._errors import InternalError, ItemError, SignerClientError, from_status, of_call
from signer.client._values import ItemResult
from signer.errors import Code, Reason
from signer.format_terms import HANDLE_BYTES, Handles
from signer.model import Format
from signer.v1.signing_pb2 import Format as ApiFormat
from signer.v1.signing_pb2 import RevocationHandles, SignBatchRequest, SignBatchResponse

Call = Callable[[SignBatchRequest, float], SignBatchResponse]
"""Makes one call of so many seconds. Raises SignerClientError."""
AwaitedCall = Callable[[SignBatchRequest, float], Awaitable[SignBatchResponse]]

_FORMATS = {each: ApiFormat.Name(ApiFormat.Value(f"FORMAT_{each.name}")) for each in Format}

LONGEST_TIMEOUT = 24 * 3600.0
"""Seconds; more is cut, or the appliance and gRPC would take it for none, or for the past."""


def deadline_of(timeout: float) -> float:
    """Returns when the time of a call or item is over, in monotonic seconds."""
    return time.monotonic() + min(timeout, LONGEST_TIMEOUT)


def key_of(name: str) -> str:
    """Returns the name of the key of a version, or of a key."""
    return name.partition("/versions/")[0]


class Answer(NamedTuple):
    """One answer of the appliance, still in the order of its request."""

    key_version: str
    signatures: Sequence[bytes]
    failures: Mapping[int, ItemError]
    audit_record: int | None
    revocation: RevocationHandles | None = None


class Outcome(NamedTuple):
    """The results of one batch; ``error`` where the call itself failed for good."""

    results: list[ItemResult]
    error: SignerClientError | None


class Job(NamedTuple):
    """What all batches of one ``sign`` share.

    ``base`` names the job: the id of each call derives from it, so that a job that is
    repeated with the same base and payloads repeats its ids.
    """

    key: str
    message_format: Format
    base: uuid.UUID
    timeout: float
    revocation: bool = False


class _UnfinishedError(Exception):
    """Some items failed in a way that another attempt may fix."""

    retryable = True

    def __init__(self, retry_after: float) -> None:
        self.retry_after = retry_after


def request_of(
    key: str,
    message_format: Format,
    payloads: Sequence[bytes],
    request_id: str,
    *,
    revocation: bool = False,
    cosignatures: Sequence[bytes] = (),
) -> SignBatchRequest:
    """Returns the request for one batch. Raises TypeError for one payload instead of several."""
    several(payloads)
    return SignBatchRequest(
        key=key,
        format=_FORMATS[message_format],
        payloads=payloads,
        request_id=request_id,
        revocation=revocation,
        cosignatures=cosignatures,
    )


def read_answer(response: SignBatchResponse, count: int) -> Answer:
    """Reads the answer to ``count`` payloads. Raises InternalError if it has another number."""
    signatures = list(response.signatures)
    if len(signatures) != count:
        text = f"expected {count} signatures, got {len(signatures)}"
        raise InternalError(Code.INTERNAL.name, Reason.INTERNAL, text)
    failures = {index: from_status(status) for index, status in response.failures.items()}
    record = response.audit_record if response.HasField("audit_record") else None
    handles = response.revocation if response.HasField("revocation") else None
    if handles is not None and len(handles.signature) != count * HANDLE_BYTES:
        text = f"the handles that came back are not those of {count} certificates"
        raise InternalError(Code.INTERNAL.name, Reason.INTERNAL, text)
    return Answer(response.key_version, signatures, failures, record, handles)


def results_of(answer: Answer) -> list[ItemResult]:
    """Returns the results of a call that was made once."""
    return [_result(answer, index, index) for index in range(len(answer.signatures))]


def _result(answer: Answer, sent: int, index: int) -> ItemResult:
    """Returns the result of the payload that was ``sent`` there; ``index`` is the caller's."""
    error = answer.failures.get(sent)
    signature, version = answer.signatures[sent], answer.key_version
    revocation = None
    if answer.revocation is not None and error is None:
        part = slice(sent * HANDLE_BYTES, (sent + 1) * HANDLE_BYTES)
        given = answer.revocation
        revocation = Handles(given.uvci[part], given.country_uvci[part], given.signature[part])
    return ItemResult(index, signature, version, error, answer.audit_record, revocation)


class _Delivery:
    """One batch: signed items are kept, pending ones are sent again."""

    def __init__(self, batch: PayloadBatch, job: Job) -> None:
        self._batch = batch
        self._job = job
        self._results: dict[int, ItemResult] = {}
        self._pending: Sequence[int] = range(len(batch.payloads))
        self._round = 0
        self._deadline = time.monotonic() + job.timeout

    def request(self) -> tuple[SignBatchRequest, float]:
        """Returns the next call for the pending items, and how many seconds it may take.

        The request id changes only with the content: a call that was refused or lost is
        repeated with the same id and payloads; after an answer the rest is a new call.
        """
        payloads = [self._batch.payloads[position] for position in self._pending]
        request_id = str(uuid.uuid5(self._job.base, f"{self._batch.start}/{self._round}"))
        job, records = self._job, self._batch.records
        request = request_of(
            job.key,
            job.message_format,
            payloads,
            request_id,
            revocation=job.revocation,
            cosignatures=[records[position] for position in self._pending] if records else (),
        )
        return request, max(0.0, self._deadline - time.monotonic())

    def answered(self, response: SignBatchResponse) -> None:
        """Takes the results. Raises _UnfinishedError for those that another call may have."""
        answer = read_answer(response, len(self._pending))
        self._round += 1
        again, hints = list[int](), list[float]()
        for index_sent, position in enumerate(self._pending):
            result = _result(answer, index_sent, self._batch.start + position)
            self._results[position] = result
            error = result.error
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


def _unfit(batch: PayloadBatch, job: Job) -> Outcome | None:
    size = len(batch.payloads[0])
    if fits(size, job.message_format):
        return None
    return Outcome([ItemResult(batch.start, b"", "", too_large(size))], None)  # it is alone


def deliver(call: Call, batch: PayloadBatch, job: Job, stop: Event) -> Outcome:
    """Sends one batch until it is signed, fails for good or has no time left."""
    if unfit := _unfit(batch, job):
        return unfit
    delivery = _Delivery(batch, job)
    try:
        with suppress(_UnfinishedError):
            retry(lambda: delivery.answered(call(*delivery.request())), job.timeout, stop=stop)
    except SignerClientError as error:
        return delivery.outcome(error)
    return delivery.outcome(None)


async def deliver_awaited(call: AwaitedCall, batch: PayloadBatch, job: Job) -> Outcome:
    """As ``deliver``, awaited."""
    if unfit := _unfit(batch, job):
        return unfit
    delivery = _Delivery(batch, job)

    async def attempt() -> None:
        delivery.answered(await call(*delivery.request()))

    try:
        with suppress(_UnfinishedError):
            await retry_awaited(attempt, job.timeout)
    except SignerClientError as error:
        return delivery.outcome(error)
    return delivery.outcome(None)


def run(
    call: Call, batches: Iterable[PayloadBatch], job: Job, in_flight: int
) -> Iterator[ItemResult]:
    """Yields the results of all batches in order, with ``in_flight`` calls at a time.

    Every payload that was sent gets its result; then, if a call failed for good,
    its error is raised and no more batches are read. ``batches`` is read in the
    caller's thread. Closing the generator ends all pauses between attempts.
    """
    window: deque[Future[Outcome]] = deque()
    failed: SignerClientError | None = None
    stop = Event()
    executor = ThreadPoolExecutor(in_flight, thread_name_prefix="signer-client")
    try:
        source = iter(batches)
        while True:
            if failed is None and len(window) < in_flight and (batch := next(source, None)):
                context = copy_context()
                window.append(executor.submit(context.run, deliver, call, batch, job, stop))
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
        stop.set()
        executor.shutdown(wait=False, cancel_futures=True)


async def run_awaited(
    call: AwaitedCall, batches: Iterable[PayloadBatch], job: Job, in_flight: int
) -> AsyncIterator[ItemResult]:
    """As ``run``, for ``async for``. Closing the generator cancels what is in flight."""
    window: deque[asyncio.Task[Outcome]] = deque()
    failed: SignerClientError | None = None
    try:
        source = iter(batches)
        while True:
            if failed is None and len(window) < in_flight and (batch := next(source, None)):
                window.append(asyncio.create_task(deliver_awaited(call, batch, job)))
                if not window[0].done():
                    continue
            if not window:
                break
            outcome = await window[0]
            window.popleft()
            failed = failed or outcome.error
            for result in outcome.results:
                yield result
        if failed is not None:
            raise failed
    finally:
        for task in window:
            task.cancel()

"""What the audit log holds of a batch: intent and outcome, and how a repetition is answered.

An intent is durable before the HSM receives the batch, its outcome before any signature
leaves the appliance. A request id is answered once within 24 hours: a repetition gets the bytes
that the log says were signed, at no cost. Of two calls with one request id at the same time the
second waits for the first.
"""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import NamedTuple

from signer.audit.format.record import (
    Column,
    IntentRecord,
    OutcomeRecord,
    Record,
    RecordKind,
    indeterminate,
)
from signer.audit.read.ledger import Earlier, Ledger
from signer.audit.write.inbox import AuditUnavailable
from signer.audit.write.log import AuditLate, AuditLog
from signer.clock import Clock
from signer.errors import CallError, Failure, Reason
from signer.formats import FORMATS
from signer.formats.payloads import signature_length
from signer.keys.index import KeyIndex
from signer.model import FormatContext, KeyVersion, Signed, parse_key_or_version
from signer.policy.rules import Terms
from signer.signing.request import BatchRequest, BatchResult, HsmInputs


class Evidence:
    """Records intents and outcomes in the audit log."""

    def __init__(self, log: AuditLog) -> None:
        self._log = log

    def intend(self, intent: IntentRecord, digests: Sequence[bytes], deadline: float) -> int:
        """Records an intent to sign ``digests``; returns its number when it is durable.

        ``deadline`` is in monotonic seconds; an intent that becomes durable later is closed
        as INDETERMINATE. Raises CallError; then nothing may be signed.
        """
        column = Column(len(digests[0]), b"".join(digests))
        fields = intent.to_fields()
        try:
            return self._log.append(RecordKind.INTENT, fields, column, column.root(), deadline)
        except AuditLate as error:
            raise CallError(
                Reason.DEADLINE_TOO_SHORT, f"nothing was signed: {error}; allow more time"
            ) from None
        except AuditUnavailable as error:
            raise _unavailable(f"nothing was signed: {error}") from None

    def conclude(self, seq: int, version: KeyVersion, signed: Signed) -> None:
        """Records the outcome of an intent; returns when it is durable. Raises CallError.

        There is no deadline: a repetition that did not find the outcome would sign again.
        """
        width = signature_length(version)
        signatures = signed.signatures
        if signed.failures:
            signatures = [signature or bytes(width) for signature in signatures]
        column = Column(width, b"".join(signatures))
        outcome = OutcomeRecord(seq, signed.attempts, failure_texts(signed.failures))
        try:
            self._log.append(RecordKind.OUTCOME, outcome.to_fields(), column, column.root())
        except AuditUnavailable as error:
            raise _unavailable(f"the signatures are not released: {error}") from None

    @contextmanager
    def closing(self, seq: int) -> Iterator[None]:
        """Closes an intent as INDETERMINATE if the block fails: nothing of it is released."""
        try:
            yield
        except BaseException as error:
            reason = error.reason if isinstance(error, CallError) else Reason.INTERNAL
            with suppress(AuditUnavailable):  # the next start closes it
                self._log.append(RecordKind.INDETERMINATE, indeterminate(seq, str(reason)))
            raise


class EarlierAnswer(NamedTuple):
    """What the log holds of a request that was answered before.

    ``failed`` are the items that did not go to the HSM, by their index among the payloads;
    ``digests`` and ``signed`` are for those that did, in their order.
    """

    intent: IntentRecord
    failed: dict[int, Failure]
    digests: bytes
    signed: Signed


def read_answer(intent: Record, outcome: Record) -> EarlierAnswer:
    """Reads the records that ``intend`` and ``conclude`` have written; raises RecordError."""
    fields = IntentRecord.from_fields(intent.fields)
    ended = OutcomeRecord.from_fields(outcome.fields)
    signatures = []
    if outcome.column is not None:
        signatures = [
            b"" if index in ended.failures else outcome.column.item(index)
            for index in range(outcome.column.count)
        ]
    return EarlierAnswer(
        intent=fields,
        failed=_read_failures(fields.failed),
        digests=intent.column.data if intent.column else b"",
        signed=Signed(signatures, _read_failures(ended.failures), ended.attempts),
    )


def failure_texts(failures: Mapping[int, Failure]) -> dict[int, str]:
    """Returns failures as records hold them: ``REASON: message``."""
    return {index: f"{failure.reason}: {failure.message}" for index, failure in failures.items()}


def _read_failures(texts: Mapping[int, str]) -> dict[int, Failure]:
    failures: dict[int, Failure] = {}
    for index, text in texts.items():
        name, _, message = text.partition(": ")
        reason = Reason(name)
        failures[index] = Failure(reason, message, 1.0 if reason.retryable else None)
    return failures


def _unavailable(text: str) -> CallError:
    # It takes some time: an operator has to repair the log.
    return CallError(Reason.AUDIT_UNAVAILABLE, text, retry_after=5.0)


class Repeats:
    """Finds the answers that request ids have had. Safe to call from any thread."""

    def __init__(self, log: AuditLog, ledger: Ledger, clock: Clock) -> None:
        """Takes the open log and the ledger that it keeps."""
        self._log, self._ledger, self._clock = log, ledger, clock
        self._lock = threading.Lock()
        # Requests that are being answered: the hash of their content, and the event of the end.
        self._claims: dict[tuple[str, str], tuple[bytes, threading.Event]] = {}

    @contextmanager
    def once(self, request: BatchRequest, content: bytes) -> Iterator[EarlierAnswer | None]:
        """Yields the earlier answer to a request with an id, None if the caller has to answer it.

        ``content`` is the request's ``content_hash``. While the block lasts, other calls with
        this id wait, up to their deadlines. Raises CallError.
        """
        earlier = self._claim(request, content)
        if earlier is not None:
            yield self._read(content, earlier)
            return
        try:
            yield None
        finally:
            with self._lock:
                _, done = self._claims.pop((request.principal, request.request_id))
            done.set()

    def _claim(self, request: BatchRequest, content: bytes) -> Earlier | None:
        """Returns the earlier request if it has an outcome, else claims the id for this one."""
        name = request.principal, request.request_id
        while True:
            with self._lock:
                other = self._claims.get(name)
                if other is None:
                    earlier = self._ledger.find(*name, int(self._clock.now() * 1_000_000))
                    if earlier is not None and earlier.outcome is not None:
                        return earlier
                    self._claims[name] = content, threading.Event()
                    return None
            claimed, done = other
            if claimed != content:
                raise _reused()
            if not done.wait(max(0.0, request.deadline - self._clock.monotonic())):
                raise CallError(
                    Reason.DEADLINE_TOO_SHORT,
                    "the first call with this request id is not answered yet: repeat it later",
                )

    def _read(self, content: bytes, earlier: Earlier) -> EarlierAnswer:
        try:
            [intent] = self._log.records(earlier.intent, 1)
            [outcome] = self._log.records(earlier.outcome or 0, 1)
        except LookupError:
            raise _cannot_repeat("its records were archived") from None
        if intent.fields["payload_hash"] != content:
            raise _reused()
        return read_answer(intent, outcome)


def repeated(
    request: BatchRequest, keys: KeyIndex, terms: Terms, earlier: EarlierAnswer
) -> BatchResult:
    """Returns the same bytes again: time, version and signatures are those in the log.

    So are the items that failed then, whatever the policy now says about them. Raises CallError.
    """
    intent = earlier.intent
    name, number = parse_key_or_version(intent.key_version)
    version = keys.version(name, number or 0)
    if version is None:
        raise _cannot_repeat("the key version no longer exists")
    version = replace(version, kid=intent.kid)
    context = FormatContext(version, intent.now, intent.hcert)
    message_format = FORMATS[request.format]
    try:
        prepared = message_format.prepare(request.payloads, context)
    except CallError as error:
        raise _cannot_repeat(error.message) from None
    prepared = prepared._replace(failures=earlier.failed)
    inputs = HsmInputs(prepared, version.algorithm)
    if b"".join(inputs.digests()) != earlier.digests:
        raise _cannot_repeat("the certificate of the key version has changed since")
    failures = earlier.failed | inputs.by_index(earlier.signed.failures)
    outputs = message_format.finish(prepared, inputs.spread(earlier.signed.signatures), context)
    return BatchResult(version, terms, intent.rule, outputs, failures)


def _cannot_repeat(why: str) -> CallError:
    return CallError(
        Reason.REQUEST_ID_REUSED,
        f"this request was answered, and the same bytes cannot be made again: {why}; "
        "send it under a new request id to have it signed anew",
    )


def _reused() -> CallError:
    return CallError(
        Reason.REQUEST_ID_REUSED,
        "request_id named another request within the last 24 hours: use a new one",
    )

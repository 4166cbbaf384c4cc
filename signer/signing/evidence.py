"""Intents and outcomes: what is recorded of a batch, and when it is durable.

An intent is durable before the HSM receives the batch, its outcome before any signature
leaves the appliance.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import NamedTuple

from signer.audit.format.record import (
    Column,
    IntentRecord,
    OutcomeRecord,
    Record,
    RecordKind,
    indeterminate,
)
from signer.audit.write.log import AuditLate, AuditLog, AuditUnavailable
from signer.errors import TABLE, CallError, Failure, Reason
from signer.formats.payloads import signature_length
from signer.model import HcertTerms, KeyVersion, Signed
from signer.signing.request import BatchRequest

RETRY_SECONDS = 5.0
"""When a caller should try again after the log has failed: an operator has to repair it."""


@dataclass(frozen=True, slots=True)
class Intent:
    """What is about to be signed, and everything that the same bytes depend on.

    ``content`` is the request's ``content_hash``. ``digests`` are those of the items that go
    to the HSM, in their order; ``failed`` has the other items by their index in the batch.
    """

    request: BatchRequest
    content: bytes
    version: KeyVersion
    rule: str
    policy_sha256: str
    facility: str
    group: str
    now: int
    hcert: HcertTerms | None
    failed: Mapping[int, Failure]
    digests: Sequence[bytes]

    def record(self) -> IntentRecord:
        """Returns what the intent's record holds beside the digests."""
        request = self.request
        return IntentRecord(
            principal=request.principal,
            request_id=request.request_id,
            call_id=request.call_id,
            payload_hash=self.content,
            key_version=self.version.name,
            kid=self.version.kid,
            format=str(request.format),
            rule=self.rule,
            policy=bytes.fromhex(self.policy_sha256),
            facility=self.facility,
            group=self.group,
            now=self.now,
            hcert=self.hcert,
            asked=len(request.payloads),
            failed=_failure_texts(self.failed),
        )


class Evidence:
    """Records intents and outcomes in the audit log."""

    def __init__(self, log: AuditLog) -> None:
        self._log = log

    def intend(self, intent: Intent, deadline: float) -> int:
        """Records an intent; returns its number when it is durable.

        ``deadline`` is in monotonic seconds; an intent that becomes durable later is closed
        as INDETERMINATE. Raises CallError; then nothing may be signed.
        """
        column = Column(len(intent.digests[0]), b"".join(intent.digests))
        try:
            return self._log.append(
                RecordKind.INTENT, intent.record().to_fields(), column, column.root(), deadline
            )
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
        outcome = OutcomeRecord(seq, signed.attempts, _failure_texts(signed.failures))
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
    """What the log holds of a request that was answered before; see ``Intent``.

    ``signed`` is for the items that went to the HSM, in their order.
    """

    intent: IntentRecord
    failed: dict[int, Failure]
    digests: bytes
    signed: Signed


def read_answer(intent: Record, outcome: Record) -> EarlierAnswer:
    """Reads the records that ``intend`` and ``conclude`` have written; raises RecordError."""
    asked = IntentRecord.from_fields(intent.fields)
    done = OutcomeRecord.from_fields(outcome.fields)
    failures = _read_failures(done.failures)
    signatures = []
    if outcome.column is not None:
        signatures = [
            b"" if index in failures else outcome.column.item(index)
            for index in range(outcome.column.count)
        ]
    return EarlierAnswer(
        intent=asked,
        failed=_read_failures(asked.failed),
        digests=intent.column.data if intent.column else b"",
        signed=Signed(signatures, failures, done.attempts),
    )


def _unavailable(text: str) -> CallError:
    return CallError(Reason.AUDIT_UNAVAILABLE, text, retry_after=RETRY_SECONDS)


def _failure_texts(failures: Mapping[int, Failure]) -> dict[int, str]:
    return {index: f"{f.reason}: {f.message}" for index, f in failures.items()}


def _read_failures(texts: Mapping[int, str]) -> dict[int, Failure]:
    failures: dict[int, Failure] = {}
    for index, text in texts.items():
        reason, _, message = text.partition(": ")
        again = 1.0 if TABLE[Reason(reason)].retryable else None
        failures[index] = Failure(Reason(reason), message, again)
    return failures

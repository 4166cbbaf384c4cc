"""Intents and outcomes: what is recorded of a batch, and when it is durable.

An intent is durable before the HSM receives the batch, its outcome before any signature
leaves the appliance.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
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
from signer.model import KeyVersion, Signed

RETRY_SECONDS = 5.0
"""When a caller should try again after the log has failed: an operator has to repair it."""


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
    fields, ended = (
        IntentRecord.from_fields(intent.fields),
        OutcomeRecord.from_fields(outcome.fields),
    )
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
        failures[index] = Failure(reason, message, 1.0 if TABLE[reason].retryable else None)
    return failures


def _unavailable(text: str) -> CallError:
    return CallError(Reason.AUDIT_UNAVAILABLE, text, retry_after=RETRY_SECONDS)

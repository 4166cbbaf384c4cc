"""Intents and outcomes: what is recorded of a batch, and when it is durable.

An intent is durable before the HSM receives the batch, its outcome before any signature
leaves the appliance.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import NamedTuple

from signer.audit.format.record import Column, Record, RecordKind, Value
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

    def fields(self) -> dict[str, Value]:
        """Returns the fields of the intent's record."""
        request, hcert = self.request, self.hcert
        return {
            "principal": request.principal,
            "request_id": request.request_id,
            "call_id": request.call_id,
            "payload_hash": self.content,
            "key_version": self.version.name,
            "kid": self.version.kid,
            "format": str(request.format),
            "rule": self.rule,
            "policy": bytes.fromhex(self.policy_sha256),
            "facility": self.facility,
            "group": self.group,
            "now": self.now,
            "hcert": None if hcert is None else [hcert.issuer, hcert.validity],
            "asked": len(request.payloads),
            "failed": _failures(self.failed),
        }


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
                RecordKind.INTENT, intent.fields(), column, column.root(), deadline
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
        fields: dict[str, Value] = {
            "intent": seq,
            "attempts": signed.attempts,
            "failures": _failures(signed.failures),
        }
        try:
            self._log.append(RecordKind.OUTCOME, fields, column, column.root())
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
                self._log.append(RecordKind.INDETERMINATE, {"intent": seq, "reason": str(reason)})
            raise


class EarlierAnswer(NamedTuple):
    """What the log holds of a request that was answered before; see ``Intent``.

    ``signed`` is for the items that went to the HSM, in their order.
    """

    key_version: str
    kid: bytes
    rule: str
    now: int
    hcert: HcertTerms | None
    failed: dict[int, Failure]
    digests: bytes
    signed: Signed


def read_answer(intent: Record, outcome: Record) -> EarlierAnswer:
    """Reads the records that ``intend`` and ``conclude`` have written."""
    fields = intent.fields
    kid, now = fields["kid"], fields["now"]
    attempts = outcome.fields.get("attempts")
    failures = _read_failures(outcome.fields["failures"])
    signatures = []
    if outcome.column is not None:
        signatures = [
            b"" if index in failures else outcome.column.item(index)
            for index in range(outcome.column.count)
        ]
    return EarlierAnswer(
        key_version=str(fields["key_version"]),
        kid=kid if isinstance(kid, bytes) else b"",
        rule=str(fields["rule"]),
        now=now if isinstance(now, int) else 0,
        hcert=_read_hcert(fields["hcert"]),
        failed=_read_failures(fields["failed"]),
        digests=intent.column.data if intent.column else b"",
        signed=Signed(signatures, failures, attempts if isinstance(attempts, int) else 0),
    )


def _unavailable(text: str) -> CallError:
    return CallError(Reason.AUDIT_UNAVAILABLE, text, retry_after=RETRY_SECONDS)


def _failures(failures: Mapping[int, Failure]) -> dict[str, Value]:
    return {str(index): f"{f.reason}: {f.message}" for index, f in failures.items()}


def _read_failures(written: Value) -> dict[int, Failure]:
    failures: dict[int, Failure] = {}
    if isinstance(written, Mapping):
        for index, text in written.items():
            reason, _, message = str(text).partition(": ")
            again = 1.0 if TABLE[Reason(reason)].retryable else None
            failures[int(index)] = Failure(Reason(reason), message, again)
    return failures


def _read_hcert(value: Value) -> HcertTerms | None:
    match value:
        case [str(issuer), int(validity)]:
            return HcertTerms(issuer, validity)
    return None

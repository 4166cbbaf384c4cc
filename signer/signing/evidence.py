"""The pipeline's side of the audit log: intents, outcomes, and answers given before.

An intent is durable before the HSM is asked, its outcome before any byte leaves.
Requests that carry an id are answered once: whoever repeats one within 24 hours
gets what the log says was signed, and of two at the same time one waits.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from signer.audit.format.record import Column, Record, RecordKind, Value
from signer.audit.read.ledger import MAX_REQUESTS, Earlier, Ledger
from signer.audit.write.inbox import AuditLate, AuditUnavailable
from signer.audit.write.log import AuditLog
from signer.clock import Clock
from signer.errors import TABLE, CallError, Failure, Reason
from signer.formats.signature import signature_length
from signer.model import Format, HcertTerms, KeyVersion, Signed
from signer.officers.offline_check import ApprovalFold
from signer.policy.usage import Usage
from signer.signing.request import Ticket

RETRY_SECONDS = 5.0
"""When a caller may ask again whether the log is back: it takes an operator."""


@dataclass(frozen=True, slots=True)
class Intent:
    """What is about to be signed, and all that the same bytes depend on.

    ``digests`` are those of the items that go to the HSM, in their order; of the
    ``asked`` payloads ``failed`` has by their place those that do not.
    """

    ticket: Ticket
    call_id: str
    version: KeyVersion
    format: Format
    rule: str
    policy_sha256: str
    facility: str
    group: str
    now: int
    hcert: HcertTerms | None
    asked: int
    failed: Mapping[int, Failure]
    digests: Sequence[bytes]

    def fields(self) -> dict[str, Value]:
        """Returns the fields of the intent's record."""
        hcert = self.hcert
        return {
            "principal": self.ticket.principal,
            "request_id": self.ticket.request_id,
            "call_id": self.call_id,
            "payload_hash": self.ticket.content,
            "key_version": self.version.name,
            "kid": self.version.kid,
            "format": str(self.format),
            "rule": self.rule,
            "policy": bytes.fromhex(self.policy_sha256),
            "facility": self.facility,
            "group": self.group,
            "now": self.now,
            "hcert": None if hcert is None else [hcert.issuer, hcert.validity],
            "asked": self.asked,
            "failed": _failures(self.failed),
        }


class Answered(NamedTuple):
    """What the log says of a request that was answered before; see ``Intent``.

    ``signed`` is of the items that went to the HSM, in their order.
    """

    key_version: str
    kid: bytes
    rule: str
    now: int
    hcert: HcertTerms | None
    failed: dict[int, Failure]
    digests: bytes
    signed: Signed


class Reports(Protocol):
    """Who counts the requests that are forgotten before their 24 hours."""

    def requests_forgotten(self, count: int) -> None: ...


class _Claim:
    """A request that is at work in this process."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.done = threading.Event()


class Evidence:
    """Intents and outcomes in one log, and what is folded from it: the ledger, and who may what."""

    def __init__(self, clock: Clock, reports: Reports, capacity: int = MAX_REQUESTS) -> None:
        """Takes part once it is attached to a log."""
        self._clock = clock
        self._reports = reports
        self._lock = threading.Lock()
        self._ledger = Ledger(capacity)
        # For the snapshots: what people did wrong stops no start, `signer audit verify` tells it.
        self._control = ApprovalFold(checking=False)
        self._claims: dict[tuple[str, str], _Claim] = {}
        self._log: AuditLog | None = None

    # --- the log's listeners ---------------------------------------------------------------

    def recorded(self, record: Record) -> None:
        """Hears every record, in the order of the log."""
        with self._lock:
            before = self._ledger.forgotten
            self._ledger.apply(record)
            self._control.apply(record)
            forgotten = self._ledger.forgotten - before
        if forgotten and self._log is not None:
            self._reports.requests_forgotten(forgotten)

    def snapshot(self) -> Mapping[str, Value]:
        """Returns what all records so far came to."""
        with self._lock:
            return {**self._ledger.snapshot(), **self._control.snapshot()}

    @property
    def officers(self) -> Mapping[str, bytes] | None:
        """The officers' certificates as the log knows them; None where it knows of none."""
        with self._lock:
            return None if self._control.officers is None else dict(self._control.officers)

    @property
    def policy(self) -> bytes:
        """SHA-256 of the policy in force as the log knows it; empty where it knows of none."""
        with self._lock:
            return self._control.policy

    def attach(self, log: AuditLog, usage: Usage) -> None:
        """Goes on with an open log; quotas continue from what its intents add up to."""
        self._log = log
        with self._lock:
            totals = {name: sum(keys.values()) for name, keys in self._ledger.totals().items()}
            usage.restore(self._ledger.windows(), totals)

    # --- one request ------------------------------------------------------------------------

    @contextmanager
    def once(self, ticket: Ticket, deadline: float) -> Iterator[Answered | None]:
        """Gives the answer that this request has had, or None to whoever is to answer it.

        While the block lasts, others with this id wait, up to their ``deadline``
        (monotonic seconds). Raises CallError.
        """
        if not ticket.request_id:
            yield None
            return
        name = ticket.principal, ticket.request_id
        claim, earlier = self._claim(ticket, deadline)
        if earlier is not None:
            yield self._answered(ticket, earlier)
            return
        try:
            yield None
        finally:
            with self._lock:
                del self._claims[name]
            claim.done.set()

    def _claim(self, ticket: Ticket, deadline: float) -> tuple[_Claim, Earlier | None]:
        """Finds the earlier request that has an outcome, or claims this one."""
        name = ticket.principal, ticket.request_id
        mine = _Claim(ticket.content)
        while True:
            with self._lock:
                other = self._claims.get(name)
                if other is None:
                    earlier = self._ledger.find(*name, int(self._clock.now() * 1_000_000))
                    if earlier is not None and earlier.outcome is not None:
                        return mine, earlier
                    self._claims[name] = mine
                    return mine, None
            if other.content != ticket.content:
                raise _reused()
            if not other.done.wait(max(0.0, deadline - self._clock.monotonic())):
                raise CallError(
                    Reason.DEADLINE_TOO_SHORT,
                    "the first call with this request id is still at work: repeat it later",
                )

    def _answered(self, ticket: Ticket, earlier: Earlier) -> Answered:
        try:
            [intent] = self._opened().records(earlier.intent, 1)
            [outcome] = self._opened().records(earlier.outcome or 0, 1)
        except LookupError:
            raise cannot_repeat("its records were archived") from None
        if intent.fields["payload_hash"] != ticket.content:
            raise _reused()
        return _read_answer(intent, outcome)

    def intend(self, intent: Intent, deadline: float) -> int:
        """Records an intent; returns its number when it is durable, by the ``deadline``.

        That is in monotonic seconds. An intent that becomes durable later is closed
        as INDETERMINATE. Raises CallError; then nothing may be signed.
        """
        column = Column(len(intent.digests[0]), b"".join(intent.digests))
        log = self._opened()
        try:
            return log.append(RecordKind.INTENT, intent.fields(), column, column.root(), deadline)
        except AuditLate as error:
            raise CallError(
                Reason.DEADLINE_TOO_SHORT, f"nothing was signed: {error}; allow more time"
            ) from None
        except AuditUnavailable as error:
            raise _unavailable(f"nothing was signed: {error}") from None

    def conclude(self, seq: int, version: KeyVersion, signed: Signed) -> None:
        """Records the outcome of an intent; returns when it is durable. Raises CallError.

        However long that takes: a repetition that did not find it would sign again.
        """
        width = signature_length(version)
        signatures = signed.signatures
        if signed.failures:
            signatures = [each or bytes(width) for each in signatures]
        column = Column(width, b"".join(signatures))
        fields: dict[str, Value] = {
            "intent": seq,
            "attempts": signed.attempts,
            "failures": _failures(signed.failures),
        }
        try:
            self._opened().append(RecordKind.OUTCOME, fields, column, column.root())
        except AuditUnavailable as error:
            raise _unavailable(f"what was signed is not released: {error}") from None

    @contextmanager
    def closing(self, seq: int) -> Iterator[None]:
        """Closes an intent as INDETERMINATE where the block fails: nothing of it is released."""
        try:
            yield
        except BaseException as error:
            reason = error.reason if isinstance(error, CallError) else Reason.INTERNAL
            with suppress(AuditUnavailable):  # then the next start closes it
                self._opened().append(
                    RecordKind.INDETERMINATE, {"intent": seq, "reason": str(reason)}
                )
            raise

    def _opened(self) -> AuditLog:
        if self._log is None:
            raise _unavailable("the audit log is not open")
        return self._log


def cannot_repeat(why: str) -> CallError:
    """Returns the refusal of a repetition whose bytes cannot be made again."""
    return CallError(
        Reason.REQUEST_ID_REUSED,
        f"this request was answered, and the same bytes cannot be made again: {why}; "
        "send it under a new request id to have it signed anew",
    )


def _reused() -> CallError:
    return CallError(
        Reason.REQUEST_ID_REUSED,
        "request_id named another request within the last 24 hours: take a new one",
    )


def _unavailable(text: str) -> CallError:
    return CallError(Reason.AUDIT_UNAVAILABLE, text, retry_after=RETRY_SECONDS)


def _failures(failures: Mapping[int, Failure]) -> dict[str, Value]:
    return {str(index): f"{each.reason}: {each.message}" for index, each in failures.items()}


def _read_failures(fields: Mapping[str, Value], name: str) -> dict[int, Failure]:
    found: dict[int, Failure] = {}
    written = fields[name]
    if isinstance(written, Mapping):
        for index, text in written.items():
            reason, _, message = str(text).partition(": ")
            again = 1.0 if TABLE[Reason(reason)].retryable else None
            found[int(index)] = Failure(Reason(reason), message, again)
    return found


def _read_answer(intent: Record, outcome: Record) -> Answered:
    """Reads what ``intend`` and ``conclude`` have written."""
    fields = intent.fields
    hcert, kid, now = fields["hcert"], fields["kid"], fields["now"]
    attempts = outcome.fields.get("attempts")
    failures = _read_failures(outcome.fields, "failures")
    signatures = (
        [
            b"" if index in failures else outcome.column.item(index)
            for index in range(outcome.column.count)
        ]
        if outcome.column
        else []
    )
    return Answered(
        key_version=str(fields["key_version"]),
        kid=kid if isinstance(kid, bytes) else b"",
        rule=str(fields["rule"]),
        now=now if isinstance(now, int) else 0,
        hcert=_hcert(hcert),
        failed=_read_failures(fields, "failed"),
        digests=intent.column.data if intent.column else b"",
        signed=Signed(signatures, failures, attempts if isinstance(attempts, int) else 0),
    )


def _hcert(value: Value) -> HcertTerms | None:
    match value:
        case [str(issuer), int(validity)]:
            return HcertTerms(issuer, validity)
    return None

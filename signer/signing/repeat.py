"""Idempotency: how a repeated request gets the same bytes again.

A request id is answered once within 24 hours: a repetition gets the bytes that the log says
were signed, at no cost. Of two calls with one request id at the same time the second waits for
the first. For the event loop only.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from signer.audit.format.batch_records import IntentRecord, OutcomeRecord
from signer.audit.format.record import Record, RecordError
from signer.audit.read.ledger import Earlier, Ledger
from signer.audit.write.log import AuditLog
from signer.clock import Clock
from signer.errors import CallError, Failure, Reason
from signer.event_loop import Threads
from signer.format_terms import ContentRules, FormatContext
from signer.formats import FORMATS
from signer.hsm.front.chunks import Signed
from signer.model import KeyState, KeyVersion, parse_key_or_version
from signer.policy.rules import Terms
from signer.signing.lots import Call, Lot, LotDivided
from signer.signing.messages import Messages
from signer.signing.request import BatchRequest, BatchResult, Served, Snapshot

_ANSWERED = (KeyState.ACTIVE, KeyState.DEACTIVATED)
"""States of a version whose signatures are given out again; in any other it was stopped."""

ONLY_THE_REASON = (
    "the item failed when the request was first answered; only the reason is on record"
)
"""The message of an item that failed before, where its payload alone does not show the reason."""


_CHANGED = "the certificate of the key version, or the issuer in the policy, has changed since"


class EarlierAnswer(NamedTuple):
    """What the log holds of a request that was answered before.

    ``record`` is the number of the intent. ``failed`` are the items that did not go to the
    HSM, by their index among the payloads; ``digests`` and ``signed`` are for those that did,
    in their order.
    """

    record: int
    intent: IntentRecord
    failed: dict[int, Failure]
    digests: bytes
    signed: Signed


class Repeats:
    """Finds the answers that request ids have had, and makes their messages again."""

    def __init__(
        self, log: AuditLog, ledger: Ledger, messages: Messages, threads: Threads, clock: Clock
    ) -> None:
        """Takes the open log and the ledger that it keeps."""
        self._log, self._ledger = log, ledger
        self._messages, self._threads, self._clock = messages, threads, clock
        # Requests that are being answered: the hash of their content, and when they ended.
        self._claims: dict[tuple[str, str], tuple[bytes, asyncio.Future[None]]] = {}

    def once(self, lot: Lot) -> "_Once":
        """Opens a block with the earlier answer to the one call of a lot, if it has an id.

        It is None if the calls of the lot have to be answered. While the block lasts, other calls
        with their ids wait, up to their deadlines. A request without an id is always answered
        anew. Entering raises CallError, and LotDivided if one of several calls was answered
        before, or is being.
        """
        return _Once(self, lot)

    def claim_new(self, call: Call) -> None:
        """Claims the id of a call until ``release``; raises LotDivided if it is not new."""
        request = call.request
        name = request.principal, request.request_id
        if name in self._claims or self._answered(request) is not None:
            raise LotDivided
        self._claims[name] = call.content, asyncio.get_running_loop().create_future()

    async def claim(self, request: BatchRequest, content: bytes) -> EarlierAnswer | None:
        """Returns the earlier answer, or claims the request's id until ``release``.

        ``content`` is the hash of all that is asked. While an id is claimed, other calls with it
        wait, up to their deadlines. Raises CallError.
        """
        earlier = await self._claim(request, content)
        if earlier is None:
            return None
        left = request.deadline - self._clock.monotonic()
        read = partial(self._read, content, earlier)  # files
        try:
            return await self._threads.run_for(left, request.principal, read)
        except TimeoutError:
            raise CallError(
                Reason.DEADLINE_TOO_SHORT,
                "this request was answered, and the audit log could not be read in time: repeat it "
                "later",
            ) from None

    def release(self, request: BatchRequest) -> None:
        """Ends a claim."""
        _, done = self._claims.pop((request.principal, request.request_id))
        done.set_result(None)

    async def _claim(self, request: BatchRequest, content: bytes) -> Earlier | None:
        """Returns the earlier request if it has an outcome, else claims the id for this one."""
        name = request.principal, request.request_id
        while (other := self._claims.get(name)) is not None:
            claimed, done = other
            if claimed != content:
                raise _reused()
            left = request.deadline - self._clock.monotonic()
            if not (await asyncio.wait((done,), timeout=max(0.0, left)))[0]:
                raise CallError(
                    Reason.DEADLINE_TOO_SHORT,
                    "the first call with this request id is not answered yet: repeat it later",
                )
        earlier = self._answered(request)
        if earlier is None:
            self._claims[name] = content, asyncio.get_running_loop().create_future()
        return earlier

    def _answered(self, request: BatchRequest) -> Earlier | None:
        """Returns the earlier request with this id if it has an outcome."""
        now = int(self._clock.now() * 1_000_000)
        earlier = self._ledger.find(request.principal, request.request_id, now)
        return earlier if earlier is not None and earlier.outcome is not None else None

    def _read(self, content: bytes, earlier: Earlier) -> EarlierAnswer:
        try:
            [intent] = self._log.records(earlier.intent, 1)
            [outcome] = self._log.records(earlier.outcome or 0, 1)
        except LookupError:
            raise _cannot_repeat("its records were archived") from None
        except (OSError, RecordError):
            raise CallError(
                Reason.AUDIT_UNAVAILABLE,
                "this request was answered, and the audit log cannot be read now: repeat it later",
                retry_after=1.0,
            ) from None
        if intent.fields["payload_hash"] != content:
            raise _reused()
        return read_answer(intent, outcome)

    async def answer(
        self, request: BatchRequest, served: Served, terms: Terms, earlier: EarlierAnswer
    ) -> BatchResult:
        """Returns the same bytes again: time, version and signatures are those in the log.

        So are the items that failed then and their reasons, whatever the policy now says about
        them; a message is the one that the payload gets now for the same reason. But what
        officers have stopped since is not given out, also where they stop it while the messages
        are made. Raises CallError.
        """
        intent, principal = earlier.intent, request.principal
        version = replace(self._not_stopped(served.snapshot, intent), kid=intent.kid)
        context = FormatContext(
            version,
            intent.now,
            intent.hcert,
            ContentRules(claims=terms.content.claims),
            terms.shc,
            timestamp=terms.timestamp,
            call_id=intent.call_id,
        )
        message_format = FORMATS[request.format]
        try:
            inputs = await self._messages.prepare(
                message_format, principal, request.payloads, context, earlier.failed
            )
        except CallError as error:
            raise _cannot_repeat(error.message) from None
        if b"".join(inputs.digests()) != earlier.digests:
            raise _cannot_repeat(_CHANGED)
        failed = await self._worded(request, replace(context, content=terms.content), earlier)
        self._not_stopped(served.snapshot, intent)
        failures = failed | inputs.by_index(earlier.signed.failures)
        signatures = earlier.signed.signatures
        outputs = await self._messages.finish(
            message_format, principal, inputs, signatures, context
        )
        handles = await self._messages.handles(request, inputs, signatures, version)
        self._not_stopped(served.snapshot, intent)
        return BatchResult(version, terms, intent.rule, outputs, failures, earlier.record, handles)

    async def _worded(
        self, request: BatchRequest, context: FormatContext, earlier: EarlierAnswer
    ) -> dict[int, Failure]:
        """Returns the items that did not go to the HSM, with the messages they get now."""
        failed = earlier.failed
        indexes = [index for index, each in failed.items() if each.message == ONLY_THE_REASON]
        if not indexes:
            return failed
        payloads = [request.payloads[index] for index in indexes]
        message_format = FORMATS[request.format]
        try:
            now = await self._messages.prepare(message_format, request.principal, payloads, context)
        except CallError:  # nothing could be signed now
            return failed
        return failed | {
            indexes[position]: failure
            for position, failure in now.failures.items()
            if failure.reason is failed[indexes[position]].reason
        }

    def _not_stopped(self, snapshot: Snapshot, intent: IntentRecord) -> KeyVersion:
        """Returns the version that has signed; raises CallError if it is stopped now."""
        name, number = parse_key_or_version(intent.key_version)
        found = snapshot.keys.version(name, number or 0)
        if found is None:
            raise _cannot_repeat("the key version no longer exists")
        if reason := self._stopped(snapshot, found):
            raise CallError(Reason.KEY_VERSION_NOT_ACTIVE, reason)
        return found

    def _stopped(self, snapshot: Snapshot, version: KeyVersion) -> str:
        """Returns why signatures of a version are not given out again; "" if they are."""
        if reason := snapshot.suspended.reason(version.key.facility):
            return reason
        state = version.state_at(self._clock.now())
        if state in _ANSWERED:
            return ""
        return f"{version.name} is {state}: what it has signed is not given out again"


class _Once:
    """The block of the calls of one lot."""

    __slots__ = ("_claimed", "_lot", "_repeats")

    def __init__(self, repeats: Repeats, lot: Lot) -> None:
        self._repeats, self._lot = repeats, lot
        self._claimed: list[BatchRequest] = []

    async def __aenter__(self) -> EarlierAnswer | None:
        repeats, calls = self._repeats, self._lot.calls
        earlier = None
        try:
            for call in calls:
                request = call.request
                if not request.request_id:
                    continue
                if len(calls) == 1:
                    earlier = await repeats.claim(request, call.content)
                else:
                    repeats.claim_new(call)
                if earlier is None:
                    self._claimed.append(request)
        except BaseException:
            self._release()
            raise
        return earlier

    async def __aexit__(self, *_: object) -> None:
        self._release()

    def _release(self) -> None:
        for request in self._claimed:
            self._repeats.release(request)


def read_answer(intent: Record, outcome: Record) -> EarlierAnswer:
    """Reads the records that ``Evidence`` has written; raises RecordError."""
    fields = IntentRecord.from_fields(intent.fields)
    ended = OutcomeRecord.from_fields(outcome.fields)
    signatures = []
    if outcome.column is not None:
        signatures = [
            b"" if index in ended.failures else outcome.column.item(index)
            for index in range(outcome.column.count)
        ]
    return EarlierAnswer(
        record=intent.seq,
        intent=fields,
        failed=_read_failures(fields.failed),
        digests=intent.column.data if intent.column else b"",
        signed=Signed(signatures, _read_failures(ended.failures), ended.attempts),
    )


def _read_failures(reasons: Mapping[int, str]) -> dict[int, Failure]:
    failures: dict[int, Failure] = {}
    for index, text in reasons.items():
        name, _, message = text.partition(": ")  # version 1 of the log had messages
        reason = Reason(name)
        retry_after = 1.0 if reason.retryable else None
        failures[index] = Failure(reason, message or ONLY_THE_REASON, retry_after)
    return failures


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

"""The pipeline of a signature: authorise, prepare, charge, record, sign and check, record, finish.

``Engine._sign_lot`` and ``_sign_new`` show all its steps, for a lot: one call, or small ones that
came together. It is one coroutine on the event loop; it waits for others at three places: until
the intents are durable, until the signatures are there, until the outcomes are durable. A lot
keeps the snapshot (policy and keys) under which it was authorised.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import NamedTuple

from signer.audit.format.batch_records import IntentRecord, pack_reasons
from signer.audit.format.record import Fields, Value
from signer.audit.write.inbox import Entry
from signer.clock import Clock
from signer.errors import CallError, Failure, Reason, clock_doubtful, invalid
from signer.event_loop import EventLoop, Turns
from signer.events import Events, ItemsEnded
from signer.format_terms import HANDLE_BYTES, FormatContext
from signer.formats import FORMATS
from signer.hsm.front.chunks import Signed, SignJob
from signer.hsm.front.pool import Admission, too_late
from signer.hsm.front.service import Hsm
from signer.key_index import KeyIndex
from signer.model import MESSAGE_BYTES, Format, KeyVersion
from signer.policy.decide import Decision, check_algorithm, decide
from signer.policy.rules import Policy, Terms
from signer.policy.usage import Usage
from signer.signing.charging import Charging
from signer.signing.cosigners import Cosigners
from signer.signing.evidence import Evidence, reasons_of
from signer.signing.lots import Call, Lot, Lots
from signer.signing.messages import HsmInputs, Messages
from signer.signing.repeat import Repeats
from signer.signing.request import BatchRequest, BatchResult, Served, Snapshot
from signer.text import count

FAILURE_BYTES = 400  # the most that one failed item adds to an answer
_PLACEHOLDER = Failure(Reason.INTERNAL, "nothing to sign")  # for a job without items
WORTH_A_LOOK = 8  # payloads: to prepare fewer costs less than to ask the HSM's queue twice
SMALLEST_BUDGET = 0.005  # seconds that a call must have left for the HSM to be used


class Granted(NamedTuple):
    """What the policy has granted to a lot: under which snapshot, and when (epoch seconds)."""

    snapshot: Snapshot
    decision: Decision
    terms: Terms
    now: float


class Engine:
    """Signs batches with what is served when they arrive. For the event loop only."""

    def __init__(
        self,
        served: Served,
        hsm: Hsm,
        evidence: Evidence,
        repeats: Repeats,
        *,
        messages: Messages,
        cosigners: Cosigners,
        turns: Turns,
        usage: Usage,
        events: Events,
        clock: Clock,
        loop: EventLoop,
        answer_bytes: int,
    ) -> None:
        """``answer_bytes`` is the largest answer that gRPC sends: nothing larger is signed."""
        self._served = served
        self._answer_bytes = min(answer_bytes, MESSAGE_BYTES)
        self._hsm = hsm
        self._evidence, self._repeats = evidence, repeats
        self._messages, self._cosigners, self._turns = messages, cosigners, turns
        self._events, self._charging = events, Charging(usage, events)
        self._clock = clock
        self._lots = Lots(
            loop, turns, self._sign_lot, evidence.when_free, clock=clock, events=events
        )

    async def sign_batch(self, request: BatchRequest) -> BatchResult:
        """Signs a batch: every item gets its output or its failure. Raises CallError."""
        return await self._lots.sign(request)

    async def _sign_lot(self, lot: Lot) -> None:
        """Signs the calls of a lot: mostly one, or small ones that are alike."""
        await self._turns.begin(lot.first.principal, lot.items)
        snapshot, now = self._served.snapshot, self._clock.now()
        if doubt := self._clock.doubt():
            raise clock_doubtful(doubt)

        # 1. May this principal do this now?
        began, first = self._clock.monotonic(), lot.first
        decision = decide(snapshot.policy, first.principal, first.key, first.format, now)
        terms = _granted(decision)
        lot.divisible = len(lot.calls) > 1
        for call in lot.calls:
            _check_size(call.request, terms)
            if call.request.request_id:
                call.content = await self._content_hash(call)
        lot.ended("authorise", began, self._clock.monotonic())

        # 2. A repetition gets the same bytes again, at no cost.
        async with self._repeats.once(lot) as earlier:
            if earlier is None:
                await self._sign_new(lot, Granted(snapshot, decision, terms, now))
            else:
                lot.calls[0].succeed(
                    await self._repeats.answer(first, self._served, terms, earlier)
                )

    async def _sign_new(self, lot: Lot, granted: Granted) -> None:
        """Signs calls that may be signed, and were not before."""
        snapshot, decision, terms, now = granted
        first, monotonic = lot.first, self._clock.monotonic

        # 3. From payloads to bytes to sign. A payload that does not parse fails its item. What
        # the HSM has no time for is refused before that: it costs nobody anything.
        began = monotonic()
        version = _allowed_version(snapshot, first, terms, now)
        payloads, deadline = lot.payloads(), lot.deadline
        if len(payloads) > WORTH_A_LOOK:
            self._hsm.admit(_job(payloads, version, terms, deadline)).release()
        message_format = FORMATS[first.format]
        context = self._context(snapshot, first, version, terms, now=now)
        self._check_answer(message_format.max_output(payloads, context), lot)
        inputs = await self._messages.prepare(message_format, first.principal, payloads, context)
        lot.ended("format", began, monotonic())

        # 4. If the HSM accepts the job, the quota is charged for all that is asked, also
        # for what cannot be signed, and never refunded. So is the version's lifetime, for calls
        # that will have an intent.
        job = _job(inputs.inputs, version, terms, deadline, lot.cuts(inputs.between))
        self._check_time(deadline)
        with self._hsm.admit(job) as admission:
            if admission.refused is None:
                recorded = _recorded(lot, inputs)
                self._charging.charge(
                    terms, version, len(payloads), recorded, now, says=not lot.divisible
                )
            lot.divisible = False

            # 5. The intents are recorded, the HSM signs, the outcomes are recorded.
            if admission.refused is None and job.inputs:
                links = b""
                if first.cosignatures:
                    links = await self._messages.links(first, inputs)
                common = _common(first, decision, context, snapshot.policy, links)
                signed = await self._sign(lot, admission, inputs, common)
            else:
                signed = Signed.all_failed(job, admission.refused or _PLACEHOLDER)

        # 6. From signatures to finished messages.
        began = monotonic()
        failures = inputs.failures | inputs.by_index(signed.failures)
        outputs = await self._messages.finish(
            message_format, first.principal, inputs, signed.signatures, context
        )
        handles = await self._messages.handles(first, inputs, signed.signatures, version)
        if first.format is Format.JWS and terms.check_every == 1:
            await self._cosigners.signed(first.principal, snapshot.policy, job, signed.signatures)
        lot.ended("format", began, monotonic())
        calls = [call for call in lot.calls if not call.failed]
        self._events.emit(_ended(terms, first.format, version, calls, failures))
        for call in calls:
            start, stop, failed = call.start, call.stop, _failed_of(call, failures)
            made, found = outputs[start:stop], handles[start:stop]
            call.succeed(
                BatchResult(version, terms, decision.rule, made, failed, call.record, found)
            )

    async def settle(self, seconds: float) -> None:
        """Returns when the records of all calls are with the log, or after so many seconds."""
        await self._evidence.settle(seconds)

    async def _sign(
        self, lot: Lot, admission: Admission, inputs: HsmInputs, common: dict[str, Value]
    ) -> Signed:
        """Records the intents of a lot, signs, and records the outcomes or why there are none."""
        job, monotonic, principal = admission.job, self._clock.monotonic, lot.first.principal
        began = monotonic()
        calls, intents = _intents(lot, inputs, common)
        seqs = await self._evidence.intend(principal, intents, job.deadline)
        for call, seq in zip(calls, seqs, strict=True):
            call.record = seq
        try:
            now = monotonic()
            lot.ended("audit", began, now)
            signed = await self._hsm.sign(admission)
        except BaseException as error:
            self._evidence.close(seqs, error, job.deadline)
            raise
        began = monotonic()
        lot.ended("hsm", now, began)
        lot.concluding = True
        concluded: list[Call] = []
        outcomes: list[Entry] = []
        for call, seq in zip(calls, seqs, strict=True):
            part = signed.some(*inputs.between(call.start, call.stop))
            try:
                outcomes.append(await self._outcome(seq, principal, job.version, part))
                concluded.append(call)
            except Exception as error:  # noqa: BLE001 - the caller raises it
                self._evidence.close([seq], error, job.deadline)
                call.fail(error)
        for call, problem in zip(concluded, await self._evidence.conclude(outcomes), strict=True):
            if problem is not None:
                call.fail(problem)
        lot.ended("audit", began, monotonic())
        return signed

    async def _outcome(self, seq: int, principal: str, version: KeyVersion, part: Signed) -> Entry:
        """Returns the outcome of a call; raises CallError if items were not signed in time."""
        if part.late:
            raise too_late(part.late, len(part.signatures))
        return await self._evidence.outcome(seq, principal, version, part)

    async def _content_hash(self, call: Call) -> bytes:
        """Returns the SHA-256 of everything that is asked: key, version, format and payloads."""
        request = call.request
        whole, payloads = sha256(request.content_head()), request.payloads
        if call.small:
            whole.update(b"".join(payloads))
        else:
            await self._turns.each(
                request.principal,
                payloads,
                lambda start, stop: whole.update(b"".join(payloads[start:stop])),
            )
        return whole.digest()

    def _context(
        self,
        snapshot: Snapshot,
        request: BatchRequest,
        version: KeyVersion,
        terms: Terms,
        *,
        now: float,
    ) -> FormatContext:
        """Returns what the messages depend on; raises CallError without the signed records."""
        cosigned = None
        if request.cosignatures or terms.cosigning is not None:
            cosigned = self._cosigners.cosigned(snapshot, request, terms, now)
        return FormatContext(
            version,
            int(now),
            terms.hcert,
            terms.content,
            terms.shc,
            terms.timestamp,
            request.call_id,
            cosigned=cosigned,
        )

    def _check_answer(self, bound: int, lot: Lot) -> None:
        each = FAILURE_BYTES + 3 * HANDLE_BYTES * lot.first.revocation
        size = bound + each * lot.items
        if size > self._answer_bytes:
            raise invalid(
                "payloads",
                f"could give an answer of {size} bytes, more than {self._answer_bytes}: split it",
            )

    def _check_time(self, deadline: float) -> None:
        if deadline - self._clock.monotonic() < SMALLEST_BUDGET:
            raise CallError(
                Reason.DEADLINE_TOO_SHORT,
                "no time is left to sign: send smaller batches or allow more time",
            )


def _job(
    inputs: Sequence[bytes],
    version: KeyVersion,
    terms: Terms,
    deadline: float,
    cuts: Sequence[int] = (),
) -> SignJob:
    return SignJob(version, inputs, terms.facility, terms.weight, terms.check_every, deadline, cuts)


def _common(
    request: BatchRequest,
    decision: Decision,
    context: FormatContext,
    policy: Policy,
    cosigned: bytes,
) -> dict[str, Value]:
    """Returns what the intents of a lot have in common: all that the same bytes depend on."""
    terms, version = _granted(decision), context.version
    return IntentRecord(
        principal=request.principal,
        request_id="",
        call_id="",
        payload_hash=b"",
        key_version=version.name,
        kid=version.kid,
        format=str(request.format),
        rule=decision.rule,
        policy=bytes.fromhex(policy.sha256),
        facility=terms.facility,
        group=terms.group or "",
        now=context.now,
        hcert=context.hcert,
        asked=0,
        failed={},
        cosigned=cosigned,
    ).to_fields()


def _intents(
    lot: Lot, inputs: HsmInputs, common: dict[str, Value]
) -> tuple[list[Call], list[tuple[Fields, Sequence[bytes]]]]:
    """Returns the calls that have items for the HSM, and what is about to be signed for each."""
    calls: list[Call] = []
    intents: list[tuple[Fields, Sequence[bytes]]] = []
    digests, failures = inputs.digests(), inputs.failures
    for call in lot.calls:
        start, stop = inputs.between(call.start, call.stop)
        if start == stop:
            continue
        request, failed = call.request, _failed_of(call, failures)
        fields = common | {
            "request_id": request.request_id,
            "call_id": request.call_id,
            "payload_hash": call.content,
            "asked": call.stop - call.start,
            "failed": pack_reasons(reasons_of(failed)),
        }
        calls.append(call)
        intents.append((fields, digests[start:stop]))
    return calls, intents


def _recorded(lot: Lot, inputs: HsmInputs) -> int:
    """Returns the items of the calls that get an intent: those with an item for the HSM."""
    if not inputs.failures:
        return lot.items
    sizes = ((call.stop - call.start, inputs.between(call.start, call.stop)) for call in lot.calls)
    return sum(items for items, (start, stop) in sizes if start < stop)


def _failed_of(call: Call, failures: Mapping[int, Failure]) -> dict[int, Failure]:
    """Returns those failures of a lot that are a call's, by the index of their item there."""
    if not failures:
        return {}
    items = range(call.start, call.stop)
    return {i - call.start: failures[i] for i in items if i in failures}


def _ended(
    terms: Terms,
    message_format: Format,
    version: KeyVersion,
    calls: Sequence[Call],
    failures: Mapping[int, Failure],
) -> ItemsEnded:
    """Returns how many items of calls have which reason of their failure, or "ok"."""
    reasons: Counter[str] = Counter()
    reasons["ok"] = sum(call.stop - call.start for call in calls)
    if failures:
        ended = [
            failures[i] for call in calls for i in range(call.start, call.stop) if i in failures
        ]
        reasons.update(str(failure.reason) for failure in ended)
        reasons["ok"] -= len(ended)
    return ItemsEnded(terms.group or "", message_format, version.algorithm, reasons)


def _granted(decision: Decision) -> Terms:
    if decision.terms is not None:
        return decision.terms
    raise CallError(
        decision.reason or Reason.POLICY_DENIED,
        decision.message,
        {"rule": decision.rule},
        retry_after=decision.retry_after,
    )


def _check_size(request: BatchRequest, terms: Terms) -> None:
    items = len(request.payloads)
    if not items:
        raise invalid("payloads", "is empty: send at least one item")
    if items > terms.max_batch_items:
        raise invalid(
            "payloads",
            f"has {count(items, 'item')}, the limit here is {terms.max_batch_items}: split it",
        )


def _allowed_version(
    snapshot: Snapshot, request: BatchRequest, terms: Terms, now: float
) -> KeyVersion:
    if reason := snapshot.suspended.reason(terms.facility):
        raise CallError(Reason.KEY_VERSION_NOT_ACTIVE, reason)
    version = _find_version(snapshot.keys, request, now)
    if denial := check_algorithm(terms, request.format, version.algorithm):
        _granted(denial)
    return version


def _find_version(keys: KeyIndex, request: BatchRequest, now: float) -> KeyVersion:
    if not keys.versions(request.key):
        raise CallError(Reason.KEY_NOT_FOUND, f"{request.key} does not exist")
    if request.version is None:
        version = keys.primary(request.key, now)
        if version is None:
            raise CallError(Reason.KEY_VERSION_NOT_ACTIVE, f"{request.key} has no active version")
        return version
    named = keys.version(request.key, request.version)
    if named is None:
        raise CallError(
            Reason.KEY_NOT_FOUND, f"{request.key}/versions/{request.version} does not exist"
        )
    if not named.active(now):
        raise CallError(Reason.KEY_VERSION_NOT_ACTIVE, f"{named.name} is {named.state_at(now)}")
    return named

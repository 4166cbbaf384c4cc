"""The pipeline of a signature: authorise, prepare, charge, record, sign and check, record, finish.

``Engine.sign_batch`` shows all its steps. It is one coroutine on the event loop; it waits for
others at three places: until the intent is durable, until the signatures are there, until the
outcome is durable. A batch keeps the snapshot (policy and keys) under which it was authorised.
"""

from collections import Counter
from collections.abc import Sequence
from hashlib import sha256

from signer.audit.format.batch_records import IntentRecord
from signer.clock import Clock
from signer.errors import CallError, Failure, Reason, clock_doubtful, invalid
from signer.event_loop import Turns
from signer.events import Events, ItemsEnded, QuotaRefused, Stages, stages
from signer.formats import FORMATS
from signer.hsm.front.chunks import Signed, SignJob
from signer.hsm.front.pool import Admission
from signer.hsm.front.service import Hsm
from signer.model import MESSAGE_BYTES, FormatContext, KeyIndex, KeyVersion
from signer.policy.decide import Decision, check_algorithm, decide
from signer.policy.rules import Policy, Terms
from signer.policy.usage import Usage
from signer.signing.evidence import Evidence, reasons_of
from signer.signing.messages import HsmInputs, Messages
from signer.signing.repeat import Repeats
from signer.signing.request import BatchRequest, BatchResult, Served, Snapshot

FAILURE_BYTES = 400  # the most that one failed item adds to an answer
_PLACEHOLDER = Failure(Reason.INTERNAL, "nothing to sign")  # for a job without items
WORTH_A_LOOK = 8  # payloads: to prepare fewer costs less than to ask the HSM's queue twice
SMALLEST_BUDGET = 0.005  # seconds that a call must have left for the HSM to be used


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
        turns: Turns,
        usage: Usage,
        events: Events,
        clock: Clock,
        answer_bytes: int,
    ) -> None:
        """``answer_bytes`` is the largest answer that gRPC sends: nothing larger is signed."""
        self._served = served
        self._answer_bytes = min(answer_bytes, MESSAGE_BYTES)
        self._usage = usage
        self._hsm = hsm
        self._evidence, self._repeats = evidence, repeats
        self._messages, self._turns = messages, turns
        self._events = events
        self._clock = clock

    async def sign_batch(self, request: BatchRequest) -> BatchResult:
        """Signs a batch: every item gets its output or its failure. Raises CallError."""
        await self._turns.begin(request.principal, len(request.payloads))
        snapshot, now = self._served.snapshot, self._clock.now()
        ended, monotonic = stages(), self._clock.monotonic
        if doubt := self._clock.doubt():
            raise clock_doubtful(doubt)

        # 1. May this principal do this now?
        began = monotonic()
        decision = decide(snapshot.policy, request.principal, request.key, request.format, now)
        terms = _granted(decision)
        _check_size(request, terms)
        content = await self._content_hash(request) if request.request_id else b""
        ended.append(("authorise", began, monotonic() - began))

        # 2. A repetition gets the same bytes again, at no cost.
        async with self._repeats.once(request, content) as earlier:
            if earlier is not None:
                return await self._repeats.answer(request, self._served, terms, earlier)

            # 3. From payloads to bytes to sign. A payload that does not parse fails its item. What
            # the HSM has no time for is refused before that: it costs nobody anything.
            began = monotonic()
            version = _allowed_version(snapshot, request, terms, now)
            if len(request.payloads) > WORTH_A_LOOK:
                self._hsm.admit(_job(request.payloads, version, terms, request.deadline)).release()
            message_format = FORMATS[request.format]
            context = FormatContext(version, int(now), terms.hcert, terms.content, terms.shc)
            self._check_answer(message_format.max_output(request.payloads, context), request)
            inputs = await self._messages.prepare(
                message_format, request.principal, request.payloads, context
            )
            ended.append(("format", began, monotonic() - began))

            # 4. If the HSM accepts the job, the quota is charged for all that is asked, also
            # for what cannot be signed, and never refunded.
            job, record = _job(inputs.inputs, version, terms, request.deadline), None
            self._check_time(request.deadline)
            with self._hsm.admit(job) as admission:
                if admission.refused is None:
                    self._charge(terms, len(request.payloads), now)

                # 5. The intent is recorded, the HSM signs, the outcome is recorded.
                if admission.refused is None and job.inputs:
                    intent = _intent(
                        request, content, decision, context, inputs, policy=snapshot.policy
                    )
                    record, signed = await self._sign(admission, intent, inputs.digests(), ended)
                else:
                    signed = Signed.all_failed(job, admission.refused or _PLACEHOLDER)

            # 6. From signatures to finished messages.
            began = monotonic()
            failures = inputs.failures | inputs.by_index(signed.failures)
            outputs = await self._messages.finish(
                message_format, request.principal, inputs, signed.signatures, context
            )
            ended.append(("format", began, monotonic() - began))

        result = BatchResult(version, terms, decision.rule, outputs, failures, record)
        self._events.emit(_ended(request, result))
        return result

    async def settle(self, seconds: float) -> None:
        """Returns when the records of all calls are with the log, or after so many seconds."""
        await self._evidence.settle(seconds)

    async def _sign(
        self, admission: Admission, intent: IntentRecord, digests: Sequence[bytes], ended: Stages
    ) -> tuple[int, Signed]:
        """Records the intent, signs, and records the outcome or why there is none.

        Returns the intent's number, and what was signed.
        """
        job, monotonic = admission.job, self._clock.monotonic
        began = monotonic()
        seq = await self._evidence.intend(intent, digests, job.deadline)
        try:
            now = monotonic()
            ended.append(("audit", began, now - began))
            signed = await self._hsm.sign(admission)
            began = monotonic()
            ended.append(("hsm", now, began - now))
            outcome = await self._evidence.outcome(seq, intent.principal, job.version, signed)
        except BaseException as error:
            self._evidence.close(seq, error, job.deadline)
            raise
        await self._evidence.conclude(seq, outcome)
        ended.append(("audit", began, monotonic() - began))
        return seq, signed

    async def _content_hash(self, request: BatchRequest) -> bytes:
        """Returns the SHA-256 of everything that is asked: key, version, format and payloads."""
        whole, payloads = sha256(request.content_head()), request.payloads
        await self._turns.each(
            request.principal,
            payloads,
            lambda start, stop: whole.update(b"".join(payloads[start:stop])),
        )
        return whole.digest()

    def _check_answer(self, bound: int, request: BatchRequest) -> None:
        size = bound + FAILURE_BYTES * len(request.payloads)
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

    def _charge(self, terms: Terms, items: int, now: float) -> None:
        refusal = self._usage.charge(terms.facility, terms.quotas, items, now)
        if refusal is None:
            return
        quota = refusal.quota
        if refusal.retry_after is None:
            raise invalid("payloads", f"has {items} items, the quota is {quota}: split it")
        self._events.emit(QuotaRefused(terms.group or "", quota.window))
        metadata = {"rule": terms.rule("quotas"), "window": quota.window}
        text = f"the quota of {quota} has no room for {items} more: nothing was signed"
        raise CallError(Reason.QUOTA_EXCEEDED, text, metadata, retry_after=refusal.retry_after)


def _job(inputs: Sequence[bytes], version: KeyVersion, terms: Terms, deadline: float) -> SignJob:
    return SignJob(version, inputs, terms.facility, terms.weight, terms.check_every, deadline)


def _intent(
    request: BatchRequest,
    content: bytes,
    decision: Decision,
    context: FormatContext,
    inputs: HsmInputs,
    *,
    policy: Policy,
) -> IntentRecord:
    """Returns what is about to be signed, and everything that the same bytes depend on."""
    terms, version = _granted(decision), context.version
    return IntentRecord(
        principal=request.principal,
        request_id=request.request_id,
        call_id=request.call_id,
        payload_hash=content,
        key_version=version.name,
        kid=version.kid,
        format=str(request.format),
        rule=decision.rule,
        policy=bytes.fromhex(policy.sha256),
        facility=terms.facility,
        group=terms.group or "",
        now=context.now,
        hcert=context.hcert,
        asked=len(request.payloads),
        failed=reasons_of(inputs.failures),
    )


def _ended(request: BatchRequest, result: BatchResult) -> ItemsEnded:
    """Returns how many items have which reason of their failure, or "ok"."""
    failures = result.failures.values()
    reasons = Counter(str(failure.reason) for failure in failures) if failures else {}
    reasons["ok"] = len(result.outputs) - len(failures)
    group = result.terms.group or ""
    return ItemsEnded(group, request.format, result.version.algorithm, reasons)


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
            "payloads", f"has {items} items, the limit here is {terms.max_batch_items}: split it"
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

"""The pipeline of a signature: authorise, prepare, charge, record, sign and check, record, finish.

``Engine.sign_batch`` is the whole of it. A batch keeps the snapshot (policy and
keys) under which it was authorised; it needs no lock but those of the usage
counters, of the audit log and of the HSM's queue.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Protocol

from signer.algorithms import PROPERTIES
from signer.clock import Clock
from signer.errors import CallError, Failure, Reason, invalid
from signer.formats import FORMATS
from signer.hsm.front.pool import Admission
from signer.keys.index import KeyIndex
from signer.model import (
    Algorithm,
    Format,
    FormatContext,
    KeyVersion,
    Prepared,
    Signed,
    SignJob,
    parse_key_or_version,
)
from signer.policy.decide import Decision, check_algorithm, decide
from signer.policy.rules import Terms
from signer.policy.usage import Usage
from signer.signing.evidence import Answered, Evidence, Intent, cannot_repeat
from signer.signing.request import BatchRequest, BatchResult, Served, Snapshot

MAX_ANSWER_BYTES = 4 * 1024 * 1024
"""Clients of gRPC refuse larger answers unless told otherwise."""
FAILURE_BYTES = 400
"""What one failed item adds to an answer, at most."""
_NOTHING = Failure(Reason.INTERNAL, "nothing was to sign")  # befalls no item
SMALLEST_BUDGET = 0.005
"""Seconds below which no HSM is asked for anything."""


class Hsm(Protocol):
    """What the engine asks for signatures."""

    def admit(self, job: SignJob) -> Admission: ...
    def sign(self, admission: Admission) -> Signed: ...


class Observer(Protocol):
    """Who counts what happens here."""

    def stage(self, name: str, began: float, seconds: float) -> None: ...
    def items(
        self, group: str, requested: Format, algorithm: Algorithm, reasons: Counter[str]
    ) -> None: ...
    def quota_rejected(self, group: str, window: str) -> None: ...


class Engine:
    """Signs batches with what is served when they arrive."""

    def __init__(
        self,
        served: Served,
        hsm: Hsm,
        evidence: Evidence,
        *,
        usage: Usage,
        observer: Observer,
        clock: Clock,
        answer_bytes: int,
    ) -> None:
        """Takes ``answer_bytes``: what gRPC lets out; the HSM must not work for more."""
        self._served = served
        self._answer_bytes = min(answer_bytes, MAX_ANSWER_BYTES)
        self._usage = usage
        self._hsm = hsm
        self._evidence = evidence
        self._observer = observer
        self._clock = clock

    def sign_batch(self, request: BatchRequest) -> BatchResult:
        """Signs a batch: every item gets its output or its failure. Raises CallError."""
        snapshot, now = self._served.snapshot, self._clock.now()

        # 1. May this principal do this now?
        with self._stage("authorise"):
            decision = decide(snapshot.policy, request.principal, request.key, request.format, now)
            terms = _granted(decision)
            _check_size(request, terms)
            ticket = request.ticket()

        # 2. Whoever repeats a request gets the same bytes again, at no cost.
        with self._evidence.once(ticket, request.deadline) as earlier:
            if earlier is not None:
                return _repeat(request, snapshot.keys, terms, earlier)

            # 3. From payloads to bytes to sign. What does not parse fails its item.
            with self._stage("format"):
                version = _allowed_version(snapshot, request, terms, now)
                message_format = FORMATS[request.format]
                context = FormatContext(version, int(now), terms.hcert, terms.content)
                self._check_answer(message_format.max_output(request.payloads, context), request)
                prepared = message_format.prepare(request.payloads, context)
                column = _Column(prepared, version.algorithm)

            # 4. Where the HSM takes it, it counts: the quota is charged and never refunded.
            job = _job(column.inputs, version, terms, request.deadline)
            self._check_time(request.deadline)
            with self._hsm.admit(job) as admission:
                if admission.refused is None:
                    self._charge(terms, len(job.inputs), now)

                # 5. The intent is on record, the HSM signs, the outcome is on record.
                if admission.refused is None and job.inputs:
                    intent = Intent(
                        ticket=ticket,
                        call_id=request.call_id,
                        version=version,
                        format=request.format,
                        rule=decision.rule,
                        policy_sha256=snapshot.policy.sha256,
                        facility=terms.facility,
                        group=terms.group or "",
                        now=context.now,
                        hcert=context.hcert,
                        asked=len(request.payloads),
                        failed=prepared.failures,
                        digests=column.digests(),
                    )
                    signed = self._sign(admission, intent)
                else:
                    signed = Signed.all_failed(job, admission.refused or _NOTHING)

            # 6. From signatures to finished messages.
            with self._stage("format"):
                failures = prepared.failures | column.at_their_places(signed.failures)
                outputs = message_format.finish(prepared, column.spread(signed.signatures), context)

        self._count(request.format, version, terms, failures, len(outputs))
        return BatchResult(version, terms, decision.rule, outputs, failures)

    def _sign(self, admission: Admission, intent: Intent) -> Signed:
        """Signs what is on record; whatever happens, what came of it is on record, too."""
        job = admission.job
        with self._stage("audit"):
            seq = self._evidence.intend(intent, job.deadline)
        with self._evidence.closing(seq):
            with self._stage("hsm"):
                signed = self._hsm.sign(admission)
            with self._stage("audit"):
                self._evidence.conclude(seq, job.version, signed)
        return signed

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
            raise invalid("payloads", f"has {items} items to sign, the quota is {quota}: split it")
        self._observer.quota_rejected(terms.group or "", quota.window)
        metadata = {"rule": terms.rule("quotas"), "window": quota.window}
        text = f"the quota of {quota} does not hold {items} more items: nothing was signed"
        raise CallError(Reason.QUOTA_EXCEEDED, text, metadata, retry_after=refusal.retry_after)

    def _count(
        self,
        requested: Format,
        version: KeyVersion,
        terms: Terms,
        failures: dict[int, Failure],
        items: int,
    ) -> None:
        reasons = Counter(str(failure.reason) for failure in failures.values())
        reasons["ok"] = items - len(failures)
        self._observer.items(terms.group or "", requested, version.algorithm, reasons)

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        began = self._clock.monotonic()
        try:
            yield
        finally:
            self._observer.stage(name, began, self._clock.monotonic() - began)


class _Column:
    """The inputs of the HSM for the items that are still good, and their places."""

    def __init__(self, prepared: Prepared, algorithm: Algorithm) -> None:
        self._as_they_are = prepared.prehashed or PROPERTIES[algorithm].hash_name == "sha256"
        self._size = len(prepared.to_sign)
        self._places = (
            [i for i in range(self._size) if i not in prepared.failures]
            if prepared.failures
            else range(self._size)
        )
        good = (
            [prepared.to_sign[i] for i in self._places] if prepared.failures else prepared.to_sign
        )
        self._good = good
        self.inputs = good if prepared.prehashed else _digests(algorithm, good)

    def digests(self) -> Sequence[bytes]:
        """What the audit log knows the items by: SHA-256 of the bytes to sign, or their digest."""
        if self._as_they_are:
            return self.inputs
        return [hashlib.sha256(each).digest() for each in self._good]

    def at_their_places(self, failures: dict[int, Failure]) -> dict[int, Failure]:
        """Failures by the place of their item in the batch."""
        return {self._places[i]: failure for i, failure in failures.items()}

    def spread(self, signatures: list[bytes]) -> list[bytes]:
        """Signatures at the places of their items, b"" elsewhere."""
        if len(signatures) == self._size:
            return signatures
        spread = [b""] * self._size
        for place, signature in zip(self._places, signatures, strict=True):
            spread[place] = signature
        return spread


def _digests(algorithm: Algorithm, messages: Sequence[bytes]) -> Sequence[bytes]:
    """Hashes a column with the key's hash; EdDSA signs messages as they are."""
    match PROPERTIES[algorithm].hash_name:
        case None:
            return messages
        case "sha256":
            return [hashlib.sha256(message).digest() for message in messages]
        case name:
            return [hashlib.new(name, message).digest() for message in messages]


def _job(inputs: Sequence[bytes], version: KeyVersion, terms: Terms, deadline: float) -> SignJob:
    return SignJob(version, inputs, terms.facility, terms.weight, terms.check_every, deadline)


def _repeat(request: BatchRequest, keys: KeyIndex, terms: Terms, earlier: Answered) -> BatchResult:
    """Makes the same bytes again: time, version and signatures are those on record.

    So are the items that were refused then, whatever the policy says of them now.
    """
    name, number = parse_key_or_version(earlier.key_version)
    version = keys.version(name, number or 0)
    if version is None:
        raise cannot_repeat("the key version is gone")
    version = replace(version, kid=earlier.kid)
    context = FormatContext(version, earlier.now, earlier.hcert)
    message_format = FORMATS[request.format]
    try:
        prepared = message_format.prepare(request.payloads, context)
    except CallError as error:
        raise cannot_repeat(error.message) from None
    prepared = prepared._replace(failures=earlier.failed)
    column = _Column(prepared, version.algorithm)
    if b"".join(column.digests()) != earlier.digests:
        raise cannot_repeat("the key version has another certificate since")
    failures = earlier.failed | column.at_their_places(earlier.signed.failures)
    outputs = message_format.finish(prepared, column.spread(earlier.signed.signatures), context)
    return BatchResult(version, terms, earlier.rule, outputs, failures)


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

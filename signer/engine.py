"""The pipeline of a signature: authorise, prepare, charge, sign and check, finish.

``Engine.sign_batch`` is the whole of it. A batch keeps the snapshot (policy and
keys) under which it was authorised; it needs no lock but those of the usage
counters and of the HSM's queue.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from signer.clock import Clock
from signer.errors import CallError, Failure, Reason, invalid
from signer.formats import FORMATS
from signer.keys.index import KeyIndex
from signer.model import (
    Algorithm,
    Format,
    FormatContext,
    KeyName,
    KeyVersion,
    Prepared,
    Signed,
    SignJob,
)
from signer.policy.decide import Decision, check_algorithm, decide
from signer.policy.rules import Policy, Terms
from signer.policy.usage import Usage

MAX_ANSWER_BYTES = 4 * 1024 * 1024
"""Clients of gRPC refuse larger answers unless told otherwise."""
FAILURE_BYTES = 400
"""What one failed item adds to an answer, at most."""
SMALLEST_BUDGET = 0.005
"""Seconds below which no HSM is asked for anything."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Policy and keys that belong together; replaced as a whole."""

    policy: Policy
    keys: KeyIndex


@dataclass(frozen=True, slots=True)
class BatchRequest:
    """One call of SignBatch; ``version`` None means the primary; ``deadline`` is monotonic."""

    principal: str
    key: KeyName
    version: int | None
    format: Format
    payloads: Sequence[bytes]
    deadline: float


@dataclass(frozen=True, slots=True)
class BatchResult:
    """Outputs in the order of the payloads, b"" where ``failures`` has the index."""

    version: KeyVersion
    terms: Terms
    rule: str
    outputs: Sequence[bytes]
    failures: dict[int, Failure]


class Hsm(Protocol):
    """What the engine asks for signatures."""

    def admit(self, job: SignJob) -> Failure | None: ...
    def sign(self, job: SignJob) -> Signed: ...


class Observer(Protocol):
    """Who counts what happens here."""

    def stage(self, name: str, seconds: float) -> None: ...
    def items(
        self, group: str, requested: Format, algorithm: Algorithm, reasons: Counter[str]
    ) -> None: ...
    def quota_rejected(self, group: str, window: str) -> None: ...


class Engine:
    """Signs batches. ``snapshot`` is replaced by whoever reloads."""

    def __init__(
        self,
        snapshot: Snapshot,
        hsm: Hsm,
        usage: Usage,
        observer: Observer,
        clock: Clock,
        *,
        answer_bytes: int,
    ) -> None:
        """Takes ``answer_bytes``: what gRPC lets out; the HSM must not work for more."""
        self.snapshot = snapshot
        self._answer_bytes = min(answer_bytes, MAX_ANSWER_BYTES)
        self.usage = usage
        self._hsm = hsm
        self._observer = observer
        self._clock = clock

    def sign_batch(self, request: BatchRequest) -> BatchResult:
        """Signs a batch: every item gets its output or its failure. Raises CallError."""
        snapshot, now = self.snapshot, self._clock.now()

        # 1. May this principal do this now, and with which version?
        with self._stage("authorise"):
            decision = decide(snapshot.policy, request.principal, request.key, request.format, now)
            terms = _granted(decision)
            _check_size(request, terms)
            version = _find_version(snapshot.keys, request, now)
            _granted(check_algorithm(terms, request.format, version.algorithm))

        # 2. From payloads to bytes to sign. What does not parse fails its item.
        with self._stage("format"):
            message_format = FORMATS[request.format]
            context = FormatContext(version, int(now), terms.hcert, terms.content)
            self._check_answer(message_format.max_output(request.payloads, context), request)
            prepared = message_format.prepare(request.payloads, context)
            column = _Column(prepared, version.algorithm)

        # 3. Where the HSM takes it, it counts: the quota is charged and never refunded.
        job = _job(column.inputs, version, terms, request.deadline)
        self._check_time(request.deadline)
        refused = self._hsm.admit(job) if job.inputs else None
        if refused is None:
            self._charge(terms, len(job.inputs), now)

        # 4. The HSM signs, the worker checks; one bad item fails alone.
        with self._stage("hsm"):
            signed = self._sign(job, refused)
            failures = prepared.failures | column.at_their_places(signed.failures)

        # 5. From signatures to finished messages.
        with self._stage("format"):
            outputs = message_format.finish(prepared, column.spread(signed.signatures), context)

        self._count(request.format, version, terms, failures, len(outputs))
        return BatchResult(version, terms, decision.rule, outputs, failures)

    def _sign(self, job: SignJob, refused: Failure | None) -> Signed:
        if refused is not None:
            return Signed.all_failed(job, refused)
        return self._hsm.sign(job) if job.inputs else Signed([], {})

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
        refusal = self.usage.charge(terms.facility, terms.quotas, items, now)
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
        started = time.perf_counter()
        try:
            yield
        finally:
            self._observer.stage(name, time.perf_counter() - started)


class _Column:
    """The inputs of the HSM for the items that are still good, and their places."""

    def __init__(self, prepared: Prepared, algorithm: Algorithm) -> None:
        self._size = len(prepared.to_sign)
        self._places = (
            [i for i in range(self._size) if i not in prepared.failures]
            if prepared.failures
            else range(self._size)
        )
        good = (
            [prepared.to_sign[i] for i in self._places] if prepared.failures else prepared.to_sign
        )
        self.inputs = good if prepared.prehashed else _digests(algorithm, good)

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
    match algorithm.hash_name:
        case None:
            return messages
        case "sha256":
            return [hashlib.sha256(message).digest() for message in messages]
        case name:
            return [hashlib.new(name, message).digest() for message in messages]


def _job(inputs: Sequence[bytes], version: KeyVersion, terms: Terms, deadline: float) -> SignJob:
    return SignJob(version, inputs, terms.facility, terms.weight, terms.check_every, deadline)


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

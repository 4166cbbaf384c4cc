"""Idempotency: a request id is answered once within 24 hours.

A repetition gets the bytes that the audit log says were signed, at no cost. Of two calls with
one request id at the same time the second waits for the first.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from signer.audit.read.ledger import Earlier, Ledger
from signer.audit.write.log import AuditLog
from signer.clock import Clock
from signer.errors import CallError, Reason
from signer.formats import FORMATS
from signer.keys.index import KeyIndex
from signer.model import FormatContext, parse_key_or_version
from signer.policy.rules import Terms
from signer.signing.evidence import EarlierAnswer, read_answer
from signer.signing.request import BatchRequest, BatchResult, HsmInputs


class _Claim:
    """A request with an id that this process is answering."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.done = threading.Event()


class Repeats:
    """Finds the answers that request ids have had. Safe to call from any thread."""

    def __init__(self, log: AuditLog, ledger: Ledger, clock: Clock) -> None:
        """Takes the open log and the ledger that it keeps."""
        self._log, self._ledger, self._clock = log, ledger, clock
        self._lock = threading.Lock()
        self._claims: dict[tuple[str, str], _Claim] = {}

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
                claim = self._claims.pop((request.principal, request.request_id))
            claim.done.set()

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
                    self._claims[name] = _Claim(content)
                    return None
            if other.content != content:
                raise _reused()
            if not other.done.wait(max(0.0, request.deadline - self._clock.monotonic())):
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

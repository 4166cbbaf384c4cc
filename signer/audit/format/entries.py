"""What records of signing hold, and how records follow each other.

The fields of INTENT, OUTCOME and INDETERMINATE, and the log's own fields of SNAPSHOT, are
written and read here and nowhere else. Readers raise RecordError.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from signer.audit.format.merkle import Frontier
from signer.audit.format.record import (
    FIRST_CHAIN,
    HASH_SIZE,
    Record,
    RecordError,
    RecordKind,
    Value,
)
from signer.errors import TABLE, Failure, Reason
from signer.model import HcertTerms

Fields = Mapping[str, Value]

CLOSING = frozenset({RecordKind.OUTCOME, RecordKind.INDETERMINATE})
"""Records that close an intent; ``intent`` is its sequence number."""


def text(fields: Fields, name: str, default: str | None = None) -> str:
    """Returns a field that is text; ``default`` if it is missing."""
    value = fields.get(name, default)
    if not isinstance(value, str):
        raise RecordError(f"{name} is not text")
    return value


def number(fields: Fields, name: str, default: int | None = None) -> int:
    """Returns a field that is an integer; ``default`` if it is missing."""
    value = fields.get(name, default)
    if type(value) is not int:
        raise RecordError(f"{name} is not a number")
    return value


def octets(fields: Fields, name: str, default: bytes | None = None) -> bytes:
    """Returns a field that is a byte string; ``default`` if it is missing."""
    value = fields.get(name, default)
    if type(value) is not bytes:
        raise RecordError(f"{name} is not a byte string")
    return value


@dataclass(frozen=True, slots=True)
class IntentRecord:
    """An INTENT: what is about to be signed, for whom, and under which rule.

    Its column holds the digests of the items that go to the HSM. ``payload_hash`` is the
    hash of the whole request, ``asked`` its number of payloads, ``now`` the time in messages
    (seconds since the epoch), ``policy`` a SHA-256. ``failed`` has the items that were
    refused before, by their index among the payloads; see ``failure_texts``.
    """

    principal: str
    request_id: str
    call_id: str
    payload_hash: bytes
    key_version: str
    kid: bytes
    format: str
    rule: str
    policy: bytes
    facility: str
    group: str
    now: int
    hcert: HcertTerms | None
    asked: int
    failed: Mapping[int, str]

    def to_fields(self) -> dict[str, Value]:
        hcert = self.hcert
        return {
            "principal": self.principal,
            "request_id": self.request_id,
            "call_id": self.call_id,
            "payload_hash": self.payload_hash,
            "key_version": self.key_version,
            "kid": self.kid,
            "format": self.format,
            "rule": self.rule,
            "policy": self.policy,
            "facility": self.facility,
            "group": self.group,
            "now": self.now,
            "hcert": None if hcert is None else [hcert.issuer, hcert.validity],
            "asked": self.asked,
            "failed": _by_name(self.failed),
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> IntentRecord:
        """Reads the fields; those that a proof does not show may be missing."""
        policy = octets(fields, "policy")
        if len(policy) != HASH_SIZE:
            raise RecordError("policy is not a SHA-256")
        hcert = None
        match fields.get("hcert"):
            case [str(issuer), int(validity)]:
                hcert = HcertTerms(issuer, validity)
        return cls(
            principal=text(fields, "principal"),
            request_id=text(fields, "request_id", ""),
            call_id=text(fields, "call_id", ""),
            payload_hash=octets(fields, "payload_hash", b""),
            key_version=text(fields, "key_version"),
            kid=octets(fields, "kid", b""),
            format=text(fields, "format"),
            rule=text(fields, "rule"),
            policy=policy,
            facility=text(fields, "facility", ""),
            group=text(fields, "group", ""),
            now=number(fields, "now", 0),
            hcert=hcert,
            asked=number(fields, "asked", 0),
            failed=_by_index(fields, "failed"),
        )


@dataclass(frozen=True, slots=True)
class OutcomeRecord:
    """An OUTCOME: what became of an intent.

    Its column holds a signature for each digest of the intent, zeros for those in
    ``failures``, by their index there. ``attempts`` is how often the HSM was asked.
    """

    intent: int
    attempts: int
    failures: Mapping[int, str]

    def to_fields(self) -> dict[str, Value]:
        return {
            "intent": self.intent,
            "attempts": self.attempts,
            "failures": _by_name(self.failures),
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> OutcomeRecord:
        return cls(
            number(fields, "intent"),
            number(fields, "attempts", 0),
            _by_index(fields, "failures"),
        )


def indeterminate(intent: int, reason: str = "") -> dict[str, Value]:
    """Returns the fields of an INDETERMINATE: nothing of the intent is released.

    ``reason`` is empty if a start closes what an earlier process has left open.
    """
    return {"intent": intent, "reason": reason} if reason else {"intent": intent}


def failure_texts(failures: Mapping[int, Failure]) -> dict[int, str]:
    """Returns failures as records hold them: ``REASON: message``."""
    return {index: f"{each.reason}: {each.message}" for index, each in failures.items()}


def read_failures(texts: Mapping[int, str]) -> dict[int, Failure]:
    """Reads what ``failure_texts`` has returned; raises RecordError."""
    failures = {}
    for index, written in texts.items():
        name, _, message = written.partition(": ")
        try:
            reason = Reason(name)
        except ValueError:
            raise RecordError("a failure has an unknown reason") from None
        failures[index] = Failure(reason, message, 1.0 if TABLE[reason].retryable else None)
    return failures


def _by_name(texts: Mapping[int, str]) -> dict[str, Value]:
    return {str(index): written for index, written in texts.items()}


def _by_index(fields: Fields, name: str) -> dict[int, str]:
    written = fields.get(name, {})
    if not isinstance(written, Mapping) or not all(map(str.isdecimal, written)):
        raise RecordError(f"{name} is not a map of indices")
    return {int(index): text(written, index) for index in written}


class Tip:
    """The end of the log: what the next record has to continue.

    ``chain`` is the chain hash of the last frame, ``time_us`` the time of the last record,
    ``frontier`` the tree so far, and ``open`` the numbers of intents without an outcome.
    """

    def __init__(self) -> None:
        self.chain = FIRST_CHAIN
        self.time_us = 0
        self.frontier = Frontier()
        self.open: set[int] = set()

    @property
    def size(self) -> int:
        """How many records the log has: the sequence number of the next."""
        return self.frontier.size

    def check(self, kind: RecordKind, fields: Fields) -> None:
        """Raises RecordError if such a record may not be the next."""
        if kind in CLOSING and fields.get("intent") not in self.open:
            raise RecordError(f"an {kind} closes an intent that is not open")
        if kind is RecordKind.SNAPSHOT and any(
            fields.get(name) != value for name, value in self.snapshot().items()
        ):
            raise RecordError("a snapshot differs from the records before it")

    def add(self, record: Record, leaf: bytes) -> None:
        """Adds the next record, which ``check`` has accepted."""
        if record.kind is RecordKind.INTENT:
            self.open.add(record.seq)
        elif record.kind in CLOSING:
            self.open.remove(record.fields["intent"])  # type: ignore[arg-type]  # checked
        self.time_us = record.time_us
        self.frontier.append(leaf)

    def snapshot(self) -> dict[str, Value]:
        """Returns the fields of a SNAPSHOT record that describe the log itself."""
        return {"frontier": self.frontier.to_list(), "open": sorted(self.open)}

    def continue_from(self, snapshot: Record) -> None:
        """Starts before a SNAPSHOT record that begins a segment; raises RecordError.

        The snapshot is unproven until a checkpoint beyond it has been compared: the
        checkpoint's root covers these subtrees and the snapshot's own leaf.
        """
        if snapshot.kind is not RecordKind.SNAPSHOT:
            raise RecordError("the log begins neither with record 0 nor with a snapshot")
        peaks = _list_of(bytes, snapshot.fields, "frontier")
        try:
            self.frontier = Frontier.from_list(snapshot.seq, peaks)
        except ValueError as error:
            raise RecordError(f"the snapshot is wrong: {error}") from None
        self.open = set(_list_of(int, snapshot.fields, "open"))
        self.time_us = snapshot.time_us


def _list_of(kind: type, fields: Fields, name: str) -> list[Any]:
    values = fields.get(name)
    if not isinstance(values, list) or any(type(value) is not kind for value in values):
        raise RecordError(f"{name} of the snapshot is not a list of the expected kind")
    return values

"""What a log says of signatures, as far as stops and policies are compared with it.

Between two records about officers, keys or policies nothing changes, so all intents there
that name the same version, group and policy are judged together. That keeps what one
process sends to another small, however many signatures a log has.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

from signer.audit.format.batch_records import OutcomeRecord
from signer.audit.format.record import CLOSING, Record, RecordKind, number
from signer.model import KeyName, parse_key_or_version


class IntentNames(NamedTuple):
    """What intents name that officers can stop or replace; texts are empty where one is missing."""

    version: str
    facility: str
    group: str
    policy: bytes

    @classmethod
    def of(cls, intent: Record) -> "IntentNames":
        fields = intent.fields
        texts = [fields.get(name) for name in ("key_version", "facility", "group")]
        version, facility, group = (text if isinstance(text, str) else "" for text in texts)
        policy = fields.get("policy")
        return cls(version, facility, group, policy if isinstance(policy, bytes) else b"")

    @property
    def key(self) -> KeyName | None:
        """The key of the version; None if the record names no version."""
        try:
            key, version = parse_key_or_version(self.version)
        except ValueError:
            return None
        return None if version is None else key


@dataclass(slots=True)
class Seen:
    """Intents that name the same: numbers and times of the first and the last.

    ``signed`` is the last of these intents of which a signature was recorded in the same run.
    """

    first: int
    first_us: int
    last: int
    last_us: int
    signed: int | None = None


class ClosedIntent(NamedTuple):
    """The end of an intent of an earlier run; ``signed``: its outcome holds a signature.

    ``names`` is None if the intent is in an earlier part of the log.
    """

    intent: int
    names: IntentNames | None
    signed: bool


@dataclass(slots=True)
class Signings:
    """One run: all intents between two other records, and the ends of earlier intents."""

    seen: dict[IntentNames, Seen] = field(default_factory=dict)
    closed: list[ClosedIntent] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.seen or self.closed)


class SigningsReader:
    """Gathers signings of consecutive records; ``open`` are the intents without an end."""

    def __init__(self) -> None:
        self.open: dict[int, IntentNames] = {}
        self._current = Signings()

    def take(self, record: Record) -> None:
        """Takes an INTENT, an OUTCOME or an INDETERMINATE. Raises RecordError."""
        if record.kind is RecordKind.INTENT:
            self._intended(record)
        elif record.kind in CLOSING:
            self._closed(record)

    def taken(self) -> Signings | None:
        """Returns what was gathered since the last call; None if that is nothing."""
        taken, self._current = self._current, Signings()
        return taken or None

    def _intended(self, record: Record) -> None:
        names = IntentNames.of(record)
        self.open[record.seq] = names
        seen = self._current.seen.get(names)
        if seen is None:
            self._current.seen[names] = Seen(record.seq, record.time_us, record.seq, record.time_us)
        else:
            seen.last, seen.last_us = record.seq, record.time_us

    def _closed(self, record: Record) -> None:
        intent = number(record.fields, "intent")
        signed = record.kind is RecordKind.OUTCOME and _released(record)
        names = self.open.pop(intent, None)
        seen = None if names is None else self._current.seen.get(names)
        if seen is not None and seen.first <= intent:
            if signed:
                seen.signed = max(intent, seen.signed or 0)
        else:
            self._current.closed.append(ClosedIntent(intent, names, signed))


def _released(outcome: Record) -> bool:
    """Whether an outcome holds a signature."""
    column = outcome.column
    return column is not None and column.count > len(
        OutcomeRecord.from_fields(outcome.fields).failures
    )

"""Decides every intent of a log once more, from the texts of policies that are kept beside it.

It needs the packages of the server, which read policies. What the log says of an intent is
compared with the policy that the intent names: principal, key, format, number of items, time,
the terms of health certificates, and the quotas and lifetimes of key versions, counted anew.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path

from signer.audit.format.batch_records import IntentRecord
from signer.audit.format.record import HASH_SIZE, Record, RecordError, RecordKind
from signer.audit.format.segments import POLICIES
from signer.audit.read.ledger import Ledger, charged
from signer.config.policy_documents import read_policy_text
from signer.errors import ConfigError
from signer.model import Format, KeyName, parse_key_or_version
from signer.policy.decide import Decision, decide
from signer.policy.recount import LifetimeRecount, Recount
from signer.policy.rules import Policy, Terms
from signer.text import count

LATE_SECONDS = 300  # after its decision an intent is recorded, at the latest
EARLY_SECONDS = 5  # before its decision it is not recorded, but for the differences of clocks
MAX_LISTED = 100  # problems of one part that are listed; the rest is counted


class DecidedPart:
    """What is wrong with the intents of one part of a log."""

    def __init__(self, directory: Path) -> None:
        self.decided = 0
        self.problems: list[str] = []
        self.unlisted = 0
        self._directory = directory
        self._recount, self._lifetimes = Recount(), LifetimeRecount()
        self._unread: set[bytes] = set()
        self._begun = False

    def take(self, record: Record) -> None:
        first, self._begun = not self._begun, True
        if record.kind is RecordKind.INTENT:
            self._decide(record)
        elif first and record.kind is RecordKind.SNAPSHOT:
            self._start(record)

    def _start(self, snapshot: Record) -> None:
        """Takes the usage in a snapshot; whether it is true is compared elsewhere."""
        ledger = Ledger()
        try:
            ledger.apply(snapshot)
        except RecordError:
            return
        for facility, windows in ledger.windows().items():
            for length, (number, items) in windows.items():
                self._recount.start(facility, length, number, items)
        for facility, keys in ledger.keys().items():
            for key, asked in keys.items():
                self._lifetimes.start(KeyName(facility, key), asked)

    def _decide(self, record: Record) -> None:
        try:
            intent = IntentRecord.from_fields(record.fields)
            key, number = parse_key_or_version(intent.key_version)
            asked = Format(intent.format)
        except (RecordError, ValueError) as error:
            self._report(record.seq, f"it cannot be decided: {error}")
            return
        recorded = record.time_us // 1_000_000
        if not -EARLY_SECONDS <= recorded - intent.now <= LATE_SECONDS:
            said = f"its decision is of the time {intent.now}, and its record of {recorded}"
            self._report(
                record.seq, f"{said} (in seconds since the epoch): it is not decided again"
            )
            return
        policy = read_kept(self._directory, intent.policy)
        if isinstance(policy, str):
            if intent.policy not in self._unread:
                self._unread.add(intent.policy)
                self._report(record.seq, f"it and those after it cannot be decided: {policy}")
            return
        self.decided += 1
        decision = _decision(policy, intent, key, asked)
        if decision.terms is None:
            self._report(
                record.seq,
                f"its policy denies {intent.principal} to sign {asked} with {key}:"
                f" {decision.message} ({decision.rule})",
            )
            return
        for problem in self._broken(record, intent, decision.terms):
            self._report(record.seq, problem)
        self._count_lifetime(record, key, number or 0, decision.terms)

    def _count_lifetime(self, record: Record, key: KeyName, number: int, terms: Terms) -> None:
        items, limit = charged(record), terms.lifetime_signatures
        if self._lifetimes.exceeded(
            key, number, items, limit=limit, recorded=record.time_us / 1_000_000
        ):
            exceeding = count(items, "item exceeds", "items exceed")
            lifetime = count(limit or 0, "signature")
            problem = f"its {exceeding} the lifetime of {lifetime} of its version"
            self._report(record.seq, f"{problem} ({terms.rule('lifetime_signatures')})")

    def _broken(self, record: Record, intent: IntentRecord, terms: Terms) -> list[str]:
        """Returns the terms that an intent does not keep to."""
        problems = []
        listed = record.column.count if record.column else 0
        asked = max(intent.asked, listed)
        if asked > terms.max_batch_items:
            allowed = f"its policy allows {terms.max_batch_items}"
            problems.append(f"it has {count(asked, 'item')}, and {allowed}")
        named, given = (intent.facility, intent.group), (terms.facility, terms.group or "")
        if named != given:
            problems.append(f"it is charged to {named} and belongs to {given}")
        if intent.format == Format.HCERT and intent.hcert != terms.hcert:
            problems.append(f"it issues certificates as {intent.hcert}, not as {terms.hcert}")
        items, recorded = charged(record), record.time_us / 1_000_000
        problems += [
            f"its {count(items, 'item exceeds', 'items exceed')} the quota of {quota}"
            f" of facility {terms.facility}"
            for quota in terms.quotas
            if self._recount.exceeded(
                terms.facility, quota, items, now=intent.now, recorded=recorded
            )
        ]
        return problems

    def _report(self, seq: int, problem: str) -> None:
        if len(self.problems) < MAX_LISTED:
            self.problems.append(f"record {seq}: {problem}")
        else:
            self.unlisted += 1


class DecisionFold:
    """Every intent is one that its policy allows. ``decided`` counts intents."""

    def __init__(self, directory: Path) -> None:
        """``directory`` is that of the log, with the texts of policies."""
        self.part: Callable[[], DecidedPart] = partial(DecidedPart, directory)
        self.decided = 0
        self._problems: list[str] = []
        self._unlisted = 0

    def join(self, part: DecidedPart) -> None:
        """Continues with the next part of the log."""
        self.decided += part.decided
        self._problems += part.problems
        self._unlisted += part.unlisted

    @property
    def problems(self) -> list[str]:
        """One text for each problem, with the record's number."""
        more = [f"and {self._unlisted} more about decisions"] if self._unlisted else []
        return self._problems + more


@lru_cache(maxsize=4)  # a policy of 15,000 facilities takes seconds to read
def read_kept(directory: Path, policy: bytes) -> Policy | str:
    """Returns a policy whose text is kept beside a log, or why it cannot be read."""
    name = policy.hex()
    try:
        read = read_policy_text((directory / POLICIES / name).read_bytes(), name)
    except OSError as error:
        return f"the text of policy {name} cannot be read: {error.strerror}"
    except (ConfigError, ValueError) as error:
        text = " ".join(str(error).split())
        return f"the text of policy {name} is not a valid policy here: {text}"
    if read.policy.sha256 != name or len(policy) != HASH_SIZE:
        return f"the text of policy {name} does not have that SHA-256"
    return read.policy


def _decision(policy: Policy, intent: IntentRecord, key: KeyName, asked: Format) -> Decision:
    """Decides at the time that an intent names, which is cut to whole seconds."""
    decision = decide(policy, intent.principal, key, asked, intent.now)
    if decision.terms is None:
        later = decide(policy, intent.principal, key, asked, intent.now + 0.999_999)
        return later if later.terms is not None else decision
    return decision

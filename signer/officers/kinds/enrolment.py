"""The kind enrol: many facilities at once, from a CSV, with a key each."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from signer.algorithms import Algorithm
from signer.config.policy_documents import PolicyFile, PolicyText, policy_files, policy_text
from signer.errors import ConfigError, OperatorError
from signer.keys import lifecycle
from signer.keys.certificates import fits
from signer.keys.generation import NewKey, check_bits, cka_id_of, make_version
from signer.model import IDENTIFIER, Format, KeyName, KeyVersion, TokenAdmin
from signer.officers.kinds.base import (
    FACILITIES_SHOWN,
    Details,
    Effects,
    OperationContext,
    OperationError,
    OperationKind,
    Work,
    shortened,
)
from signer.officers.kinds.create_key import stopped, try_out
from signer.officers.kinds.policy_change import replaced_problems

COLUMNS = ("facility", "group", "profile", "clients", "key", "algorithm", "bits")
"""Of the CSV; ``clients`` are separated by spaces, ``group`` and ``bits`` may be empty."""
MAX_ROWS = 50_000
BATCH = 50
"""Keys of one transaction: so many are made again at most after a crash, and found."""
TRIED_EVERY = 100
"""One new key in so many signs once; each one's first signature is checked anyway."""


class Enrol(Details):
    """A CSV by its hash; the policy that it makes, and the one that it replaces."""

    token: str = ""
    csv_sha256: str = ""
    facilities: int = 0
    keys: int = 0
    file: str = ""
    policy_sha256: str = ""
    replaces: str = ""
    in_force_since: int = 0


class Row(NamedTuple):
    """One line: a facility and a key of it. The facility's columns are alike in all its lines."""

    line: int
    facility: str
    group: str
    profile: str
    clients: tuple[str, ...]
    new: NewKey


class EnrolKind(OperationKind[Enrol]):
    """Writes one policy file, makes the keys, and puts the policy in force."""

    name = "enrol"
    details = Enrol
    names = "csv_sha256"

    def complete(self, details: Enrol, context: OperationContext, attachment: bytes) -> Enrol:
        rows = read_rows(attachment)
        sha256 = hashlib.sha256(attachment).hexdigest()
        file = _file_of(sha256)
        text = enrolled(rows, file, context)
        facilities, keys = _counts(rows)
        return Enrol(
            token=context.token(details.token),
            csv_sha256=sha256,
            facilities=facilities,
            keys=keys,
            file=file,
            policy_sha256=text.policy.sha256,
            replaces=context.policy.policy.sha256,
            in_force_since=context.state.policy_since,
        )

    def problems(self, details: Enrol, context: OperationContext) -> list[str]:
        if not details.csv_sha256:
            return ["attachment: send the CSV of facilities"]
        problems = [*replaced_problems(details, context), *context.token_problems(details.token)]
        if not context.policy_folder:
            problems.append("the policy is one file: make it a folder, to which a file is added")
        return problems

    def documents(
        self, details: Enrol, context: OperationContext, attachment: bytes
    ) -> list[bytes]:
        del context
        rows, sha256 = read_rows(attachment), hashlib.sha256(attachment).hexdigest()
        if (sha256, _file_of(sha256), *_counts(rows)) != (
            details.csv_sha256,
            details.file,
            details.facilities,
            details.keys,
        ):
            raise OperationError("attachment: is not the CSV that the operation names")
        return [attachment]

    def difference(self, details: Enrol, context: OperationContext) -> list[str]:
        lines = [
            f"+ {details.facilities} facilities in the policy, in the new file {details.file}",
            f"+ {details.keys} keys on token {details.token}, ACTIVE at once",
            f"~ the policy in force becomes {details.policy_sha256}",
        ]
        content = context.document(details.csv_sha256)
        if content is None:
            return lines
        rows = read_rows(content)
        if adopted := sum(1 for row in rows if _adopted(row, context)):
            lines.append(f"! {adopted} of the keys exist, from an enrolment that did not end")
        alike = Counter((row.group, row.profile, row.clients) for row in rows)
        lines += [
            f"+ {count} keys with profile {profile}, group {group or 'none'}, for {', '.join(who)}"
            for (group, profile, who), count in alike.most_common(FACILITIES_SHOWN)
        ]
        shown = [f"+ {row.new.name}, {row.new.algorithm}" for row in rows]
        return [*lines, *shortened(shown, "key", hint="; `show ID --attachment FILE` has them all")]

    def execute(self, details: Enrol, work: Work) -> Effects:
        content = work.context.document(details.csv_sha256)
        rows = read_rows(content or b"")
        text = enrolled(rows, details.file, work.context)
        if text.policy.sha256 != details.policy_sha256:
            raise OperatorError("the CSV makes another policy than the one that was approved")
        with work.admin(details.token) as admin:
            self._make(rows, admin, work)
        return Effects(
            policy=text.text,
            policy_since=details.in_force_since,
            officers_since=work.context.state.officers_since,
            result={"policy_sha256": details.policy_sha256, "keys": details.keys},
        )

    def _make(self, rows: Sequence[Row], admin: TokenAdmin, work: Work) -> None:
        """Makes what is not there yet; saves it in batches, also where one key fails."""
        batch: list[KeyVersion] = []
        done = 0
        try:
            for place, row in enumerate(rows):
                work.check_running()
                identifier = cka_id_of(work.id, place)
                there = work.context.state.keys.version(row.new.name, 1)
                if there is None:
                    batch.append(
                        self._one(row, identifier, admin, work, tried=not place % TRIED_EVERY)
                    )
                elif there.cka_id != identifier and not _adopted(row, work.context):
                    _refuse(there)
                done += 1
                if len(batch) >= BATCH:
                    self._save(batch, done, len(rows), work)
        except OperatorError as error:
            raise stopped(done, len(rows), error) from error
        finally:
            self._save(batch, done, len(rows), work)

    def _one(
        self, row: Row, identifier: bytes, admin: TokenAdmin, work: Work, *, tried: bool
    ) -> KeyVersion:
        now = work.clock.now()
        made = make_version(admin, row.new, 1, identifier, now)
        if tried:
            try_out(admin, made)
        return lifecycle.activate(made, now, None, now)

    def _save(self, batch: list[KeyVersion], done: int, total: int, work: Work) -> None:
        if batch:
            work.save(batch, ())
            batch.clear()
        work.progress(done, total)


def _refuse(there: KeyVersion) -> None:
    raise OperatorError(f"{there.key} was made by somebody else meanwhile")


def _adopted(row: Row, context: OperationContext) -> bool:
    """Whether a key is there that fits: made by an enrolment that can end no more.

    No facility of the policy has its name, or the line would be wrong: nobody can have it sign.
    """
    versions = context.state.keys.versions(row.new.name)
    if len(versions) != 1 or row.facility in context.policy.policy.facilities:
        return False
    [there] = versions
    return (
        there.active(context.now)
        and there.algorithm is row.new.algorithm
        and fits(there.spki, there.algorithm, row.new.bits or None)
    )


def read_rows(content: bytes) -> list[Row]:
    """Reads a CSV; raises OperationError with everything that is wrong with its lines."""
    try:
        table = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True)
        lines = [(table.line_num, line) for line in table if line]
    except (UnicodeDecodeError, csv.Error) as error:
        raise OperationError(f"attachment: is no CSV in UTF-8: {error}") from None
    if not lines or tuple(lines[0][1]) != COLUMNS:
        raise OperationError(f"attachment: the first line must be {','.join(COLUMNS)}")
    if not 1 < len(lines) <= MAX_ROWS + 1:
        raise OperationError(f"attachment: has {len(lines) - 1} rows, expected 1 to {MAX_ROWS}")
    rows: list[Row] = []
    problems: list[str] = []
    for number, cells in lines[1:]:
        try:
            rows.append(_row(number, cells))
        except (ValueError, OperatorError) as error:
            problems.append(f"line {number}: {error}")
    problems += _conflicts(rows)
    if problems:
        raise OperationError(*problems)
    return rows


def _row(number: int, cells: Sequence[str]) -> Row:
    if len(cells) != len(COLUMNS):
        raise ValueError(f"has {len(cells)} cells, expected {len(COLUMNS)}")
    facility, group, profile, clients, key, algorithm, bits = (cell.strip() for cell in cells)
    for name, value in (("facility", facility), ("key", key)):
        if not IDENTIFIER.fullmatch(value):
            raise ValueError(f"{name} is no id of 1 to 63 of a-z, 0-9, '.', '_' and '-'")
    if algorithm not in list(Algorithm):
        raise ValueError(f"algorithm is none of {', '.join(Algorithm)}")
    if bits and not (bits.isascii() and bits.isdigit() and len(bits) <= 5):
        raise ValueError("bits is no number")
    new = NewKey(KeyName(facility, key), Algorithm(algorithm), int(bits or 0))
    check_bits(new)
    if not clients:
        raise ValueError("clients is empty: nobody could use the key")
    return Row(number, facility, group, profile, tuple(clients.split()), new)


def _conflicts(rows: Sequence[Row]) -> list[str]:
    """Returns which lines name one key twice, or one facility in two ways."""
    names = Counter(row.new.name for row in rows)
    first: dict[str, Row] = {}
    problems = []
    for row in rows:
        if names[row.new.name] > 1:
            problems.append(f"line {row.line}: {row.new.name} stands in the file twice")
        same = first.setdefault(row.facility, row)
        if (same.group, same.profile, same.clients) != (row.group, row.profile, row.clients):
            problems.append(
                f"line {row.line}: facility {row.facility} has another group, profile or clients"
                f" than in line {same.line}"
            )
    return problems


def enrolled(rows: Sequence[Row], file: str, context: OperationContext) -> PolicyText:
    """Returns the policy in force with the facilities of a CSV; raises OperationError.

    Each is checked as if it had been written by hand: names, profiles, groups, clients,
    and that the key's algorithm is allowed.
    """
    problems = _known(rows, context)
    if problems:
        raise OperationError(*problems)
    files = policy_files(context.policy.text)
    if any(each.name == file for each in files):
        raise OperationError(f"{file} is in the policy already: this CSV was enrolled before")
    content = _policy_file(rows).encode()
    merged = sorted([*files, PolicyFile(file, content)])
    try:
        made = context.read_policy(policy_text(merged))
    except ConfigError as error:
        raise OperationError(*(f"{p.field}: {p.description}" for p in error.problems)) from None
    wrong = [
        f"line {row.line}: {row.new.algorithm} is not allowed with profile {row.profile}"
        for row in rows
        if (terms := made.policy.terms_of(row.new.name)) is None
        or row.new.algorithm not in terms.algorithms
    ]
    wrong += [
        f"line {row.line}: {row.new.name} signs HCERT and needs a certificate first:"
        " list it in no CSV, create-key makes it"
        for row in rows
        if (terms := made.policy.terms_of(row.new.name)) and Format.HCERT in terms.formats
    ]
    if wrong:
        raise OperationError(*wrong)
    return made


def _file_of(sha256: str) -> str:
    return f"enrolled-{sha256[:16]}.yaml"


def _counts(rows: Sequence[Row]) -> tuple[int, int]:
    return len({row.facility for row in rows}), len(rows)


def _known(rows: Sequence[Row], context: OperationContext) -> list[str]:
    """Returns which lines name what is there already, or what is not there."""
    policy, problems = context.policy.policy, []
    places = {row.new.name: cka_id_of(context.executing, i) for i, row in enumerate(rows)}
    for row in rows:
        if row.facility in policy.facilities:
            problems.append(f"line {row.line}: facility {row.facility} is in the policy already")
        if row.group and row.group not in policy.groups:
            problems.append(f"line {row.line}: group {row.group} does not stand in the policy")
        there = context.state.keys.version(row.new.name, 1)
        ours = context.executing and there is not None and there.cka_id == places[row.new.name]
        if there is not None and not ours and not _adopted(row, context):
            problems.append(f"line {row.line}: {row.new.name} exists already")
    return problems


def _policy_file(rows: Sequence[Row]) -> str:
    """Returns the policy file of the facilities, each once; JSON texts are YAML."""
    lines = ["# Facilities that were enrolled by one operation of officers.", "facilities:"]
    for facility, row in {row.facility: row for row in reversed(rows)}.items():
        group = f"group: {_quoted(row.group)}, " if row.group else ""
        clients = ", ".join(map(_quoted, row.clients))
        lines.append(
            f"  {_quoted(facility)}: {{profile: {_quoted(row.profile)}, {group}"
            f"clients: [{clients}]}}"
        )
    lines[2:] = sorted(lines[2:])
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """Returns a text as JSON has it, which is YAML but for its escapes of rare characters."""
    return json.dumps(text, ensure_ascii=False)

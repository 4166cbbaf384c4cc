"""The kind enrol: adds many facilities from a CSV, each with its keys."""

import csv
import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from signer.algorithms import Algorithm
from signer.config.policy_documents import PolicyFile, PolicyText, policy_files, policy_text
from signer.errors import ConfigError, OperatorError
from signer.keys import lifecycle
from signer.keys.lifecycle import NewKey, TokenAdmin, check_bits, cka_id_of, make_version
from signer.model import IDENTIFIER, Format, KeyName, KeyVersion
from signer.officers.kinds.base import (
    FACILITIES_SHOWN,
    Effects,
    OperationContext,
    OperationError,
    OperationKind,
    Pair,
    Work,
    shortened,
)
from signer.officers.kinds.create_key import save_made, try_out
from signer.officers.kinds.policy_change import PutPolicy, replaced_problems
from signer.policy.difference import new_facilities
from signer.text import count
from signer.x509 import fits

# The columns of the CSV; spaces separate `clients`, `group` and `bits` may be empty.
COLUMNS = ("facility", "group", "profile", "clients", "key", "algorithm", "bits")
MAX_ROWS = 50_000
TRIED_EVERY = 100  # one new key in so many signs a test; each key's first signature is checked


class Enrol(PutPolicy):
    """A CSV by its hash, the policy with its facilities, and the policy that it replaces."""

    token: str = ""
    csv_sha256: str = ""
    facilities: int = 0
    keys: int = 0
    file: str = ""


class EnrolmentRow(NamedTuple):
    """One line: a facility and one of its keys."""

    line: int
    facility: str
    group: str
    profile: str
    clients: tuple[str, ...]
    new: NewKey


class EnrolKind(OperationKind[Enrol]):
    """Writes one policy file, creates the keys, and puts the policy in force."""

    name = "enrol"
    details = Enrol
    names = "csv_sha256"

    def complete(self, details: Enrol, context: OperationContext) -> Enrol:
        rows = read_rows(context.attachment)
        sha256 = hashlib.sha256(context.attachment).hexdigest()
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
            problems.append(
                "the policy is one file: turn it into a folder, to which a file is added"
            )
        return problems

    def documents(self, details: Enrol, context: OperationContext) -> list[bytes]:
        rows = read_rows(context.attachment)
        sha256 = hashlib.sha256(context.attachment).hexdigest()
        named = details.csv_sha256, details.file, details.facilities, details.keys
        if (sha256, _file_of(sha256), *_counts(rows)) != named:
            raise OperationError("attachment: is not the CSV that the operation names")
        return [context.attachment]

    def difference(self, details: Enrol, context: OperationContext) -> list[str]:
        facilities = count(details.facilities, "facility", "facilities")
        lines = [
            f"+ {facilities} in the policy, in the new file {details.file}",
            f"+ {count(details.keys, 'key')} on token {details.token}, ACTIVE at once",
            f"~ the policy in force becomes {details.policy_sha256}",
        ]
        content = context.document(details.csv_sha256)
        if content is None:
            return lines
        rows = read_rows(content)
        if adopted := sum(1 for row in rows if _adopted(row, context)):
            lines.append(
                f"! {count(adopted, 'key exists', 'keys exist')} from an enrolment that did not end"
            )
        alike = Counter((row.group, row.profile, row.clients) for row in rows)
        # Of facilities with the same profile and group one is shown with its rules.
        examples = {(row.profile, row.group): row.facility for row in reversed(rows)}
        made = enrolled(rows, details.file, context).policy
        lines += new_facilities(made, sorted(examples.values()))
        lines += [
            f"+ {count(number, 'key')} with profile {profile}, group {group or 'none'},"
            f" for {', '.join(who)}"
            for (group, profile, who), number in alike.most_common(FACILITIES_SHOWN)
        ]
        shown = [f"+ {row.new.name}, {row.new.algorithm}" for row in rows]
        return [*lines, *shortened(shown, "key", hint="; `show ID --attachment FILE` has them all")]

    def fits(self, details: Enrol, pair: Pair) -> bool:
        content = pair.once("csv", lambda: pair.document(details.csv_sha256) or b"")
        new = pair.once("rows", lambda: read_rows(content))[pair.index or 0].new
        version = pair.version
        asked = (new.name, new.algorithm, details.token)
        return (version.key, version.algorithm, version.token) == asked

    def execute(self, details: Enrol, work: Work) -> Effects:
        content = work.context.document(details.csv_sha256)
        rows = read_rows(content or b"")
        text = enrolled(rows, details.file, work.context)
        if text.policy.sha256 != details.policy_sha256:
            raise OperatorError("the CSV gives another policy than the one that was approved")
        with work.admin(details.token) as admin:
            save_made(_made(rows, admin, work), work, len(rows), len(rows))
        return Effects(
            policy=text.text,
            policy_since=work.context.stored.policy_since,
            officers_since=work.context.stored.officers_since,
            result={"policy_sha256": details.policy_sha256, "keys": details.keys},
        )


def _made(
    rows: Sequence[EnrolmentRow], admin: TokenAdmin, work: Work
) -> Iterator[KeyVersion | None]:
    """Creates the missing keys; yields None for each that exists."""
    for index, row in enumerate(rows):
        work.check_running()
        identifier = cka_id_of(work.id, index)
        existing = work.context.state.keys.version(row.new.name, 1)
        if existing is not None:
            if existing.cka_id != identifier and not _adopted(row, work.context):
                raise OperatorError(f"another operation has created {existing.key} meanwhile")
            yield None
            continue
        now = work.clock.now()
        made = make_version(admin, row.new, 1, identifier, now)
        if not index % TRIED_EVERY:
            try_out(admin, made)
        yield lifecycle.activate(made, now, None, now)


def _adopted(row: EnrolmentRow, context: OperationContext) -> bool:
    """Whether a fitting key exists already, from an enrolment that cannot be completed.

    Its facility is not in the policy, so nobody can sign with it.
    """
    versions = context.state.keys.versions(row.new.name)
    if len(versions) != 1 or row.facility in context.policy.policy.facilities:
        return False
    [existing] = versions
    return (
        existing.active(context.now)
        and existing.algorithm is row.new.algorithm
        and fits(existing.spki, existing.algorithm, row.new.bits or None)
    )


def read_rows(content: bytes) -> list[EnrolmentRow]:
    """Reads a CSV; raises OperationError with everything that is wrong in it."""
    try:
        table = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True)
        lines = [(table.line_num, line) for line in table if line]
    except (UnicodeDecodeError, csv.Error) as error:
        raise OperationError(f"attachment: is not a CSV in UTF-8: {error}") from None
    if not lines or tuple(lines[0][1]) != COLUMNS:
        raise OperationError(f"attachment: the first line must be {','.join(COLUMNS)}")
    if not 1 < len(lines) <= MAX_ROWS + 1:
        raise OperationError(
            f"attachment: has {count(len(lines) - 1, 'row')}, expected 1 to {MAX_ROWS}"
        )
    rows: list[EnrolmentRow] = []
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


def _row(number: int, cells: Sequence[str]) -> EnrolmentRow:
    if len(cells) != len(COLUMNS):
        raise ValueError(f"has {count(len(cells), 'cell')}, expected {len(COLUMNS)}")
    facility, group, profile, clients, key, algorithm, bits = (cell.strip() for cell in cells)
    for name, value in (("facility", facility), ("key", key)):
        if not IDENTIFIER.fullmatch(value):
            raise ValueError(f"{name} must have 1 to 63 characters of a-z, 0-9, '.', '_' and '-'")
    if algorithm not in list(Algorithm):
        raise ValueError(f"algorithm must be one of {', '.join(Algorithm)}")
    if bits and not (bits.isascii() and bits.isdigit() and len(bits) <= 5):
        raise ValueError("bits is not a number")
    new = NewKey(KeyName(facility, key), Algorithm(algorithm), int(bits or 0))
    check_bits(new)
    if not clients:
        raise ValueError("clients is empty: nobody could use the key")
    return EnrolmentRow(number, facility, group, profile, tuple(clients.split()), new)


def _conflicts(rows: Sequence[EnrolmentRow]) -> list[str]:
    """Returns the lines that name a key twice, or a facility with other columns."""
    names = Counter(row.new.name for row in rows)
    first: dict[str, EnrolmentRow] = {}
    problems = []
    for row in rows:
        if names[row.new.name] > 1:
            problems.append(f"line {row.line}: {row.new.name} is in the file twice")
        same = first.setdefault(row.facility, row)
        if (same.group, same.profile, same.clients) != (row.group, row.profile, row.clients):
            problems.append(
                f"line {row.line}: facility {row.facility} has another group, profile or clients"
                f" than in line {same.line}"
            )
    return problems


def enrolled(rows: Sequence[EnrolmentRow], file: str, context: OperationContext) -> PolicyText:
    """Returns the policy in force with the facilities of a CSV; raises OperationError.

    The result is checked like any policy, and that each key's algorithm is allowed.
    """
    problems = _known(rows, context)
    if problems:
        raise OperationError(*problems)
    files = policy_files(context.policy.text)
    if any(existing.name == file for existing in files):
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
        " create it with create-key, not with a CSV"
        for row in rows
        if (terms := made.policy.terms_of(row.new.name)) and Format.HCERT in terms.formats
    ]
    if wrong:
        raise OperationError(*wrong)
    return made


def _file_of(sha256: str) -> str:
    return f"enrolled-{sha256[:16]}.yaml"


def _counts(rows: Sequence[EnrolmentRow]) -> tuple[int, int]:
    return len({row.facility for row in rows}), len(rows)


def _known(rows: Sequence[EnrolmentRow], context: OperationContext) -> list[str]:
    """Returns the lines that name an existing facility or key, or an unknown group."""
    policy, problems = context.policy.policy, []
    cka_ids = {row.new.name: cka_id_of(context.executing, i) for i, row in enumerate(rows)}
    for row in rows:
        if row.facility in policy.facilities:
            problems.append(f"line {row.line}: facility {row.facility} is in the policy already")
        if row.group and row.group not in policy.groups:
            problems.append(f"line {row.line}: group {row.group} is not in the policy")
        existing = context.state.keys.version(row.new.name, 1)
        ours = context.executing and existing and existing.cka_id == cka_ids[row.new.name]
        if existing is not None and not ours and not _adopted(row, context):
            problems.append(f"line {row.line}: {row.new.name} exists already")
    return problems


def _policy_file(rows: Sequence[EnrolmentRow]) -> str:
    """Returns the policy file of the facilities, each once; JSON texts are also YAML."""
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
    """Returns a text as a JSON string, without escapes that YAML reads in another way."""
    return json.dumps(text, ensure_ascii=False)

"""The kind enrol: adds many facilities from a CSV, each with its keys."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

from signer.algorithms import Algorithm
from signer.config.policy_documents import PolicyText
from signer.config.policy_files import PolicyFile, policy_files, policy_text
from signer.errors import ConfigError, OperatorError
from signer.keys import lifecycle
from signer.keys.lifecycle import NewKey, TokenAdmin, cka_id_of, make_version
from signer.model import Format, KeyName, KeyVersion
from signer.officers.kinds.base import Effects, OperationKind, Pair, Work, shortened
from signer.officers.kinds.create_key import save_made, try_out
from signer.officers.kinds.enrolment_table import (
    EnrolmentRow,
    Mistake,
    WrongRow,
    read_rows,
    read_table,
)
from signer.officers.kinds.operation_context import OperationContext, OperationError
from signer.officers.kinds.policy_change import PutPolicy, put_in_force, replaced_problems
from signer.officers.kinds.storing import is_stored, place_text, storage_problems, wrapping_key_of
from signer.policy import values
from signer.policy.difference import new_facilities
from signer.text import count
from signer.x509 import fits

TRIED_EVERY = 100  # one new key in so many signs a test; each key's first signature is checked


class Enrol(PutPolicy):
    """A CSV by its hash, the policy with its facilities, and the policy that it replaces."""

    token: str = ""
    csv_sha256: str = ""
    facilities: int = 0
    keys: int = 0
    file: str = ""
    wrapping_key: str = ""


class EnrolKind(OperationKind[Enrol]):
    """Writes one policy file, creates the keys, and puts the policy in force."""

    name = "enrol"
    details = Enrol
    names = "csv_sha256"

    def complete(self, details: Enrol, context: OperationContext) -> Enrol:
        rows, wrong, mistakes = read_table(context.attachment)
        sha256 = hashlib.sha256(context.attachment).hexdigest()
        file = _file_of(sha256)
        text = enrolled(rows, file, context, wrong, mistakes)
        facilities, keys = _counts(rows)
        token, names = context.token(details.token), [row.new.name for row in rows]
        return Enrol(
            token=token,
            wrapping_key=wrapping_key_of(names, token, text.policy, context),
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
        problems = [
            *replaced_problems(details, context),
            *context.token_problems(details.token),
            *storage_problems(details.wrapping_key, details.token, context),
        ]
        if not context.policy_folder:
            problems.append(
                "the policy is one file: turn it into a folder, to which a file is added"
            )
        elif problem := context.files_problem():
            problems.append(f"{details.file} could not be written: {problem}")
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
        place = place_text(details.wrapping_key, details.token)
        lines = [
            f"+ {facilities} in the policy, in the new file {details.file}",
            f"+ {count(details.keys, 'key')} {place}, ACTIVE at once",
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
        # Of facilities with the same rules one is shown with them.
        examples = {
            (row.profile, row.group, row.quotas, row.hours): row.facility for row in reversed(rows)
        }
        made = enrolled(rows, details.file, context).policy
        lines += new_facilities(made, sorted(examples.values()))
        alike = Counter((row.group, row.profile, row.clients) for row in rows)
        who = [
            f"+ {count(number, 'key')} with profile {profile}, group {group or 'none'},"
            f" for {', '.join(clients)}"
            for (group, profile, clients), number in alike.most_common()
        ]
        hint = "; `show ID --attachment FILE` has them all"
        lines += shortened(who, "client list", hint=hint)
        shown = [f"+ {row.new.name}, {row.new.algorithm}" for row in rows]
        return [*lines, *shortened(shown, "key", hint=hint)]

    def fits(self, details: Enrol, pair: Pair) -> bool:
        content = pair.once("csv", lambda: pair.document(details.csv_sha256) or b"")
        new = pair.once("rows", lambda: read_rows(content))[pair.index or 0].new
        version = pair.version
        asked = (new.name, new.algorithm, details.token)
        as_asked = (version.key, version.algorithm, version.token) == asked
        return as_asked and is_stored(version, details.wrapping_key)

    def execute(self, details: Enrol, work: Work) -> Effects:
        content = work.context.document(details.csv_sha256)
        rows = read_rows(content or b"")
        text = enrolled(rows, details.file, work.context)
        if text.policy.sha256 != details.policy_sha256:
            raise OperatorError("the CSV gives another policy than the one that was approved")
        with work.admin(details.token) as admin:
            made = _made(rows, details.wrapping_key, admin, work)
            save_made(made, work, len(rows), len(rows))
        return put_in_force(text, work.context, keys=details.keys, file=details.file)


def _made(
    rows: Sequence[EnrolmentRow], wrapping_key: str, admin: TokenAdmin, work: Work
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
        new = row.new._replace(wrapping_key=wrapping_key)
        made = make_version(admin, new, 1, identifier, now)
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


def enrolled(
    rows: Sequence[EnrolmentRow],
    file: str,
    context: OperationContext,
    unread: Sequence[WrongRow] = (),
    mistakes: Sequence[Mistake] = (),
) -> PolicyText:
    """Returns the policy in force with the facilities of a CSV.

    The result is checked like any policy, and that each key's algorithm is allowed. Raises
    OperationError with all that is wrong, also in lines that are ``unread``, and with ``mistakes``,
    which were found before.
    """
    wrong = [*mistakes, *_known([*rows, *unread], context), *_existing(rows, context)]
    files, others = policy_files(context.policy.text), list[str]()
    new = [row for row in rows if row.facility not in context.policy.policy.facilities]
    made: PolicyText | None = None
    if any(existing.name == file for existing in files):
        others.append(f"{file} is in the policy already: this CSV was enrolled before")
    elif new or unread:
        tried = [_tried(row) for row in unread]
        merged = sorted([*files, PolicyFile(file, _policy_file([*new, *tried]).encode())])
        try:
            made = context.read_policy(policy_text(merged))
            wrong += _unfit(new, made)
        except ConfigError as error:
            lines = {row.facility: row.line for row in reversed([*new, *tried])}
            for problem in error.problems:
                facility, _, field = problem.field.removeprefix("facilities.").partition(".")
                text = str(replace(problem, field=field))
                if facility not in lines:
                    others.append(str(problem))
                elif field != "group":  # known already
                    wrong.append(Mistake(lines[facility], text))
    if wrong or others or made is None:
        raise OperationError(*map(str, sorted({*wrong})), *others)
    return made


def _unfit(rows: Sequence[EnrolmentRow], made: PolicyText) -> Iterator[Mistake]:
    """Yields the lines whose key may not sign under the policy, or not without a certificate."""
    for row in rows:
        terms = made.policy.terms_of(row.new.name)
        if terms is None or row.new.algorithm not in terms.algorithms:
            text = f"{row.new.algorithm} is not allowed with profile {row.profile}"
            yield Mistake(row.line, text)
        elif not terms.formats:
            yield Mistake(
                row.line,
                f"{row.new.name} would sign nothing: with profile {row.profile} a key signs only"
                " what the policy lists for it; list it there, and create it with create-key",
            )
        elif Format.HCERT in terms.formats:
            yield Mistake(
                row.line,
                f"{row.new.name} signs HCERT and needs a certificate first:"
                " create it with create-key, not with a CSV",
            )


def _file_of(sha256: str) -> str:
    return f"enrolled-{sha256[:16]}.yaml"


def _counts(rows: Sequence[EnrolmentRow]) -> tuple[int, int]:
    return len({row.facility for row in rows}), len(rows)


def _tried(row: WrongRow) -> EnrolmentRow:
    """Returns a line that cannot be used as one of which the policy judges the profile."""
    name = f"line-{row.line}-of-the-csv"
    new = NewKey(KeyName(name, "key"), Algorithm.ES256)
    return EnrolmentRow(row.line, name, "", row.profile, (f"spiffe://{name}/client",), (), "", new)


def _known(rows: Sequence[EnrolmentRow | WrongRow], context: OperationContext) -> Iterator[Mistake]:
    """Yields the lines that name an existing facility, or what is not in the policy."""
    policy, officers = context.policy.policy, context.state.officers
    for row in rows:
        if row.facility in policy.facilities:
            yield Mistake(row.line, f"facility {row.facility} is in the policy already")
        if row.group and row.group not in policy.groups:
            yield Mistake(row.line, f"group {row.group} is not in the policy")
        for who in sorted({*row.clients} & officers.keys()):
            yield Mistake(row.line, f"{who} is an officer, who must not be a client")


def _existing(rows: Sequence[EnrolmentRow], context: OperationContext) -> Iterator[Mistake]:
    """Yields the lines that name an existing key, which this operation has not made."""
    for index, row in enumerate(rows):
        existing = context.state.keys.version(row.new.name, 1)
        ours = existing and existing.cka_id == cka_id_of(context.executing, index)
        if existing is not None and not (context.executing and ours) and not _adopted(row, context):
            yield Mistake(row.line, f"{row.new.name} exists already")


def _policy_file(rows: Sequence[EnrolmentRow]) -> str:
    """Returns the policy file of the facilities, each once; JSON texts are also YAML."""
    lines = ["# Facilities that were enrolled by one operation of officers.", "facilities:"]
    for facility, row in {row.facility: row for row in reversed(rows)}.items():
        group = f"group: {_quoted(row.group)}, " if row.group else ""
        narrowed = ""
        if row.quotas:
            narrowed += f", quotas: {_quoted(row.quotas)}"
        if row.hours:
            narrowed += f", hours: {_quoted(values.opening_hours(row.hours))}"
        lines.append(
            f"  {_quoted(facility)}: {{profile: {_quoted(row.profile)}, {group}"
            f"clients: {_quoted(row.clients)}{narrowed}}}"
        )
    lines[2:] = sorted(lines[2:])
    return "\n".join(lines) + "\n"


def _quoted(value: object) -> str:
    """Returns a value as JSON, without escapes that YAML reads in another way."""
    return json.dumps(value, ensure_ascii=False)

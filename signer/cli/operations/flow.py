"""How an operation is proposed: prepare, look, check, sign, propose."""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from signer.cli.connection import connect, daemon_options
from signer.cli.operations.arguments import (
    certificates_in,
    iso,
    plain,
    principal_of,
    read_file,
    utc,
    write_file,
)
from signer.cli.operations.asked import Asked, check_content
from signer.cli.options import json_option
from signer.errors import OperatorError

if TYPE_CHECKING:
    from signer.client import Operation, SignerClient

LONG = 300.0
"""Seconds for calls that check thousands of facilities or keys."""

_LARGEST = 4 * 1024 * 1024 - 128 * 1024
"""Bytes of an attachment that fit into a call with the rest of it."""


class Officer(NamedTuple):
    """Who signs, and the file with the key of the client file's certificate."""

    principal: str
    key: Path

    def sign(self, content: bytes) -> bytes:
        """Signs an operation's bytes; raises OperatorError."""
        from signer.client import sign_operation

        try:
            return sign_operation(content, read_file(self.key))
        except ValueError as error:
            raise OperatorError(f"{self.key}: {error}") from None

    def may_sign(self, operation: Operation) -> bool:
        """Whether an operation waits for this officer's signature."""
        return self.principal not in {each.officer for each in operation.signatures}


def officer(client_file: Path) -> Officer:
    """Returns who a client file is; raises ConfigError and OperatorError."""
    from signer.config.client_file import load_client

    config = load_client(client_file)
    # Where the file has a chain, the first certificate is the client's own (RFC 8446 4.4.2).
    return Officer(principal_of(certificates_in(config.certificate)[0]), config.key)


class How(NamedTuple):
    """How a proposal is made: asked about or not, signed or only written down."""

    client_file: Path
    yes: bool
    draft: Path | None
    as_json: bool
    only_id: bool = False


def proposal_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the options of every proposal; the command gets them as ``how``."""

    @daemon_options
    @click.option("--yes", is_flag=True, help="Do not ask; for scripts.")
    @click.option(
        "--draft",
        metavar="FILE",
        type=click.Path(dir_okay=False, path_type=Path),
        help="Write the bytes to sign to FILE, for a key elsewhere; `submit` proposes them.",
    )
    @click.option("--id", "only_id", is_flag=True, help="Print only its id, for scripts.")
    @json_option
    @functools.wraps(command)
    def wrapped(
        *,
        client_file: Path,
        yes: bool,
        draft: Path | None,
        only_id: bool,
        as_json: bool,
        **options: Any,
    ) -> None:
        if only_id and (as_json or draft is not None):
            raise click.UsageError("--id stands without --json and --draft")
        command(how=How(client_file, yes, draft, as_json, only_id), **options)

    return wrapped


def propose(how: How, build: Callable[[SignerClient], Asked]) -> None:
    """Proposes what ``build`` asks for, or writes it down; prints what is to be done next."""
    if how.draft is None:
        must_confirm(yes=how.yes)
    with connect(how.client_file) as client:
        me = officer(how.client_file)
        asked = build(client)
        if len(asked.attachment) > _LARGEST:
            raise OperatorError(
                f"the list has {len(asked.attachment)} bytes, a call takes {_LARGEST}: split it"
            )
        content = prepared(client, asked, me, to_stderr=how.as_json or how.only_id)
        if how.draft is not None:
            write_draft(how.draft, content, asked.attachment, as_json=how.as_json)
            return
        confirm("Sign and propose this?", yes=how.yes)
        operation = client.operations.propose(
            content, me.sign(content), asked.attachment, timeout=LONG
        )
    if how.only_id:
        click.echo(operation.id)
    else:
        print_outcome(operation, as_json=how.as_json)


def prepared(client: SignerClient, asked: Asked, me: Officer, *, to_stderr: bool) -> bytes:
    """Prepares an operation, prints what it changes, and returns its checked bytes.

    Everything that is wrong with it is told on stderr and ends with exit code 1.
    """
    answer = client.operations.prepare(asked.kind, asked.arguments, asked.attachment, timeout=LONG)
    if answer.problems:
        for problem in answer.problems:
            click.echo(plain(problem), err=True)
        raise OperatorError("this cannot be proposed; the reasons stand above")
    check_content(answer.content, asked, me.principal)
    print_difference(answer.difference, to_stderr=to_stderr)
    return answer.content


def print_difference(lines: Iterable[str], *, to_stderr: bool = False) -> None:
    for line in lines:
        click.echo(plain(line), err=to_stderr)


def terminal() -> bool:
    """Whether somebody can answer."""
    return sys.stdin.isatty()


def must_confirm(*, yes: bool) -> None:
    """Refuses, as wrong usage, what nobody can be asked about."""
    if not yes and not terminal():
        raise click.UsageError("this is no terminal to ask at: say --yes to go on without asking")


def confirm(question: str, *, yes: bool) -> None:
    """Asks on a terminal; ends the command where the answer is no."""
    must_confirm(yes=yes)
    if not yes:
        click.confirm(question, abort=True, err=True)


def write_draft(file: Path, content: bytes, attachment: bytes, *, as_json: bool) -> None:
    """Writes the bytes to sign, and says how to sign and submit them."""
    write_file(file, content)
    beside = file.with_name(f"{file.name}.attachment") if attachment else None
    if beside is not None:
        write_file(beside, attachment)
    if as_json:
        said = {
            "file": str(file),
            "sha256": hashlib.sha256(content).hexdigest(),
            "attachment": None if beside is None else str(beside),
        }
        click.echo(json.dumps(said, indent=2))
        return
    more = "" if beside is None else f" --attachment {beside}"
    click.echo(f"{file} has the bytes to sign. Sign them with your key, for instance:", err=True)
    click.echo(signing_help(file), err=True)
    click.echo("then propose them:", err=True)
    click.echo(f"  signer operations submit {file} --signature {file}.sig{more}", err=True)


def signing_help(file: Path) -> str:
    """Says how ``openssl`` makes a signature that the appliance accepts."""
    return (
        f"  openssl dgst -sha256 -sign officer.key -out {file}.sig {file}\n"
        f"  openssl pkeyutl -sign -rawin -inkey officer.key -in {file} -out {file}.sig"
        "   (Ed25519)"
    )


def print_outcome(operation: Operation, *, as_json: bool) -> None:
    """Prints an operation that was just changed, and what it needs next."""
    if as_json:
        click.echo(json.dumps(described(operation), indent=2))
        return
    click.echo(f"operation {operation.id} ({operation.kind}) is {operation.state}")
    if operation.note:
        click.echo(f"  {plain(operation.note)}")
    click.echo(next_step(operation))


def next_step(operation: Operation) -> str:
    """Says in one sentence what an operation needs."""
    signed = len(operation.signatures)
    match operation.state:
        case "PROPOSED":
            return (
                f"{signed} of {operation.officers} officers have signed it; another one approves"
                f" it before {utc(operation.expires)}: signer operations approve {operation.id}"
            )
        case "WAITING":
            return (
                f"write its requests with `signer keys requests {operation.id} --out DIR`, then"
                f" give it certificates with `signer keys certificates {operation.id} FILES...`"
            )
        case "APPROVED" | "EXECUTING":
            return f"follow it with: signer operations wait {operation.id}"
        case "FAILED":
            return (
                "what it has done so far stays; when the cause is mended:"
                f" signer operations retry {operation.id}"
            )
        case "DONE":
            return "it is done"
        case _:
            return "it changes nothing: propose it again if it is still wanted"


def described(operation: Operation) -> dict[str, Any]:
    """Returns what `--json` shows of an operation: texts, times in ISO 8601 (UTC)."""
    return {
        "id": operation.id,
        "kind": operation.kind,
        "state": operation.state,
        "proposer": operation.proposer,
        "proposed": iso(operation.proposed),
        "expires": iso(operation.expires),
        "officers": operation.officers,
        "signatures": [
            {
                "officer": each.officer,
                "signed": iso(each.signed),
                "signature": base64.b64encode(each.signature).decode(),
            }
            for each in operation.signatures
        ],
        "content": operation.content.decode("ascii", "replace") or None,
        "difference": list(operation.difference),
        "done": operation.done,
        "total": operation.total,
        "note": operation.note,
        "result": operation.result,
        "changed": iso(operation.changed),
    }


def only_one(client: SignerClient, state: str, wanted: Callable[[Operation], bool]) -> str:
    """Returns the id of the one operation in a state that is wanted; raises OperatorError."""
    found = [each for each in client.operations.list(state) if wanted(each)]
    if len(found) == 1:
        return found[0].id
    said = "".join(f"\n  {each.id}  {each.kind}" for each in found) or "; there is none"
    raise OperatorError(f"{len(found)} operations are {state} that you could mean: name one{said}")

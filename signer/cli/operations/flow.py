"""How an operation is proposed: prepare, show, check, sign, propose."""

import base64
import functools
import hashlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click

from signer.cli.completion import operation_ids
from signer.cli.connection import connect, daemon_options
from signer.cli.operations.arguments import certificates_in, iso, principal_of, read_file, utc
from signer.cli.operations.requested import OperationRequest, check_content
from signer.cli.options import NEW_FILE, json_option, yes_option
from signer.cli.output import output, print_json, say, write_file
from signer.client import SignerClient
from signer.client._operations import sign_operation
from signer.client._values import Operation
from signer.config.client_file import load_client
from signer.errors import OperatorError
from signer.model import MESSAGE_BYTES
from signer.officers.approval import parse
from signer.officers.signed_text import signed_text
from signer.text import count, plain

LONG = 300.0
"""Seconds for calls that check thousands of facilities or keys."""

_ID_LENGTH, _ID_SHORTEST = 36, 4
_LARGEST = MESSAGE_BYTES - 128 * 1024
"""Bytes of an attachment that fit into a call with the rest of it."""


class OfficerKey(NamedTuple):
    """The officer of a client file: the principal and the file of the private key."""

    principal: str
    key: Path

    def sign(self, content: bytes) -> bytes:
        """Signs an operation's bytes; raises OperatorError."""
        try:
            return sign_operation(content, read_file(self.key))
        except ValueError as error:
            raise OperatorError(f"{self.key}: {error}") from None

    def may_sign(self, operation: Operation) -> bool:
        """Whether this officer has not signed an operation yet."""
        return self.principal not in {signature.officer for signature in operation.signatures}


def officer(client_file: Path) -> OfficerKey:
    """Returns the officer of a client file; raises ConfigError and OperatorError."""
    config = load_client(client_file)
    # Where the file has a chain, the first certificate is the client's own (RFC 8446 4.4.2).
    return OfficerKey(principal_of(certificates_in(config.certificate)[0]), config.key)


def officer_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds ``--client`` and ``--config``; the command gets ``client`` and ``me``, an OfficerKey."""

    @daemon_options
    @functools.wraps(command)
    def wrapped(*, client_file: Path, **options: Any) -> Any:
        with connect(client_file) as client:
            return command(client=client, me=officer(client_file), **options)

    return wrapped


def proposal_options(
    command: Callable[..., OperationRequest | Callable[[SignerClient], OperationRequest]],
) -> Callable[..., None]:
    """Adds the options of every proposal to a command, and proposes the request it returns.

    The command may return a function instead, which makes the request with the client.
    """

    @daemon_options
    @yes_option
    @click.option(
        "--draft",
        type=NEW_FILE,
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
            raise click.UsageError("--id cannot be combined with --json or --draft")
        requested = command(**options)
        if draft is None:
            must_confirm(yes=yes)
        with connect(client_file) as client:
            me = officer(client_file)
            requested = requested(client) if callable(requested) else requested
            content = prepare(client, requested, me, to_stderr=as_json or only_id)
            if draft is not None:
                write_draft(draft, content, requested.attachment, as_json=as_json)
                return
            confirm("Sign and propose this?", yes=yes)
            operation = client.operations.propose(
                content, me.sign(content), requested.attachment, timeout=LONG
            )
        if only_id:
            say(operation.id)
        elif as_json:
            print_json(operation_value(operation))
        else:
            print_outcome(operation)

    return wrapped


def prepare(
    client: SignerClient, requested: OperationRequest, me: OfficerKey, *, to_stderr: bool
) -> bytes:
    """Prepares an operation, prints it and what it changes, and returns its checked bytes.

    All that is wrong with it is printed on stderr; the exit code is then 1.
    """
    if len(requested.attachment) > _LARGEST:
        raise OperatorError(
            f"the attachment has {len(requested.attachment)} bytes, but a call takes {_LARGEST}:"
            " split it"
        )
    answer = client.operations.prepare(
        requested.kind, requested.arguments, requested.attachment, timeout=LONG
    )
    if answer.problems:
        for problem in answer.problems:
            say(plain(requested.told(problem)), err=True)
        raise OperatorError("this cannot be proposed, for the reasons above")
    check_content(answer.content, requested, me.principal)
    print_signed(answer.content, to_stderr=to_stderr)
    print_difference(answer.difference, to_stderr=to_stderr)
    return answer.content


def print_signed(content: bytes, *, to_stderr: bool) -> None:
    """Prints what an officer signs, from its bytes alone; raises ApprovalError."""
    digest = hashlib.sha256(content).hexdigest()
    say(f"what is signed, in full; its SHA-256 is {digest}", err=to_stderr)
    lines = signed_text(content)
    for line in lines:
        say(f"  {plain(line)}", err=to_stderr)
    if any("sha256 " in line for line in lines):
        say(
            "  a file that it names by its SHA-256 is written, and checked, by:"
            f" signer operations show {parse(content).id} --attachment FILE",
            err=to_stderr,
        )


def print_difference(
    difference: Sequence[str], *, to_stderr: bool, changes: str = "changes"
) -> None:
    """Prints what an operation changes, or has changed, as the appliance says."""
    if difference:
        say(
            f"what it {changes}, as the appliance describes it (a help, not part of what is"
            " signed):",
            err=to_stderr,
        )
    for line in difference:
        say(f"  {plain(line)}", err=to_stderr)


def terminal() -> bool:
    """Whether there is a terminal to ask at."""
    return sys.stdin.isatty()


def must_confirm(*, yes: bool) -> None:
    """Refuses, as wrong usage, to ask without a terminal."""
    if not yes and not terminal():
        raise click.UsageError("a confirmation needs a terminal: give --yes to go on without one")


def confirm(question: str, *, yes: bool) -> None:
    """Asks on a terminal; ends the command if the answer is no."""
    must_confirm(yes=yes)
    if not yes:
        click.confirm(question, abort=True, err=True)


def ask_on_terminal(question: str, *, yes: bool, show: Callable[[], object] = lambda: None) -> None:
    """Asks on a terminal, after ``show``. A script is not asked: a stop must not wait."""
    if not yes and terminal():
        show()
        confirm(question, yes=yes)


def write_draft(file: Path, content: bytes, attachment: bytes, *, as_json: bool) -> None:
    """Writes the bytes to sign, and prints how to sign and submit them."""
    write_file(file, content)
    beside = file.with_name(f"{file.name}.attachment") if attachment else None
    if beside is not None:
        write_file(beside, attachment)
    if as_json:
        sha256 = hashlib.sha256(content).hexdigest()
        print_json({"file": str(file), "sha256": sha256, "attachment": beside and str(beside)})
        return
    more = "" if beside is None else f" --attachment {beside}"
    say(
        f"{file} has the bytes to sign. Sign them with your key, for instance:\n"
        f"  openssl dgst -sha256 -sign officer.key -out {file}.sig {file}\n"
        f"  openssl pkeyutl -sign -rawin -inkey officer.key -in {file} -out {file}.sig"
        "   (Ed25519)\n"
        "then propose them:\n"
        f"  signer operations submit {file} --signature {file}.sig{more}",
        err=True,
    )


def print_outcome(operation: Operation) -> None:
    """Prints an operation that was just changed, and its next step."""
    say(f"operation {operation.id} ({operation.kind}) is {operation.state}")
    if operation.note:
        say(f"  {plain(operation.note)}")
    say(next_step(operation))


def signed_count(operation: Operation) -> str:
    """Returns how many officers have signed, as a sentence."""
    officers = count(operation.officers, "officer has", "officers have")
    return f"{len(operation.signatures)} of {officers} signed it"


def next_step(operation: Operation) -> str:  # noqa: PLR0911  one sentence a state
    """Returns one sentence on what an operation needs next."""
    match operation.state:
        case "PROPOSED":
            return (
                f"{signed_count(operation)}; another one approves it before"
                f" {utc(operation.expires)}: signer operations approve {operation.id}"
            )
        case "WAITING":
            return (
                f"write its requests with `signer keys requests {operation.id} --out DIR`, then"
                f" import its certificates with `signer keys certificates {operation.id} FILES...`"
            )
        case "APPROVED" | "EXECUTING":
            return f"follow it with: signer operations wait {operation.id}"
        case "FAILED":
            if "propose it again" in operation.note:
                return "it cannot go on; what it has done so far stays"
            return (
                "what it has done so far stays; when the cause is fixed:"
                f" signer operations retry {operation.id}"
            )
        case "DONE":
            return "it is done"
        case _:
            return "it changes nothing: propose it again if it is still wanted"


def operation_value(operation: Operation) -> dict[str, Any]:
    """Returns what `--json` shows of an operation: texts, times in ISO 8601 (UTC)."""
    return {
        "id": operation.id,
        "kind": operation.kind,
        "target": operation.target or None,
        "state": operation.state,
        "proposer": operation.proposer,
        "proposed": iso(operation.proposed),
        "expires": iso(operation.expires),
        "officers": operation.officers,
        "signatures": [
            {
                "officer": signature.officer,
                "signed": iso(signature.signed),
                "signature": base64.b64encode(signature.signature).decode(),
            }
            for signature in operation.signatures
        ],
        "content": operation.content.decode("ascii", "replace") or None,
        "difference": list(operation.difference),
        "done": operation.done,
        "total": operation.total,
        "note": operation.note,
        "result": operation.result,
        "changed": iso(operation.changed),
    }


changed_output = output(operation_value, print_outcome)
"""Adds ``--json`` to a command that returns the operation it changed."""


def full_id(client: SignerClient, text: str) -> str:
    """Returns the id of the operation whose id begins with a text; raises OperatorError."""
    if len(text) >= _ID_LENGTH:
        return text
    if len(text) < _ID_SHORTEST:
        raise OperatorError(f"{text}: give at least {_ID_SHORTEST} characters of the id")
    found = [one for one in client.operations.list() if one.id.startswith(text.lower())]
    if not found:
        raise OperatorError(f"no operation has an id that begins with {text}")
    if len(found) > 1:
        listed = "".join(f"\n  {one.id}  {one.kind} {plain(one.target)}" for one in found)
        raise OperatorError(f"{len(found)} operations have an id that begins with {text}:{listed}")
    return found[0].id


def identity_argument(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the argument ID, which may be shortened; below ``client_options``."""

    @click.argument("identity", metavar="ID", shell_complete=operation_ids)
    @functools.wraps(command)
    def wrapped(*, client: SignerClient, identity: str, **options: Any) -> Any:
        return command(client=client, identity=full_id(client, identity), **options)

    return wrapped


def only_one(client: SignerClient, state: str, wanted: Callable[[Operation], bool]) -> str:
    """Returns the id of the only wanted operation in a state; raises OperatorError."""
    candidates = [found for found in client.operations.list(state) if wanted(found)]
    if len(candidates) == 1:
        return candidates[0].id
    if not candidates:
        text = f"no operation is in the state {state}: name the ID of one for this command"
        raise OperatorError(text)
    listed = "".join(f"\n  {one.id}  {one.kind} {plain(one.target)}" for one in candidates)
    raise OperatorError(f"{len(candidates)} operations are {state}: name the ID of one{listed}")

"""``signer operations``: what security officers propose and approve."""

import hashlib
from pathlib import Path
from typing import Any

import click

from signer.cli.completion import operation_ids
from signer.cli.connection import client_options
from signer.cli.groups import CommandGroup
from signer.cli.operations.arguments import read_file, utc
from signer.cli.operations.flow import (
    LONG,
    OfficerKey,
    ask_on_terminal,
    changed_output,
    confirm,
    full_id,
    identity_argument,
    must_confirm,
    next_step,
    officer_options,
    only_one,
    operation_value,
    print_difference,
    print_signed,
)
from signer.cli.operations.following import (
    STATES,
    as_expected,
    follow,
    follow_options,
    print_operation,
    timeout_option,
)
from signer.cli.operations.propose import propose
from signer.cli.operations.requested import check_foreign
from signer.cli.options import FILE, json_option, yes_option
from signer.cli.output import (
    explained,
    output,
    print_json,
    print_table,
    print_text,
    put,
    say,
    write_file,
)
from signer.client import Officers, Operation, SignerClient
from signer.config.policy_files import write_policy_files
from signer.errors import OperatorError
from signer.officers.approval import ApprovalError, parse
from signer.x509 import describe_certificate


@click.group(
    cls=CommandGroup,
    commands=[propose],
    elsewhere={"rotate": "`signer keys rotate`", "sign": "`signer operations approve`"},
)
def operations() -> None:
    """Proposes and approves operations, which need more than one officer.

    One officer proposes and signs, another sees what it changes and signs the same
    bytes; then the appliance executes it. Stopping a key needs one officer: see
    `signer keys suspend`.

    \b
      signer operations propose activate facilities/moh/keys/dcc/versions/2 \\
        --client officer-a.yaml
      signer operations list --state PROPOSED --client officer-b.yaml
      signer operations show ID --client officer-b.yaml
      signer operations approve ID --wait --client officer-b.yaml
    """


def _print_list(operations: list[Operation]) -> None:
    if not operations:
        say("no operation is listed")
    for one in operations:
        signed = f"{len(one.signatures)} of {one.officers}"
        say(f"{one.id}  {one.kind:<18}  {one.state:<9}  {signed}")
        times = f"proposed {utc(one.proposed)}"
        if one.state == "PROPOSED":
            times += f", open until {utc(one.expires)}"
        for text in (one.target, times, one.proposer, one.note):
            if text:
                print_text(f"  {text}", "  ")


@operations.command("list")
@click.option("--state", type=click.Choice(STATES, case_sensitive=False), help="Only these.")
@output(lambda operations: list(map(operation_value, operations)), _print_list)
@client_options
def list_operations(*, client: SignerClient, state: str | None) -> list[Operation]:
    """Lists operations, the newest first.

    Of each: its state, what it is about, and who proposed it.
    Other commands take the beginning of an id, if no other operation has the same one.

    \b
      signer operations list --client officer-b.yaml
      signer operations list --state PROPOSED --client officer-b.yaml
    """
    return list(client.operations.list(state))


@operations.command(short_help="Shows an operation: changes, signatures, result.")
@click.option("--bytes", "as_bytes", is_flag=True, help="Write exactly the bytes that are signed.")
@click.option(
    "--attachment",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Write what it names by its SHA-256: a CSV or a list of keys to FILE, the files of a"
    " policy into a folder.",
)
@client_options
@json_option
@identity_argument
def show(
    *, client: SignerClient, identity: str, as_bytes: bool, attachment: Path | None, as_json: bool
) -> None:
    """Shows an operation: what is signed, what it changes, who has signed it, its result.

    \b
      signer operations show ID --client officer-b.yaml
      signer operations show ID --attachment facilities.csv \\
        --client officer-b.yaml
    Sign it with another tool, and approve it with that signature:
      signer operations show ID --bytes --client officer-b.yaml > operation
      openssl dgst -sha256 -sign officer-b.key -out operation.sig operation
      signer operations approve ID --signature operation.sig \\
        --client officer-b.yaml
    """
    if as_bytes and as_json:
        raise click.UsageError("give --bytes or --json, not both")
    operation = client.operations.get(identity)
    if attachment is not None:
        content = client.operations.attachment(identity)
        if hashlib.sha256(content).hexdigest().encode() not in operation.content:
            raise OperatorError(
                f"operation {identity} has no attachment, or the appliance returned another one"
            )
        _write_attachment(attachment, content, operation.kind)
    if as_bytes:
        put(operation.content)
    elif as_json:
        print_json(operation_value(operation))
    else:
        print_signed(operation.content, to_stderr=False)
        changes = "has changed" if operation.state == "DONE" else "changes"
        print_difference(operation.difference, to_stderr=False, changes=changes)
        print_operation(operation)


def _write_attachment(path: Path, content: bytes, kind: str) -> None:
    """Writes an attachment, a policy as its files. Raises OperatorError."""
    if kind != "policy":
        write_file(path, content)
        return
    with explained(path, "written"):
        path.mkdir(exist_ok=True)
        if any(path.iterdir()):
            raise OperatorError(f"{path} is not empty: name a new folder for the policy's files")
        write_policy_files(path, content)


@operations.command(short_help="Waits until an operation is over or waits for certificates.")
@timeout_option
@output(operation_value, print_operation, ok=as_expected)
@client_options
@identity_argument
def wait(*, client: SignerClient, identity: str, timeout: float) -> Operation:
    """Waits until an operation is over, or waits for certificates.

    The exit code is 1 if it failed, was rejected or has expired.

    \b
      signer operations wait ID --client officer-a.yaml
    """
    return follow(client, identity, timeout)


def _officers_value(answer: Officers) -> dict[str, Any]:
    return {
        "origin": answer.origin,
        "needed": dict(sorted(answer.needed.items())),
        "officers": [
            {"principal": principal, "certificate": describe_certificate(certificate)}
            for principal, certificate in answer.officers
        ],
    }


def _print_officers(answer: Officers) -> None:
    say(f"log origin: {answer.origin}")
    members = ("serial", "issuer", "not_after")
    rows = (
        (principal, *map(describe_certificate(certificate, utc).__getitem__, members))
        for principal, certificate in answer.officers
    )
    print_table(("officer", "certificate", "issuer", "valid until"), rows)
    print_table(("kind", "officers needed"), sorted(answer.needed.items()))


@operations.command(short_help="Shows the officers, and how many each kind of operation needs.")
@output(_officers_value, _print_officers)
@client_options
def officers(*, client: SignerClient) -> Officers:
    """Shows the officers, and how many each kind of operation needs.

    \b
      signer operations officers --client officer-a.yaml
    """
    return client.operations.officers()


@operations.command(short_help="Proposes the bytes of a draft, signed elsewhere.")
@click.argument("file", metavar="FILE", type=FILE)
@click.option("--signature", type=FILE, required=True, help="Yours, over FILE.")
@click.option("--attachment", type=FILE, help="What `--draft` wrote beside FILE.")
@officer_options
@changed_output
def submit(
    *, client: SignerClient, me: OfficerKey, file: Path, signature: Path, attachment: Path | None
) -> Operation:
    """Proposes the bytes that `propose --draft FILE` wrote, with your signature over them.

    \b
      signer operations propose destroy facilities/moh/keys/dcc/versions/1 \\
        --draft operation \\
        --client officer-a.yaml
      openssl dgst -sha256 -sign officer-a.key -out operation.sig operation
      signer operations submit operation --signature operation.sig \\
        --client officer-a.yaml
    """
    content = read_file(file)
    try:
        proposal = parse(content)
    except ApprovalError as error:
        raise OperatorError(f"{file}: {error}; write it again with --draft") from error
    if proposal.proposer != me.principal:
        raise OperatorError(
            f"{file} is a proposal of {proposal.proposer}, and you are {me.principal}"
        )
    sent = b"" if attachment is None else read_file(attachment)
    return client.operations.propose(content, read_file(signature), sent, timeout=LONG)


@operations.command(short_help="Signs another officer's proposal, after showing it.")
@click.argument("identity", metavar="[ID]", required=False, shell_complete=operation_ids)
@click.option("--signature", type=FILE, help="Yours, made with another tool.")
@yes_option
@officer_options
@follow_options
def approve(
    *, client: SignerClient, me: OfficerKey, identity: str | None, signature: Path | None, yes: bool
) -> Operation:
    """Signs another officer's proposal, after showing it.

    What you sign is shown first and in full, from its own bytes. The appliance's text of
    what it changes comes after it and is only a help.

    Without ID it is the one proposal that waits for your signature, and you are asked to
    confirm. With the last signature that it needs, the appliance executes it. The key is
    that of the client file; a signature made elsewhere is given with --signature (see
    `signer operations show --help`).

    \b
      signer operations approve --client officer-b.yaml
      signer operations approve ID --signature operation.sig --wait \\
        --client officer-b.yaml
    """
    yes = yes or signature is not None
    if yes and identity is None:
        raise click.UsageError("--yes and --signature need the ID of the operation")
    must_confirm(yes=yes)
    if identity is None:
        identity = only_one(client, "PROPOSED", me.may_sign)
    else:
        identity = full_id(client, identity)
    operation = client.operations.get(identity)
    if operation.state != "PROPOSED":
        raise OperatorError(
            f"operation {identity} is {operation.state}: it takes no more signatures;"
            f" {next_step(operation)}"
        )
    check_foreign(operation.content, identity, me.principal)
    print_signed(operation.content, to_stderr=True)
    print_difference(operation.difference, to_stderr=True)
    print_operation(operation, to_stderr=True)
    confirm("Sign this?", yes=yes)
    signed = me.sign(operation.content) if signature is None else read_file(signature)
    return client.operations.approve(identity, signed, timeout=LONG)


@operations.command(short_help="Rejects another officer's proposal, or withdraws yours.")
@click.option("--reason", metavar="TEXT", required=True, help="Why, for the other officers.")
@yes_option
@changed_output
@client_options
@identity_argument
def reject(*, client: SignerClient, identity: str, reason: str, yes: bool) -> Operation:
    """Ends a proposal: rejects another officer's, or withdraws your own.

    On a terminal you see it, and are asked, unless you give --yes.

    \b
      signer operations reject ID --reason "the wrong facility" \\
        --client officer-b.yaml
    """

    def show() -> None:
        operation = client.operations.get(identity)
        print_difference(operation.difference, to_stderr=True)
        print_operation(operation, to_stderr=True)

    ask_on_terminal("End this proposal for good?", yes=yes, show=show)
    return client.operations.reject(identity, reason)


@operations.command(short_help="Continues a failed operation from where it stopped.")
@changed_output
@client_options
@identity_argument
def retry(*, client: SignerClient, identity: str) -> Operation:
    """Continues a failed operation from where it stopped, once the cause is fixed.

    \b
      signer operations retry ID --client officer-a.yaml
      signer operations wait ID --client officer-a.yaml
    """
    return client.operations.retry(identity)

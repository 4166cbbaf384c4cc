"""``signer operations`` submit, approve, reject and retry: what an officer decides."""

from __future__ import annotations

import hashlib
from pathlib import Path

import click

from signer.cli.connection import connect, daemon_options
from signer.cli.operations.arguments import FILE, plain, read_file
from signer.cli.operations.asked import check_foreign
from signer.cli.operations.flow import (
    LONG,
    confirm,
    must_confirm,
    officer,
    only_one,
    print_outcome,
)
from signer.cli.operations.queries import finish, follow, print_operation, timeout_option
from signer.cli.options import json_option
from signer.errors import OperatorError

_identity = click.argument("identity", metavar="ID")


@click.command()
@click.argument("file", metavar="FILE", type=FILE)
@click.option("--signature", metavar="FILE", type=FILE, required=True, help="Yours, over FILE.")
@click.option("--attachment", metavar="FILE", type=FILE, help="What `--draft` wrote beside FILE.")
@daemon_options
@json_option
def submit(
    *, client_file: Path, file: Path, signature: Path, attachment: Path | None, as_json: bool
) -> None:
    """Proposes the bytes that `propose --draft FILE` wrote, with your signature over them.

    \b
      signer operations propose destroy facilities/moh/keys/dcc/versions/1 --draft operation \\
        --client officer-a.yaml
      openssl dgst -sha256 -sign officer-a.key -out operation.sig operation
      signer operations submit operation --signature operation.sig --client officer-a.yaml
    """
    from signer.officers.approval import ApprovalError, parse

    content = read_file(file)
    try:
        proposal = parse(content)
    except ApprovalError as error:
        raise OperatorError(f"{file}: {error}; write it again with --draft") from error
    me = officer(client_file).principal
    if proposal.proposer != me:
        raise OperatorError(f"{file} is a proposal of {proposal.proposer}, and you are {me}")
    sent = b"" if attachment is None else read_file(attachment)
    with connect(client_file) as client:
        operation = client.operations.propose(content, read_file(signature), sent, timeout=LONG)
    print_outcome(operation, as_json=as_json)


@click.command()
@click.argument("identity", metavar="[ID]", required=False)
@click.option("--signature", metavar="FILE", type=FILE, help="Yours, made with another tool.")
@click.option("--yes", is_flag=True, help="Do not ask; for scripts.")
@click.option("--wait", "waits", is_flag=True, help="Wait for its end; the exit code is its.")
@timeout_option
@daemon_options
@json_option
def approve(
    *,
    client_file: Path,
    identity: str | None,
    signature: Path | None,
    yes: bool,
    waits: bool,
    timeout: float,
    as_json: bool,
) -> None:
    """Signs somebody else's proposal, after showing what it changes.

    Without ID it is the one proposal that waits for your signature, and you are asked.
    The last signature that it needs has it executed. The key is that of the client file;
    with --signature it may be anywhere (see `signer operations show --help`).

    \b
      signer operations approve --client officer-b.yaml
      signer operations approve ID --signature operation.sig --wait --client officer-b.yaml
    """
    yes = yes or signature is not None
    if yes and identity is None:
        raise click.UsageError("name the ID of what you sign without being asked")
    must_confirm(yes=yes)
    with connect(client_file) as client:
        me = officer(client_file)
        if identity is None:
            identity = only_one(client, "PROPOSED", me.may_sign)
        operation = client.operations.get(identity)
        proposal = check_foreign(operation.content, identity, me.principal)
        print_operation(operation, to_stderr=True)
        said = f"{proposal.kind}, proposed by {plain(proposal.proposer)}"
        digest = hashlib.sha256(operation.content).hexdigest()
        click.echo(f"the bytes to sign: {said}; their SHA-256 is {digest}", err=True)
        confirm("Sign this?", yes=yes)
        signed = me.sign(operation.content) if signature is None else read_file(signature)
        operation = client.operations.approve(identity, signed, timeout=LONG)
        if waits:
            operation = follow(client, identity, timeout)
    if waits:
        finish(operation, as_json=as_json)
    else:
        print_outcome(operation, as_json=as_json)


@click.command()
@_identity
@click.option("--reason", metavar="TEXT", required=True, help="Why, for the others.")
@daemon_options
@json_option
def reject(*, client_file: Path, identity: str, reason: str, as_json: bool) -> None:
    """Ends a proposal: rejects somebody else's, or withdraws your own.

    \b
      signer operations reject ID --reason "the wrong facility" --client officer-b.yaml
    """
    with connect(client_file) as client:
        operation = client.operations.reject(identity, reason)
    print_outcome(operation, as_json=as_json)


@click.command()
@_identity
@daemon_options
@json_option
def retry(*, client_file: Path, identity: str, as_json: bool) -> None:
    """Has a failed operation go on from where it stopped, once the cause is mended.

    \b
      signer operations retry ID --client officer-a.yaml
      signer operations wait ID --client officer-a.yaml
    """
    with connect(client_file) as client:
        operation = client.operations.retry(identity)
    print_outcome(operation, as_json=as_json)

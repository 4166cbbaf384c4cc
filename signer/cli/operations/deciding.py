"""``signer operations`` submit, approve, reject and retry."""

from __future__ import annotations

import hashlib
from pathlib import Path

import click

from signer.cli.connection import client_options
from signer.cli.operations.arguments import plain, read_file
from signer.cli.operations.flow import (
    LONG,
    OfficerKey,
    changed_output,
    confirm,
    must_confirm,
    officer_options,
    only_one,
)
from signer.cli.operations.queries import follow_options, print_operation
from signer.cli.operations.requested import check_foreign
from signer.cli.options import FILE, yes_option
from signer.client import Operation, SignerClient
from signer.errors import OperatorError
from signer.officers.approval import ApprovalError, parse

_identity = click.argument("identity", metavar="ID")


@click.command(short_help="Proposes the bytes of a draft, signed elsewhere.")
@click.argument("file", metavar="FILE", type=FILE)
@click.option("--signature", metavar="FILE", type=FILE, required=True, help="Yours, over FILE.")
@click.option("--attachment", metavar="FILE", type=FILE, help="What `--draft` wrote beside FILE.")
@officer_options
@changed_output
def submit(
    *,
    client: SignerClient,
    me: OfficerKey,
    file: Path,
    signature: Path,
    attachment: Path | None,
) -> Operation:
    """Proposes the bytes that `propose --draft FILE` wrote, with your signature over them.

    \b
      signer operations propose destroy facilities/moh/keys/dcc/versions/1 --draft operation \\
        --client officer-a.yaml
      openssl dgst -sha256 -sign officer-a.key -out operation.sig operation
      signer operations submit operation --signature operation.sig --client officer-a.yaml
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


@click.command(short_help="Signs another officer's proposal, after showing it.")
@click.argument("identity", metavar="[ID]", required=False)
@click.option("--signature", metavar="FILE", type=FILE, help="Yours, made with another tool.")
@yes_option
@officer_options
@follow_options
def approve(
    *,
    client: SignerClient,
    me: OfficerKey,
    identity: str | None,
    signature: Path | None,
    yes: bool,
) -> Operation:
    """Signs another officer's proposal, after showing what it changes.

    Without ID it is the one proposal that waits for your signature, and you are asked to
    confirm. With the last signature that it needs, the appliance executes it. The key is
    that of the client file; a signature made elsewhere is given with --signature (see
    `signer operations show --help`).

    \b
      signer operations approve --client officer-b.yaml
      signer operations approve ID --signature operation.sig --wait --client officer-b.yaml
    """
    yes = yes or signature is not None
    if yes and identity is None:
        raise click.UsageError("--yes and --signature need the ID of the operation")
    must_confirm(yes=yes)
    if identity is None:
        identity = only_one(client, "PROPOSED", me.may_sign)
    operation = client.operations.get(identity)
    proposal = check_foreign(operation.content, identity, me.principal)
    print_operation(operation, to_stderr=True)
    summary = f"{proposal.kind}, proposed by {plain(proposal.proposer)}"
    digest = hashlib.sha256(operation.content).hexdigest()
    click.echo(f"the bytes to sign: {summary}; their SHA-256 is {digest}", err=True)
    confirm("Sign this?", yes=yes)
    signed = me.sign(operation.content) if signature is None else read_file(signature)
    return client.operations.approve(identity, signed, timeout=LONG)


@click.command(short_help="Rejects another officer's proposal, or withdraws yours.")
@_identity
@click.option("--reason", metavar="TEXT", required=True, help="Why, for the other officers.")
@client_options
@changed_output
def reject(*, client: SignerClient, identity: str, reason: str) -> Operation:
    """Ends a proposal: rejects another officer's, or withdraws your own.

    \b
      signer operations reject ID --reason "the wrong facility" --client officer-b.yaml
    """
    return client.operations.reject(identity, reason)


@click.command(short_help="Continues a failed operation from where it stopped.")
@_identity
@client_options
@changed_output
def retry(*, client: SignerClient, identity: str) -> Operation:
    """Continues a failed operation from where it stopped, once the cause is fixed.

    \b
      signer operations retry ID --client officer-a.yaml
      signer operations wait ID --client officer-a.yaml
    """
    return client.operations.retry(identity)

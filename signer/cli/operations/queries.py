"""``signer operations`` list, show, wait and officers."""

from __future__ import annotations

import functools
import hashlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from signer.cli.connection import client_options
from signer.cli.operations.arguments import plain, utc, write_file
from signer.cli.operations.flow import next_step, operation_value, print_outcome, signed_count
from signer.cli.options import json_option
from signer.cli.output import output, print_json, print_table
from signer.cli.progress import progress
from signer.client import Officers, Operation, SignerClient
from signer.errors import OperatorError
from signer.keys.certificates import describe_certificate

STATES = (
    "PROPOSED",
    "APPROVED",
    "EXECUTING",
    "WAITING",
    "DONE",
    "FAILED",
    "REJECTED",
    "EXPIRED",
)
WAIT_SECONDS = 3_600.0

_timeout_option = click.option(
    "--timeout",
    metavar="SECONDS",
    type=click.FloatRange(0.1, 604_800),
    default=WAIT_SECONDS,
    show_default=True,
    help="How long to wait for its end.",
)


def _print_list(operations: list[Operation]) -> None:
    # No table: an id that a narrow terminal folds cannot be copied.
    click.echo(f"{'ID':<36}  {'KIND':<20}  {'STATE':<9}  SIGNED  {'PROPOSED':<20}  PROPOSER")
    for operation in operations:
        click.echo(
            f"{operation.id}  {operation.kind:<20}  {operation.state:<9}"
            f"  {len(operation.signatures)} of {operation.officers}  {utc(operation.proposed)}"
            f"  {plain(operation.proposer)}"
        )
        if operation.note:
            click.echo(f"  {plain(operation.note)}")


@click.command("list")
@click.option("--state", type=click.Choice(STATES, case_sensitive=False), help="Only these.")
@client_options
@output(lambda operations: list(map(operation_value, operations)), _print_list)
def list_operations(*, client: SignerClient, state: str | None) -> list[Operation]:
    """Lists operations, the newest first.

    \b
      signer operations list --client officer-b.yaml
      signer operations list --state PROPOSED --client officer-b.yaml
    """
    return list(client.operations.list(state))


@click.command(short_help="Shows an operation: changes, signatures, result.")
@click.argument("identity", metavar="ID")
@click.option("--bytes", "as_bytes", is_flag=True, help="Write exactly the bytes that are signed.")
@click.option(
    "--attachment",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write what it names by its SHA-256 to FILE: a CSV, a list of keys, a policy.",
)
@client_options
@json_option
def show(
    *,
    client: SignerClient,
    identity: str,
    as_bytes: bool,
    attachment: Path | None,
    as_json: bool,
) -> None:
    """Shows an operation: what it changes, who has signed it, and its result.

    \b
      signer operations show ID --client officer-b.yaml
      signer operations show ID --attachment facilities.csv --client officer-b.yaml
    Sign it with another tool, and approve it with that signature:
      signer operations show ID --bytes --client officer-b.yaml > operation
      openssl dgst -sha256 -sign officer-b.key -out operation.sig operation
      signer operations approve ID --signature operation.sig --client officer-b.yaml
    """
    if as_bytes and as_json:
        raise click.UsageError("give --bytes or --json, not both")
    operation = client.operations.get(identity)
    if attachment is not None:
        write_file(attachment, _named(client.operations.attachment(identity), operation))
    if as_bytes:
        click.echo(operation.content, nl=False)
    elif as_json:
        print_json(operation_value(operation))
    else:
        print_operation(operation)


def _named(content: bytes, operation: Operation) -> bytes:
    """Returns a document if the operation names its SHA-256; raises OperatorError."""
    if hashlib.sha256(content).hexdigest().encode() not in operation.content:
        raise OperatorError(
            f"operation {operation.id} has no attachment, or the appliance returned another one"
        )
    return content


def print_operation(operation: Operation, *, to_stderr: bool = False) -> None:
    """Prints an operation for people."""
    lines = [
        f"operation {operation.id} ({operation.kind}) is {operation.state}",
        f"proposed by {operation.proposer} at {utc(operation.proposed)}",
        *(
            f"signed by {signature.officer} at {utc(signature.signed)}"
            for signature in operation.signatures
        ),
        signed_count(operation),
    ]
    if operation.total:
        lines.append(f"{operation.done} of {operation.total} steps are done")
    if operation.note:
        lines.append(operation.note)
    lines += [*operation.difference, *result_lines(operation.result or {})]
    if not to_stderr:
        lines.append(next_step(operation))
    for line in lines:
        click.echo(plain(line), err=to_stderr)


def result_lines(result: Mapping[str, Any]) -> list[str]:
    """Lays out the result of an operation: one value a line, without longer texts."""
    lines = []
    for name, value in sorted(result.items()):
        label = name.replace("_", " ")
        if isinstance(value, dict):
            lines += [label, *(f"  {line}" for line in result_lines(value))]
        elif isinstance(value, list):
            lines += [label, *(f"  {item}" for item in value)]
        elif not (isinstance(value, str) and "\n" in value):
            shown = ("yes" if value else "no") if isinstance(value, bool) else value
            lines.append(f"{label:<20} {'-' if value is None else shown}")
    return lines


def _as_expected(operation: Operation) -> bool:
    return operation.state not in ("FAILED", "REJECTED", "EXPIRED")


@click.command(short_help="Waits until an operation is over or waits for certificates.")
@click.argument("identity", metavar="ID")
@_timeout_option
@client_options
@output(operation_value, print_operation, ok=_as_expected)
def wait(*, client: SignerClient, identity: str, timeout: float) -> Operation:
    """Waits until an operation is over, or waits for certificates.

    The exit code is 1 where it failed, was rejected or has expired.

    \b
      signer operations wait ID --client officer-a.yaml
    """
    return follow(client, identity, timeout)


def follow(client: SignerClient, identity: str, timeout: float) -> Operation:
    """Waits for an operation, with a bar on a terminal and lines elsewhere (on stderr)."""

    def line(done: int, total: int | None, state: str) -> str:
        return f"{state}, {done} of {total} steps" if total else state

    with progress("", line=line) as advance:
        return client.operations.wait(
            identity,
            timeout,
            lambda operation: advance(operation.done, operation.total or None, operation.state),
        )


def follow_options(command: Callable[..., Operation]) -> Callable[..., None]:
    """Adds ``--wait``, ``--timeout`` and ``--json`` to a command that returns an operation."""

    @click.option("--wait", "waits", is_flag=True, help="Wait for its end and exit as `wait` does.")
    @_timeout_option
    @json_option
    @functools.wraps(command)
    def wrapped(
        *, client: SignerClient, waits: bool, timeout: float, as_json: bool, **options: Any
    ) -> None:
        operation = command(client=client, **options)
        if waits:
            operation = follow(client, operation.id, timeout)
        if as_json:
            print_json(operation_value(operation))
        else:
            (print_operation if waits else print_outcome)(operation)
        if waits and not _as_expected(operation):
            sys.exit(1)

    return wrapped


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
    value = _officers_value(answer)
    certificates = [(one["principal"], one["certificate"]) for one in value["officers"]]
    click.echo(f"log origin: {answer.origin}")
    print_table(
        ("officer", "certificate", "issuer", "valid until"),
        (
            (who, shown["serial"], shown["issuer"], shown["not_after"])
            for who, shown in certificates
        ),
    )
    print_table(("kind", "officers needed"), value["needed"].items())


@click.command(short_help="Shows the officers, and how many each kind of operation needs.")
@client_options
@output(_officers_value, _print_officers)
def officers(*, client: SignerClient) -> Officers:
    """Shows the officers, and how many each kind of operation needs.

    \b
      signer operations officers --client officer-a.yaml
    """
    return client.operations.officers()

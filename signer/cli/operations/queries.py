"""``signer operations`` list, show, wait and officers: what there is, and how far it is."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from signer.cli.connection import connect, daemon_options
from signer.cli.operations.arguments import plain, utc, write_file
from signer.cli.operations.flow import described, next_step
from signer.cli.options import json_option
from signer.cli.tables import print_table
from signer.errors import OperatorError

if TYPE_CHECKING:
    from signer.client import Operation, SignerClient

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
WRONG_ENDS = frozenset({"FAILED", "REJECTED", "EXPIRED"})
WAIT_SECONDS = 3_600.0

timeout_option = click.option(
    "--timeout",
    metavar="SECONDS",
    type=click.FloatRange(0.1, 604_800),
    default=WAIT_SECONDS,
    show_default=True,
    help="How long to wait for its end.",
)


@click.command("list")
@click.option("--state", type=click.Choice(STATES, case_sensitive=False), help="Only these.")
@daemon_options
@json_option
def list_operations(*, client_file: Path, state: str | None, as_json: bool) -> None:
    """Lists operations, the newest first.

    \b
      signer operations list --client officer-b.yaml
      signer operations list --state PROPOSED --client officer-b.yaml
    """
    with connect(client_file) as client:
        found = list(client.operations.list(state))
    if as_json:
        click.echo(json.dumps([described(each) for each in found], indent=2))
        return
    # No table: an id that a narrow terminal folds cannot be copied.
    click.echo(f"{'ID':<36}  {'KIND':<20}  {'STATE':<9}  SIGNED  {'PROPOSED':<20}  PROPOSER")
    for each in found:
        click.echo(
            f"{each.id}  {each.kind:<20}  {each.state:<9}  {len(each.signatures)} of"
            f" {each.officers}  {utc(each.proposed)}  {plain(each.proposer)}"
        )
        if each.note:
            click.echo(f"  {plain(each.note)}")


@click.command()
@click.argument("identity", metavar="ID")
@click.option("--bytes", "as_bytes", is_flag=True, help="Write exactly the bytes that are signed.")
@click.option(
    "--attachment",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write what it names by its SHA-256 to FILE: a CSV, a list of keys, a policy.",
)
@daemon_options
@json_option
def show(
    *, client_file: Path, identity: str, as_bytes: bool, attachment: Path | None, as_json: bool
) -> None:
    """Shows an operation: what it changes, who has signed it, and what came of it.

    \b
      signer operations show ID --client officer-b.yaml
      signer operations show ID --attachment facilities.csv --client officer-b.yaml
    Sign it with another tool, and approve it with that signature:
      signer operations show ID --bytes --client officer-b.yaml > operation
      openssl dgst -sha256 -sign officer-b.key -out operation.sig operation
      signer operations approve ID --signature operation.sig --client officer-b.yaml
    """
    if as_bytes and as_json:
        raise click.UsageError("--bytes and --json: say one of them")
    with connect(client_file) as client:
        operation = client.operations.get(identity)
        if attachment is not None:
            write_file(attachment, _named(client.operations.attachment(identity), operation))
    if as_bytes:
        click.echo(operation.content, nl=False)
    elif as_json:
        click.echo(json.dumps(described(operation), indent=2))
    else:
        print_operation(operation)


def _named(content: bytes, operation: Operation) -> bytes:
    """Returns a document that stands in an operation by its SHA-256; raises OperatorError."""
    if hashlib.sha256(content).hexdigest().encode() not in operation.content:
        raise OperatorError(f"operation {operation.id} names nothing, or not what was sent")
    return content


def print_operation(operation: Operation, *, to_stderr: bool = False) -> None:
    """Prints an operation for people."""

    def line(text: str) -> None:
        click.echo(plain(text), err=to_stderr)

    line(f"operation {operation.id} ({operation.kind}) is {operation.state}")
    line(f"proposed by {operation.proposer} at {utc(operation.proposed)}")
    for each in operation.signatures:
        line(f"signed by {each.officer} at {utc(each.signed)}")
    line(f"{len(operation.signatures)} of {operation.officers} officers have signed it")
    if operation.total:
        line(f"{operation.done} of {operation.total} steps are done")
    if operation.note:
        line(operation.note)
    for text in operation.difference:
        line(text)
    for text in result_lines(operation.result or {}):
        line(text)
    if not to_stderr:
        line(next_step(operation))


def result_lines(result: Mapping[str, Any]) -> list[str]:
    """Lays out what came of an operation: one value a line, without longer texts."""
    lines = []
    for name, value in sorted(result.items()):
        label = name.replace("_", " ")
        if isinstance(value, dict):
            lines += [label, *(f"  {each}" for each in result_lines(value))]
        elif isinstance(value, list):
            lines += [label, *(f"  {each}" for each in value)]
        elif not (isinstance(value, str) and "\n" in value):
            shown = ("yes" if value else "no") if isinstance(value, bool) else value
            lines.append(f"{label:<20} {'-' if value is None else shown}")
    return lines


@click.command()
@click.argument("identity", metavar="ID")
@timeout_option
@daemon_options
@json_option
def wait(*, client_file: Path, identity: str, timeout: float, as_json: bool) -> None:
    """Follows an operation until it is over, or waits for certificates.

    The exit code is 1 where it failed, was rejected or has expired.

    \b
      signer operations wait ID --client officer-a.yaml
    """
    with connect(client_file) as client:
        operation = follow(client, identity, timeout)
    finish(operation, as_json=as_json)


def follow(client: SignerClient, identity: str, timeout: float) -> Operation:
    """Waits for an operation, with a bar on a terminal and lines elsewhere (on stderr)."""
    with _progress() as progress:
        return client.operations.wait(identity, timeout, progress)


def finish(operation: Operation, *, as_json: bool) -> None:
    """Prints an operation at its end; the exit code says whether that is the right one."""
    if as_json:
        click.echo(json.dumps(described(operation), indent=2))
    else:
        print_operation(operation)
    if operation.state in WRONG_ENDS:
        sys.exit(1)


@contextmanager
def _progress() -> Iterator[Callable[[Operation], None]]:
    if not sys.stderr.isatty():
        last = ""

        def line(operation: Operation) -> None:
            nonlocal last
            steps = f", {operation.done} of {operation.total} steps" if operation.total else ""
            text = f"{operation.state}{steps}"
            if text != last:
                click.echo(text, err=True)
                last = text

        yield line
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("", total=None)
        yield lambda operation: bars.update(
            task,
            description=operation.state,
            completed=operation.done,
            total=operation.total or None,
        )


@click.command()
@daemon_options
@json_option
def officers(*, client_file: Path, as_json: bool) -> None:
    """Shows who the officers are, and how many each kind of operation needs.

    \b
      signer operations officers --client officer-a.yaml
    """
    from signer.keys.certificates import describe_certificate

    with connect(client_file) as client:
        answer = client.operations.officers()
    found = [(each.principal, describe_certificate(each.certificate)) for each in answer.officers]
    if as_json:
        said = {
            "origin": answer.origin,
            "needed": dict(sorted(answer.needed.items())),
            "officers": [{"principal": who, "certificate": what} for who, what in found],
        }
        click.echo(json.dumps(said, indent=2))
        return
    click.echo(f"log origin: {answer.origin}")
    print_table(
        ("officer", "certificate", "issuer", "valid until"),
        ((who, what["serial"], what["issuer"], what["not_after"]) for who, what in found),
    )
    print_table(("kind", "officers needed"), sorted(answer.needed.items()))

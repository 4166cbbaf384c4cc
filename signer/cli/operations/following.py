"""How far an operation is: printed, and waited for."""

import functools
import sys
from collections.abc import Callable, Mapping
from typing import Any

import click

from signer.cli.operations.arguments import utc
from signer.cli.operations.flow import next_step, operation_value, print_outcome, signed_count
from signer.cli.options import json_option
from signer.cli.output import print_json, say
from signer.cli.progress import progress
from signer.client import Operation, SignerClient
from signer.text import count, plain

_BAD_ENDS = ("FAILED", "REJECTED", "EXPIRED")
STATES = ("PROPOSED", "APPROVED", "EXECUTING", "WAITING", "DONE", *_BAD_ENDS)
WAIT_SECONDS = 3_600.0

timeout_option = click.option(
    "--timeout",
    metavar="SECONDS",
    type=click.FloatRange(0.1, 604_800),
    default=WAIT_SECONDS,
    show_default=True,
    help="How long to wait for its end.",
)


def print_operation(operation: Operation, *, to_stderr: bool = False) -> None:
    """Prints for people how far an operation is, as the appliance says."""
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
        lines.append(f"{operation.done} of {count(operation.total, 'step is', 'steps are')} done")
    if operation.note:
        lines.append(operation.note)
    lines += result_lines(operation.result or {})
    if not to_stderr:
        lines.append(next_step(operation))
    for line in lines:
        say(plain(line), err=to_stderr)


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


def as_expected(operation: Operation) -> bool:
    return operation.state not in _BAD_ENDS


def follow(client: SignerClient, identity: str, timeout: float) -> Operation:
    """Waits for an operation, with a bar on a terminal and lines elsewhere (on stderr)."""

    def line(done: int, total: int | None, state: str) -> str:
        return f"{state}, {done} of {count(total, 'step')}" if total else state

    with progress("", line=line) as advance:
        return client.operations.wait(
            identity,
            timeout,
            lambda operation: advance(operation.done, operation.total or None, operation.state),
        )


def follow_options(command: Callable[..., Operation]) -> Callable[..., None]:
    """Adds ``--wait``, ``--timeout`` and ``--json`` to a command that returns an operation."""

    @click.option("--wait", "waits", is_flag=True, help="Wait for its end and exit as `wait` does.")
    @timeout_option
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
        if waits and not as_expected(operation):
            sys.exit(1)

    return wrapped

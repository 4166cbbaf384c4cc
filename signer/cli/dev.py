"""``signer dev``: a development appliance in one folder, on SoftHSM."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from signer.tools.dev import Progress

_EVERY = 500
"""Keys between two lines of progress where there is no terminal."""

_directory = click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
_facilities = click.option(
    "--facilities",
    metavar="N",
    type=click.IntRange(0, 99_999),
    default=0,
    help="Add facilities l-00001 to l-N with a key each, for load tests.",
)
_workers = click.option(
    "--workers",
    metavar="N",
    type=click.IntRange(1, 64),
    help="Worker processes; 2 at first, then as they are.",
)


@click.group()
def dev() -> None:
    """Makes and runs a development appliance on SoftHSM.

    Everything lies in one folder, DIR: the token, a small PKI, configuration,
    policy, keys, and dev.json, which says where everything is. Delete the folder
    to start again. Never use it for real signatures.

    \b
    Try it:
      signer dev up /tmp/appliance
      signer health --client /tmp/appliance/client-operator.yaml
    """


@dev.command()
@_directory
@_facilities
@_workers
@click.option("--json", "as_json", is_flag=True, help="Print dev.json.")
def init(*, directory: Path, facilities: int, workers: int | None, as_json: bool) -> None:
    """Provisions DIR. What an earlier run made is found, not made again.

    \b
      signer dev init /tmp/appliance
      signer dev init /tmp/appliance --facilities 10000
    """
    described = _provision(directory, facilities, workers)
    if as_json:
        click.echo(json.dumps(described, indent=2))
    else:
        click.echo(
            f"{len(described['keys'])} keys are ready; {directory / 'dev.json'} says where"
            f" everything is. Start it with: signer dev up {directory}"
        )


@dev.command()
@_directory
@_facilities
@_workers
def up(*, directory: Path, facilities: int, workers: int | None) -> None:
    """Provisions DIR if needed, then serves in the foreground until it is told to stop.

    Prints `ready` on stdout when it serves; logs go to stderr.

    \b
      signer dev up /tmp/appliance --workers 2
    """
    from signer.daemon import run

    described = _provision(directory, facilities, workers)
    sys.exit(run(Path(described["config"]), on_ready=lambda: click.echo("ready"), development=True))


def _provision(directory: Path, facilities: int, workers: int | None) -> dict[str, Any]:
    from signer.tools.dev import provision

    with _progress() as progress:
        return provision(directory, facilities=facilities, workers=workers, progress=progress)


@contextmanager
def _progress() -> Iterator[Progress]:
    """Shows how many keys are made: a bar on a terminal, now and then a line elsewhere."""
    if not sys.stderr.isatty():

        def line(done: int, of: int) -> None:
            if done % _EVERY == 0 or done == of:
                click.echo(f"made {done} of {of} keys", err=True)

        yield line
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = ("making keys", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        task = bars.add_task("", total=None)
        yield lambda done, of: bars.update(task, completed=done, total=of)

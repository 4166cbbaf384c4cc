"""``signer reload``, ``health`` and ``top``: questions to a running daemon."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from signer.cli.connection import connect, daemon_options
from signer.cli.options import json_option
from signer.cli.tables import print_table
from signer.client import Status, Usage, Worker


@click.command()
@daemon_options
@json_option
def reload(*, client_file: Path, as_json: bool) -> None:
    """Has the daemon read its policy, certificates and log level again.

    All of it is in force afterwards, or nothing has changed and what is wrong is
    shown, with exit code 1.

    \b
      signer reload --config /etc/signer/signer.yaml
    """  # noqa: D301  click's \b
    with connect(client_file) as client:
        changed = client.reload()
    if as_json:
        click.echo(json.dumps(changed._asdict()))
        return
    click.echo(f"policy {changed.policy_sha256}: {_changed(changed.policy_changed)}")
    click.echo(f"certificates: {_changed(changed.certificate_changed)}")
    click.echo(f"log level {changed.log_level}: {_changed(changed.log_level_changed)}")
    if changed.restart_needed:
        click.echo(f"changed, and takes a restart: {', '.join(changed.restart_needed)}")


def _changed(changed: bool) -> str:
    return "changed" if changed else "as before"


@click.command()
@daemon_options
@json_option
def health(*, client_file: Path, as_json: bool) -> None:
    """Asks the daemon whether it serves; the exit code is 1 where it does not.

    \b
      signer health --client operator.yaml
    """  # noqa: D301  as above
    with connect(client_file) as client:
        answer = client.health(timeout=5)
    click.echo(json.dumps({"status": answer}) if as_json else answer)
    if answer != "SERVING":
        sys.exit(1)


@click.command()
@daemon_options
@json_option
@click.option("--count", default=10, type=click.IntRange(1, 100), help="Facilities to show.")
def top(*, client_file: Path, as_json: bool, count: int) -> None:
    """Shows the workers and the facilities that sign most. For operators.

    \b
      signer top --client operator.yaml
      watch signer top --client operator.yaml
    """  # noqa: D301  as above
    with connect(client_file) as client:
        status = client.status(count)
    if as_json:
        click.echo(json.dumps(_plain(status), indent=2))
        return
    click.echo(f"signer {status.version}, started {status.started}")
    click.echo("ready" if status.ready else f"not ready: {'; '.join(status.reasons)}")
    click.echo(
        f"{status.facilities} facilities, {status.key_versions} key versions, "
        f"{status.queued_items} items queued"
    )
    for difference in status.differences:
        click.echo(f"differs: {difference}")
    print_table(Worker._fields, status.workers)
    print_table(Usage._fields, status.busiest)


def _plain(status: Status) -> dict[str, Any]:
    return status._asdict() | {
        "started": status.started.isoformat() if status.started else None,
        "workers": [worker._asdict() for worker in status.workers],
        "busiest": [usage._asdict() for usage in status.busiest],
    }

"""``signer reload``, ``health`` and ``top``: calls to a running daemon for operators."""

from typing import Any

import click

from signer.cli.connection import client_options
from signer.cli.output import output, print_table, print_text, say
from signer.client import Reloaded, SignerClient, Status, Worker
from signer.text import count, utc


def _show_reloaded(reloaded: Reloaded) -> None:
    for what, changed in (
        (f"policy {reloaded.policy_sha256}", reloaded.policy_changed),
        ("certificates", reloaded.certificate_changed),
        (f"log level {reloaded.log_level}", reloaded.log_level_changed),
    ):
        say(f"{what}: {'changed' if changed else 'as before'}")
    if reloaded.restart_needed:
        say(f"changed, but needs a restart: {', '.join(reloaded.restart_needed)}")


@click.command(short_help="Reloads the policy, certificates and log level of the daemon.")
@output(lambda reloaded: reloaded._asdict(), _show_reloaded)
@client_options
def reload(*, client: SignerClient) -> Reloaded:
    """Reloads the policy, certificates and log level of the daemon.

    Either all of it is in force afterwards, or nothing has changed, the errors are
    shown and the exit code is 1.

    \b
      signer reload --config /etc/signer/signer.yaml
    """
    return client.reload()


@click.command(short_help="Shows whether the daemon serves.")
@output(lambda status: {"status": status}, say, ok=lambda status: status == "SERVING")
@client_options
def health(*, client: SignerClient) -> str:
    """Shows whether the daemon serves; the exit code is 1 if it does not.

    \b
      signer health --client operator.yaml
    """
    return client.health(timeout=5)


def _status_value(status: Status) -> dict[str, Any]:
    return status._asdict() | {
        "started": status.started.isoformat() if status.started else None,
        "workers": [worker._asdict() for worker in status.workers],
        "busiest": [usage._asdict() for usage in status.busiest],
    }


def _show_status(status: Status) -> None:
    started = utc(status.started.timestamp()) if status.started else "-"
    say(f"signer {status.version}, started {started}")
    say("ready" if status.ready else f"not ready: {'; '.join(status.reasons)}")
    say(
        f"{count(status.facilities, 'facility', 'facilities')},"
        f" {count(status.key_versions, 'key version')}, "
        f"{count(status.queued_items, 'item')} queued"
    )
    for difference in status.differences:
        print_text(f"! {difference}", "  ")
    print_table(Worker._fields, status.workers)
    print_table(
        ("facility", "last minute", "last hour", "queued", "since the log began"),
        ((u.facility, u.last_minute, u.last_hour, u.queued_items, u.items) for u in status.busiest),
    )


@click.command(short_help="Shows the workers and the facilities that sign most.")
@output(_status_value, _show_status)
@client_options
@click.option(
    "--count", "busiest", default=10, type=click.IntRange(1, 100), help="Facilities to show."
)
def top(*, client: SignerClient, busiest: int) -> Status:
    """Shows the workers and the facilities that sign most, by the last minute. For operators.

    \b
      signer top --client operator.yaml
      watch signer top --client operator.yaml
    """
    return client.status(busiest)

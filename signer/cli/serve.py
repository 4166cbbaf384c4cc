"""``signer serve``: the daemon."""

import sys
from pathlib import Path

import click

from signer.cli.options import config_option
from signer.daemon import run


@click.command()
@config_option
@click.option(
    "--override-audit-log",
    is_flag=True,
    help="Continue an audit log that is damaged; the damage stays on record.",
)
def serve(*, config_file: Path, override_audit_log: bool) -> None:
    """Runs the daemon in the foreground; logs go to stderr as JSON.

    SIGHUP reloads policy and certificates, SIGTERM drains and ends. The exit code
    is 1 if the start is refused, with the reason on stderr.

    \b
      signer serve --config /etc/signer/signer.yaml
    """
    sys.exit(run(config_file, override_audit=override_audit_log))

"""``signer serve``: the daemon."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from signer.cli.options import config_option


@click.command()
@config_option
def serve(*, config_file: Path) -> None:
    """Runs the daemon in the foreground; logs go to stderr as JSON.

    SIGHUP reads policy and certificates again, SIGTERM drains and ends. The exit
    code is 1 where the start is refused, with the reason on stderr.

    \b
      signer serve --config /etc/signer/signer.yaml
    """  # noqa: D301  click's \b
    from signer import daemon

    sys.exit(daemon.run(config_file))

"""``signer registry``: looks after the database of keys, on the appliance itself."""

from __future__ import annotations

from pathlib import Path

import click

from signer.cli.options import config_option
from signer.config.loader import load_config
from signer.keys.database import connect, explained, version_of
from signer.keys.registry import Registry


@click.group()
def registry() -> None:
    """Looks after the registry: the database of keys, officers and operations."""


@registry.command(short_help="Updates the registry to the schema of this release.")
@config_option
def migrate(*, config_file: Path) -> None:
    """Updates the registry of an older release to the schema of this release.

    Stop the daemon first, and make a backup: an older release cannot read the registry
    afterwards. Either all of it is changed, or nothing.

    \b
      signer registry migrate --config /etc/signer/signer.yaml
    """
    url = load_config(config_file).registry
    before = _schema(url)
    with Registry.open(url, migrate=True):
        after = _schema(url)
    if before == after:
        click.echo(f"the schema of the registry is {after} already: there was nothing to do")
    else:
        click.echo(f"the schema of the registry was {before} and is now {after}")


def _schema(url: str) -> str:
    """Returns the schema's version; raises OperatorError."""
    engine = connect(url, create=False)
    try:
        with explained("read"), engine.connect() as connection:
            return version_of(connection) or "empty"
    finally:
        engine.dispose()

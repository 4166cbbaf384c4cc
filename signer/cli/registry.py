"""``signer registry``: looks after the database of keys, on the appliance itself."""

from __future__ import annotations

from pathlib import Path

import click

from signer.cli.options import config_option


@click.group()
def registry() -> None:
    """Looks after the registry: the database of keys, officers and operations."""


@registry.command()
@config_option
def migrate(*, config_file: Path) -> None:
    """Brings a registry that an older release has made to this release's schema.

    Stop the daemon first, and make a backup: an older release does not read it then. All
    of it is changed, or nothing.

    \b
      signer registry migrate --config /etc/signer/signer.yaml
    """
    from signer.config.loader import load_config
    from signer.keys.registry import Registry

    url = load_config(config_file).registry
    before = _schema(url)
    with Registry.open(url, migrate=True):
        after = _schema(url)
    if before == after:
        click.echo(f"the registry's schema is {after} already: there was nothing to do")
    else:
        click.echo(f"the registry's schema was {before} and is {after} now")


def _schema(url: str) -> str:
    """Returns the schema's version; raises OperatorError."""
    from signer.keys.database import connect, explained, version_of

    engine = connect(url, create=False)
    try:
        with explained("read"), engine.connect() as connection:
            return version_of(connection) or "empty"
    finally:
        engine.dispose()

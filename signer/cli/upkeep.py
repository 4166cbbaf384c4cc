"""``signer registry`` and ``token``: what an operator does on the appliance itself."""

from __future__ import annotations

from pathlib import Path

import click

from signer.cli.options import config_option, token_option
from signer.config.models import Config, TokenConfig, load_config
from signer.errors import OperatorError
from signer.hsm.latch import release
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


def choose(config: Config, label: str) -> TokenConfig:
    """Returns the configured token of a label, or the only one; raises OperatorError."""
    tokens = {token.label: token for token in config.tokens}
    if not label and len(tokens) == 1:
        [label] = tokens
    if label not in tokens:
        raise OperatorError(f"name one of the configured tokens with --token: {', '.join(tokens)}")
    return tokens[label]


@click.group()
def token() -> None:
    """Looks after the tokens that hold the keys."""


@token.command(short_help="Allows one more attempt with the PIN.")
@config_option
@token_option
def unlatch(*, config_file: Path, token: str) -> None:
    """Allows one more attempt with the PIN, at the next start of a worker.

    A PIN that the token rejected is never tried again automatically: HSMs lock or
    erase themselves after a few wrong ones. Correct the PIN file first; a running
    daemon then logs in within seconds.

    \b
      signer token unlatch --config /etc/signer/signer.yaml --token signer
    """
    config = load_config(config_file)
    label = choose(config, token).label
    if not release(config.state, label):
        raise OperatorError(f"token {label}: no PIN was rejected, so there is nothing to do")
    click.echo(f"token {label}: the PIN is tried once more at the next start of a worker")

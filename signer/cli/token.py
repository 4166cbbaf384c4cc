"""``signer token``: what an operator does about a token, on the appliance itself."""

from __future__ import annotations

from pathlib import Path

import click

from signer.cli.options import config_option
from signer.errors import OperatorError


@click.group()
def token() -> None:
    """Looks after the tokens that hold the keys."""


@token.command()
@config_option
@click.option("--token", "label", metavar="LABEL", help="Needed where several are configured.")
def unlatch(*, config_file: Path, label: str | None) -> None:
    """Lets the next start try the PIN once more.

    A PIN that the token rejected is never tried again by itself: HSMs lock or
    erase themselves after a few wrong ones. Correct the PIN file first; a running
    daemon then logs in within seconds.

    \b
      signer token unlatch --config /etc/signer/signer.yaml --token signer
    """
    from signer.config.loader import load_config
    from signer.hsm.latch import release

    config = load_config(config_file)
    labels = [each.label for each in config.tokens]
    if label is None and len(labels) == 1:
        label = labels[0]
    if label not in labels:
        raise OperatorError(f"name one of the configured tokens with --token: {', '.join(labels)}")
    released = release(config.state, label)
    if not released:
        raise OperatorError(f"nothing is known of a PIN of token {label}: there is nothing to do")
    click.echo(f"token {label}: the PIN will be tried once more at the next start of a worker")

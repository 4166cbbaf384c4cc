"""``signer token``: what an operator does to a token, on the appliance itself."""

from __future__ import annotations

from pathlib import Path

import click

from signer.cli.options import config_option, token_option
from signer.config.loader import load_config
from signer.config.models import Config, TokenConfig
from signer.errors import OperatorError
from signer.hsm.latch import release


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

"""``signer init``: what a new appliance needs before its first start."""

from __future__ import annotations

from pathlib import Path

import click

from signer.cli.options import config_option
from signer.errors import OperatorError


@click.command()
@config_option
@click.option("--token", "label", metavar="LABEL", help="Needed where several are configured.")
def init(*, config_file: Path, label: str | None) -> None:
    """Makes the audit key on the token and begins the audit log, once.

    The public audit key is written into the log's directory. Give a copy to the
    auditor: it verifies every checkpoint and every proof.

    \b
      signer init --config /etc/signer/signer.yaml
    """  # noqa: D301  click's \b
    from signer.clock import SystemClock
    from signer.config import load_config
    from signer.hsm.admin import open_admin
    from signer.keys.registry import Registry
    from signer.trail import begin, refuse_second_log

    config = load_config(config_file)
    tokens = {token.label: token for token in config.tokens}
    if label is None and len(tokens) == 1:
        [label] = tokens
    if label is None or label not in tokens:
        raise OperatorError(f"name one of the configured tokens with --token: {', '.join(tokens)}")
    refuse_second_log(config.audit)
    with (
        Registry.open(config.registry, create=True, migrate=True) as registry,
        open_admin(tokens[label], config.state) as admin,
    ):
        key_file = begin(config.audit, registry, admin, SystemClock())
    click.echo(f"the audit log is begun; its public key is {key_file}: give the auditor a copy")

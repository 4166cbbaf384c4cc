"""``signer operations``: what security officers propose and approve."""

from __future__ import annotations

import click

from signer.cli.operations.deciding import approve, reject, retry, submit
from signer.cli.operations.propose import propose
from signer.cli.operations.queries import list_operations, officers, show, wait


@click.group(
    commands=[approve, list_operations, officers, propose, reject, retry, show, submit, wait]
)
def operations() -> None:
    """Proposes and approves operations, which need more than one officer.

    One officer proposes and signs, another sees what it changes and signs the same
    bytes; then the appliance executes it. Stopping a key needs one officer: see
    `signer keys suspend`.

    \b
      signer operations propose activate facilities/moh/keys/dcc/versions/2 --client officer-a.yaml
      signer operations list --state PROPOSED --client officer-b.yaml
      signer operations show ID --client officer-b.yaml
      signer operations approve ID --wait --client officer-b.yaml
    """

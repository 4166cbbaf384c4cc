"""``signer keys export``: public material for verifiers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from signer.cli.connection import connect, daemon_options
from signer.cli.keys.publication import FORMS, published, with_certificates
from signer.cli.operations.arguments import write_file

if TYPE_CHECKING:
    from signer.client import KeyVersion


@click.command()
@click.option("--form", type=click.Choice(sorted(FORMS)), required=True, help="What to write.")
@click.option("--facility", metavar="ID", help="Only the keys of one facility.")
@click.option(
    "--announced/--no-announced",
    default=True,
    show_default=True,
    help="With versions that are told when to sign, but do not yet.",
)
@click.option(
    "--out",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Without it the text is printed.",
)
@daemon_options
def export(
    *,
    client_file: Path,
    form: str,
    facility: str | None,
    announced: bool,
    out: Path | None,
) -> None:
    """Writes the public keys or certificates of all versions that sign or have signed.

    What suspended, deactivated and destroyed versions have signed stays valid, so they are
    there; versions that were marked as compromised are not.

    \b
    certificates  one PEM bundle
    jwks          a JWK Set (RFC 7517) for verifiers of JWS
    trust-list    kid and certificate, as verifiers of health certificates load them

    \b
      signer keys export --form trust-list --facility moh --out trust.json --client auditor.yaml
      signer keys export --form jwks --client auditor.yaml > jwks.json
    """
    with connect(client_file) as client:
        listed = list(client.list_key_versions(f"facilities/{facility}" if facility else ""))
    found = published(listed, announced=announced)
    text: str = FORMS[form](found)
    if out is None:
        click.echo(text, nl=False)
    else:
        write_file(out, text.encode())
    _tell(found, form)


def _tell(found: list[KeyVersion], form: str) -> None:
    """Says on stderr how much is in it."""
    there = found if form == "jwks" else with_certificates(found)
    without = len(found) - len(there)
    more = f"; {without} more have no certificate" if without else ""
    click.echo(f"{len(there)} key versions{more}", err=True)

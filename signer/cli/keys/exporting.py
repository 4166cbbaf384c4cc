"""``signer keys export``: public material for verifiers."""

from __future__ import annotations

from pathlib import Path

import click

from signer.cli.connection import client_options
from signer.cli.keys.publication import FORMS, published, with_certificates
from signer.cli.keys.showing import facility_option, listed
from signer.cli.operations.arguments import write_file
from signer.client import SignerClient
from signer.text import count


@click.command(short_help="Writes public keys or certificates for verifiers.")
@click.option("--form", type=click.Choice(sorted(FORMS)), required=True, help="What to write.")
@facility_option
@click.option(
    "--announced/--no-announced",
    default=True,
    show_default=True,
    help="With versions that have a planned activation, but do not sign yet.",
)
@click.option(
    "--out",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Without it the text is printed.",
)
@client_options
def export(
    *,
    client: SignerClient,
    form: str,
    facility: str | None,
    announced: bool,
    out: Path | None,
) -> None:
    """Writes the public keys or certificates of all versions that sign or have signed.

    Signatures of suspended, deactivated and destroyed versions stay valid, so these are
    included; versions that were marked as compromised are not.

    \b
    certificates  one PEM bundle
    jwks          a JWK Set (RFC 7517) for verifiers of JWS
    trust-list    kid and certificate, as verifiers of health certificates load them

    \b
      signer keys export --form trust-list --facility moh --out trust.json --client auditor.yaml
      signer keys export --form jwks --client auditor.yaml > jwks.json
    """
    versions = published(listed(client, facility), announced=announced)
    text: str = FORMS[form](versions)
    if out is None:
        click.echo(text, nl=False)
    else:
        write_file(out, text.encode())
    included = versions if form == "jwks" else with_certificates(versions)
    without = len(versions) - len(included)
    more = f"; {count(without, 'more has', 'more have')} no certificate" if without else ""
    click.echo(f"{count(len(included), 'key version')}{more}", err=True)

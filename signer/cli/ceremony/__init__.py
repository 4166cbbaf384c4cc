"""``signer ceremony``: two officers make a key step by step, and sign a transcript."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from cryptography.hazmat.primitives.serialization import Encoding

from signer.algorithms import Algorithm
from signer.cli.ceremony.steps import CeremonyPlan, hold
from signer.cli.ceremony.transcript import verify
from signer.cli.operations.arguments import KEY, certificate_in, principal_of
from signer.cli.options import FILE, token_option, yes_option

_NEEDED = {
    "name": "NAME",
    "first": "--client",
    "second": "--second",
    "algorithm": "--algorithm",
    "out": "--out",
    "witnesses": "--witness",
}
"""The required options, by the names of their parameters."""

_OPTIONS = _NEEDED | {"bits": "--bits", "token": "--token", "subject": "--subject", "yes": "--yes"}


@click.command()
@click.argument("name", metavar="[NAME]", type=KEY, required=False)
@click.option("--client", "first", metavar="FILE", type=FILE, help="Who proposes: a client file.")
@click.option("--second", metavar="FILE", type=FILE, help="Who approves: a client file.")
@click.option("--algorithm", type=click.Choice([str(a) for a in Algorithm]))
@click.option("--bits", type=int, default=0, help="RSA only: 2048, 3072 or 4096.")
@token_option
@click.option("--subject", metavar="DN", default="", help='Of the request, as in "CN=DCC 1,C=VN".')
@click.option(
    "--witness",
    "witnesses",
    metavar="NAME",
    multiple=True,
    help="Who is present; repeatable.",
)
@click.option(
    "--out", metavar="DIR", type=click.Path(file_okay=False, path_type=Path), help="A new folder."
)
@yes_option
@click.option(
    "--verify",
    "verified",
    metavar="DIR",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Check the transcript of a ceremony instead.",
)
@click.option(
    "--officer", "officers", metavar="CERT", type=FILE, multiple=True, help="With --verify."
)
def ceremony(*, verified: Path | None, officers: tuple[Path, ...], **options: Any) -> None:
    """Guides two officers through making the key NAME, and writes a signed transcript.

    It announces each step and asks before it goes on. The transcript contains what was
    approved, the token, the key's fingerprint, the attributes that the token read back, the
    certification request and the witnesses; both officers sign it.

    \b
      signer ceremony facilities/moh/keys/dcc --client officer-a.yaml --second officer-b.yaml \\
        --algorithm ES256 --subject "CN=DCC 1,O=Ministry of Health,C=VN" \\
        --witness "the auditor on duty" --out ceremony-2030-01-01

    \b
    Anyone can check it afterwards, offline, with the certificates of both officers:
      signer ceremony --verify ceremony-2030-01-01 --officer officer-a.pem --officer officer-b.pem
    """
    if verified is not None:
        given = [option for key, option in _OPTIONS.items() if options[key]]
        if given:
            raise click.UsageError(f"--verify checks a transcript: omit {', '.join(given)}")
        if not officers:
            raise click.UsageError("--verify needs the officers' certificates: --officer CERT")
        _verify(verified, officers)
        return
    if officers:
        raise click.UsageError("--officer is for --verify")
    missing = [option for key, option in _NEEDED.items() if not options[key]]
    if missing:
        raise click.UsageError(f"a ceremony needs {', '.join(missing)} as well")
    hold(CeremonyPlan(**options))


def _verify(folder: Path, officers: tuple[Path, ...]) -> None:
    certificates = {}
    for file in officers:
        certificate = certificate_in(file)
        certificates[principal_of(certificate)] = certificate.public_bytes(Encoding.DER)
    members = verify(folder, certificates)
    result = members["result"]
    click.echo(f"{folder} is in order")
    click.echo(f"  key        {result['key_version']}, {result['algorithm']}")
    click.echo(f"  public key SHA-256 {result['public_key_sha256']}")
    for participant in members["participants"]:
        click.echo(f"  signed by  {participant['officer']}")

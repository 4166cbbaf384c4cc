"""``signer operations propose``: one command a kind of operation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from signer.cli.operations import asked
from signer.cli.operations.arguments import (
    FILE,
    KEY,
    TIME,
    VERSION,
    certificate_in,
    certificates_in,
    principal_of,
    read_file,
)
from signer.cli.operations.flow import How, proposal_options
from signer.cli.operations.flow import propose as proposed
from signer.model import Algorithm

if TYPE_CHECKING:
    from signer.cli.operations.asked import Asked
    from signer.client import SignerClient

_token_option = click.option(
    "--token", metavar="LABEL", default="", help="Which token; needed if there are several."
)
_subject_option = click.option(
    "--subject",
    metavar="DN",
    default="",
    help='Make a certification request too, for a subject like "CN=DCC 1,O=Ministry,C=VN".',
)
_at_option = click.option(
    "--at",
    type=TIME,
    default=0,
    help="2030-01-01T08:00:00+07:00, or +7d or +12h from now; without: when it is approved.",
)
_version_argument = click.argument("version", metavar="VERSION", type=VERSION)


@click.group()
def propose() -> None:
    """Proposes an operation, signed by you; another officer approves it.

    What it would change is shown first, and you are asked. The bytes that you sign are
    checked to be what you asked for. With --draft they are only written down, for a key
    on a smart card; `signer operations submit` proposes them then.

    \b
      signer operations propose create-key facilities/moh/keys/dcc --algorithm ES256 \\
        --subject "CN=DCC 1,O=Ministry of Health,C=VN" --client officer-a.yaml
      signer operations propose activate facilities/moh/keys/dcc/versions/1 \\
        --sign-until +180d --client officer-a.yaml
    """


def _propose(how: How, wanted: Asked) -> None:
    proposed(how, lambda _: wanted)


@propose.command("create-key")
@click.argument("name", metavar="NAME", type=KEY)
@click.option(
    "--algorithm",
    required=True,
    type=click.Choice([str(a) for a in Algorithm]),
    help="Fixed for the life of the key.",
)
@click.option("--bits", type=int, default=0, help="RSA only: 2048, 3072 or 4096.")
@_token_option
@click.option("--activate", is_flag=True, help="It signs as soon as it is made.")
@click.option("--sign-until", type=TIME, default=0, help="With --activate: how long it may sign.")
@_subject_option
@proposal_options
def create_key(
    *,
    how: How,
    name: str,
    algorithm: str,
    bits: int,
    token: str,
    activate: bool,
    sign_until: int,
    subject: str,
) -> None:
    """Makes the key NAME with its first version.

    \b
      signer operations propose create-key facilities/01-001/keys/records \\
        --algorithm ES256 --activate --client officer-a.yaml
      signer operations propose create-key facilities/moh/keys/dcc --algorithm PS256 \\
        --bits 3072 --subject "CN=DCC 1,C=VN" --client officer-a.yaml
    """
    arguments = {
        "key": name,
        "algorithm": algorithm,
        "bits": bits,
        "token": token,
        "activate": activate,
        "sign_until": sign_until,
        "subject": subject,
    }
    _propose(how, asked.ask("create-key", arguments))


@propose.command("new-version")
@click.argument("name", metavar="NAME", type=KEY)
@_token_option
@_subject_option
@proposal_options
def new_version(*, how: How, name: str, token: str, subject: str) -> None:
    """Makes the next version of the key NAME, which signs nothing until it is activated.

    \b
      signer operations propose new-version facilities/moh/keys/dcc \\
        --subject "CN=DCC 2,C=VN" --client officer-a.yaml
    """
    _propose(how, asked.ask("new-version", {"key": name, "token": token, "subject": subject}))


@propose.command("import-certificate")
@_version_argument
@click.argument("file", metavar="FILE", type=FILE)
@click.option(
    "--issuer",
    "issuers",
    metavar="FILE",
    type=FILE,
    multiple=True,
    required=True,
    help="Who issued it, then who issued that: in order, in one file or several.",
)
@click.option("--replace", is_flag=True, help="Allow FILE to take another certificate's place.")
@proposal_options
def import_certificate(
    *, how: How, version: str, file: Path, issuers: tuple[Path, ...], replace: bool
) -> None:
    """Gives VERSION the certificate in FILE (PEM or DER).

    \b
      signer operations propose import-certificate facilities/moh/keys/dcc/versions/1 dcc.pem \\
        --issuer csca.pem --client officer-a.yaml
    """
    wanted = asked.with_certificates(
        "import-certificate",
        {"version": version, "replace": replace},
        certificate=certificate_in(file),
        issuers=[each for issuer in issuers for each in certificates_in(issuer)],
    )
    _propose(how, wanted)


@propose.command()
@_version_argument
@_at_option
@click.option("--sign-until", type=TIME, default=0, help="How long it may sign; without: no end.")
@proposal_options
def activate(*, how: How, version: str, at: int, sign_until: int) -> None:
    """Has VERSION sign; from then on it is its key's primary version.

    \b
      signer operations propose activate facilities/moh/keys/dcc/versions/2 \\
        --at 2030-01-01T00:00:00+07:00 --sign-until 2030-07-01T00:00:00+07:00 --client a.yaml
    """
    _propose(how, asked.ask("activate", {"version": version, "at": at, "sign_until": sign_until}))


@propose.command()
@click.argument("target", metavar="TARGET")
@proposal_options
def resume(*, how: How, target: str) -> None:
    """Lets what was suspended sign again: a key or version, a facility, a group, everything.

    \b
      signer operations propose resume facilities/01-001/keys/records --client officer-a.yaml
      signer operations propose resume facilities/01-001 --client officer-a.yaml
      signer operations propose resume groups/01 --client officer-a.yaml
      signer operations propose resume everything --client officer-a.yaml
    """
    _propose(how, asked.ask("resume", {"target": target}))


@propose.command()
@_version_argument
@_at_option
@proposal_options
def deactivate(*, how: How, version: str, at: int) -> None:
    """Ends VERSION for good; what it has signed stays valid.

    \b
      signer operations propose deactivate facilities/moh/keys/dcc/versions/1 \\
        --at +7d --client officer-a.yaml
    """
    _propose(how, asked.ask("deactivate", {"version": version, "at": at}))


@propose.command("schedule-destruction")
@_version_argument
@click.option("--at", type=TIME, required=True, help="Not before: a time, or +30d from now.")
@proposal_options
def schedule_destruction(*, how: How, version: str, at: int) -> None:
    """Allows VERSION to be destroyed from a time on; `restore` takes it back until then.

    \b
      signer operations propose schedule-destruction facilities/moh/keys/dcc/versions/1 \\
        --at +30d --client officer-a.yaml
    """
    _propose(how, asked.ask("schedule-destruction", {"version": version, "at": at}))


@propose.command()
@_version_argument
@proposal_options
def destroy(*, how: How, version: str) -> None:
    """Destroys the private key of VERSION on its token. Nothing brings it back.

    Its destruction must have been scheduled, and the time must have come.

    \b
      signer operations propose destroy facilities/moh/keys/dcc/versions/1 --client officer-a.yaml
    """
    _propose(how, asked.ask("destroy", {"version": version}))


@propose.command()
@_version_argument
@proposal_options
def restore(*, how: How, version: str) -> None:
    """Takes the scheduled destruction of VERSION back.

    \b
      signer operations propose restore facilities/moh/keys/dcc/versions/1 --client officer-a.yaml
    """
    _propose(how, asked.ask("restore", {"version": version}))


@propose.command()
@click.option("--sha256", metavar="HEX", default="", help="Only if it is the policy of this hash.")
@proposal_options
def policy(*, how: How, sha256: str) -> None:
    """Puts the policy that lies in the appliance's files in force.

    The difference to the one in force is shown. `signer check` on the appliance prints the
    hash of the files; with --sha256 nothing else is proposed.

    \b
      signer operations propose policy --client officer-a.yaml
    """
    _propose(how, asked.ask("policy", {"policy_sha256": sha256.lower()}))


@propose.command()
@click.argument("csv", metavar="CSV", type=FILE)
@_token_option
@proposal_options
def enrol(*, how: How, csv: Path, token: str) -> None:
    """Enrols the facilities of a CSV, with a key each, in one operation.

    \b
    Its first line is: facility,group,profile,clients,key,algorithm,bits
    `clients` are URIs with spaces between them; `group` and `bits` may be empty:
      01-003,01,clinic,spiffe://signer.example/province/01,records,ES256,

    \b
      signer operations propose enrol facilities.csv --client officer-a.yaml
    """
    _propose(how, asked.enrol(read_file(csv), token))


@propose.command()
@click.option(
    "--add", "added", metavar="FILE", type=FILE, multiple=True, help="Certificate of an officer."
)
@click.option("--remove", "removed", metavar="PRINCIPAL", multiple=True, help="As in spiffe://...")
@proposal_options
def officers(*, how: How, added: tuple[Path, ...], removed: tuple[str, ...]) -> None:
    """Changes who the officers are; a certificate added may replace an officer's older one.

    \b
      signer operations propose officers --add officer-c.pem \\
        --remove spiffe://signer.example/officer/a --client officer-a.yaml
    """
    if not added and not removed:
        raise click.UsageError("nothing would change: say --add FILE or --remove PRINCIPAL")
    certificates: dict[str, Any] = {}
    for file in added:
        certificate = certificate_in(file)
        certificates[principal_of(certificate)] = certificate

    def build(client: SignerClient) -> Asked:
        now = {each.principal: each.certificate for each in client.operations.officers().officers}
        return asked.change_officers(now, certificates, removed)

    proposed(how, build)

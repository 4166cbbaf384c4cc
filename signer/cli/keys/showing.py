"""``signer keys`` list, show and csr: key versions, as the appliance tells of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from signer.cli.connection import connect, daemon_options
from signer.cli.operations.arguments import KEY_OR_VERSION, iso, plain
from signer.cli.options import json_option
from signer.errors import OperatorError

if TYPE_CHECKING:
    from signer.client import KeyVersion, SignerClient

_SEPARATOR = "/versions/"


@click.command("list")
@click.option("--facility", metavar="ID", help="Only the keys of one facility.")
@daemon_options
@json_option
def list_keys(*, client_file: Path, facility: str | None, as_json: bool) -> None:
    """Lists all key versions in the order of their names; * marks those that sign for their key.

    \b
      signer keys list --client officer-a.yaml
      signer keys list --facility 01-001 --json --config /etc/signer/signer.yaml
    """
    with connect(client_file) as client:
        versions = list(client.list_key_versions(f"facilities/{facility}" if facility else ""))
    if as_json:
        click.echo(json.dumps([describe(each) for each in versions], indent=2))
        return
    click.echo(f"  {'VERSION':<48} {'ALGORITHM':<9} {'STATE':<17} {'KID':<16} CERTIFICATE")
    for each in versions:
        click.echo(
            f"{'*' if each.primary else ' '} {each.name:<48} {each.algorithm:<9} {each.state:<17}"
            f" {each.kid.hex()} {'yes' if each.certificate else 'no'}"
        )


@click.command()
@click.argument("target", metavar="NAME", type=KEY_OR_VERSION)
@click.option("--pem", is_flag=True, help="Print only the public key, in PEM.")
@daemon_options
@json_option
def show(*, client_file: Path, target: str, pem: bool, as_json: bool) -> None:
    """Shows one version: that of NAME, or the one that signs for the key NAME.

    \b
      signer keys show facilities/01-001/keys/records --client officer-a.yaml
      signer keys show facilities/01-001/keys/records/versions/1 --pem --client a.yaml > key.pem
    """
    from signer.keys.certificates import public_key_pem

    if pem and as_json:
        raise click.UsageError("--pem and --json: say one of them")
    with connect(client_file) as client:
        version = find(client, target)
    if pem:
        click.echo(public_key_pem(version.public_key), nl=False)
    elif as_json:
        click.echo(json.dumps(describe(version), indent=2))
    else:
        click.echo("\n".join(_lines(describe(version))))


@click.command()
@click.argument("target", metavar="NAME", type=KEY_OR_VERSION)
@daemon_options
def csr(*, client_file: Path, target: str) -> None:
    """Prints the certification request (PKCS #10, PEM) of a version, of a key the newest.

    It was made and signed in the HSM together with the version. Send it to the authority
    that certifies the key, then propose to import the certificate.

    \b
      signer keys csr facilities/moh/keys/dcc --client officer-a.yaml > dcc.csr
      signer operations propose import-certificate facilities/moh/keys/dcc/versions/1 \\
        dcc.pem --issuer csca.pem --client officer-a.yaml
    """
    with connect(client_file) as client:
        name = target if _SEPARATOR in target else _newest(client, target).name
        request = client.get_key_version(name).certification_request
    if not request:
        key = name.partition(_SEPARATOR)[0]
        raise OperatorError(
            f"{name} was made without a certification request; make a version that has one:"
            f' signer operations propose new-version {key} --subject "CN=...,C=VN"'
        )
    click.echo(request, nl=False)


def find(client: SignerClient, target: str) -> KeyVersion:
    """Returns the version named, or the key's primary, or its newest version."""
    if _SEPARATOR in target:
        return client.get_key_version(target)
    primary = client.get_key(target).primary
    name = _newest(client, target).name if primary is None else primary.name
    return client.get_key_version(name)


def _newest(client: SignerClient, key: str) -> KeyVersion:
    versions = list(client.list_key_versions(key))
    if not versions:
        raise OperatorError(f"there is no {key}; `signer keys list` shows what there is")
    return versions[-1]


def describe(version: KeyVersion) -> dict[str, Any]:
    """Returns what `--json` shows of a version: texts, times in ISO 8601 (UTC)."""
    from signer.keys.certificates import describe_certificate, fingerprint, public_key_pem

    return {
        "name": version.name,
        "algorithm": version.algorithm,
        "state": version.state,
        "primary": version.primary,
        "token": version.token or None,
        "created": iso(version.created),
        "activate_at": iso(version.activate_at),
        "sign_until": iso(version.sign_until),
        "deactivate_at": iso(version.deactivate_at),
        "destroy_at": iso(version.destroy_at),
        "kid": version.kid.hex(),
        "thumbprint": version.jwk_thumbprint,
        "public_key_sha256": fingerprint(version.public_key),
        "public_key": public_key_pem(version.public_key),
        "certificate": version.certificate and describe_certificate(version.certificate),
        "certification_request": version.certification_request or None,
    }


_UNSHOWN = frozenset({"public_key", "pem", "certification_request"})


def _lines(described: dict[str, Any]) -> list[str]:
    """Lays out a description for people: one value a line, without PEM."""
    lines = []
    for label, value in described.items():
        if isinstance(value, dict):
            lines += [label, *(f"  {line}" for line in _lines(value))]
        elif label not in _UNSHOWN:
            shown = ", ".join(value) if isinstance(value, list) else value
            shown = ("yes" if shown else "no") if isinstance(shown, bool) else shown
            lines.append(f"{label.replace('_', ' '):<20} {plain(shown) if shown else '-'}")
    return lines

"""``signer keys`` list, show, csr and wrapping-keys."""

import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import click
from cryptography import x509

from signer.cli.connection import client_options
from signer.cli.operations.arguments import FACILITY, KEY_OR_VERSION, iso, utc
from signer.cli.options import json_option
from signer.cli.output import output, print_json, say
from signer.client import KeyVersion, SignerClient, WrappingKey
from signer.errors import OperatorError
from signer.text import count, plain
from signer.x509 import describe_certificate, fingerprint, public_key_pem

_SEPARATOR = "/versions/"

facility_option = click.option("--facility", type=FACILITY, help="Only the keys of one facility.")


def listed(client: SignerClient, facility: str | None) -> list[KeyVersion]:
    """Returns all key versions, or those of one facility; raises OperatorError for none of it.

    An empty list would hide a mistyped id, also from a verifier who loads that list.
    """
    versions = list(client.list_key_versions(f"facilities/{facility}" if facility else ""))
    if facility and not versions:
        raise OperatorError(
            f"facility {facility} does not exist, has no key, or is not one that you may see:"
            " `signer keys list` lists all keys"
        )
    return versions


def _print_versions(versions: list[KeyVersion]) -> None:
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for line in version_lines(versions, datetime.now(UTC), columns):
        say(line)
    if versions:
        say("* signs for its key", err=True)
    for reason in sorted({version.suspension for version in versions} - {""}):
        say(f"(in brackets) signs nothing: {reason}", err=True)


def version_lines(
    versions: Sequence[KeyVersion], now: datetime, columns: int | None
) -> Iterator[str]:
    """Yields a line for each version; where that has more than ``columns``, two of them."""
    rows = [
        (
            "*" if version.primary else " ",
            version.name,
            version.algorithm,
            f"({version.state})" if version.suspension else version.state,
            _end(version, now),
            "wrapped" if version.wrapping else "",
        )
        for version in versions
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    longest = sum(width + 2 for width in widths if width) - 3  # a space after the mark, then two
    for mark, name, *cells in rows:
        padded = zip(cells, widths[2:], strict=True)
        details = "  ".join(f"{cell:<{width}}" for cell, width in padded).rstrip()
        if columns is None or longest <= columns:
            yield f"{mark} {name:<{widths[1]}}  {details}"
        else:
            yield f"{mark} {name}"
            yield f"    {details}"


def _end(version: KeyVersion, now: datetime) -> str:
    """Returns when a version ends, by its own times or with its certificate."""
    ends = [end for end in (version.sign_until, version.deactivate_at) if end is not None]
    if version.certificate:
        ends.append(x509.load_der_x509_certificate(version.certificate).not_valid_after_utc)
    if not ends:
        return "no end"
    return f"{'until' if min(ends) > now else 'ENDED'} {min(ends):%Y-%m-%d}"


@click.command("list", short_help="Lists all key versions by name.")
@facility_option
@output(lambda versions: list(map(version_value, versions)), _print_versions)
@client_options
def list_keys(*, client: SignerClient, facility: str | None) -> list[KeyVersion]:
    """Lists all key versions by name: algorithm, state, and when each ends.

    A version ends by its own times or with its certificate, whichever is first. * marks those
    that sign for their key; a state in brackets is that of a version that signs nothing, because
    its facility, its group or everything is suspended. The private key of a wrapped one is in the
    registry, encrypted by a wrapping key: see `signer keys wrapping-keys`.

    \b
      signer keys list --client officer-a.yaml
      signer keys list --facility 01-001 --json --config /etc/signer/signer.yaml
    """
    return listed(client, facility)


@click.command(short_help="Shows one version, or a key's primary version.")
@click.argument("target", metavar="NAME", type=KEY_OR_VERSION)
@click.option("--pem", is_flag=True, help="Print only the public key, in PEM.")
@client_options
@json_option
def show(*, client: SignerClient, target: str, pem: bool, as_json: bool) -> None:
    """Shows one version: that of NAME, or the one that signs for the key NAME.

    \b
      signer keys show facilities/01-001/keys/records --client officer-a.yaml
      signer keys show facilities/01-001/keys/records/versions/1 --pem \\
        --client a.yaml > key.pem
    """
    if pem and as_json:
        raise click.UsageError("give --pem or --json, not both")
    version = _find(client, target)
    if pem:
        say(public_key_pem(version.public_key), newline=False)
    elif as_json:
        print_json(version_value(version))
    else:
        say("\n".join(_lines(version_value(version, utc))))


@click.command(short_help="Prints the certification request of a version.")
@click.argument("target", metavar="NAME", type=KEY_OR_VERSION)
@client_options
def csr(*, client: SignerClient, target: str) -> None:
    """Prints the certification request (PKCS #10, PEM) of a version; of a key, the newest.

    It was created and signed in the HSM together with the version. Send it to the authority
    that certifies the key, then propose to import the certificate.

    \b
      signer keys csr facilities/moh/keys/dcc --client officer-a.yaml > dcc.csr
      signer operations propose import-certificate \\
        facilities/moh/keys/dcc/versions/1 \\
        dcc.pem --issuer csca.pem --client officer-a.yaml
    """
    name = target if _SEPARATOR in target else _newest(client, target).name
    request = client.get_key_version(name).certification_request
    if not request:
        key = name.partition(_SEPARATOR)[0]
        raise OperatorError(
            f"{name} was created without a certification request; create a version that has one:"
            f' signer operations propose new-version {key} --subject "CN=...,C=VN"'
        )
    say(request, newline=False)


def _find(client: SignerClient, target: str) -> KeyVersion:
    """Returns the version named, or the key's primary, or its newest version."""
    if _SEPARATOR in target:
        return client.get_key_version(target)
    version = client.get_key(target).primary or _newest(client, target)
    return client.get_key_version(version.name)


def _newest(client: SignerClient, key: str) -> KeyVersion:
    versions = list(client.list_key_versions(key))
    if not versions:
        raise OperatorError(f"{key} does not exist: `signer keys list` shows all keys")
    return versions[-1]


def _wrapping_key_value(key: WrappingKey) -> dict[str, Any]:
    return key._asdict() | {"cka_id": key.cka_id.hex(), "created": iso(key.created)}


def _print_wrapping_keys(keys: list[WrappingKey]) -> None:
    if not keys:
        say("there is no wrapping key: officers create one with")
        say("`signer operations propose create-wrapping-key`")
    for key in keys:
        created = f"since {key.created:%Y-%m-%d}" if key.created else "not in the registry"
        say(plain(f"{key.id:<36}  {created}  {_use(key)}"))
        for token in () if key.destroyed else key.tokens:
            newest = ", wraps new keys there" if token in key.newest_on else ""
            say(plain(f"  on token {token}{newest}"))


def _use(key: WrappingKey) -> str:
    if key.destroyed and not key.key_versions:
        return "destroyed"
    return f"wraps {count(key.key_versions, 'key version')}"


@click.command("wrapping-keys", short_help="Lists wrapping keys, and what each has wrapped.")
@output(lambda keys: list(map(_wrapping_key_value, keys)), _print_wrapping_keys)
@client_options
def wrapping_keys(*, client: SignerClient) -> list[WrappingKey]:
    """Lists the wrapping keys, the newest first: their tokens, and what each has wrapped.

    The id is what `signer operations propose rewrap`, place-wrapping-key and destroy-wrapping-key
    take. `signer keys list` shows which versions are wrapped, `signer keys show` by which key.

    \b
      signer keys wrapping-keys --client officer-a.yaml
    """
    return client.list_wrapping_keys()


def version_value(
    version: KeyVersion, time: Callable[[datetime | None], str | None] = iso
) -> dict[str, Any]:
    """Returns what is shown of a version, with its times as ``time`` writes them."""
    return {
        "name": version.name,
        "algorithm": version.algorithm,
        "state": version.state,
        "primary": version.primary,
        "suspension": version.suspension or None,
        "token": version.token or None,
        "placements": [f"{token} (CKA_ID {cka_id.hex()})" for token, cka_id in version.placements],
        "wrapping": version.wrapping and version.wrapping._asdict(),
        "signatures_used": version.signatures_used,
        "lifetime_signatures": version.lifetime_signatures or None,
        "created": time(version.created),
        "activate_at": time(version.activate_at),
        "sign_until": time(version.sign_until),
        "deactivate_at": time(version.deactivate_at),
        "destroy_at": time(version.destroy_at),
        "kid": version.kid.hex(),
        "thumbprint": version.jwk_thumbprint,
        "public_key_sha256": fingerprint(version.public_key),
        "public_key": public_key_pem(version.public_key),
        "certificate": version.certificate and describe_certificate(version.certificate, time),
        "certification_request": version.certification_request or None,
    }


def _lines(value: dict[str, Any]) -> list[str]:
    """Lays out a value for people: one member a line, without PEM."""
    lines = []
    for label, member in value.items():
        if isinstance(member, dict):
            lines += [label, *(f"  {line}" for line in _lines(member))]
        elif label not in {"public_key", "pem", "certification_request"}:
            shown = ", ".join(member) if isinstance(member, list) else member
            shown = ("yes" if shown else "no") if isinstance(shown, bool) else shown
            shown = f"{shown:,}" if isinstance(shown, int) else shown
            lines.append(f"{label.replace('_', ' '):<20} {plain(shown) if shown else '-'}")
    return lines

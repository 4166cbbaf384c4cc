"""``signer keys`` suspend, compromise and suspensions: what one officer does at once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from signer.cli.connection import connect, daemon_options
from signer.cli.operations.arguments import KEY_OR_VERSION, Text, iso, plain, utc
from signer.cli.options import json_option
from signer.cli.tables import print_table
from signer.model import parse_key_or_version

if TYPE_CHECKING:
    from signer.client import KeyVersion, SignerClient

_reason_option = click.option(
    "--reason", metavar="TEXT", required=True, help="Why, for the others; it goes on record."
)


def read_target(text: str) -> str:
    """Checks what can be suspended; raises ValueError."""
    scope, _, name = text.partition("/")
    if text == "everything" or (scope in ("groups", "facilities") and name and "/" not in name):
        return text
    try:
        parse_key_or_version(text)
    except ValueError:
        raise ValueError(
            "expected facilities/F/keys/K, a version of it, facilities/F, groups/G or everything"
        ) from None
    return text


@click.command()
@click.argument("target", metavar="TARGET", type=Text("TARGET", read_target))
@_reason_option
@daemon_options
@json_option
def suspend(*, client_file: Path, target: str, reason: str, as_json: bool) -> None:
    """Stops a key, one version, a facility, a group or everything, at once.

    Nothing more is signed from the next chunk on. `signer operations propose resume`
    lets it sign again, once another officer approves.

    \b
      signer keys suspend facilities/01-001/keys/records --reason "lost laptop" --client a.yaml
      signer keys suspend facilities/01-001 --reason "forged certificates" --client a.yaml
      signer keys suspend groups/01 --reason "province asked for it" --client a.yaml
      signer keys suspend everything --reason "intruder" --client a.yaml
    """
    with connect(client_file) as client:
        changed = _suspended(client, target, reason)
    if as_json:
        click.echo(json.dumps({"suspended": target, "key_versions": _states(changed)}, indent=2))
        return
    click.echo(f"{target} is suspended")
    _print_states(changed)


def _suspended(client: SignerClient, target: str, reason: str) -> Sequence[KeyVersion]:
    scope, _, name = target.partition("/")
    if target == "everything":
        client.operations.suspend_everything(reason)
    elif scope == "groups":
        client.operations.suspend_group(name, reason)
    elif "/" not in name:
        client.operations.suspend_facility(name, reason)
    else:
        return client.operations.suspend_key(target, reason)
    return ()


@click.command()
@click.argument("name", metavar="NAME", type=KEY_OR_VERSION)
@_reason_option
@daemon_options
@json_option
def compromise(*, client_file: Path, name: str, reason: str, as_json: bool) -> None:
    """Ends a key or one version at once and for good, because its signatures are in doubt.

    Nothing takes it back. To stop a key for now, suspend it.

    \b
      signer keys compromise facilities/moh/keys/dcc/versions/1 \\
        --reason "backup tape stolen" --client officer-a.yaml
    """
    with connect(client_file) as client:
        changed = client.operations.mark_compromised(name, reason)
    if as_json:
        click.echo(json.dumps({"compromised": name, "key_versions": _states(changed)}, indent=2))
        return
    click.echo(f"{name} is marked as compromised; give verifiers a new `signer keys export`")
    _print_states(changed)


@click.command()
@daemon_options
@json_option
def suspensions(*, client_file: Path, as_json: bool) -> None:
    """Shows which facilities and groups are suspended, since when and why.

    Suspended keys are in `signer keys list`.

    \b
      signer keys suspensions --client officer-a.yaml
    """
    with connect(client_file) as client:
        found = client.operations.suspensions()
    if as_json:
        said = [{**each._asdict(), "since": iso(each.since)} for each in found]
        click.echo(json.dumps(said, indent=2))
    elif found:
        print_table(
            ("what", "since", "by", "reason"),
            (
                (
                    f"{each.scope} {each.name}".strip(),
                    utc(each.since),
                    plain(each.officer),
                    plain(each.reason),
                )
                for each in found
            ),
        )
    else:
        click.echo("no facility and no group is suspended")


def _states(versions: Sequence[KeyVersion]) -> dict[str, Any]:
    return {each.name: each.state for each in versions}


def _print_states(versions: Sequence[KeyVersion]) -> None:
    for each in versions:
        click.echo(f"  {each.name} is {each.state}")

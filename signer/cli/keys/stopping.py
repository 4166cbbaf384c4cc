"""``signer keys`` suspend, compromise and suspensions: stops that one officer makes at once."""

from collections.abc import Sequence
from typing import Any

import click

from signer.cli.connection import client_options
from signer.cli.operations.arguments import KEY_OR_VERSION, Text, iso, utc
from signer.cli.output import output, print_table, say
from signer.client import KeyVersion, SignerClient, Suspension
from signer.model import IDENTIFIER, parse_key_or_version

_reason_option = click.option(
    "--reason", metavar="TEXT", required=True, help="Why, for the other officers; it is recorded."
)


def _stopped(done: str, target: str, versions: Sequence[KeyVersion]) -> dict[str, Any]:
    """Describes what was stopped, with the key versions whose state was changed."""
    return {done: target, "key_versions": {version.name: version.state for version in versions}}


def _print_stopped(stopped: dict[str, Any]) -> None:
    if "suspended" in stopped:
        say(f"{stopped['suspended']} is suspended")
    else:
        say(
            f"{stopped['compromised']} is marked as compromised; give verifiers a new"
            " `signer keys export`"
        )
    for name, state in stopped["key_versions"].items():
        say(f"  {name} is {state}")


def read_target(text: str) -> str:
    """Reads the target of a suspension; raises ValueError."""
    scope, _, name = text.partition("/")
    if text == "everything" or (scope in ("groups", "facilities") and IDENTIFIER.fullmatch(name)):
        return text
    try:
        parse_key_or_version(text)
    except ValueError:
        raise ValueError(
            "expected facilities/F/keys/K, a version of it, facilities/F, groups/G or everything"
        ) from None
    return text


@click.command(short_help="Stops a key, a version, a facility, a group or everything.")
@click.argument("target", metavar="TARGET", type=Text("TARGET", read_target))
@_reason_option
@client_options
@output(dict, _print_stopped)
def suspend(*, client: SignerClient, target: str, reason: str) -> dict[str, Any]:
    """Stops a key, one version, a facility, a group or everything, at once.

    Nothing more is signed from the next chunk on. `signer operations propose resume`
    lets it sign again, once another officer approves.

    \b
      signer keys suspend facilities/01-001/keys/records --reason "lost laptop" --client a.yaml
      signer keys suspend facilities/01-001 --reason "forged certificates" --client a.yaml
      signer keys suspend groups/01 --reason "province asked for it" --client a.yaml
      signer keys suspend everything --reason "intruder" --client a.yaml
    """
    scope, _, name = target.partition("/")
    versions: Sequence[KeyVersion] = ()
    if target == "everything":
        client.operations.suspend_everything(reason)
    elif scope == "groups":
        client.operations.suspend_group(name, reason)
    elif "/" not in name:
        client.operations.suspend_facility(name, reason)
    else:
        versions = client.operations.suspend_key(target, reason)
    return _stopped("suspended", target, versions)


@click.command(short_help="Ends a key or version for good: its signatures are in doubt.")
@click.argument("name", metavar="NAME", type=KEY_OR_VERSION)
@_reason_option
@client_options
@output(dict, _print_stopped)
def compromise(*, client: SignerClient, name: str, reason: str) -> dict[str, Any]:
    """Ends a key or one version at once and for good, because its signatures are in doubt.

    This cannot be undone. To stop a key for now, suspend it.

    \b
      signer keys compromise facilities/moh/keys/dcc/versions/1 \\
        --reason "backup tape stolen" --client officer-a.yaml
    """
    return _stopped("compromised", name, client.operations.mark_compromised(name, reason))


def _print_suspensions(suspensions: Sequence[Suspension]) -> None:
    if not suspensions:
        say("no facility and no group is suspended")
        return
    rows = (
        (f"{one.scope} {one.name}".strip(), utc(one.since), one.officer, one.reason)
        for one in suspensions
    )
    print_table(("what", "since", "by", "reason"), rows)


@click.command(short_help="Shows the suspended facilities and groups.")
@client_options
@output(
    lambda found: [{**one._asdict(), "since": iso(one.since)} for one in found], _print_suspensions
)
def suspensions(*, client: SignerClient) -> Sequence[Suspension]:
    """Shows which facilities and groups are suspended, since when and why.

    Suspended keys are in `signer keys list`.

    \b
      signer keys suspensions --client officer-a.yaml
    """
    return client.operations.suspensions()

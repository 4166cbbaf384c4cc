"""``signer keys`` suspend, compromise and suspensions: stops that one officer makes at once."""

from collections.abc import Sequence
from typing import Any

import click

from signer.cli.connection import client_options
from signer.cli.operations.arguments import KEY_OR_VERSION, Text, iso, utc
from signer.cli.operations.flow import ask_on_terminal
from signer.cli.options import yes_option
from signer.cli.output import output, print_text, say
from signer.client import KeyVersion, SignerClient, Suspension
from signer.model import IDENTIFIER, parse_key_or_version
from signer.text import plain

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
@yes_option
@output(dict, _print_stopped)
@client_options
def suspend(*, client: SignerClient, target: str, reason: str, yes: bool) -> dict[str, Any]:
    """Stops a key, one version, a facility, a group or everything, at once.

    Nothing more is signed from the next chunk on. `signer operations propose resume`
    lets it sign again, once another officer approves. On a terminal, `everything` is asked
    first, unless you give --yes.

    \b
      signer keys suspend facilities/01-001/keys/records --reason "lost laptop" \\
        --client a.yaml
      signer keys suspend facilities/01-001 --reason "forged certificates" \\
        --client a.yaml
      signer keys suspend groups/01 --reason "province asked for it" \\
        --client a.yaml
      signer keys suspend everything --reason "intruder" --client a.yaml
    """
    scope, _, name = target.partition("/")
    versions: Sequence[KeyVersion] = ()
    if target == "everything":
        ask_on_terminal("This stops every key of every appliance. Stop everything?", yes=yes)
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
@yes_option
@output(dict, _print_stopped)
@client_options
def compromise(*, client: SignerClient, name: str, reason: str, yes: bool) -> dict[str, Any]:
    """Ends a key or one version at once and for good, because its signatures are in doubt.

    This cannot be undone. To stop a key for now, suspend it. On a terminal you see which
    versions end, and are asked, unless you give --yes.

    \b
      signer keys compromise facilities/moh/keys/dcc/versions/1 \\
        --reason "backup tape stolen" --client officer-a.yaml
    """

    def show() -> None:
        key, _, number = name.partition("/versions/")
        for version in client.list_key_versions(key):
            if not number or version.name == name:
                say(f"  {version.name} is {version.state}", err=True)

    question = "This ends these versions for good. Mark them as compromised?"
    ask_on_terminal(question, yes=yes, show=show)
    return _stopped("compromised", name, client.operations.mark_compromised(name, reason))


def _print_suspensions(suspensions: Sequence[Suspension]) -> None:
    if not suspensions:
        say("nothing is suspended: no key, no facility, no group")
        return
    for one in suspensions:
        what = f"{one.scope} {one.name}".strip()
        say(f"{plain(what)}, since {utc(one.since)}" if one.since else plain(what))
        if one.officer:
            print_text(f"  by {one.officer}: {one.reason}", "  ")


def _suspended(client: SignerClient) -> list[Suspension]:
    """Returns all suspensions: those of everything, groups, facilities, then of versions."""
    versions = [v.name for v in client.list_key_versions() if v.state == "SUSPENDED"]
    return [
        *client.operations.suspensions(),
        *(Suspension("version", name, None, "", "") for name in versions),
    ]


@click.command(short_help="Shows what is suspended.")
@output(
    lambda found: [{**one._asdict(), "since": iso(one.since)} for one in found], _print_suspensions
)
@client_options
def suspensions(*, client: SignerClient) -> Sequence[Suspension]:
    """Shows what is suspended: everything, groups, facilities, and single versions of keys.

    Who suspended a version, and why, is in the audit log.

    \b
      signer keys suspensions --client officer-a.yaml
    """
    return _suspended(client)

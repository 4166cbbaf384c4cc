"""``signer policy``: what the policy allows, and which rule says so."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from signer.cli.options import config_option, json_option
from signer.cli.output import print_table
from signer.errors import OperatorError

if TYPE_CHECKING:
    from signer.model import Format, KeyName
    from signer.policy.decide import Decision
    from signer.policy.rules import Facility, Policy, Terms


@click.group()
def policy() -> None:
    """Shows what the policy allows, after all narrowing.

    \b
      signer policy show --config signer.yaml --facility 01-001
      signer policy explain --config signer.yaml --principal spiffe://signer.example/province/01 \\
          --key facilities/01-001/keys/records --format JWS
    """


@policy.command()
@config_option
@click.option("--facility", metavar="ID", help="Only this one, with the rule behind each line.")
@json_option
def show(*, config_file: Path, facility: str | None, as_json: bool) -> None:
    """Prints what may be done with the keys of every facility.

    Keys with rules of their own have a row; "*" stands for all others, which
    have no formats where the facility has HCERT and other formats.

    \b
      signer policy show --config signer.yaml
      signer policy show --config signer.yaml --facility moh
      signer policy show --config signer.yaml --json | jq '.[] | select(.delegation)'
    """
    loaded = _loaded(config_file)
    if facility is not None and facility not in loaded.facilities:
        raise OperatorError(
            f"the policy has no facility {facility}: `signer policy show` lists those it has"
        )
    names = sorted(loaded.facilities) if facility is None else [facility]
    rows = [row for name in names for row in _rows(loaded.facilities[name])]
    if as_json:
        click.echo(json.dumps([_described(loaded, key, terms) for key, terms in rows], indent=2))
    elif facility is None:
        _print_all(rows)
    else:
        _print_facility(loaded, rows)


@policy.command()
@config_option
@click.option("--principal", metavar="URI", required=True, help="The URI of the certificate.")
@click.option("--key", "key_text", metavar="NAME", required=True, help="facilities/ID/keys/ID")
@click.option("--format", "format_text", metavar="FORMAT", help="One format; all of them without.")
@click.option("--at", "at_text", metavar="TIME", help="As in 2030-01-01T08:00:00+07:00; now.")
@json_option
def explain(
    *,
    config_file: Path,
    principal: str,
    key_text: str,
    format_text: str | None,
    at_text: str | None,
    as_json: bool,
) -> None:
    """Prints whether a principal may sign with a key, and the rule behind it.

    The answer is that of the file, which the daemon may not have reloaded yet.
    Whether the key exists, its algorithm and what is left of the quotas are not
    looked at. The exit code is 0 where signing is allowed (without --format: in
    at least one format), else 1.

    \b
      signer policy explain --config signer.yaml --principal spiffe://signer.example/facility/01-001 \\
          --key facilities/01-001/keys/records
      ... --format JWS --at 2030-01-01T21:00:00+07:00
    """  # noqa: E501  a command is one line
    from signer.policy.decide import decide

    key, formats, at = _asked(key_text, format_text, at_text)
    loaded = _loaded(config_file)
    decisions = [(one, decide(loaded, principal, key, one, at)) for one in formats]
    if as_json:
        click.echo(json.dumps([_decision(str(one), answer) for one, answer in decisions], indent=2))
    else:
        print_table(
            ("format", "decision", "rule", "why"),
            (
                (str(one), "allowed" if answer.allowed else "denied", answer.rule, answer.message)
                for one, answer in decisions
            ),
        )
    if not any(answer.allowed for _, answer in decisions):
        sys.exit(1)


def _loaded(config_file: Path) -> Policy:
    from signer.config.loader import load_config
    from signer.config.policy_documents import load_policy

    return load_policy(load_config(config_file).policy)


def _asked(
    key_text: str, format_text: str | None, at_text: str | None
) -> tuple[KeyName, Sequence[Format], float]:
    """Reads the question; what cannot be read is wrong usage."""
    from signer.model import Format, KeyName
    from signer.policy.values import instant

    try:
        key = KeyName.parse(key_text)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--key") from error
    if format_text is not None and format_text not in set(Format):
        raise click.BadParameter(f"choose from {', '.join(Format)}", param_hint="--format")
    try:
        at = datetime.now(UTC).timestamp() if at_text is None else instant(at_text)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--at") from error
    return key, list(Format) if format_text is None else [Format(format_text)], at


def _decision(requested: str, decision: Decision) -> dict[str, object]:
    return {
        "format": requested,
        "allowed": decision.allowed,
        "rule": decision.rule,
        "reason": decision.reason,
        "message": decision.message,
        "retry_after_seconds": decision.retry_after,
    }


def _rows(facility: Facility) -> list[tuple[str, Terms]]:
    return [("*", facility.terms), *sorted(facility.keys.items())]


def _clients(policy: Policy, terms: Terms) -> list[str]:
    """Returns all who may sign: the group's clients too, where it is delegated to them."""
    clients = policy.facilities[terms.facility].clients
    if terms.delegation and terms.group is not None:
        clients |= policy.groups[terms.group].clients
    return sorted(clients)


def _described(policy: Policy, key: str, terms: Terms) -> dict[str, object]:
    from signer.policy.narrow import shown

    rules = shown(terms)
    return {
        "facility": terms.facility,
        "group": terms.group,
        "key": key,
        "clients": _clients(policy, terms),
        **rules,
        "rules": {name: terms.rule(name) for name in rules},
    }


def _cell(name: str, value: object) -> str:
    """Returns a value for people: no formats are none, other empty rules restrict nothing."""
    from signer.policy.narrow import in_words

    return in_words(value, "none" if name == "formats" else "-")


def _print_all(rows: Iterable[tuple[str, Terms]]) -> None:
    from signer.policy.narrow import shown

    table = [
        {"facility": terms.facility, "group": terms.group, "key": key, **shown(terms)}
        for key, terms in rows
    ]
    if table:
        print_table(
            list(table[0]),
            ([_cell(name, value) for name, value in row.items()] for row in table),
        )
    else:
        click.echo("the policy has no facilities: nobody may sign")


def _print_facility(policy: Policy, rows: Iterable[tuple[str, Terms]]) -> None:
    """Prints one facility, a line for each rule of each key."""
    from signer.policy.narrow import shown

    lines = []
    for key, terms in rows:
        lines.append((key, "clients", ", ".join(_clients(policy, terms)) or "-", ""))
        for name, value in shown(terms).items():
            free = name != "formats" and value in (None, [], {})
            lines.append((key, name, _cell(name, value), "" if free else terms.rule(name)))
    print_table(("key", "what", "value", "rule"), lines)

"""``signer check``: whether the files that the daemon reads are correct."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import click

from signer.cli.options import config_option
from signer.cli.output import output
from signer.config.loader import load_config
from signer.config.models import Config
from signer.config.policy_documents import load_policy
from signer.errors import ConfigError
from signer.policy.rules import Policy
from signer.text import count
from signer.tools.doctor.file_checks import file_problems


class _Checked(NamedTuple):
    """What could be read of the configuration and the policy, and what is wrong with them."""

    file: Path
    config: Config | None
    policy: Policy | None
    errors: list[ConfigError]


def _checked(config_file: Path) -> _Checked:
    errors: list[ConfigError] = []
    try:
        config = load_config(config_file)
    except ConfigError as error:
        return _Checked(config_file, None, None, [error])
    if wrong := list(file_problems(config)):
        errors.append(ConfigError(str(config_file), wrong))
    try:
        policy = load_policy(config.policy)
    except ConfigError as error:
        return _Checked(config_file, config, None, [*errors, error])
    return _Checked(config_file, config, policy, errors)


def _value(checked: _Checked) -> dict[str, object]:
    policy = checked.policy
    return {
        "ok": not checked.errors,
        "policy_sha256": policy.sha256 if policy else None,
        "facilities": len(policy.facilities) if policy else None,
        "problems": [
            {"file": error.source, "path": problem.field, "problem": problem.description}
            for error in checked.errors
            for problem in error.problems
        ],
    }


def _show(checked: _Checked) -> None:
    config, policy = checked.config, checked.policy
    for error in checked.errors:
        click.echo(str(error), err=True)
    if checked.errors or config is None or policy is None:
        return
    facilities = count(len(policy.facilities), "facility", "facilities")
    tokens = ", ".join(
        f"{token.label} ({count(token.workers, 'worker')})" for token in config.tokens
    )
    click.echo(f"{checked.file} is in order")
    click.echo(f"  policy  {facilities}, {count(len(policy.groups), 'group')}")
    click.echo(f"  sha256  {policy.sha256}")
    click.echo(f"  tokens  {tokens}")
    click.echo(f"  stop    takes at most {config.limits.stop_seconds:.0f} s")
    click.echo("  files   all exist, are readable, and private where they must be")


@click.command()
@config_option
@output(_value, _show, ok=lambda checked: not checked.errors)
def check(*, config_file: Path) -> _Checked:
    """Checks the configuration, the policy and the files they name.

    Nothing is started, no token is used, no PIN is read. All problems are reported
    at once, with their dotted paths; the exit code is then 1.

    \b
    Before a reload:
      signer check --config /etc/signer/signer.yaml && signer reload --config /etc/signer/signer.yaml
    For programs:
      signer check --config /etc/signer/signer.yaml --json | jq '.problems[].path'
    """  # noqa: E501  a command is one line
    return _checked(config_file)

"""``signer check``: whether all that the daemon reads is in order."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from signer.cli.options import config_option, json_option
from signer.errors import ConfigError

if TYPE_CHECKING:
    from signer.config.models import Config
    from signer.policy.rules import Policy


@click.command()
@config_option
@json_option
def check(*, config_file: Path, as_json: bool) -> None:
    """Checks the configuration, the policy and the files they name.

    Nothing is started, no token is touched, no PIN is read. All that is wrong is
    told at once, with its dotted path; the exit code is then 1.

    \b
    Before a reload:
      signer check --config /etc/signer/signer.yaml && signer reload --config /etc/signer/signer.yaml
    For programs:
      signer check --config /etc/signer/signer.yaml --json | jq '.problems[].path'
    """  # noqa: E501  a command is one line
    from signer.config.loader import load_config
    from signer.config.policy_documents import load_policy
    from signer.tools.doctor.file_checks import file_problems

    errors: list[ConfigError] = []
    policy: Policy | None = None
    try:
        config = load_config(config_file)
    except ConfigError as error:
        errors.append(error)
    else:
        if wrong := list(file_problems(config)):
            errors.append(ConfigError(str(config_file), wrong))
        try:
            policy = load_policy(config.policy)
        except ConfigError as error:
            errors.append(error)
    if as_json:
        click.echo(json.dumps(_described(policy, errors), indent=2))
    else:
        for wrong_part in errors:
            click.echo(str(wrong_part), err=True)
        if policy is not None and not errors:
            _print_order(config_file, config, policy)
    if errors:
        sys.exit(1)


def _described(policy: Policy | None, errors: list[ConfigError]) -> dict[str, object]:
    return {
        "ok": not errors,
        "policy_sha256": policy.sha256 if policy else None,
        "facilities": len(policy.facilities) if policy else None,
        "problems": [
            {"file": error.source, "path": problem.field, "problem": problem.description}
            for error in errors
            for problem in error.problems
        ],
    }


def _print_order(config_file: Path, config: Config, policy: Policy) -> None:
    tokens = ", ".join(f"{token.label} ({token.workers} workers)" for token in config.tokens)
    click.echo(f"{config_file} is in order")
    click.echo(f"  policy  {len(policy.facilities)} facilities, {len(policy.groups)} groups")
    click.echo(f"  sha256  {policy.sha256}")
    click.echo(f"  tokens  {tokens}")
    click.echo(f"  stop    takes {config.limits.stop_seconds:.0f} s at most")
    click.echo("  files   all there, readable, and private where they must be")

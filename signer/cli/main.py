"""The command ``signer``: one file a group of commands, loaded when it is used."""

from __future__ import annotations

import importlib
import sys
from typing import Any, NoReturn

import click

from signer import __version__
from signer.errors import ConfigError, OperatorError

_COMMANDS = {
    "audit": "signer.cli.audit",
    "bench": "signer.cli.bench",
    "ceremony": "signer.cli.ceremony",
    "check": "signer.cli.check",
    "dev": "signer.cli.dev",
    "doctor": "signer.cli.doctor",
    "health": "signer.cli.control",
    "init": "signer.cli.init",
    "keys": "signer.cli.keys",
    "operations": "signer.cli.operations",
    "policy": "signer.cli.policy",
    "registry": "signer.cli.registry",
    "reload": "signer.cli.control",
    "serve": "signer.cli.serve",
    "sign": "signer.cli.sign",
    "token": "signer.cli.token",
    "top": "signer.cli.control",
}


class _Commands(click.Group):
    """Imports a command's module when the command is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  click's signature
        return sorted(_COMMANDS)

    def get_command(
        self,
        ctx: click.Context,  # noqa: ARG002  as above
        cmd_name: str,
    ) -> click.Command | None:
        module = _COMMANDS.get(cmd_name)
        if module is None:
            return None
        command: click.Command = getattr(importlib.import_module(module), cmd_name)
        return command


@click.command(cls=_Commands)
@click.version_option(__version__, prog_name="signer")
def cli() -> None:
    """An HSM-backed batch signing appliance.

    \b
    Try it:
      signer dev up /tmp/appliance
    Run it:
      signer init --config /etc/signer/signer.yaml
      signer check --config /etc/signer/signer.yaml
      signer serve --config /etc/signer/signer.yaml

    Exit codes: 0 done, 1 the thing asked for is wrong or was refused, 2 wrong usage.
    """  # noqa: D301  click's \b


def main(arguments: list[str] | None = None) -> NoReturn:
    """Runs a command; refusals are told on stderr and end with exit code 1."""
    try:
        result: Any = cli.main(arguments, prog_name="signer", standalone_mode=False)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        click.echo("stopped", err=True)
        sys.exit(1)
    except (ConfigError, OperatorError) as error:
        click.echo(f"signer: {error}", err=True)
        sys.exit(1)
    sys.exit(result if isinstance(result, int) else 0)

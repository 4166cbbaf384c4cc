"""The command ``signer``: one file a group of commands, loaded when it is used."""

from __future__ import annotations

import importlib
import sys
from typing import Any, NamedTuple, NoReturn

import click

from signer import __version__
from signer.errors import ConfigError, OperatorError


class _CommandEntry(NamedTuple):
    """Where a command is, and its line in the list of commands."""

    module: str
    summary: str


_COMMANDS = {
    "audit": _CommandEntry(
        "signer.cli.audit", "Verifies the audit log, searches it and proves items."
    ),
    "bench": _CommandEntry("signer.cli.bench", "Measures a development appliance beside a C loop."),
    "ceremony": _CommandEntry(
        "signer.cli.ceremony", "Makes a key with two officers and a transcript."
    ),
    "check": _CommandEntry(
        "signer.cli.check", "Checks the configuration, the policy and their files."
    ),
    "dev": _CommandEntry("signer.cli.dev", "Makes and runs a development appliance on SoftHSM."),
    "doctor": _CommandEntry("signer.cli.doctor", "Examines the machine and says what to fix."),
    "health": _CommandEntry("signer.cli.control", "Shows whether the daemon serves."),
    "init": _CommandEntry(
        "signer.cli.init", "Prepares a new appliance: officers, audit key, audit log."
    ),
    "keys": _CommandEntry("signer.cli.keys", "Shows, rotates, stops and publishes keys."),
    "operations": _CommandEntry("signer.cli.operations", "Proposes and approves operations."),
    "policy": _CommandEntry(
        "signer.cli.policy", "Shows what the policy allows, and which rule says so."
    ),
    "registry": _CommandEntry("signer.cli.registry", "Migrates the database of keys and officers."),
    "reload": _CommandEntry(
        "signer.cli.control", "Makes the daemon read policy and certificates again."
    ),
    "serve": _CommandEntry("signer.cli.serve", "Runs the daemon."),
    "sign": _CommandEntry("signer.cli.sign", "Signs files, or each line of files."),
    "token": _CommandEntry("signer.cli.token", "Looks after the tokens that hold the keys."),
    "top": _CommandEntry(
        "signer.cli.control", "Shows the workers and the facilities that sign most."
    ),
}


class _Commands(click.Group):
    """Imports a command's module when the command runs; the list of commands imports none."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  click's signature
        return sorted(_COMMANDS)

    def get_command(
        self,
        ctx: click.Context,  # noqa: ARG002  as above
        cmd_name: str,
    ) -> click.Command | None:
        entry = _COMMANDS.get(cmd_name)
        if entry is None:
            return None
        command: click.Command = getattr(importlib.import_module(entry.module), cmd_name)
        return command

    def format_commands(
        self,
        ctx: click.Context,  # noqa: ARG002  as above
        formatter: click.HelpFormatter,
    ) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.summary) for name, entry in _COMMANDS.items()])


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

    Exit codes: 0 done, 1 the thing checked is wrong or was refused, 2 wrong usage.
    """


def main(arguments: list[str] | None = None) -> NoReturn:
    """Runs a command; refusals are printed on stderr and end with exit code 1."""
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
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "signer":
            raise
        click.echo(
            f"signer: the Python package {error.name} is missing: commands that do not call a"
            " running appliance need `pip install 'signer-appliance[server]'`",
            err=True,
        )
        sys.exit(1)
    sys.exit(result if isinstance(result, int) else 0)

"""The command ``signer``: one file a group of commands, loaded when it is used."""

import io
import sys
from typing import Any, NoReturn

import click

from signer import __version__
from signer.cli.groups import LazyGroup
from signer.cli.options import AS_JSON
from signer.cli.output import print_json, refusal_value, say
from signer.distinguished_name import ignore_lengths
from signer.errors import ConfigError, OperatorError

_SUMMARIES = {
    "audit": "Verifies the audit log, searches it and proves items.",
    "bench": "Measures a development appliance beside a C loop.",
    "ceremony": "Creates a key with two officers and a transcript.",
    "check": "Checks the configuration, the policy and their files.",
    "completion": "Prints the script that completes commands in a shell.",
    "dev": "Creates and runs a development appliance on SoftHSM.",
    "doctor": "Examines the machine and says what to fix.",
    "health": "Shows whether the daemon serves.",
    "init": "Prepares a new appliance: officers, audit key, audit log.",
    "issue": "Issues certificates for a file of records.",
    "keys": "Shows, rotates, stops and publishes keys.",
    "operations": "Proposes and approves operations.",
    "policy": "Shows, compares and proposes policies.",
    "registry": "Migrates the database of keys and officers.",
    "reload": "Reloads the policy and certificates of the daemon.",
    "revocations": "Builds signed lists of revoked certificates.",
    "serve": "Runs the daemon.",
    "sign": "Signs files, or each line of files.",
    "token": "Manages the tokens that hold the keys.",
    "top": "Shows the workers and the facilities that sign most.",
    "verify": "Verifies signed messages and raw signatures offline.",
}
_MODULES = {
    "check": "checks",
    "doctor": "checks",
    "health": "control",
    "init": "upkeep",
    "registry": "upkeep",
    "reload": "control",
    "token": "upkeep",
    "top": "control",
}
"""The modules of commands that share one; each other command is in the module of its name."""


_ELSEWHERE = {
    "config": "`signer check`",
    "help": "`signer --help`",
    "login": "`--client FILE`, which names your certificate, with each command",
    "policies": "`signer policy`",
    "seal": "`signer keys suspend everything`",
    "start": "`signer serve`",
    "status": "`signer health` and `signer top`",
    "unseal": "`signer operations propose resume everything`",
    "version": "`signer --version`",
}
"""What other products call these."""


class _Program(LazyGroup):
    """All commands. With their ``--json`` a refusal is an answer in JSON on stdout, too."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (ConfigError, OperatorError) as error:
            if ctx.meta.get(AS_JSON):
                print_json({"error": refusal_value(error)}, indent=None)
            raise


@click.group(
    cls=_Program,
    package="signer.cli",
    summaries=_SUMMARIES,
    modules=_MODULES,
    elsewhere=_ELSEWHERE,
    context_settings={"help_option_names": ["-h", "--help"]},
)
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
    ignore_lengths()
    try:
        result: Any = cli.main(arguments, prog_name="signer", standalone_mode=False)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.ClickException as error:
        text = io.StringIO()
        error.show(text)  # may quote the name of a file
        say(text.getvalue().expandtabs(4), err=True, newline=False)
        sys.exit(error.exit_code)
    except click.Abort:
        say("not confirmed: nothing was changed", err=True)
        sys.exit(1)
    except (ConfigError, OperatorError) as error:
        say(f"signer: {error}", err=True)
        sys.exit(1)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "signer":
            raise
        say(
            f"signer: the Python package {error.name} is missing: commands that do not call a"
            " running appliance need `pip install 'signer-appliance[server]'`",
            err=True,
        )
        sys.exit(1)
    sys.exit(result if isinstance(result, int) else 0)

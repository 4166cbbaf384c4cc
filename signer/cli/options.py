"""Options that many commands share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

C = TypeVar("C", bound=Callable[..., Any])

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
NAMED_FILE = click.Path(path_type=Path)
NEW_FILE = click.Path(dir_okay=False, path_type=Path)
PATHS = click.Path(exists=True, path_type=Path)
FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
NEW_FOLDER = click.Path(file_okay=False, path_type=Path)

config_option = click.option(
    "--config",
    "config_file",
    metavar="FILE",
    type=NAMED_FILE,
    required=True,
    help="The daemon's configuration, as in /etc/signer/signer.yaml.",
)


def _noted(ctx: click.Context, _: click.Parameter, value: bool) -> bool:
    ctx.meta[AS_JSON] = value
    return value


AS_JSON = "signer.as_json"
"""What of the contexts' ``meta`` says that a program waits for an answer in JSON."""


def json_flag(text: str) -> Callable[[C], C]:
    """Returns the option ``--json`` of a command, with its help."""
    return click.option("--json", "as_json", is_flag=True, callback=_noted, help=text)


json_option = json_flag("Print JSON, for programs.")
inputs_argument = click.argument(
    "inputs",
    metavar="INPUT...",
    nargs=-1,
    required=True,
    type=click.Path(exists=True, dir_okay=False, allow_dash=True),
)
token_option = click.option(
    "--token", metavar="LABEL", default="", help="Which token; needed if there are several."
)
yes_option = click.option("--yes", is_flag=True, help="Do not ask; for scripts.")

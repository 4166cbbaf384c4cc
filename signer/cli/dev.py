"""``signer dev``: a development appliance in one folder, on SoftHSM."""

import sys
from pathlib import Path
from typing import Any

import click

from signer.cli.output import output, say
from signer.cli.progress import progress
from signer.daemon import run
from signer.model import Storage
from signer.text import count
from signer.tools import dev as development

_directory = click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
_facilities = click.option(
    "--facilities",
    metavar="N",
    type=click.IntRange(0, 99_999),
    default=0,
    help="Add facilities l-00001 to l-N with a key each, for load tests.",
)
_workers = click.option(
    "--workers",
    metavar="N",
    type=click.IntRange(1, 64),
    help="Worker processes of each token; at first 2, later unchanged.",
)
_tokens = click.option(
    "--tokens",
    metavar="N",
    type=click.IntRange(1, 2),
    help="Tokens, 1 or 2, that hold the same keys; at first 1, later unchanged.",
)
_storage = click.option(
    "--storage",
    type=click.Choice([str(each) for each in Storage], case_sensitive=False),
    help="Where private keys are: at first in the token, later unchanged.",
)
_latency = click.option(
    "--latency",
    metavar="MS",
    type=click.FloatRange(0, 10_000),
    help="Every call of the token's module takes so many milliseconds longer, as over a network.",
)
_shim = click.option(
    "--shim",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="The library for --latency, build/shim.so by default; `make shim` compiles it.",
)


@click.group()
def dev() -> None:
    """Creates and runs a development appliance on SoftHSM.

    Everything is in one folder, DIR: the token, a small PKI, configuration,
    policy, keys, and dev.json, which lists them. Delete the folder to start
    again. Never use it for real signatures.

    \b
    Try it:
      signer dev up /tmp/appliance
      signer health --client /tmp/appliance/client-operator.yaml
    """


def _show_provisioned(described: dict[str, Any]) -> None:
    home = Path(described["config"]).parent
    say(
        f"{count(len(described['keys']), 'key is', 'keys are')} ready; {home / 'dev.json'}"
        f" lists everything. Start it with: signer dev up {home}"
    )


@dev.command()
@_directory
@_facilities
@_workers
@_tokens
@_storage
@output(lambda described: described, _show_provisioned)
def init(
    *,
    directory: Path,
    facilities: int,
    workers: int | None,
    tokens: int | None,
    storage: str | None,
) -> dict[str, Any]:
    """Provisions DIR. What an earlier run created is kept.

    \b
      signer dev init /tmp/appliance
      signer dev init /tmp/appliance --facilities 10000
      signer dev init /tmp/appliance --tokens 2
      signer dev init /tmp/appliance --storage wrapped
    """
    return _provision(directory, facilities, workers, tokens, storage)


@dev.command(short_help="Provisions DIR if needed, then serves in the foreground.")
@_directory
@_facilities
@_workers
@_tokens
@_storage
@_latency
@_shim
def up(
    *,
    directory: Path,
    facilities: int,
    workers: int | None,
    tokens: int | None,
    storage: str | None,
    latency: float | None,
    shim: Path | None,
) -> None:
    """Provisions DIR if needed, then serves in the foreground until SIGTERM or Ctrl-C.

    Prints `ready` on stdout when it serves; logs go to stderr.

    \b
      signer dev up /tmp/appliance --workers 2
      signer dev up /tmp/appliance --latency 1
    """
    if shim is not None and latency is None:
        raise click.UsageError("--shim FILE needs --latency MS")
    described = _provision(directory, facilities, workers, tokens, storage)
    config = Path(described["config"])
    if latency is not None:
        shim = shim or Path("build/shim.so")
        config = development.slow_configuration(config.parent, latency, shim)
    clients = ", ".join(sorted(path.name for path in config.parent.glob("client-*.yaml")))
    say(
        f"it listens at {described['address']}, its status page is {described['metrics']}", err=True
    )
    say(f"client files in {config.parent}: {clients}", err=True)
    sys.exit(run(config, on_ready=lambda: say("ready"), development=True))


def _provision(
    directory: Path, facilities: int, workers: int | None, tokens: int | None, storage: str | None
) -> dict[str, Any]:
    def line(done: int, total: int | None, _: str) -> str:
        return f"created {done} of {total} keys" if done % 500 == 0 or done == total else ""

    with progress("creating keys", line=line) as advance:
        return development.provision(
            directory,
            facilities=facilities,
            workers=workers,
            tokens=tokens,
            storage=storage,
            progress=advance,
        )

"""How commands call a daemon: ``--client`` or ``--config``, and failed calls as errors."""

import functools
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import NamedTuple, TypeVar

import click
from click.core import ParameterSource

from signer.cli.connection_hint import hint
from signer.cli.options import FILE, NAMED_FILE
from signer.client import SignerClient, SignerClientError
from signer.config.client_file import load_client
from signer.errors import Code, OperatorError
from signer.text import utc

T = TypeVar("T")


class ApplianceFile(NamedTuple):
    """Where a command works: a client file, or ``on_machine`` the configuration of the daemon."""

    path: Path
    on_machine: bool


@contextmanager
def connect(client_file: Path) -> Iterator[SignerClient]:
    """Opens the connection that ``client_file`` describes.

    Raises ConfigError for a bad file, and OperatorError if certificates cannot
    be read or a call inside the block fails.
    """
    config = load_client(client_file)
    try:
        client = SignerClient.from_files(
            str(config.address),
            server_name=config.server_name,
            ca=config.ca,
            certificate=config.certificate,
            key=config.key,
        )
    except OSError as error:
        raise OperatorError(f"{error.filename} cannot be read: {error.strerror}") from error
    except ValueError as error:  # of the PEM files: the address has been read
        raise OperatorError(f"{client_file}: {error}") from error
    with client:
        try:
            yield client
        except SignerClientError as error:
            text = f"the call to {config.address} failed: {describe(error)}"
            if error.code == error.reason == Code.UNAVAILABLE.name and (why := hint(config)):
                text += f"\n  {why}"
            raise OperatorError(text) from error


def describe(error: SignerClientError) -> str:
    """Returns a failed call as text: reason, message, fields, rule, and when to try again."""
    lines = [str(error)]
    violations = list(map(str, error.violations))
    lines += [f"  {violation}" for violation in violations if violation not in error.message]
    lines += [f"  {name}: {value}" for name, value in sorted(error.metadata.items())]
    if error.retry_after is not None:
        lines.append(f"  it may be tried again {_moment(error.retry_after, time.time())}")
    return "\n".join(lines)


def _moment(pause: float, now: float) -> str:
    """Returns when a pause of so many seconds is over: from a minute on as a time."""
    if pause < 60:
        return f"in {pause:.3g} s"
    moment = math.ceil(now + pause)
    return f"at {utc(moment)}, {datetime.fromtimestamp(moment).astimezone():%H:%M} here"


def place_options(command: Callable[..., T]) -> Callable[..., T]:
    """Adds ``--client`` and ``--config``; the command gets ``appliance``."""

    @_either_option
    @functools.wraps(command)
    def wrapped(*, appliance: ApplianceFile | None, **options: object) -> T:
        if appliance is None:
            raise click.UsageError("give --client FILE, or --config FILE on the appliance itself")
        return command(appliance=appliance, **options)

    return wrapped


def daemon_options(command: Callable[..., T]) -> Callable[..., T]:
    """As ``place_options``, but the command gets a client file in any case.

    On the appliance itself ``--config`` is enough: the configuration names the
    client file for its operator.
    """

    @place_options
    @functools.wraps(command)
    def wrapped(*, appliance: ApplianceFile, **options: object) -> T:
        return command(client_file=_client_file(appliance), **options)

    return wrapped


def optional_daemon_options(command: Callable[..., T]) -> Callable[..., T]:
    """As ``daemon_options``, for commands that also work without: then they get None."""

    @_either_option
    @functools.wraps(command)
    def wrapped(*, appliance: ApplianceFile | None, **options: object) -> T:
        client_file = None if appliance is None else _client_file(appliance)
        return command(client_file=client_file, **options)

    return wrapped


def _either_option(command: Callable[..., T]) -> Callable[..., T]:
    """Adds the options; ``--config`` counts more than ``--client`` from the environment."""

    @click.option(
        "--client",
        "client_file",
        envvar="SIGNER_CLIENT",
        show_envvar=True,
        metavar="FILE",
        type=NAMED_FILE,
        help="Where the appliance is, and with which certificate to call it (YAML).",
    )
    @click.option(
        "--config",
        "config_file",
        type=FILE,
        help="On the appliance: its configuration, which names a client file.",
    )
    @functools.wraps(command)
    def wrapped(*, client_file: Path | None, config_file: Path | None, **options: object) -> T:
        context = click.get_current_context()
        if config_file is not None and client_is_from_environment(context):
            client_file = None  # and it does not matter whether it exists
        if client_file is not None:
            [option] = [each for each in context.command.params if each.name == "client_file"]
            FILE.convert(str(client_file), option, context)
        appliance = None
        if client_file is not None:
            appliance = ApplianceFile(client_file, on_machine=False)
        elif config_file is not None:
            appliance = ApplianceFile(config_file, on_machine=True)
        return command(appliance=appliance, **options)

    return wrapped


def client_is_from_environment(context: click.Context) -> bool:
    """Returns whether no option named the client file: then ``--config`` counts more."""
    return context.get_parameter_source("client_file") is ParameterSource.ENVIRONMENT


def client_options(command: Callable[..., T]) -> Callable[..., T]:
    """As ``daemon_options``, but the command gets ``client``, which is connected."""

    @daemon_options
    @functools.wraps(command)
    def wrapped(*, client_file: Path, **options: object) -> T:
        with connect(client_file) as client:
            return command(client=client, **options)

    return wrapped


def _client_file(appliance: ApplianceFile) -> Path:
    return client_file_of(appliance.path) if appliance.on_machine else appliance.path


def client_file_of(config_file: Path) -> Path:
    """Returns the client file that a daemon's configuration names; raises OperatorError."""
    from signer.config.models import load_config  # needs packages of the server

    client = load_config(config_file).client
    if client is None:
        raise OperatorError(f"{config_file} names no `client` file: give one with --client FILE")
    return client

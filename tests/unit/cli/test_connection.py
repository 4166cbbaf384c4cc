"""Failed calls as text, and which client file counts."""

import re
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from signer.cli.connection import daemon_options, describe
from signer.client import ExhaustedError, InvalidRequestError
from signer.errors import Violation


def refused(retry_after: float) -> str:
    return describe(
        ExhaustedError("RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED", "wait", retry_after=retry_after)
    )


def test_a_long_pause_is_told_as_a_time() -> None:
    assert refused(0.25).endswith("it may be tried again in 0.25 s")
    pattern = r"it may be tried again at 20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ, \d\d:\d\d here"
    assert re.search(pattern, refused(77217.7))


def test_a_field_is_told_once() -> None:
    violations = [Violation("payloads", "has 12 items"), Violation("key", "is missing")]
    text = describe(
        InvalidRequestError(
            "INVALID_ARGUMENT", "FIELD_INVALID", "payloads: has 12 items", violations=violations
        )
    )
    assert text == "FIELD_INVALID: payloads: has 12 items\n  key: is missing"


@pytest.mark.parametrize("words", [(), ("--client", "CLIENT")])
def test_config_beats_the_environment_but_not_client(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    given, environment, named = (tmp_path / name for name in ("given", "environment", "named"))
    config = tmp_path / "signer.yaml"
    for path in (given, environment, named, config):
        path.touch()
    monkeypatch.setenv("SIGNER_CLIENT", str(environment))
    monkeypatch.setattr("signer.cli.connection.client_file_of", lambda _: named)

    @click.command()
    @daemon_options
    def command(*, client_file: Path) -> None:
        click.echo(client_file)  # noqa: TID251  the command of a test

    options = [str(given) if word == "CLIENT" else word for word in words]
    done = CliRunner().invoke(command, ["--config", str(config), *options])
    assert done.output.strip() == str(given if words else named)
    assert CliRunner().invoke(command).output.strip() == str(environment)
    environment.unlink()
    done = CliRunner().invoke(command, ["--config", str(config), *options])
    assert done.output.strip() == str(given if words else named), "it need not exist"
    absent = CliRunner().invoke(command)
    assert (absent.exit_code, "SIGNER_CLIENT" in absent.output) == (2, True)
    assert "does not exist" in absent.output

"""Command lines that run in the process of a test, or in one of their own."""

import os
import sys
import tempfile
from collections.abc import Callable
from typing import NamedTuple

import pytest

from signer.cli.main import main
from tests.fork_server import fork_server


class Done(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Done]
SIGNER = [sys.executable, "-m", "signer"]
WIDE = {"COLUMNS": "1000"}
"""Tables are read line by line here: no cell is folded."""


def signer(*words: object, given: str = "") -> Done:
    """Runs a command line in a process of its own; ``given`` is its input."""
    with (
        tempfile.TemporaryFile("w+") as read,
        tempfile.TemporaryFile("w+") as out,
        tempfile.TemporaryFile("w+") as err,
    ):
        read.write(given)
        read.seek(0)
        command = ["-m", "signer", *map(str, words)]
        process = fork_server().start(
            command, stdin=read, stdout=out, stderr=err, env={**os.environ, **WIDE}
        )
        code = process.wait(120)
        out.seek(0)
        err.seek(0)
        return Done(code, out.read(), err.read())


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command line."""
    for name, value in WIDE.items():
        monkeypatch.setenv(name, value)

    def command(*words: object) -> Done:
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in words])
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        return Done(int(ended.value.code or 0), out, err)

    return command

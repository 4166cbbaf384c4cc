"""Command lines that run in the process of a test, or in one of their own."""

import subprocess
import sys
from collections.abc import Callable
from typing import NamedTuple

import pytest

from signer.cli.main import main


class Done(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Done]
SIGNER = [sys.executable, "-m", "signer"]


def signer(*words: object) -> Done:
    """Runs a command line in a process of its own, without input."""
    done = subprocess.run(
        [*SIGNER, *map(str, words)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    return Done(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs a command line."""

    def command(*words: object) -> Done:
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in words])
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        return Done(int(ended.value.code or 0), out, err)

    return command

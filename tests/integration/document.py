"""A document whose blocks of commands are run as they are printed."""

import re
import subprocess
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

DOCS = Path(__file__).parents[2] / "docs"


class Ran(NamedTuple):
    """Exit code and output of commands."""

    code: int
    out: str
    errors: str


class Document:
    """The commands of a document by the name in the first line of their block.

    They run in the folder ``where`` with ``environment``, in which a test sets the paths that
    the document names.
    """

    def __init__(self, name: str, where: Path | None = None) -> None:
        self.where = where
        self.environment: Mapping[str, str] = {}
        self._text = (DOCS / name).read_text()
        found = re.findall(r"(?ms)^( *)```sh\n\1# (\w+)\n(.*?)^\1```", self._text)
        self.blocks = {name: textwrap.dedent(text) for _, name, text in found}

    def not_run_in(self, source: str) -> list[str]:
        """The blocks that a file of tests names nowhere, and those that have no name.

        The first block, which sets these paths, is replaced by ``environment``.
        """
        nameless = self._text.count("```sh") - 1 - len(self.blocks)
        return [name for name in self.blocks if f'"{name}"' not in source] + ["?"] * nameless

    def block(self, name: str) -> Ran:
        """Runs a block; a command that fails ends it."""
        return self.sh(self.blocks[name])

    def run(self, *names: str) -> str:
        """Runs blocks that must succeed; returns what they printed."""
        told = ""
        for name in names:
            done = self.block(name)
            assert done.code == 0, f"{name}: {done.out}{done.errors}"
            told += done.out
        return told

    def sh(self, commands: str) -> Ran:
        return self.command(["sh", "-eu", "-c", commands])

    def command(self, command: Sequence[str]) -> Ran:
        done = subprocess.run(
            command,
            env=self.environment,
            cwd=self.where,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            text=True,
            timeout=60,
        )
        return Ran(done.returncode, done.stdout, done.stderr)

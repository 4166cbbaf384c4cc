"""A document that is read from top to bottom in one terminal, as printed.

All ```sh blocks of a document run in one shell, in order; a ```text block that follows is what
they print, with … for what differs. A block in another language is saved under the name that the
sentence before it gives. `signer dev up` runs in a terminal of its own, as the README says. Only
the folder /tmp and the two ports of docs/operating.md are the test's own, and `sudo` and `make`
are stubs: they install what the machine of the tests has already. `signer` is a fork, but where a
test wants a new interpreter for each command.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.fork_server import fork_server
from tests.torture import long

ROOT = Path(__file__).parents[2]
SHELLS = {"bash": ["bash", "-eu", "-o", "pipefail"], "zsh": ["zsh", "-f", "-eu", "-o", "pipefail"]}
READERS = ["bash", *long("zsh")]
"""The shells in which guides are read; in zsh each command begins with a new interpreter."""
FOREGROUND = "signer dev up "
STUBS = ("sudo", "make")
INSTALLED = "$PWD/.venv/bin"
END_OF_BLOCK = "\x1e"
DIFFERS = "…"


class Block(NamedTuple):
    """One block of a document, the text before it, and its lines."""

    before: str
    language: str
    text: str


def blocks(document: str) -> list[Block]:
    """Returns the blocks of a document in order; a closing fence is one without a language."""
    parts = re.split(r"(?m)^```(\w*)\n", (ROOT / document).read_text())
    return [Block(*block) for block in zip(parts[0::4], parts[1::4], parts[2::4], strict=False)]


class Terminal:
    """Where documents are read: a folder in the place of /tmp, and stubs on the path."""

    def __init__(self, shell: str, folder: Path, *, forks: bool = True) -> None:
        self.shell, self.folder = SHELLS[shell], folder
        self.replaced: dict[str, str] = {"/tmp/": f"{folder}/"}  # noqa: S108  as printed
        stubs = folder / "stubs"
        stubs.mkdir()
        for name in STUBS:
            (stubs / name).write_text(f'#!/bin/sh\necho "{name} $*" >> "{folder}/stubbed"\n')
            (stubs / name).chmod(0o755)
        path = (str(stubs), str(Path(sys.executable).parent), os.environ["PATH"])
        self.environment = {**os.environ, "PATH": ":".join(path)}
        if forks:
            signer = str(fork_server().bin)
            self.replaced[f"PATH={INSTALLED}"] = f"PATH={signer}:{INSTALLED}"
            self.environment["PATH"] = ":".join((signer, *path))

    def here(self, text: str) -> str:
        for printed, ours in self.replaced.items():
            text = text.replace(printed, ours)
        return text

    def read(self, document: str, where: Path = ROOT) -> list[tuple[Block, str]]:
        """Runs what a document prints; returns each block that runs, with what it printed.

        Blocks of the terminal in which `signer dev up` runs are left to `appliance`.
        """
        run = []
        for block in blocks(document):
            if block.language not in {"", "sh", "text"}:
                name = re.findall(r"`(/tmp/[\w./-]+)`", block.before)[-1]
                file = Path(self.here(name))
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(self.here(block.text))
            elif block.language == "sh" and FOREGROUND not in block.text:
                run.append(block)
        script = "".join(f"{block.text}printf '{END_OF_BLOCK}'\n" for block in run)
        done = self.run(self.here(script), where)
        printed = done.stdout.split(END_OF_BLOCK)
        assert done.returncode == 0, f"{document}: {printed[-1][-2000:]}\n{done.stderr[-3000:]}"
        return list(zip(run, printed, strict=False))

    def run(self, script: str, where: Path = ROOT) -> subprocess.CompletedProcess[str]:
        """Runs a script; one that fetches and compiles programs takes its time."""
        return subprocess.run(
            [*self.shell, "-c", script],
            cwd=where,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=900,
        )

    @contextmanager
    def appliance(self) -> Iterator[None]:
        """The terminal of the README's `signer dev up`, from `ready` until Ctrl-C."""
        [block] = [each for each in blocks("README.md") if FOREGROUND in each.text]
        log = self.folder / "up.log"
        with log.open("w") as stderr:
            process = subprocess.Popen(
                [
                    *self.shell,
                    "-c",
                    self.here(block.text).replace(FOREGROUND, f"exec {FOREGROUND}"),
                ],
                cwd=ROOT,
                env=self.environment,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )
        assert process.stdout is not None
        with process.stdout as stdout:
            try:
                assert stdout.readline() == "ready\n", log.read_text()[-3000:]
                yield
            finally:
                process.terminate()
                assert process.wait(60) == 0, log.read_text()[-3000:]


def prints(shown: str, printed: str) -> bool:
    pattern = ".*".join(map(re.escape, shown.split(DIFFERS)))
    return re.fullmatch(pattern, printed, re.DOTALL) is not None


def check_outputs(document: str, terminal: Terminal) -> None:
    """Reads a document, and compares each ```text that follows a block with what it printed."""
    printed = dict(terminal.read(document))
    last: Block | None = None
    for block in blocks(document):
        if block.language == "text" and last in printed and not block.before.strip():
            assert prints(terminal.here(block.text), printed[last]), printed[last]
        last = block

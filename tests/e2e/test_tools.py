"""The commands of docs/clients/tools.md for grpcurl and ghz, as printed."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.terminal import ROOT, Block, Terminal, blocks

pytestmark = pytest.mark.clients

PAGE = "docs/clients/tools.md"
MODULES = (
    "github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.3",
    "github.com/bojand/ghz/cmd/ghz@v0.121.0",
)


@pytest.fixture(scope="module")
def programs() -> Path:
    """The folder of both programs; Go compares their modules with its database of checksums."""
    if shutil.which("go") is None:
        pytest.skip("NOT TESTED: Go is not installed, so neither grpcurl nor ghz can be built")
    folder = ROOT / "build" / "tools"
    environment = {**os.environ, "GOBIN": str(folder), "GOFLAGS": "-buildvcs=false"}
    for module in MODULES:
        if not (folder / module.split("@")[0].rsplit("/", 1)[1]).exists():
            done = subprocess.run(
                ["go", "install", module],
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def terminal(programs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    """A terminal beside that of an appliance, with both programs on its path."""
    made = Terminal("bash", tmp_path_factory.mktemp("tools"), forks=False)
    made.environment["PATH"] += f":{programs}"
    with made.appliance():
        yield made


def page_blocks() -> tuple[str, list[Block]]:
    """Returns the first block, which sets the shell up, and those of both programs."""
    read = blocks(PAGE)
    [first, *_] = [each.text for each in read if each.language == "sh"]
    return first, [each for each in read if each.text.startswith(("grpcurl ", "ghz "))]


def test_a_signature_by_grpcurl_and_load_by_ghz(terminal: Terminal) -> None:
    setup, [block, _] = page_blocks()
    call, load = block.text.split("ghz ")
    done = terminal.run(terminal.here(f"{setup}\n{call}"))
    assert done.returncode == 0, done.stderr
    assert '"signatures": [\n    "ZXlK' in done.stdout
    done = terminal.run(terminal.here(f"{setup}\nghz {load}"))
    assert done.returncode == 0, done.stderr
    assert "[OK]   1000 responses" in done.stdout


def test_grpcurl_shows_why_a_call_was_refused(terminal: Terminal) -> None:
    setup, [_, block] = page_blocks()
    descriptors = next(each.text for each in blocks(PAGE) if "--include_imports" in each.text)
    made = descriptors.split("cd /tmp/appliance/pki")[0].replace("cd - > /tmp/folder\n", "")
    done = terminal.run(terminal.here(f"{made}\n{setup}\n{block.text}"))
    assert done.returncode != 0
    assert '"reason": "KEY_NOT_FOUND"' in done.stderr, done.stderr

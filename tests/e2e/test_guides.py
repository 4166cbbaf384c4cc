"""README and the guides of issuing systems, officers and auditors work as printed."""

from pathlib import Path

import pytest

from tests.e2e.terminal import READERS, ROOT, Terminal, blocks, check_outputs

GUIDES = (
    "README.md",
    "docs/issuing.md",
    "docs/certificates.md",
    "docs/clients/python.md",
    "docs/clients/tools.md",
    "docs/formats.md",
    "docs/officers.md",
    "docs/gdhcn.md",
    "docs/auditing.md",
)
"""These use one appliance, in this order."""
LANGUAGES = {"sh", "python", "text"}
CLIENTS = {"node": {"javascript"}, "go": {"go"}, "java": {"java", "xml"}}
"""Pages that test_clients.py reads, with their languages."""


@pytest.mark.parametrize("shell", READERS)
def test_guides_work_as_printed(shell: str, tmp_path: Path) -> None:
    terminal = Terminal(shell, tmp_path, forks=shell == "bash")
    with terminal.appliance():
        for document in GUIDES:
            check_outputs(document, terminal)
    assert (tmp_path / "stubbed").read_text().splitlines() == [
        "make setup",
        "make demo",
        "make test",
    ]


@pytest.mark.parametrize("document", [*GUIDES, "docs/operating.md"])
def test_every_block_says_what_it_is(document: str) -> None:
    assert {block.language for block in blocks(document)} <= LANGUAGES
    assert (ROOT / document).read_text().count("```") == 2 * len(blocks(document))


@pytest.mark.parametrize("page", CLIENTS)
def test_every_block_of_a_client_says_what_it_is(page: str) -> None:
    document = f"docs/clients/{page}.md"
    languages = {block.language for block in blocks(document)}
    assert languages == {"sh", "text"} | CLIENTS[page]
    assert (ROOT / document).read_text().count("```") == 2 * len(blocks(document))

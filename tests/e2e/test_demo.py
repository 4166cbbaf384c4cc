"""What `make demo` prints: its QR code fits the terminal and can be read there."""

from pathlib import Path

import pytest
from PIL import Image

from tests.e2e import verifiers
from tests.e2e.demo import in_terminal

# As long as the certificates of the demo are, of the characters that they have.
TEXT = "HC1:" + ("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ $%*+-./:" * 13)[:576]
_HALVES = {"█": (255, 255), "▀": (255, 0), "▄": (0, 255), " ": (0, 0)}


def shot(drawn: str, path: Path) -> None:
    """Draws what a terminal shows: two pixels, one above the other, for each character."""
    lines = drawn.splitlines()
    image = Image.new("L", (len(lines[0]), 2 * len(lines)))
    for y, line in enumerate(lines):
        for x, character in enumerate(line):
            for half, shade in enumerate(_HALVES[character]):
                image.putpixel((x, 2 * y + half), shade)
    image.resize((4 * image.width, 4 * image.height), Image.Resampling.NEAREST).save(path)


@pytest.mark.parametrize("columns", [80, 90, 200])
def test_the_code_fits_the_terminal_and_is_read_there(columns: int, tmp_path: Path) -> None:
    drawn = in_terminal(TEXT, columns)
    assert 0 < max(map(len, drawn.splitlines())) <= columns
    shot(drawn, tmp_path / "screen.png")
    assert verifiers.qr_codes([tmp_path / "screen.png"]) == [TEXT]


def test_a_narrow_terminal_gets_no_broken_code() -> None:
    assert in_terminal(TEXT, 60) == ""

"""The PIN file: what is odd in it is refused before a try of the token is spent."""

import os
from pathlib import Path

import pytest

from signer.hsm.spec import FailureKind, TokenFailure
from signer.hsm.worker.login import read_pin


def pin_file(folder: Path, content: bytes) -> Path:
    file = folder / "pin"
    file.write_bytes(content)
    file.chmod(0o600)
    return file


@pytest.mark.parametrize("content", [b"1234", b"1234\n", b"1234\r\n"])
def test_a_pin_is_one_line(tmp_path: Path, content: bytes) -> None:
    assert read_pin(pin_file(tmp_path, content), os.geteuid()) == "1234"


def test_a_blank_inside_a_pin_belongs_to_it(tmp_path: Path) -> None:
    assert (
        read_pin(pin_file(tmp_path, "four w\u00f6rds".encode()), os.geteuid()) == "four w\u00f6rds"
    )


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "is empty"),
        (b"\n", "is empty"),
        (b"\xef\xbb\xbf1234\n", "begins with a byte order mark"),
        (b"1234 \n", "has blanks around the PIN"),
        (b" 1234", "has blanks around the PIN"),
        (b"1234\t\n", "has blanks around the PIN"),
        (b"1234\n\n", "has blanks around the PIN"),
        (b"1234\n5678\n", "has more than one line"),
        (b"12\x0034", "has characters that cannot be printed"),
        ("1234".encode("utf-16"), "cannot be read"),
    ],
)
def test_an_odd_pin_is_refused(tmp_path: Path, content: bytes, text: str) -> None:
    with pytest.raises(TokenFailure) as caught:
        read_pin(pin_file(tmp_path, content), os.geteuid())
    assert caught.value.kind is FailureKind.CONFIGURATION
    assert text in str(caught.value)
    assert "1234" not in str(caught.value)

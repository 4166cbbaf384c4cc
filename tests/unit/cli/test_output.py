"""What commands print: nothing in it controls the terminal of who reads it."""

import os
import pty
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings, strategies

from signer.cli.main import main
from signer.cli.output import print_table, print_text, print_values, put, say

ATTACK = "\x1b]0;owned\x07\x1b[2J\u202e\x9b31m"

_same_capture = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@_same_capture
@given(strategies.text(max_size=20))  # the row of a longer one is a paragraph
def test_a_cell_of_a_table_is_one_printable_line(
    capsys: pytest.CaptureFixture[str], cell: str
) -> None:
    print_table(("name", "reason"), [("one", "short"), (cell, ATTACK)])
    printed = capsys.readouterr().out
    assert printed.replace("\n", "").isprintable()
    assert printed.count("\n") == 6  # three rules, the names of the columns, two rows


@_same_capture
@given(strategies.text())
def test_a_value_is_one_printable_line(capsys: pytest.CaptureFixture[str], value: str) -> None:
    print_values({"reason": value, "more": {value: [value]}})
    printed = capsys.readouterr().out
    assert printed.replace("\n", "").isprintable()
    assert printed.count("\n") == 2


def test_texts_and_errors_are_printed_without_escapes(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    say(f"by {ATTACK}\nnext", err=True)
    with pytest.raises(SystemExit):  # wrong usage quotes what was given
        main(["check", "--config", f"{tmp_path}/{ATTACK}", ATTACK])
    file = tmp_path / "signer.yaml"
    file.write_text("'\\e[2J\\u202e': 1\n\"\\e[2J\\u202e\": 1\n")
    with pytest.raises(SystemExit):  # a refused file quotes its names
        main(["check", "--config", str(file)])
    printed = capsys.readouterr()
    assert "next\n" in printed.err
    assert len(printed.err.splitlines()) > 4
    assert printed.err.replace("\n", "").isprintable()
    assert not printed.out


def test_a_table_fits_80_columns_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [("facilities/01-001/keys/records/versions/1", "a reason of many words " * 9)]
    monkeypatch.delenv("COLUMNS", raising=False)
    print_table(("name", "reason"), rows)
    first, *folded = capsys.readouterr().out.splitlines()
    assert first == "facilities/01-001/keys/records/versions/1"
    assert max(map(len, folded)) <= 80
    assert folded[0].startswith("  reason: a reason of many")
    assert " ".join(folded).count("many") == 9
    monkeypatch.setenv("COLUMNS", "300")
    print_table(("name", "reason"), rows)
    assert capsys.readouterr().out.count("\n") == 5


def test_exact_bytes_go_to_a_file_and_text_to_a_terminal(
    capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    put(ATTACK.encode())
    assert capsysbinary.readouterr().out == ATTACK.encode()
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w", encoding="utf-8") as screen:
        monkeypatch.setattr("sys.stdout", screen)
        put(ATTACK.encode())
        screen.flush()
        assert os.read(ours, 4096).decode() == "?]0;owned??[2J??31m"
    os.close(ours)


def test_a_cell_may_have_several_lines_and_sentences_are_folded(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_table(("what", "why"), [("b", ["first", ATTACK])])
    printed = capsys.readouterr().out
    assert "| b    | first" in printed
    assert printed.replace("\n", "").isprintable()
    print_text(f"{ATTACK} words " * 20)
    printed = capsys.readouterr().out
    assert printed.replace("\n", "").isprintable()
    assert max(map(len, printed.splitlines())) <= 80

import pytest
from hypothesis import given, strategies

from signer.text import brief, count, plain, plain_lines, size


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 officers"), (1, "1 officer"), (2, "2 officers"), (11, "11 officers")],
)
def test_a_number_has_the_right_form_of_its_noun(number: int, text: str) -> None:
    assert count(number, "officer") == text


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1536, "1.5 KiB"),
        (17_700_000, "16.9 MiB"),
        (1023 << 20, "1,023 MiB"),
        (5e9, "4.66 GiB"),
        (2 << 40, "2,048 GiB"),
    ],
)
def test_bytes_are_shown_in_a_sensible_unit(number: float, text: str) -> None:
    assert size(number) == text


def test_the_plural_can_be_given_with_its_verb() -> None:
    assert count(1, "facility is", "facilities are") == "1 facility is"
    assert count(3, "facility is", "facilities are") == "3 facilities are"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Phòng tiêm chủng 01", "Phòng tiêm chủng 01"),
        ("\x1b]0;title\x07\x1b[2Jgone", "?]0;title??[2Jgone"),
        ("one\ntwo\ttabs\rback", "one?two?tabs?back"),
        ("\u202edesrever\u2066 \x9b31m \x7f \ud800", "?desrever? ?31m ? ?"),
    ],
)
def test_a_text_from_elsewhere_controls_no_terminal(text: str, shown: str) -> None:
    assert plain(text) == shown


def test_an_error_quotes_the_beginning_of_a_long_text() -> None:
    assert brief("x" * 100) == "x" * 100
    assert brief("x" * 101) == "x" * 100 + "..."


@given(strategies.text())
def test_lines_stay_lines_and_nothing_else_is_left(text: str) -> None:
    shown = plain_lines(text)
    assert shown.count("\n") == text.count("\n")
    assert len(shown) == len(text)
    assert shown.replace("\n", "").isprintable()

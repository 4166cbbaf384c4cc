import pytest

from signer.text import count


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 officers"), (1, "1 officer"), (2, "2 officers"), (11, "11 officers")],
)
def test_a_number_has_the_right_form_of_its_noun(number: int, text: str) -> None:
    assert count(number, "officer") == text


def test_the_plural_can_be_given_with_its_verb() -> None:
    assert count(1, "facility is", "facilities are") == "1 facility is"
    assert count(3, "facility is", "facilities are") == "3 facilities are"

"""Names of people as a certificate has them: in Unicode, and in the letters of machine readers."""

import unicodedata
from functools import lru_cache

_LETTERS = {
    "Ä": "AE",
    "Å": "AA",
    "Æ": "AE",
    "Ð": "D",
    "Đ": "D",
    "Ħ": "H",
    "Ĳ": "IJ",
    "Ł": "L",
    "Ŋ": "N",
    "Ö": "OE",
    "Ø": "OE",
    "Œ": "OE",
    "Ŧ": "T",
    "Ü": "UE",
    "Þ": "TH",
    "ẞ": "SS",
}
"""Letters of ICAO Doc 9303 part 3, section 6, that are not a letter of A to Z with marks."""

_FILLER = "<"
_LEFT_OUT = frozenset("'`.,\u00b4\u02bc\u2018\u2019")  # apostrophes in all their forms
_MOST = 80  # characters, as the schema of certificates allows


def composed(name: str) -> str:
    """Returns a name in NFC, with single blanks between its words."""
    return unicodedata.normalize("NFC", " ".join(name.split()))


def standardised(name: str) -> str:
    """Returns a ``composed`` name in A to Z and ``<``, as in passports (ICAO Doc 9303 part 3).

    Marks are left out: ``Nguyễn Thị`` becomes ``NGUYEN<THI``. Raises ValueError, without
    quoting it, if a character has no such form.
    """
    words = filter(None, "".join(map(_letters, name.upper())).split(_FILLER))
    made = _FILLER.join(words)[:_MOST].rstrip(_FILLER)
    if not made:
        raise ValueError("has no letters")
    return made


def passport_form(text: str) -> str:
    """Returns a name as its owner's passport has it: A to Z, ``<`` for a blank, none at its end.

    Raises ValueError, without quoting it, for ``<<``, which is between the two names of a person.
    """
    made = "<".join(text.upper().split()).rstrip(_FILLER)
    if made.startswith(_FILLER) or _FILLER * 2 in made:
        raise ValueError(
            "begins with < or has <<, which passports have between surname and forenames"
        )
    return made


@lru_cache(maxsize=4096)
def _letters(character: str) -> str:
    if "A" <= character <= "Z":
        return character
    if found := _LETTERS.get(character):
        return found
    match unicodedata.category(character):
        case "Pd" | "Zs":  # hyphens and blanks
            return _FILLER
        case _ if character in _LEFT_OUT:
            return ""
    base = "".join(
        part for part in unicodedata.normalize("NFD", character) if not unicodedata.combining(part)
    )
    if all("A" <= part <= "Z" for part in base):  # a mark alone has no base
        return base
    raise ValueError("has a character that is not a Latin letter")

"""The DCC payload schema (ehn-dcc-development, versions 1.0.0 to 1.3.3) as one table.

A certificate that we accept is one that the published schema accepts, with one exception: a
day may also be a time, as issuers of versions before 1.3.0 wrote it. We are stricter where the
published schema accepts what no reader can use: days that the calendar does not have (months
and days of a birthday only by their range), codes, country, issuer and UVCI without text, a
country not in capitals, doses such as 2.0, a version that is not three numbers, and U+0000 in
a text. Members that the table does not name are kept unchanged. Value sets are not enforced:
they change more often than releases do.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date, datetime
from operator import itemgetter
from typing import Any, NamedTuple

_TEXT = r"[^\0]{0,80}"
_FILLED = r"[^\0]{1,80}"
_CODE = r"[^\0]+"  # of a value set
_ANY = r"[^\0]*"
_TRANSLITERATED = r"[A-Z<]{0,80}"  # ICAO 9303
_COUNTRY = r"[A-Z]{1,10}"
# Alternatives that may be empty match in half the time of optional groups.
_BIRTHDAY = r"(?:(?:19|20)\d\d(?:-(?:0[1-9]|1[0-2])(?:-(?:0[1-9]|[12]\d|3[01])|)|)|)"
_TIME = r"\d{4}-\d\d-\d\dT(?:[01]\d|2[0-3]):\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d(?::?\d\d)?)"
_DAY = rf"(?:\d{{4}}-\d\d-\d\d|{_TIME})"

_WHOLE = {"ver": r"\d+\.\d+\.\d+", "dob": _BIRTHDAY}
_NAMES = {"fn": _TEXT, "fnt": _TRANSLITERATED, "gn": _TEXT, "gnt": _TRANSLITERATED}
_ENDS = {"co": _COUNTRY, "is": _FILLED, "ci": _FILLED}

_EXPECTED: Mapping[str, str] = {
    _TEXT: "should be a text of at most 80 characters",
    _FILLED: "should be a text of 1 to 80 characters",
    _CODE: "should be a code of its value set",
    _ANY: "should be a text",
    _TRANSLITERATED: "should be at most 80 of the characters A to Z and <",
    _COUNTRY: "should be 1 to 10 capital letters",
    _BIRTHDAY: "should be empty or YYYY, YYYY-MM or YYYY-MM-DD from 1900 to 2099",
    _TIME: "should be a time with an offset, as in 2021-06-11T08:00:00+07:00",
    _DAY: "should be a date YYYY-MM-DD, or a time with an offset",
    _WHOLE["ver"]: "should be three numbers, as in 1.3.0",
}


class _Kind(NamedTuple):
    """The members of one type of entry: patterns of texts and optional texts, counts.

    ``dates`` are those of the texts that a calendar must have; ``required`` takes the texts out
    of an entry, ``fits`` matches all texts of a certificate at once.
    """

    texts: dict[str, str]
    optional: dict[str, str]
    counts: Sequence[str]
    dates: Sequence[str]
    required: Callable[[dict[str, Any]], tuple[Any, ...]]
    fits: Callable[[str], object]


def _kind(
    texts: dict[str, str], optional: dict[str, str] | None = None, counts: Sequence[str] = ()
) -> _Kind:
    texts, optional = texts | _ENDS, optional or {}
    patterns = [*_WHOLE.values(), *_NAMES.values(), *optional.values(), *texts.values()]
    return _Kind(
        texts,
        optional,
        counts,
        [name for name, pattern in texts.items() if pattern in (_DAY, _TIME)],
        itemgetter(*texts),
        re.compile(r"\0".join(patterns), re.ASCII).fullmatch,
    )


_KINDS: Mapping[str, _Kind] = {
    "v": _kind(dict.fromkeys(("tg", "vp", "mp", "ma"), _CODE) | {"dt": _DAY}, None, ("dn", "sd")),
    "t": _kind(
        {"tg": _CODE, "tt": _CODE, "sc": _TIME, "tr": _CODE}, {"nm": _TEXT, "ma": _ANY, "tc": _TEXT}
    ),
    "r": _kind({"tg": _CODE, "fr": _DAY, "df": _DAY, "du": _DAY}),
}


class SchemaFault(NamedTuple):
    """The first member that the schema refuses, as in ``v.0.dt``, and what is wrong with it."""

    member: str
    text: str


def fault(document: dict[str, Any], kind: str, entry: dict[str, Any]) -> SchemaFault | None:
    """Returns what the schema refuses in a certificate of a type and its one entry, else None.

    All texts are matched at once, joined by a character that none of them may have; a second
    look, member by member, names the one that does not fit.
    """
    rules = _KINDS[kind]
    try:
        texts = [document["ver"], document["dob"], *_names(document["nam"])]
        if rules.optional:
            texts += [entry.get(name, "") for name in rules.optional]
        texts += rules.required(entry)
        fits = rules.fits("\0".join(texts)) is not None and not _other_types(document, kind)
        for name in rules.counts:
            count = entry[name]
            fits = fits and type(count) is int and count > 0
        if fits:
            for name in rules.dates:
                day_or_time(entry[name])
            return None
    except (KeyError, TypeError, AttributeError, ValueError):
        pass
    return next(faults(document, kind, entry))


def _names(names: dict[str, Any]) -> Sequence[Any]:
    """Returns the four names of a person, "" for absent ones; one of fnt and gnt must be there."""
    try:
        return _all_names(names)
    except KeyError:
        if "fnt" not in names and "gnt" not in names:
            raise
        return [names.get(name, "") for name in _NAMES]


_all_names: Callable[[dict[str, Any]], tuple[Any, ...]] = itemgetter(*_NAMES)


def day_or_time(value: str) -> date | datetime:
    """Returns the value of a text that fits ``DAY``; raises ValueError if no calendar has it."""
    return date.fromisoformat(value) if len(value) == 10 else datetime.fromisoformat(value)


def date_fault(value: object) -> str:
    """Returns what is wrong with the value of a member that should be a date or a time, or ""."""
    return _text_fault(value, _DAY)


def faults(document: dict[str, Any], kind: str, entry: dict[str, Any]) -> Iterator[SchemaFault]:
    """Yields all faults, in the order of the schema."""
    yield from _text_faults("", document, _WHOLE)
    names = document.get("nam")
    if type(names) is not dict:
        yield SchemaFault("nam", "should be an object")
    else:
        if "fnt" not in names and "gnt" not in names:
            yield SchemaFault("nam", "should have fnt or gnt, or both")
        yield from _text_faults("nam.", names, _of_present(_NAMES, names))
    for other in _other_types(document, kind):
        yield SchemaFault(other, f"should be absent, not empty: the certificate has {kind}")
    rules, path = _KINDS[kind], f"{kind}.0."
    yield from _text_faults(path, entry, rules.texts | _of_present(rules.optional, entry))
    for name in rules.counts:
        if type(count := entry.get(name)) is not int or count < 1:
            yield SchemaFault(path + name, "should be a whole number from 1")


def _other_types(document: dict[str, Any], kind: str) -> list[str]:
    """Returns the types that a certificate has besides its own; they have no entry."""
    return [other for other in _KINDS if other in document and other != kind]


def _of_present(patterns: Mapping[str, str], members: dict[str, Any]) -> dict[str, str]:
    return {name: pattern for name, pattern in patterns.items() if name in members}


def _text_faults(
    path: str, members: dict[str, Any], patterns: Mapping[str, str]
) -> Iterator[SchemaFault]:
    for name, pattern in patterns.items():
        if name not in members:
            yield SchemaFault(path + name, "is missing")
        elif wrong := _text_fault(members[name], pattern):
            yield SchemaFault(path + name, wrong)


def _text_fault(value: object, pattern: str) -> str:
    if type(value) is not str or not re.fullmatch(pattern, value, re.ASCII):
        return _EXPECTED[pattern]
    try:
        if pattern in (_DAY, _TIME):
            day_or_time(value)
    except ValueError:
        return "should be a day that the calendar has"
    return ""

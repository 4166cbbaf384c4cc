"""Records of vaccinations, read from CSV or JSON lines; all mistakes of a file at once.

A mistake names line and member, never what the member says: it is about a person.
"""

import csv
import hashlib
import io
import json
import re
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

from signer.cli.issue.names import composed, passport_form, standardised
from signer.errors import ConfigError, Violation
from signer.formats import dcc_schema
from signer.formats.payloads import PayloadError, json_object
from signer.model import IDENTIFIER
from signer.text import count

REQUIRED = (
    *("record", "facility", "born"),
    *("vaccine", "product", "manufacturer", "dose", "doses", "date"),
)
OPTIONAL = ("surname", "forenames", "surname_standard", "forenames_standard", "target")
MEMBERS = frozenset({*REQUIRED, *OPTIONAL})
COVID_19 = "840539006"
"""The ``target`` of a record that has none: SNOMED CT, as the value set of certificates."""

_FROM_PATH = {
    "dob": "born",
    "nam.fn": "surname",
    "nam.gn": "forenames",
    "nam.fnt": "surname_standard",
    "nam.gnt": "forenames_standard",
    "v.0.tg": "target",
    "v.0.vp": "vaccine",
    "v.0.mp": "product",
    "v.0.ma": "manufacturer",
    "v.0.dn": "dose",
    "v.0.sd": "doses",
    "v.0.dt": "date",
    "v.0.co": "--country",
    "v.0.is": "--issuer",
    "v.0.ci": "--uvci-prefix",
}
"""Where a member of the certificate comes from."""

_RECORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:-]{0,63}")
_COUNT = re.compile(r"[1-9][0-9]{0,3}")
_MOST_MISTAKES = 1000
UVCI_DIGITS = 32
"""Characters after the prefix of a UVCI."""


class CertificateIssuer(NamedTuple):
    """What all certificates of a run say: the country, who issues, how UVCIs begin."""

    country: str
    name: str
    uvci_prefix: str


class PersonRecord(NamedTuple):
    """One record: its line, its id, its facility, and the certificate without its UVCI.

    ``content`` is a SHA-256 over all that facility and certificate say: a record that was
    corrected has another one.
    """

    line: int
    record: str
    facility: str
    document: Mapping[str, Any]
    content: str

    def certificate(self, uvci: str) -> bytes:
        """Returns the payload of the certificate, a DCC in JSON."""
        return _json({**self.document, "v": [self._entry(uvci)]})

    def signed_by_facility(self, uvci: str) -> bytes:
        """Returns what the facility signs: all that the certificate says, and for which record."""
        said = {"record": self.record, "facility": self.facility}
        name, born = self.document["nam"], self.document["dob"]
        return _json({**said, "name": name, "born": born, "vaccination": self._entry(uvci)})

    def _entry(self, uvci: str) -> dict[str, Any]:
        return {**self.document["v"][0], "ci": uvci}


def read_records(source: str, data: bytes, issuer: CertificateIssuer) -> list[PersonRecord]:
    """Reads a file; its format is that of its first character. Raises ConfigError."""
    mistakes: list[Violation] = []
    found: list[PersonRecord] = []
    seen: dict[str, int] = {}
    try:
        text = _text(data)
        rows = _json_lines(text) if text.lstrip().startswith("{") else _csv_rows(text)
        for line, row in rows:
            wrong = partial(_mistake, mistakes, line)
            made = None
            if isinstance(row, str):
                wrong("", row)
            else:
                made = _read(line, row, issuer, wrong)
            if made is not None and (first := seen.setdefault(made.record, line)) != line:
                wrong("record", f"is also that of line {first}")
            elif made is not None:
                found.append(made)
    except _UnreadableError as error:
        mistakes.append(Violation(error.place, str(error)))
    if not (found or mistakes):
        mistakes.append(Violation("", "the file has no records"))
    if mistakes:
        if len(mistakes) > _MOST_MISTAKES:
            more = f"and {count(len(mistakes) - _MOST_MISTAKES, 'more mistake')}"
            mistakes[_MOST_MISTAKES:] = [Violation("", more)]
        raise ConfigError(source, mistakes)
    return found


class _UnreadableError(Exception):
    """A file of which nothing more can be read."""

    def __init__(self, place: str, text: str) -> None:
        super().__init__(text)
        self.place = place


def _mistake(mistakes: list[Violation], line: int, member: str, text: str) -> None:
    mistakes.append(Violation(f"line {line}{', ' * bool(member)}{member}", text))


# --- files --------------------------------------------------------------------------------------

_Row = Mapping[str, Any] | str
"""The members of a record by their names, or what is wrong with the line."""


def _text(data: bytes) -> str:
    if data.startswith((BOM_UTF16_LE, BOM_UTF16_BE)):
        raise _UnreadableError("", "the file is UTF-16: save it as CSV in UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        text = f"is not UTF-8, from byte {error.start} of the file on: save the file in UTF-8"
        raise _UnreadableError(f"line {line}", text) from None


def _csv_rows(text: str) -> Iterator[tuple[int, _Row]]:
    """Yields the rows of a CSV file by the number of their first line; commas or semicolons."""
    header, _, _ = text.partition("\n")
    separator = max(",;\t", key=header.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    columns: list[str] = []
    line = 1
    try:
        for cells in reader:
            if any(map(str.strip, cells)):
                if not columns:
                    columns = _columns(cells, line)
                elif len(cells) != len(columns):
                    yield line, f"has {len(cells)} cells, and the first line {len(columns)}"
                else:
                    yield line, dict(zip(columns, cells, strict=True))
            line = reader.line_num + 1
    except csv.Error:
        text = "is not CSV: a quotation mark is not closed, or stands within a cell"
        raise _UnreadableError(f"line {line}", text) from None


def _columns(cells: list[str], line: int) -> list[str]:
    names = [cell.strip().lower() for cell in cells]
    strange = [str(number) for number, name in enumerate(names, 1) if name not in MEMBERS]
    missing = [name for name in REQUIRED if name not in names]
    text = ""
    if strange:  # without their names: a file without a header begins with a person
        known = ", ".join((*REQUIRED, *OPTIONAL))
        text = f"column {', '.join(strange)} has no name that is known here: {known}"
    elif missing:
        text = f"has no column {', '.join(missing)}"
    elif not {"surname", "forenames"} & set(names):
        text = "has no column surname and no column forenames: one is needed"
    elif len(set(names)) < len(names):
        text = f"has two columns {next(name for name in names if names.count(name) > 1)}"
    if text:
        raise _UnreadableError(f"line {line}", text)
    return names


def _json_lines(text: str) -> Iterator[tuple[int, _Row]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            members = json_object(line.encode())
        except PayloadError as error:
            yield number, str(error).replace("payload", "the line", 1)
            continue
        strange = [str(at) for at, name in enumerate(members, 1) if name not in MEMBERS]
        known = ", ".join((*REQUIRED, *OPTIONAL))
        if strange:
            yield number, f"member {', '.join(strange)} has no name that is known here: {known}"
        else:
            yield number, members


# --- one record ---------------------------------------------------------------------------------

_Wrong = Callable[[str, str], None]
"""Takes a mistake: the member, and what is wrong with it."""


def _read(
    line: int, row: Mapping[str, Any], issuer: CertificateIssuer, wrong: _Wrong
) -> PersonRecord | None:
    """Returns the record of a row; None if it has mistakes, which ``wrong`` takes."""
    faults: list[tuple[str, str]] = []
    texts = {name: _cell(name, row.get(name, ""), faults) for name in MEMBERS}
    for name, pattern, text in (
        ("record", _RECORD, "1 to 64 of letters, digits and . _ / : -, as in 2021-000017"),
        ("facility", IDENTIFIER, "the id of a facility in the policy, as in 01-001"),
    ):
        if not pattern.fullmatch(texts[name]):
            faults.append((name, f"should be {text}"))
    document = _document(texts, issuer, faults)
    named = {name for name, _ in faults}
    entry = document["v"][0]
    if dcc_schema.fault(document, "v", entry) is not None:
        for fault in dcc_schema.faults(document, "v", entry):
            member = _FROM_PATH.get(fault.member, "surname")
            if member not in named:  # what it is made of may be wrong itself
                faults.append((member, fault.text))
    elif texts["date"][: len(texts["born"])] < texts["born"]:
        faults.append(("date", "is before born"))
    for member, text in faults:
        wrong(member, text)
    if faults:
        return None
    del entry["ci"]
    content = hashlib.sha256(_json([texts["facility"], document])).hexdigest()
    return PersonRecord(line, texts["record"], texts["facility"], document, content)


def _cell(name: str, value: Any, faults: list[tuple[str, str]]) -> str:
    if name in ("dose", "doses") and type(value) is int:
        return str(value)
    if not isinstance(value, str):
        faults.append((name, "should be text"))
        return ""
    text = value.replace("\N{NO-BREAK SPACE}", " ").strip()
    if not text.isprintable():
        faults.append((name, "has characters that cannot be printed"))
        return ""
    return text


def _document(
    texts: Mapping[str, str], issuer: CertificateIssuer, faults: list[tuple[str, str]]
) -> dict[str, Any]:
    entry = {
        "tg": texts["target"] or COVID_19,
        "vp": texts["vaccine"],
        "mp": texts["product"],
        "ma": texts["manufacturer"],
        "dn": _number("dose", texts, faults),
        "sd": _number("doses", texts, faults),
        "dt": texts["date"],
        "co": issuer.country,
        "is": issuer.name,
        "ci": issuer.uvci_prefix + "0" * UVCI_DIGITS,
    }
    return {"ver": "1.3.0", "nam": _names(texts, faults), "dob": texts["born"], "v": [entry]}


def _number(name: str, texts: Mapping[str, str], faults: list[tuple[str, str]]) -> int:
    if not _COUNT.fullmatch(texts[name]):
        if name not in dict(faults):
            faults.append((name, "should be a whole number from 1"))
        return 1
    return int(texts[name])


def _names(texts: Mapping[str, str], faults: list[tuple[str, str]]) -> dict[str, str]:
    """Returns ``nam``; the only name of a person is the surname, as in passports."""
    given = [member for member in ("surname", "forenames") if texts[member]]
    if not given:
        faults.append(("surname", "is missing, and forenames, too"))
    names: dict[str, str] = {}
    for short, member in zip(("f", "g"), given, strict=False):
        name = composed(texts[member])
        if "<" in name:
            faults.append((member, f"has <: write a blank; {member}_standard is as in passports"))
        names |= {f"{short}n": name, f"{short}nt": _standard(member, name, texts, faults)}
    for member in {"surname", "forenames"}.difference(given):
        if texts[f"{member}_standard"]:
            text = f"is missing, but {member}_standard is there: give the name in Unicode as well"
            faults.append((member, text))
    return names


def _standard(
    member: str, name: str, texts: Mapping[str, str], faults: list[tuple[str, str]]
) -> str:
    """Returns a name in A to Z, as the record has it or else made of the name in Unicode."""
    given = f"{member}_standard"
    try:
        if standard := passport_form(texts[given]):
            return standard
    except ValueError as error:
        faults.append((given, f"{error}: give each name in its own member"))
        return "X"
    try:
        return standardised(name.replace("<", " "))
    except ValueError as error:
        faults.append((member, f"{error}: give {given}, in A to Z, as well"))
        return "X"


_encoded = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def _json(value: object) -> bytes:
    return _encoded(value).encode()


def uvci_of(issuer: CertificateIssuer, digest: bytes) -> str:
    """Returns the UVCI for a digest, of which it has the first 16 bytes."""
    return issuer.uvci_prefix + digest.hex().upper()[:UVCI_DIGITS]

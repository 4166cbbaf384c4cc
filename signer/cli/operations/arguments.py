"""Values on the command line (times, durations, names, certificates), and values as shown."""

import calendar
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Generic, TypeVar

import click
from click.shell_completion import CompletionItem
from cryptography import x509

from signer.cli.completion import (
    Complete,
    facility_ids,
    key_and_version_names,
    key_names,
    version_names,
)
from signer.cli.output import explained
from signer.errors import OperatorError
from signer.model import IDENTIFIER, KeyName, parse_key_or_version
from signer.text import count
from signer.text import utc as utc_text
from signer.x509 import read_certificates, uris_of

_SECONDS = {"second": 1, "minute": 60, "hour": 3_600, "day": 86_400, "week": 604_800}
_MONTHS = {"month": 1, "year": 12}
_SHORT = {"s": "second", "h": "hour", "d": "day", "w": "week"}
_AMOUNT = re.compile(r"([0-9]{1,6})([a-z]+)")
_LAST = datetime(9999, 1, 1, tzinfo=UTC).timestamp()

T = TypeVar("T")


def parse_duration(text: str) -> int:
    """Reads ``7d``, ``12h``, ``30minutes`` or ``45s``; returns seconds. Raises ValueError."""
    number, unit = _amount(text)
    if unit in _MONTHS:
        raise ValueError(f"{text}: months and years differ in length: give days, as in 180d")
    return number * _SECONDS[unit]


def parse_time(text: str, now: float) -> int:
    """Reads ISO 8601 with an offset, or ``+7d`` from ``now``; returns seconds since the epoch.

    Months and years are those of the calendar in UTC. Raises ValueError. A time without an
    offset would be a different moment for each reader.
    """
    if text.startswith("+"):
        moment = _from_now(text[1:], datetime.fromtimestamp(int(now), UTC))
    else:
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            moment = None
    if moment is None or moment.tzinfo is None:
        raise ValueError(
            "expected a time like 2030-01-01T08:00:00+07:00, or +7d or +6months from now"
        )
    seconds = moment.timestamp()
    if not 0 < seconds < _LAST:
        raise ValueError("expected a time after 1970 and before 9999")
    return int(seconds)


def _from_now(text: str, now: datetime) -> datetime:
    number, unit = _amount(text)
    try:
        if unit in _SECONDS:
            return now + timedelta(seconds=number * _SECONDS[unit])
        years, month = divmod(now.month - 1 + number * _MONTHS[unit], 12)
        year = now.year + years
        last = calendar.monthrange(year, month + 1)[1]
        return now.replace(year=year, month=month + 1, day=min(now.day, last))
    except (ValueError, OverflowError):
        raise ValueError(f"+{text} is after the year 9999") from None


def _amount(text: str) -> tuple[int, str]:
    """Reads a number and the name of its unit, in the singular; raises ValueError."""
    match = _AMOUNT.fullmatch(text)
    unit = "" if match is None else match[2]
    if unit == "m":
        number = text[:-1]
        raise ValueError(
            f"{text} could be minutes or months: write {number}minutes or {number}months"
        )
    unit = _SHORT.get(unit, unit.removesuffix("s"))
    if match is None or unit not in {*_SECONDS, *_MONTHS}:
        raise ValueError("expected a number and a unit, as in 7d, 12h, 30minutes or 6months")
    return int(match[1]), unit


class Text(click.ParamType[T], Generic[T]):
    """A parameter that a function reads from text; the function raises ValueError."""

    def __init__(
        self, name: str, read: Callable[[str], T], complete: Complete | None = None
    ) -> None:
        self.name = name
        self._read = read
        self._complete = complete

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        return [] if self._complete is None else self._complete(ctx, param, incomplete)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> T:
        if not isinstance(value, str):
            return value  # type: ignore[no-any-return] # a default, which is of our type
        try:
            return self._read(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def _version(text: str) -> str:
    if parse_key_or_version(text)[1] is None:
        raise ValueError(f"{text} is a key: name one version of it, as in {text}/versions/1")
    return text


def _facility(text: str) -> str:
    if not IDENTIFIER.fullmatch(text):
        raise ValueError(f"{text} is not the id of a facility: name it alone, as in 01-001")
    return text


def _key_or_version(text: str) -> str:
    parse_key_or_version(text)
    return text


TIME = Text("TIME", lambda text: parse_time(text, time.time()))
DURATION = Text("DURATION", parse_duration)
FACILITY = Text("ID", _facility, facility_ids)
KEY = Text("NAME", lambda text: str(KeyName.parse(text)), key_names)
VERSION = Text("VERSION", _version, version_names)
KEY_OR_VERSION = Text("NAME", _key_or_version, key_and_version_names)


def read_file(path: Path) -> bytes:
    """Reads a file; raises OperatorError."""
    with explained(path, "read"):
        return path.read_bytes()


def certificates_in(path: Path) -> list[x509.Certificate]:
    """Reads every certificate of a file: PEM with one or several, or DER. Raises OperatorError."""
    try:
        return read_certificates(read_file(path))
    except ValueError:
        raise OperatorError(f"{path} has no certificate in PEM or DER that can be read") from None


def certificate_in(path: Path) -> x509.Certificate:
    """Reads the only certificate of a file; raises OperatorError."""
    certificates = certificates_in(path)
    if len(certificates) > 1:
        raise OperatorError(f"{path} has {len(certificates)} certificates: give a file with one")
    return certificates[0]


def principal_of(certificate: x509.Certificate) -> str:
    """Returns the one URI that a certificate names; raises OperatorError."""
    uris = uris_of(certificate)
    if len(uris) != 1:
        subject = certificate.subject.rfc4514_string()
        raise OperatorError(
            f"the certificate of {subject} names {count(len(uris), 'URI')}, expected one"
        )
    return uris[0]


def utc(moment: datetime | None) -> str:
    """Returns a time for people."""
    return "-" if moment is None else utc_text(moment.timestamp())


def iso(moment: datetime | None) -> str | None:
    """Returns a time for programs."""
    return None if moment is None else moment.isoformat()

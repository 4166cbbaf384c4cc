"""What officers write on the command line: times, durations, names and certificates."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import click

from signer.errors import OperatorError
from signer.model import KeyName, parse_key_or_version

if TYPE_CHECKING:
    from cryptography import x509

_UNITS = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}
_DURATION = re.compile(r"([0-9]{1,6})([dhms])")
_LAST = datetime(9999, 1, 1, tzinfo=UTC).timestamp()

T = TypeVar("T")


def parse_duration(text: str) -> int:
    """Reads ``7d``, ``12h``, ``30m`` or ``45s``; returns seconds. Raises ValueError."""
    found = _DURATION.fullmatch(text)
    if found is None:
        raise ValueError("expected a number of days, hours, minutes or seconds, as in 7d or 12h")
    return int(found[1]) * _UNITS[found[2]]


def parse_time(text: str, now: float) -> int:
    """Reads ISO 8601 with an offset, or ``+7d`` from ``now``; returns seconds since the epoch.

    Raises ValueError. A time without an offset would be another moment for every reader.
    """
    if text.startswith("+"):
        return int(now) + parse_duration(text[1:])
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise ValueError("expected a time like 2030-01-01T08:00:00+07:00, or +7d or +12h from now")
    seconds = moment.timestamp()
    if not 0 < seconds < _LAST:
        raise ValueError("expected a time after 1970 and before 9999")
    return int(seconds)


class Text(click.ParamType[T], Generic[T]):
    """A parameter that a function reads from text; the function raises ValueError."""

    def __init__(self, name: str, read: Callable[[str], T]) -> None:
        self.name = name
        self._read = read

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


def _key(text: str) -> str:
    return str(KeyName.parse(text))


def _key_or_version(text: str) -> str:
    parse_key_or_version(text)
    return text


TIME = Text("TIME", lambda text: parse_time(text, time.time()))
DURATION = Text("DURATION", parse_duration)
KEY = Text("NAME", _key)
VERSION = Text("VERSION", _version)
KEY_OR_VERSION = Text("NAME", _key_or_version)
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


def read_file(path: Path) -> bytes:
    """Reads a file; raises OperatorError."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise OperatorError(f"{path} cannot be read: {error.strerror}") from error


def write_file(path: Path, content: bytes) -> None:
    """Writes a file; raises OperatorError."""
    try:
        path.write_bytes(content)
    except OSError as error:
        raise OperatorError(f"{path} cannot be written: {error.strerror}") from error


def certificates_in(path: Path) -> list[x509.Certificate]:
    """Reads every certificate of a file: PEM with one or several, or DER. Raises OperatorError."""
    from signer.x509 import read_certificates

    try:
        return read_certificates(read_file(path))
    except ValueError:
        raise OperatorError(f"{path} has no certificate in PEM or DER that can be read") from None


def certificate_in(path: Path) -> x509.Certificate:
    """Reads the one certificate of a file; raises OperatorError."""
    found = certificates_in(path)
    if len(found) > 1:
        raise OperatorError(f"{path} has {len(found)} certificates: give the one alone")
    return found[0]


def principal_of(certificate: x509.Certificate) -> str:
    """Returns the one URI that a certificate names; raises OperatorError."""
    from signer.x509 import uris_of

    uris = uris_of(certificate)
    if len(uris) != 1:
        who = certificate.subject.rfc4514_string()
        raise OperatorError(f"the certificate of {who} names {len(uris)} URIs, expected one")
    return uris[0]


def plain(text: str) -> str:
    """Returns a text that somebody else wrote, without what would steer a terminal."""
    return "".join(each if each.isprintable() else "?" for each in text)


def utc(moment: datetime | None) -> str:
    """Returns a time for people."""
    return "-" if moment is None else f"{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


def iso(moment: datetime | None) -> str | None:
    """Returns a time for programs."""
    return None if moment is None else moment.isoformat()

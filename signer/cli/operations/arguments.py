"""Values on the command line (times, durations, names, certificates), and values as shown."""

import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Generic, TypeVar

import click
from cryptography import x509

from signer.cli.output import explained
from signer.errors import OperatorError
from signer.model import KeyName, parse_key_or_version
from signer.text import count
from signer.text import utc as utc_text
from signer.x509 import read_certificates, uris_of

_UNITS = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}
_DURATION = re.compile(r"([0-9]{1,6})([dhms])")
_LAST = datetime(9999, 1, 1, tzinfo=UTC).timestamp()

T = TypeVar("T")


def parse_duration(text: str) -> int:
    """Reads ``7d``, ``12h``, ``30m`` or ``45s``; returns seconds. Raises ValueError."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ValueError("expected a number of days, hours, minutes or seconds, as in 7d or 12h")
    return int(match[1]) * _UNITS[match[2]]


def parse_time(text: str, now: float) -> int:
    """Reads ISO 8601 with an offset, or ``+7d`` from ``now``; returns seconds since the epoch.

    Raises ValueError. A time without an offset would be a different moment for each reader.
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


def _key_or_version(text: str) -> str:
    parse_key_or_version(text)
    return text


TIME = Text("TIME", lambda text: parse_time(text, time.time()))
DURATION = Text("DURATION", parse_duration)
KEY = Text("NAME", lambda text: str(KeyName.parse(text)))
VERSION = Text("VERSION", _version)
KEY_OR_VERSION = Text("NAME", _key_or_version)


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

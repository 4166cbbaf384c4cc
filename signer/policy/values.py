"""Reads single values of the policy: sets, times, quotas, serial numbers.

Every function takes a value of any type and raises ValueError that says what is expected.
"""

import enum
import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar
from zoneinfo import ZoneInfo

from signer.format_terms import link_host
from signer.model import is_principal
from signer.policy.windows import DAY_SECONDS, DAYS
from signer.text import brief

E = TypeVar("E", bound=enum.StrEnum)

WINDOWS = {"second": 1, "minute": 60, "hour": 3600, "day": DAY_SECONDS}  # of quotas, in seconds

_QUOTA = re.compile(r"([1-9]\d{0,2}(?:,\d{3}){1,4}|[1-9]\d{0,14}) per ([a-z]+)")
_TIME = re.compile(r"([01]\d|2[0-3]):([0-5]\d)|24:00")
_HOST = re.compile(r"(?=.{1,253}(?::|\Z))[a-z0-9-]+(?:\.[a-z0-9-]+)+(?::[1-9][0-9]{0,4})?")
_SERIAL = re.compile(r"[0-9A-Fa-f]{1,40}")  # 20 octets at most: RFC 5280, section 4.1.2.2


@dataclass(frozen=True, slots=True)
class Quota:
    """At most ``limit`` items in each window of so many seconds."""

    limit: int
    window_seconds: int

    @property
    def window(self) -> str:
        """The window's name: second, minute, hour or day."""
        return next(name for name, length in WINDOWS.items() if length == self.window_seconds)

    def __str__(self) -> str:
        return f"{self.limit} per {self.window}"


def texts(value: object) -> list[str]:
    """Reads a list of distinct texts; it may be empty."""
    if not isinstance(value, list):
        raise ValueError("should be a list")
    for item in value:
        if not isinstance(item, str):
            raise ValueError(f"{brief(str(item))} is not text: put it in quotes")
    if len({*value}) < len(value):
        twice = [text for text, times in Counter(value).items() if times > 1]
        raise ValueError(f"lists {', '.join(map(brief, twice))} twice")
    return value


def names(value: object) -> frozenset[str]:
    """Reads a list of at least one text: an empty one could mean no restriction, or nothing."""
    listed = texts(value)
    if not all(listed) or not listed:
        raise ValueError("should list at least one value; omit the rule to restrict nothing")
    return frozenset(listed)


def composed(value: object) -> frozenset[str]:
    """Reads a list of texts; returns them in NFC, in which letters with accents are one character.

    The same name in NFD looks the same and is another text.
    """
    listed = names(value)
    in_nfc = frozenset(unicodedata.normalize("NFC", text) for text in listed)
    if len(in_nfc) < len(listed):
        raise ValueError("lists a text twice, in different forms of Unicode (NFC and NFD)")
    return in_nfc


def members(kind: type[E]) -> Callable[[object], frozenset[E]]:
    """Returns the function that reads a list of members of an enumeration."""
    choices = ", ".join(kind)

    def read(value: object) -> frozenset[E]:
        listed = names(value)
        for text in sorted(listed - set(kind)):
            raise ValueError(f"{brief(text)} is not known; choose from {choices}")
        return frozenset(kind(text) for text in listed)

    return read


def paths(value: object) -> dict[str, str]:
    """Reads a mapping of dotted paths to dotted paths; raises ValueError for an empty one."""
    if not isinstance(value, dict) or not value:
        raise ValueError("should map at least one member of the certificate to one of the record")
    for path, name in value.items():
        for text in (path, name):
            if not isinstance(text, str) or not all(text.split(".")):
                raise ValueError(f"{brief(text)} should be a member, or a path with dots as v.0.ci")
    return dict(value)


def hosts(value: object) -> frozenset[str]:
    """Reads hosts of links, in lower case, each with its port if that is not 443."""
    listed = names(value)
    for text in sorted(listed):
        if not (_HOST.fullmatch(text) and link_host(text)):
            raise ValueError(
                f"{brief(text)} should be a host in lower case, as in records.example.vn"
            )
    return frozenset(map(link_host, listed))


def certificate_types(value: object) -> frozenset[str]:
    """Reads types of EU certificates: v (vaccination), t (test), r (recovery)."""
    listed = names(value)
    if not listed <= {"v", "t", "r"}:
        raise ValueError("should list only v, t and r")
    return listed


def principals(value: object) -> frozenset[str]:
    """Reads a list of SPIFFE URIs. They are compared as a whole; patterns are refused."""
    listed = texts(value)
    for text in listed:
        if not is_principal(text):
            raise ValueError(
                f"{brief(text)} is not a principal: give the whole URI of the certificate, "
                "spiffe://domain/path, without patterns"
            )
    return frozenset(listed)


def serials(value: object) -> frozenset[int]:
    """Reads certificate serial numbers in hex, with or without colons."""
    numbers = []
    for text in texts(value):
        digits = text.replace(":", "")
        if not _SERIAL.fullmatch(digits):
            raise ValueError(f"{brief(text)} is not a serial number: write up to 20 bytes in hex")
        numbers.append(int(digits, 16))
    if len(set(numbers)) < len(numbers):
        raise ValueError("lists a serial number twice")
    return frozenset(numbers)


def quotas(value: object) -> tuple[Quota, ...]:
    """Reads quotas such as ``200 per second``; returns them by window, shortest first."""
    read = []
    for text in texts(value):
        match = _QUOTA.fullmatch(text)
        if not match:
            raise ValueError(
                f'quota "{brief(text)}": write a number and a unit, as in 200 per second'
            )
        if match[2] not in WINDOWS:
            raise ValueError(f'quota "{brief(text)}": unit must be second, minute, hour or day')
        read.append(Quota(int(match[1].replace(",", "")), WINDOWS[match[2]]))
    if len({quota.window_seconds for quota in read}) < len(read):
        raise ValueError("has two quotas with the same unit: keep the smaller one")
    return tuple(sorted(read, key=lambda quota: quota.window_seconds))


def instant(value: object) -> float:
    """Reads a time of ISO 8601 with its offset; returns seconds since the epoch."""
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise ValueError("should be a time with its offset, as in 2030-01-01T00:00:00+07:00")
    return moment.timestamp()


def days(value: object) -> tuple[int, ...]:
    """Reads days such as ``mon-sat`` or ``mon,wed,fri``; 0 is Monday."""
    numbers: list[int] = []
    for part in value.split(",") if isinstance(value, str) else [""]:
        first, dash, last = part.strip().partition("-")
        last = last if dash else first
        if first not in DAYS or last not in DAYS or DAYS.index(first) > DAYS.index(last):
            raise ValueError("should name days, as in mon-sat or mon,wed,fri; a week begins on mon")
        numbers.extend(range(DAYS.index(first), DAYS.index(last) + 1))
    if len(set(numbers)) < len(numbers):
        raise ValueError("names a day twice")
    return tuple(numbers)


def time_of_day(value: object) -> int:
    """Reads ``HH:MM``; returns seconds of the day, a whole day for ``24:00``."""
    match = _TIME.fullmatch(value) if isinstance(value, str) else None
    if not match:
        raise ValueError("should be a time from 00:00 to 24:00, as in 07:30")
    return int(match[1]) * 3600 + int(match[2]) * 60 if match[1] else DAY_SECONDS


def opening_hours(text: str) -> dict[str, object]:
    """Reads hours as they are shown, ``mon-fri 07:00-17:30; sat 07:00-12:00 Asia/Ho_Chi_Minh``.

    Returns them as a policy file states them.
    """
    plan, _, zone = text.strip().rpartition(" ")
    time_zone(zone)
    openings = []
    for part in plan.split(";"):
        on, _, times = part.strip().rpartition(" ")
        start, _, end = times.partition("-")
        if not days(on) or time_of_day(start) >= time_of_day(end):
            raise ValueError(f"{brief(part.strip())}: the first time must be before the second")
        openings.append({"days": on, "from": start, "to": end})
    return {"time_zone": zone, "open": openings}


def time_zone(value: object) -> ZoneInfo:
    """Reads the name of a time zone of the IANA database."""
    if isinstance(value, str) and value:
        try:
            return ZoneInfo(value)
        except (KeyError, ValueError, OSError):  # unknown; a path; a folder of zones
            pass
    raise ValueError("should be a time zone of the IANA database, as in Asia/Ho_Chi_Minh")

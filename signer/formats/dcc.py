"""The EU Digital COVID Certificate inside an HCERT: its structure, schema and content rules."""

import unicodedata
from collections.abc import Collection, Mapping
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, NamedTuple

from signer.format_terms import ContentRules
from signer.formats import dcc_schema
from signer.formats.payloads import PayloadError, cbor_map, denied, json_object, unreadable

TYPES = ("v", "t", "r")  # vaccination, test, recovery
_REQUIRED = ("ver", "nam", "dob")
_EMPTY: tuple[object, ...] = (None, [])
MAX_BYTES = 16_384  # longest payload; the largest QR code holds less than 3,000 bytes


class Dcc(NamedTuple):
    """A DCC: the whole object, its type (one of TYPES), and its one entry."""

    document: dict[str, Any]
    type: str
    entry: dict[str, Any]


def read(payload: bytes) -> Dcc:
    """Reads a DCC: CBOR if its first byte is of a CBOR map (0xA0 to 0xBF), else JSON.

    Raises PayloadError unless it has ``ver``, ``nam``, ``dob``, and exactly one entry in
    one of ``v``, ``t`` and ``r``.
    """
    if len(payload) > MAX_BYTES:
        raise unreadable(f"payload is longer than {MAX_BYTES} bytes")
    is_cbor = 0xA0 <= payload[0] <= 0xBF if payload else False
    document = cbor_map(payload) if is_cbor else json_object(payload)
    for name in _REQUIRED:
        if name not in document:
            raise unreadable(f"{name} is missing", member=name)
    kind = type_of(document)
    if kind is None:
        raise unreadable("certificate needs exactly one of v, t and r that is not empty")
    entries = document[kind]
    if type(entries) is not list or len(entries) != 1 or type(entries[0]) is not dict:
        raise unreadable(f"{kind} should be a list of one object", member=kind)
    return Dcc(document, kind, entries[0])


def type_of(document: Mapping[str, Any]) -> str | None:
    """Returns which one of TYPES is not empty; None if that is not exactly one."""
    types = [kind for kind in TYPES if kind in document and document[kind] not in _EMPTY]
    return types[0] if len(types) == 1 else None


class Horizon(NamedTuple):
    """Where the future begins: the time, and the last day YYYY-MM-DD that has begun on Earth."""

    now: datetime
    day: str


@lru_cache(maxsize=16)
def horizon(now: int) -> Horizon:
    """Returns the horizon of a time in epoch seconds.

    A date has no time zone: it is in the future only if that day has not begun anywhere on
    Earth, so that no clinic is refused in its own morning.
    """
    time = datetime.fromtimestamp(now, UTC)
    return Horizon(time, (time + _FARTHEST_EAST).date().isoformat())


def check(certificate: Dcc, rules: ContentRules, ahead: Horizon) -> None:
    """Raises PayloadError if a certificate breaks the schema or a content rule of its key."""
    if rules.dcc_schema and (wrong := dcc_schema.fault(*certificate)) is not None:
        raise unreadable(f"{wrong.member} {wrong.text}", member=wrong.member)
    entry = certificate.entry
    if rules.certificate_types and certificate.type not in rules.certificate_types:
        raise _denied(rules, "certificate_types", f"{certificate.type} is not allowed")
    if rules.countries and not _is_among(entry.get("co"), rules.countries):
        raise _denied(rules, "countries", "co is not an allowed value")
    if rules.issuers and not _is_among(entry.get("is"), rules.issuers):
        raise _denied(rules, "issuers", "is is not an allowed value")
    if rules.identifier_prefix is not None:
        identifier = entry.get("ci")
        if type(identifier) is not str or not identifier.startswith(rules.identifier_prefix):
            raise _denied(rules, "identifier_prefix", "ci does not begin with it")
    if not rules.future_dates:
        _check_event(certificate, rules, ahead)


def _denied(rules: ContentRules, name: str, text: str) -> PayloadError:
    return denied(rules.path(name), f"content rule {name}: {text}")


def _is_among(value: object, allowed: Collection[str]) -> bool:
    """Whether a text is one of those that the policy allows, which are in NFC."""
    if type(value) is not str:
        return False
    return value in allowed or unicodedata.normalize("NFC", value) in allowed


_FARTHEST_EAST = timedelta(hours=14)  # a day begins first in the time zone UTC+14
_EVENTS = {"v": "dt", "t": "sc", "r": "fr"}  # vaccination, sample, first positive test


def _check_event(certificate: Dcc, rules: ContentRules, ahead: Horizon) -> None:
    """Refuses an event in the future: a date by its day, a time by its instant.

    ``df`` of a recovery is not checked: its validity usually begins in the future.
    """
    member = _EVENTS[certificate.type]
    value: Any = certificate.entry.get(member)
    if not rules.dcc_schema and (text := dcc_schema.date_fault(value)):
        path = f"{certificate.type}.0.{member}"
        raise unreadable(f"{path} {text}", member=path)
    if value > ahead.day if len(value) == 10 else datetime.fromisoformat(value) > ahead.now:
        raise _denied(rules, "future_dates", f"{member} is in the future")

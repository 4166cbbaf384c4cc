"""The EU Digital COVID Certificate inside an HCERT: its structure and content rules.

The published schema is not enforced; unknown members are kept.
"""

from collections.abc import Collection
from datetime import UTC, date, datetime, timedelta
from typing import Any, NamedTuple

from signer.formats.payloads import cbor_map, denied, json_object, unreadable
from signer.model import ContentRules

TYPES = ("v", "t", "r")  # vaccination, test, recovery
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
    for name in ("ver", "nam", "dob"):
        if name not in document:
            raise unreadable(f"certificate has no member {name}")
    types = [kind for kind in TYPES if document.get(kind) not in (None, [])]
    if len(types) != 1:
        raise unreadable("certificate needs exactly one of v, t and r that is not empty")
    entries = document[types[0]]
    if type(entries) is not list or len(entries) != 1 or type(entries[0]) is not dict:
        raise unreadable(f"{types[0]} is not a list of one object")
    return Dcc(document, types[0], entries[0])


def check(certificate: Dcc, rules: ContentRules, now: datetime) -> None:
    """Raises PayloadError if a content rule of the facility is broken; ``now`` is in UTC."""
    entry = certificate.entry
    if rules.certificate_types and certificate.type not in rules.certificate_types:
        raise denied(f"content rule certificate_types: {certificate.type} is not allowed")
    if rules.countries:
        _check_member(entry, "co", rules.countries, "countries")
    if rules.issuers:
        _check_member(entry, "is", rules.issuers, "issuers")
    if rules.identifier_prefix is not None:
        identifier = entry.get("ci")
        if type(identifier) is not str or not identifier.startswith(rules.identifier_prefix):
            raise denied("content rule identifier_prefix: ci does not begin with it")
    if not rules.future_dates:
        _check_date(certificate, now)


def _check_member(entry: dict[str, Any], member: str, allowed: Collection[str], rule: str) -> None:
    value = entry.get(member)
    if type(value) is not str or value not in allowed:
        raise denied(f"content rule {rule}: {member} is not an allowed value")


_FARTHEST_EAST = timedelta(hours=14)  # a day begins first in the time zone UTC+14


def _check_date(certificate: Dcc, now: datetime) -> None:
    """Refuses an event after now: vaccination ``dt``, sample ``sc``, first positive test ``fr``.

    ``df`` of a recovery is not checked: its validity usually begins in the future. A date
    has no time zone: it is in the future only if that day has not begun anywhere on Earth,
    so that no clinic is refused in its own morning.
    """
    member = {"v": "dt", "t": "sc", "r": "fr"}[certificate.type]
    value = certificate.entry.get(member)
    try:
        if certificate.type == "t":
            future = _instant(value) > now
        else:
            future = _full_date(value) > (now + _FARTHEST_EAST).date()
    except (ValueError, OverflowError):
        kind = "time with an offset" if certificate.type == "t" else "date YYYY-MM-DD"
        raise denied(f"content rule future_dates: {member} is not a {kind}") from None
    if future:
        raise denied(f"content rule future_dates: {member} is in the future")


def _full_date(value: object) -> date:
    if type(value) is not str or len(value) != 10 or value[4] != "-" or value[7] != "-":
        raise ValueError
    return date.fromisoformat(value)


def _instant(value: object) -> datetime:
    instant = datetime.fromisoformat(value) if type(value) is str else None
    if instant is None or instant.tzinfo is None:
        raise ValueError
    return instant.astimezone(UTC)

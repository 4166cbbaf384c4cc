"""What officers read before they sign: the bytes that are signed, laid out for people. Pure.

Only these bytes count. They are shown in full and in their order, whatever they contain: a
line or a member that is new here is shown like all others.
"""

import base64
import binascii
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from datetime import datetime, tzinfo

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from signer.officers.approval import parse
from signer.text import duration
from signer.x509 import fingerprint, uris_of

_WIDTH = 16  # of names before their values
_TIME = re.compile(r"(?:.*_)?(?:at|until)")  # names of times in seconds since the epoch
_MICROSECONDS = ("since", "right_until")  # names of times in microseconds
_SPAN = re.compile(r".*_seconds")  # names of durations in seconds
_NAME = re.compile(r"[a-z0-9_]+")  # names of members; others are data: principals, versions
_CERTIFICATE = re.compile(r"MII[A-Za-z0-9+/]{200,}={0,2}")  # base64 of DER


def signed_text(content: bytes, zone: tzinfo | None = None) -> list[str]:
    """Returns the bytes of an operation as lines for people.

    Times are in ``zone``, by default the one of this machine, durations in words, each with
    the number that is signed. Certificates are described. Text that is not printable is
    shown as in JSON. Raises ApprovalError for bytes that are not an operation.
    """
    names = {text: name for name, text in asdict(parse(content)).items() if isinstance(text, str)}
    head, _, body = content.decode("ascii").rpartition("\n{\n")  # nested, "{" is not a line
    first, *others = head.split("\n")
    lines = [first, *(_headed(line, names) for line in others)]
    for name, value in json.loads("{" + body).items():
        lines += _member(name, value, zone)
    return lines


def _headed(line: str, names: Mapping[str, str]) -> str:
    """Returns a line of the head with its name before it: some begin with their name."""
    name, _, value = line.partition(" ")
    if line not in names and names.get(value) == name:
        return _line(_label(name), value)
    return _line(_label(names.get(line, "")), line)


def _member(name: str, value: object, zone: tzinfo | None) -> Iterator[str]:
    """Yields the lines of one member; those of its own members are indented."""
    label = _label(name)
    inner: Iterator[str] = iter(())
    match value:
        case dict() if value:
            inner = (line for each in value.items() for line in _member(*each, zone))
        case list() if value:
            items = enumerate(value, 1)
            inner = (line for number, item in items for line in _member(str(number), item, zone))
        case str() if (certificate := _certificate(value)) is not None:
            inner = _described(certificate, zone)
        case _:
            yield _line(label, _value(name, value, zone))
            return
    yield label
    yield from (f"  {line}" for line in inner)


def _value(name: str, value: object, zone: tzinfo | None) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case int():
            words = _words(name, value, zone)
            return f"{words} ({value})" if words else str(value)
        case str():
            return _printable(value) or "-"
        case _:
            return "-"


def _words(name: str, value: int, zone: tzinfo | None) -> str:
    """Returns a number that is a time or a duration in words, "" for other numbers."""
    if name in _MICROSECONDS:
        return _time(value // 1_000_000, zone) if value else "none"
    if _TIME.fullmatch(name):
        return _time(value, zone) if value else "none"
    if _SPAN.fullmatch(name):
        return duration(value) if value else "none"
    return ""


def _time(seconds: float, zone: tzinfo | None) -> str:
    try:
        return datetime.fromtimestamp(seconds).astimezone(zone).isoformat(" ", "seconds")
    except (ValueError, OverflowError, OSError):
        return "a time that no calendar has"


def _certificate(text: str) -> x509.Certificate | None:
    """Returns the certificate that a text encodes, None for other texts."""
    if not _CERTIFICATE.fullmatch(text):
        return None
    try:
        return x509.load_der_x509_certificate(base64.b64decode(text, validate=True))
    except (ValueError, binascii.Error):
        return None


def _described(certificate: x509.Certificate, zone: tzinfo | None) -> Iterator[str]:
    yield _line("subject", _printable(certificate.subject.rfc4514_string()))
    yield from (_line("URI", _printable(uri)) for uri in uris_of(certificate))
    yield _line("issuer", _printable(certificate.issuer.rfc4514_string()))
    yield _line("serial number", f"{certificate.serial_number:x}")
    yield _line("valid from", _time(certificate.not_valid_before_utc.timestamp(), zone))
    yield _line("valid until", _time(certificate.not_valid_after_utc.timestamp(), zone))
    yield _line("SHA-256", fingerprint(certificate.public_bytes(Encoding.DER)))


def _label(name: str) -> str:
    return name.replace("_", " ") if _NAME.fullmatch(name) else _printable(name)


def _line(label: str, value: str) -> str:
    return f"{label:<{_WIDTH}} {value}"


def _printable(text: str) -> str:
    return text if text.isprintable() and "  " not in text else json.dumps(text)

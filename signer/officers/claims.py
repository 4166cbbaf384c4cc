"""What the records of dual control carry, read from fields that may hold anything."""

from __future__ import annotations

import uuid
from typing import Any

from signer.audit.format.record import Record
from signer.officers.approval import Signature


class ProblemError(Exception):
    """What is wrong with the record at hand; says it without the record's number."""


def text_of(record: Record, name: str) -> str:
    """Returns a text; raises ProblemError."""
    value = record.fields.get(name)
    if not isinstance(value, str):
        raise ProblemError(f"its {name} is no text")
    return value


def bytes_of(record: Record, name: str) -> bytes:
    """Returns bytes; raises ProblemError."""
    value = record.fields.get(name)
    if type(value) is not bytes:
        raise ProblemError(f"its {name} is missing")
    return value


def name_of(record: Record) -> str:
    """Returns the id of a record's operation, as it stands there; raises ProblemError."""
    return text_of(record, "operation")


def identity_of(record: Record) -> bytes:
    """Returns the id in 16 bytes; raises ProblemError."""
    name = name_of(record)
    try:
        identity = uuid.UUID(name)
    except ValueError:
        raise ProblemError("its operation is no UUID") from None
    if str(identity) != name:
        raise ProblemError("its operation is no UUID")
    return identity.bytes


SKEW_US = 5_000_000
"""How far the clocks of two appliances on one registry may be apart, in microseconds."""


def signature_of(record: Record) -> Signature:
    """Returns the one signature that a record tells, as of the record's time."""
    at = record.time_us / 1_000_000
    return Signature(text_of(record, "officer"), bytes_of(record, "signature"), at)


def signatures_of(record: Record) -> list[Signature]:
    """Returns those under an operation; raises ProblemError where one is from later."""
    rows: Any = record.fields.get("signatures")
    found = []
    for row in rows if isinstance(rows, list | tuple) else ():
        match row:
            case [str(officer), bytes(signature), int(at_us)]:
                found.append(Signature(officer, signature, at_us / 1_000_000))
            case _:
                raise ProblemError("its signatures cannot be read")
        if at_us > record.time_us + SKEW_US:
            raise ProblemError(f"{officer} signed it after it was recorded")
    return found


def certificates_of(rows: Any) -> dict[str, bytes]:
    """Returns certificates (DER) by principal; raises ProblemError."""
    found: dict[str, bytes] = {}
    for row in rows:
        match row:
            case [str(who), bytes(der)] if who not in found:
                found[who] = der
            case _:
                raise ProblemError("its officers cannot be read")
    return found

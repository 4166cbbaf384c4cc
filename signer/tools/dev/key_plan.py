"""The clients, facilities and keys of a development appliance."""

import enum
from collections.abc import Iterator
from typing import NamedTuple

from signer.algorithms import Algorithm
from signer.model import Format, KeyName

CLIENTS = (
    *("issuer", "issuer-b", "issuer-c"),
    *("stranger", "officer-a", "officer-b", "auditor", "operator"),
)
"""Clients that get a certificate. The policy names all of them except the stranger.

The issuer may sign for all facilities, issuer-b for 01-002 only, issuer-c for strict only.
"""

OFFICERS = ("officer-a", "officer-b")  # they propose and approve operations
LOAD_PREFIX = "l-"  # facilities for load tests are l-00001, l-00002, and so on

_RECORDS = (Format.JWS, Format.MESSAGE, Format.COSE_SIGN1)
_DCC = (Format.HCERT,)
_CMS = (Format.CMS, Format.CMS_DIGEST)


class Purpose(enum.Enum):
    """What a certificate is for."""

    DCC = "vaccination certificates"
    DOCUMENTS = "documents"
    TIMESTAMPS = "time-stamps"


class DevKey(NamedTuple):
    """A key to create; with a ``purpose`` it gets a certificate."""

    name: KeyName
    algorithm: Algorithm
    formats: tuple[Format, ...]
    bits: int = 0
    purpose: Purpose | None = None


def principal(client: str) -> str:
    """Returns the URI in a client's certificate."""
    return f"spiffe://dev.signer.example/{client}"


def load_facilities(count: int) -> Iterator[str]:
    """Yields the ids of the facilities for load tests."""
    return (f"{LOAD_PREFIX}{number:05}" for number in range(1, count + 1))


def dev_keys(load: int) -> list[DevKey]:
    """Returns all keys of an appliance with ``load`` facilities for load tests."""
    keys = [
        DevKey(KeyName("01-001", "records"), Algorithm.ES256, _RECORDS),
        DevKey(KeyName("01-002", "records"), Algorithm.ES256, _RECORDS),
        DevKey(KeyName("01-001", "records-rsa"), Algorithm.PS256, _RECORDS, 2048),
        DevKey(KeyName("01-001", "records-rs256"), Algorithm.RS256, _RECORDS, 2048),
        DevKey(KeyName("01-001", "records-ed25519"), Algorithm.EDDSA, _RECORDS),
        DevKey(KeyName("strict", "records"), Algorithm.ES256, _RECORDS),
        DevKey(KeyName("moh", "dcc"), Algorithm.ES256, _DCC, purpose=Purpose.DCC),
        DevKey(KeyName("moh", "dcc-rsa"), Algorithm.PS256, _DCC, 2048, Purpose.DCC),
        DevKey(KeyName("moh", "dcc-cosigned"), Algorithm.ES256, _DCC, purpose=Purpose.DCC),
        DevKey(KeyName("moh", "cards"), Algorithm.ES256, (Format.SHC,)),
        DevKey(KeyName("moh", "digest"), Algorithm.ES256, (Format.DIGEST,)),
        DevKey(KeyName("moh", "documents"), Algorithm.ES256, _CMS, purpose=Purpose.DOCUMENTS),
        DevKey(
            KeyName("moh", "tsa"), Algorithm.ES256, (Format.TIMESTAMP,), purpose=Purpose.TIMESTAMPS
        ),
    ]
    keys += [
        DevKey(KeyName(facility, "records"), Algorithm.ES256, _RECORDS)
        for facility in load_facilities(load)
    ]
    return keys

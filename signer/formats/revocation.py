"""Revocation of health certificates: handles, and the batches of them that the EU exchanges.

A handle is the first half of a SHA-256. Three kinds are in use: of the UVCI, of country and UVCI,
of the signature (EU eHealth Network, "Technical specifications for EU DCC revocation"). The
country is the issuer in the CWT. Of an ES256 signature only r counts: who changes s gets another
signature that verifies.
"""

import base64
import enum
import json
from collections.abc import Sequence
from datetime import datetime
from hashlib import sha256
from typing import Any, NamedTuple

import cbor2

from signer.algorithms import Algorithm
from signer.format_terms import HANDLE_BYTES, Handles
from signer.formats import dcc
from signer.formats.finished import Claims, Finished, claims_of, finished
from signer.formats.payloads import MessageError, PayloadError, json_object
from signer.model import Format
from signer.text import utc

MAX_ENTRIES = 1000
"""Handles of a batch at most, as the EU's gateway takes them."""


_ANY_KID = "UNKNOWN_KID"
_NOT_A_LIST = "what it signs is not a list of revoked certificates in JSON"


class HandleKind(enum.StrEnum):
    """The kinds of handles, by their names in batches."""

    UCI = "UCI"
    COUNTRYCODEUCI = "COUNTRYCODEUCI"
    SIGNATURE = "SIGNATURE"


HANDLES = {
    HandleKind.UCI: "uvci",
    HandleKind.COUNTRYCODEUCI: "country_uvci",
    HandleKind.SIGNATURE: "signature",
}
"""Which member of ``Handles`` has which kind."""


def handle(data: bytes) -> bytes:
    """Returns the handle of a text or signature."""
    return sha256(data).digest()[:HANDLE_BYTES]


def handles(issuer: str, document: dict[str, Any], algorithm: Algorithm, made: bytes) -> Handles:
    """Returns the handles of a certificate with this issuer, DCC and raw signature."""
    ours = made[: len(made) // 2] if algorithm is Algorithm.ES256 else made
    uvci = _uvci(document)
    if uvci is None:
        return Handles(bytes(HANDLE_BYTES), bytes(HANDLE_BYTES), handle(ours))
    return Handles(handle(uvci.encode()), handle((issuer + uvci).encode()), handle(ours))


def handles_of_signed(signed: bytes, algorithm: Algorithm, made: bytes) -> Handles:
    """Returns the handles for a Sig_structure that this appliance has made, and its signature."""
    claims = cbor2.loads(cbor2.loads(signed)[3])
    return handles(claims[1], claims[-260].get(1, {}), algorithm, made)


def handles_of_text(text: bytes) -> Handles:
    """Returns the handles of a certificate from its text; raises MessageError."""
    message = finished(text)
    if message is None or message.format is not Format.HCERT:
        raise MessageError("it is not the text of an HCERT")
    return handles_of_message(message, claims_of(message))


def revocation_batch(
    country: str, kid: bytes | None, expires: float, kind: HandleKind, entries: Sequence[bytes]
) -> bytes:
    """Returns a batch in JSON, in the members and the order of the EU's gateway.

    ``expires`` is in epoch seconds. Without ``kid``, that of the certificate that signed what
    is revoked, the batch is for any.
    """
    batch = {
        "country": country,
        "expires": utc(expires),
        "kid": _ANY_KID if kid is None else base64.b64encode(kid).decode(),
        "hashType": kind.value,
        "entries": [{"hash": base64.b64encode(entry).decode()} for entry in entries],
    }
    return json.dumps(batch, separators=(",", ":")).encode()


class RevocationBatch(NamedTuple):
    """A batch, read: the certificates of ``country`` that are revoked, by handles of one kind.

    Without ``kid`` it is for all of the country's certificates. ``expires`` is in epoch seconds.
    """

    country: str
    kid: bytes | None
    expires: float
    kind: HandleKind
    entries: frozenset[bytes]

    def has(self, issuer: str, kid: bytes, found: Handles) -> bool:
        """Whether it revokes a certificate with these handles; no ``kid``: it does not say one."""
        if issuer != self.country or (kid and self.kid not in {None, kid}):
            return False
        handle_of_kind: bytes = getattr(found, HANDLES[self.kind])
        return any(handle_of_kind) and handle_of_kind in self.entries


def read_batch(content: bytes) -> RevocationBatch:
    """Reads a batch in JSON as ``revocation_batch`` writes it; raises MessageError."""
    try:
        batch = json_object(content)
        country, kid, kind = batch["country"], batch["kid"], HandleKind(batch["hashType"])
        entries = frozenset(_decoded(entry["hash"]) for entry in batch["entries"])
        certificate = None if kid == _ANY_KID else _decoded(kid)
        expires = datetime.fromisoformat(batch["expires"])
    except (PayloadError, KeyError, TypeError, ValueError):
        raise MessageError(_NOT_A_LIST) from None
    if expires.tzinfo is None or any(len(entry) != HANDLE_BYTES for entry in entries):
        raise MessageError(_NOT_A_LIST)
    return RevocationBatch(str(country), certificate, expires.timestamp(), kind, entries)


def _decoded(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def handles_of_message(message: Finished, claims: Claims) -> Handles:
    """Returns the handles of an HCERT that has been read; raises MessageError."""
    algorithm = message.header().algorithm
    return handles(claims.issuer, claims.dcc, algorithm, message.signature)


def _uvci(document: dict[str, Any]) -> str | None:
    kind = dcc.type_of(document)
    match document.get(kind or ""):
        case [{"ci": str(uvci)}]:
            return uvci
    return None

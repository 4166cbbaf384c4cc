"""What formats depend on besides payloads: the policy's terms, the context, and what they return.

Times are seconds since the epoch in UTC.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from signer.algorithms import Algorithm
from signer.errors import Failure
from signer.model import KeyVersion


class HcertClaim(enum.StrEnum):
    """What a health certificate is about; ``formats.hcert_claims`` has the numbers."""

    DCC = "DCC"
    VHL = "VHL"
    DVC = "DVC"


def link_host(text: str) -> str:
    """Returns a host with its port in the form in which hosts of links are compared.

    That is lower case, without the dot of the DNS root, without 443, the port of https. Of a port
    that does not exist it is "".
    """
    host, _, port = text.lower().partition(":")
    number = int(port or 443)
    if not 0 < number < 65_536:
        return ""
    host = host.removesuffix(".")
    return host if number == 443 else f"{host}:{number}"


class PayloadFault(NamedTuple):
    """What of a payload breaks its schema: the dotted path of a member, and what is wrong."""

    member: str
    text: str


class ContentSchema(NamedTuple):
    """A JSON schema of the policy: ``fault`` returns what of a payload breaks it, or None."""

    name: str
    fault: Callable[[object], PayloadFault | None]


@dataclass(frozen=True, slots=True)
class ContentRules:
    """What HCERT and JWS payloads of a key must contain. None or empty: not restricted.

    ``countries`` and ``issuers``: allowed values of ``co`` and ``is`` in the entry; issuers are
    in NFC. ``certificate_types``: some of v, t, r. ``identifier_prefix``: ``ci`` (the UVCI)
    must begin with it. ``future_dates`` False refuses an event on a day that has not begun
    anywhere on Earth. ``required_members``: the JSON object of a JWS must have them.
    ``dcc_schema``: the published schema of DCCs is enforced. ``qr_level``: a QR code of this level
    (L, M, Q or H) must hold the text of an HCERT. ``claims``: what HCERTs may be about;
    ``link_hosts``: the hosts of links, ``schema``: that of DVCs.

    ``paths`` has the dotted paths of the rules that the policy states, by their names; of a
    required member by ``required_members.NAME``.
    """

    countries: frozenset[str] = frozenset()
    issuers: frozenset[str] = frozenset()
    certificate_types: frozenset[str] = frozenset()
    identifier_prefix: str | None = None
    future_dates: bool = True
    required_members: frozenset[str] = frozenset()
    dcc_schema: bool = False
    qr_level: str | None = None
    claims: frozenset[HcertClaim] = frozenset({HcertClaim.DCC})
    link_hosts: frozenset[str] = frozenset()
    schema: ContentSchema | None = None
    paths: Mapping[str, str] = field(default_factory=dict, compare=False)

    def path(self, name: str) -> str:
        """Returns the dotted path of a rule for errors, ``default.content.NAME`` if not stated."""
        return self.paths.get(name, f"default.content.{name}")


@dataclass(frozen=True, slots=True)
class HcertTerms:
    """``iss`` (ISO 3166 alpha-2 country) and validity in seconds of health certificates."""

    issuer: str
    validity: int


@dataclass(frozen=True, slots=True)
class ShcTerms:
    """``iss`` of SMART Health Cards, an https URL, and the types of card besides health-card."""

    issuer: str
    types: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class TimestampTerms:
    """The policy of time-stamps, an OID, and by how many seconds a time may be wrong."""

    policy: str
    accuracy: int


@dataclass(frozen=True, slots=True)
class CosignTerms:
    """Whose signed records must come with certificates, and what both must say.

    ``profiles`` are those of the facilities whose records count. ``members`` has for dotted
    paths of the certificate those of the record. ``rule`` is the dotted path of the rule.
    """

    profiles: frozenset[str]
    members: Mapping[str, str]
    rule: str


class Cosigner(NamedTuple):
    """A key that may be relied on: whether a signature over these bytes is by it."""

    algorithm: Algorithm
    correct: Callable[[bytes, bytes], bool]


class Cosigned(NamedTuple):
    """The signed records of a call, one for each payload.

    ``find`` returns the key for a key id of JWS, or says why no such key may be relied on.
    """

    terms: CosignTerms
    records: Sequence[bytes]
    find: Callable[[str], Cosigner | str]


@dataclass(frozen=True, slots=True)
class FormatContext:
    """All that a format depends on besides the payloads: same context, same bytes.

    ``first`` is the place in the call of the first payload. ``call_id`` is that of the call which
    was signed: no other has it.
    """

    version: KeyVersion
    now: int
    hcert: HcertTerms | None = None
    content: ContentRules = field(default_factory=ContentRules)
    shc: ShcTerms | None = None
    timestamp: TimestampTerms | None = None
    call_id: str = ""
    first: int = 0
    cosigned: Cosigned | None = None


HANDLE_BYTES = 16


class Handles(NamedTuple):
    """Under what one health certificate can be revoked, 16 bytes each.

    Zeros where it has no UVCI.
    """

    uvci: bytes
    country_uvci: bytes
    signature: bytes


class Enclosed(NamedTuple):
    """What a message contains that is not in the bytes to sign.

    ``certified``: it contains the certificate, too.
    """

    content: bytes
    certified: bool = False


class PreparedBatch(NamedTuple):
    """A batch ready for the HSM.

    ``to_sign[i]`` are the bytes to sign of item i, b"" if ``failures`` has i.
    ``prehashed``: they are digests already. ``enclosed``, of formats that sign only a digest of
    what they make, has one for each item.
    """

    to_sign: Sequence[bytes]
    failures: dict[int, Failure]
    prehashed: bool = False
    enclosed: Sequence[Enclosed] = ()

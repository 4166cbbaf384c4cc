"""Values that all layers share.

Times are seconds since the epoch in UTC; names are resource names of the API.
"""

from __future__ import annotations

import enum
import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

from signer.algorithms import Algorithm

MESSAGE_BYTES = 4 << 20
"""The largest request and answer: the default of `limits.message_bytes`, and gRPC's own."""
LARGEST_MESSAGE = 15 << 20
"""The most that `limits.message_bytes` may be: a frame to a worker holds one such payload."""

MAX_BATCH_ITEMS = 4096
"""Items of any batch at most: the API's own limit."""


class Format(enum.StrEnum):
    """What a payload is, and what is returned for it; ``formats`` has one file for each."""

    DIGEST = "DIGEST"
    MESSAGE = "MESSAGE"
    JWS = "JWS"
    COSE_SIGN1 = "COSE_SIGN1"
    HCERT = "HCERT"
    CMS = "CMS"
    TIMESTAMP = "TIMESTAMP"
    SHC = "SHC"
    CMS_DIGEST = "CMS_DIGEST"

    @classmethod
    def _missing_(cls, value: object) -> Format:
        raise ValueError(f"{value!r:.50} is not a format; the formats are {', '.join(cls)}")


class KeyState(enum.StrEnum):
    """States of a key version (NIST SP 800-57 part 1, section 7)."""

    PRE_ACTIVE = "PRE_ACTIVE"
    ACTIVE = "ACTIVE"
    SUSPENDED = "SUSPENDED"
    DEACTIVATED = "DEACTIVATED"
    COMPROMISED = "COMPROMISED"
    DESTROY_SCHEDULED = "DESTROY_SCHEDULED"
    DESTROYED = "DESTROYED"


class Scope(enum.StrEnum):
    """What a suspension stops, whatever the states of the keys."""

    EVERYTHING = "everything"
    GROUP = "group"
    FACILITY = "facility"


class Suspension(NamedTuple):
    """Stops all keys, a group's or a facility's; ``name`` is that of the group or facility."""

    scope: Scope
    name: str
    since: float
    officer: str
    reason: str

    def __str__(self) -> str:
        return f"{self.scope} {self.name}".strip()

    @property
    def target(self) -> str:
        """How an operation names it: ``everything``, ``groups/G`` or ``facilities/F``."""
        heads = {Scope.GROUP: "groups/", Scope.FACILITY: "facilities/"}
        return f"{heads[self.scope]}{self.name}" if self.scope in heads else str(self.scope)


class Act(NamedTuple):
    """What one officer stopped alone: ``act`` is suspend or compromised, ``id`` a UUID.

    ``target`` is a key, a version, or what a suspension names.
    """

    id: str
    act: str
    target: str
    officer: str
    reason: str
    at: float


@dataclass(frozen=True, slots=True)
class Suspended:
    """Which suspensions are in force: the reason for everything, or reasons by facility."""

    everything: str = ""
    facilities: Mapping[str, str] = field(default_factory=dict)

    def reason(self, facility: str) -> str:
        """Returns why a facility's keys may not sign; empty: they may. The audit key always may."""
        if facility == AUDIT_KEY.facility:
            return ""
        return self.everything or self.facilities.get(facility, "")


class Role(enum.StrEnum):
    """What a principal is allowed to do, apart from signing with single keys."""

    ISSUER = "issuer"
    OFFICER = "officer"
    AUDITOR = "auditor"
    OPERATOR = "operator"


# SPIFFE-ID, sections 2.1 to 2.3: a trust domain, and a path without empty or dotted segments.
_SPIFFE = re.compile(r"spiffe://[a-z0-9._-]{1,255}(?:/(?!\.{1,2}(?:/|\Z))[A-Za-z0-9._-]+)+")
_SPIFFE_BYTES = 2048  # the same, section 2.3


def is_principal(text: str) -> bool:
    """Whether a text is a SPIFFE URI, the whole of it: without patterns, queries or controls."""
    return len(text) <= _SPIFFE_BYTES and _SPIFFE.fullmatch(text) is not None


IDENTIFIER = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?")
"""Ids of facilities, groups, profiles and keys: 1 to 63 characters, lower case."""
_KEY_NAME = re.compile(f"facilities/({IDENTIFIER.pattern})/keys/({IDENTIFIER.pattern})")


class KeyName(NamedTuple):
    """``facilities/{facility}/keys/{key}``."""

    facility: str
    key: str

    def __str__(self) -> str:
        return f"facilities/{self.facility}/keys/{self.key}"

    @classmethod
    def parse(cls, name: str) -> KeyName:
        """Reads a resource name; raises ValueError that says what is expected."""
        if not (match := _KEY_NAME.fullmatch(name)):
            fault = _name_fault(name)
            raise ValueError("expected facilities/{facility}/keys/{key}" + (fault and f": {fault}"))
        return cls(match[1], match[2])


def _name_fault(name: str) -> str:
    """Says what keeps a text from being the name of a key, where that is a detail; else ""."""
    if name != name.strip():
        return "it begins or ends with a blank"
    if name.endswith("/"):
        return "it ends with a slash"
    if strange := re.search(r"[^a-z0-9._/-]", name):
        return f"it has {strange[0]!a}, and ids have only a-z, 0-9, '.', '_' and '-'"
    return ""


AUDIT_KEY = KeyName("_audit", "checkpoint")
"""Signs checkpoints of the audit log. No id begins with "_", so no request can name it."""


def parse_key_or_version(name: str) -> tuple[KeyName, int | None]:
    """Reads a key's or a version's resource name.

    Returns the key and the version's number, or None for the key itself.
    Raises ValueError that says what is expected.
    """
    head, separator, number = name.partition("/versions/")
    if separator and not re.fullmatch(r"[1-9][0-9]{0,8}", number):
        raise ValueError("expected facilities/{facility}/keys/{key}/versions/{n}, n from 1")
    return KeyName.parse(head), int(number) if separator else None


def version_name(key: KeyName, number: int) -> str:
    """Returns a version's resource name, as ``parse_key_or_version`` reads it."""
    return f"{key}/versions/{number}"


class Placement(NamedTuple):
    """Where the private key of a version is: the label of a token, and the CKA_ID there."""

    token: str
    cka_id: bytes


class Storage(enum.StrEnum):
    """Where the private keys of a profile are: in a token, or wrapped in the registry."""

    TOKEN = "token"  # noqa: S105 - no password
    WRAPPED = "wrapped"


class WrapMechanism(enum.StrEnum):
    """How a private key is wrapped: AES key wrap with padding (RFC 5649), by two names.

    A blob that was changed does not unwrap. Mechanisms without that are not used.
    """

    AES_KEY_WRAP_KWP = "AES_KEY_WRAP_KWP"
    AES_KEY_WRAP_PAD = "AES_KEY_WRAP_PAD"


class WrappedKey(NamedTuple):
    """The private key of a version, wrapped by a wrapping key of the HSM.

    ``sha256`` is that of the blob as the registry has it, ``wrapping_key`` the id of the wrapping
    key, which the tokens with the labels ``tokens`` hold. ``proof`` is what the key has signed
    when it was wrapped anew, empty if it was not (``signer.officers.possession``).
    """

    blob: bytes
    sha256: bytes
    mechanism: WrapMechanism
    wrapping_key: str
    tokens: tuple[str, ...] = ()
    proof: bytes = b""


class WrappingKey(NamedTuple):
    """A wrapping key on one token, by its id; ``created`` is in seconds since the epoch.

    ``revision`` is that of the registry when this was written.
    """

    id: str
    token: str
    created: float
    destroyed: bool = False
    revision: int = 0

    @property
    def cka_id(self) -> bytes:
        """The CKA_ID of the key on its token."""
        return wrapping_cka_id(self.id)


@lru_cache(maxsize=64)
def wrapping_cka_id(identity: str) -> bytes:
    """Returns the CKA_ID of the wrapping key with an id: the same on each token that holds it."""
    return hashlib.sha256(f"signer.v1 wrapping key\0{identity}".encode()).digest()[:16]


def wrapping_label(identity: str) -> str:
    """Returns the label of the wrapping key with an id on its tokens."""
    return f"signer wrapping {identity[:16]}"


@dataclass(frozen=True, slots=True)
class KeyVersion:
    """One version of a key as the registry knows it.

    ``spki`` is the pin: SubjectPublicKeyInfo in DER, with which signatures are checked.
    ``cka_id`` is the id of the private key on ``token`` (a label), where it was made;
    ``other_placements`` are where else it is. Where it is ``wrapped``, no token holds it: each
    token with the wrapping key can sign, and ``cka_id`` only names it. ``kid`` is the COSE key
    id, ``thumbprint`` the JWS key id (RFC 7638).

    ``activate_at``: it signs from then on. ``sign_until``: it may sign until then,
    whatever its certificate says. ``deactivate_at``: its overlap with its successor ends.
    ``destroy_at``: it is not destroyed before. ``came_from``: the state before
    DESTROY_SCHEDULED. ``request``: the certification request in PEM, if one was created.
    ``revision``: that of the registry when this was written.
    """

    key: KeyName
    number: int
    algorithm: Algorithm
    state: KeyState
    token: str
    cka_id: bytes
    spki: bytes
    certificate: bytes | None
    kid: bytes
    thumbprint: str
    created: float
    activate_at: float | None
    sign_until: float | None
    deactivate_at: float | None = None
    destroy_at: float | None = None
    came_from: KeyState | None = None
    request: str | None = None
    revision: int = field(default=0, compare=False)
    other_placements: tuple[Placement, ...] = ()
    wrapped: WrappedKey | None = None

    @property
    def name(self) -> str:
        return version_name(self.key, self.number)

    @property
    def placements(self) -> tuple[Placement, ...]:
        """Where its private key is, first the token on which it was made.

        Of a wrapped one, the tokens that can sign with it.
        """
        if self.wrapped is not None:
            return tuple(Placement(token, self.cka_id) for token in self.wrapped.tokens)
        return (Placement(self.token, self.cka_id), *self.other_placements)

    def cka_id_on(self, token: str) -> bytes | None:
        """Returns the CKA_ID of its private key on a token; None: it is not there."""
        if self.wrapped is not None:
            return self.cka_id if token in self.wrapped.tokens else None
        if token == self.token:  # nearly always: without a tuple for each part of a chunk
            return self.cka_id
        return next((cka_id for label, cka_id in self.other_placements if label == token), None)

    @property
    def compromised(self) -> bool:
        """Whether it is COMPROMISED, or was before its destruction was scheduled."""
        return KeyState.COMPROMISED in (self.state, self.came_from)

    @property
    def ends_at(self) -> float | None:
        """The time from which it no longer signs; None: no such time is set."""
        if self.sign_until is None or self.deactivate_at is None:  # faster than min() of a list
            return self.deactivate_at if self.sign_until is None else self.sign_until
        return min(self.sign_until, self.deactivate_at)

    def state_at(self, now: float) -> KeyState:
        """Returns the state in force, a function of the record and the clock.

        The clock activates and ends a version. It destroys nothing: a version with a
        ``destroy_at`` becomes DESTROY_SCHEDULED when it ends.
        """
        if self.state not in (KeyState.ACTIVE, KeyState.SUSPENDED):
            return self.state
        if self.state is KeyState.ACTIVE and (self.activate_at is None or now < self.activate_at):
            return KeyState.PRE_ACTIVE
        if self.ends_at is not None and now >= self.ends_at:
            return KeyState.DEACTIVATED if self.destroy_at is None else KeyState.DESTROY_SCHEDULED
        return self.state

    def active(self, now: float) -> bool:
        return self.state_at(now) is KeyState.ACTIVE


class TokenObject(NamedTuple):
    """A private key that a token holds."""

    cka_id: bytes
    label: str


def inventory_digest(keys: Iterable[TokenObject]) -> bytes:
    """Returns a digest of the keys on a token; their order does not matter."""
    lines = sorted(f"{key.cka_id.hex()} {key.label}" for key in keys)
    return hashlib.sha256("\n".join(lines).encode()).digest()

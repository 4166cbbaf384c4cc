"""Values that all layers share.

Times are seconds since the epoch in UTC; names are resource names of the API.
"""

from __future__ import annotations

import enum
import hashlib
import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

from signer.algorithms import Algorithm
from signer.errors import Failure

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


@dataclass(frozen=True, slots=True, order=True)
class KeyName:
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
    key, which the tokens with the labels ``tokens`` hold.
    """

    blob: bytes
    sha256: bytes
    mechanism: WrapMechanism
    wrapping_key: str
    tokens: tuple[str, ...] = ()


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


class KeyIndex:
    """All key versions at one revision of the registry; immutable, so threads may share it.

    ``revision`` is the registry's counter when they were read; equality covers it.
    ``complete``: no row of a version was left out because it cannot be read.
    """

    __slots__ = ("_by_key", "_by_thumbprint", "_keys", "_names", "complete", "revision")

    def __init__(self, versions: Iterable[KeyVersion] = (), revision: int = 0) -> None:
        self.revision, self.complete = revision, True
        by_key: dict[KeyName, dict[int, KeyVersion]] = {}
        self._by_thumbprint: dict[str, KeyVersion] = {}
        for version in versions:
            self._by_thumbprint[version.thumbprint] = version
            numbered = by_key.setdefault(version.key, {})
            if version.number in numbered:
                raise ValueError(f"two versions are named {version.name}")
            numbered[version.number] = version
        self._by_key = {key: dict(sorted(numbered.items())) for key, numbered in by_key.items()}
        self._keys = sorted(by_key, key=str)
        self._names = [str(key) for key in self._keys]

    def updated(
        self, changed: Iterable[KeyVersion], revision: int, *, complete: bool = True
    ) -> KeyIndex:
        """Returns an index with these versions added or replaced."""
        index = KeyIndex(changed, revision)
        index.complete = complete
        fresh = not index._by_key.keys() <= self._by_key.keys()
        for key, numbered in index._by_key.items():
            if key in self._by_key:
                index._by_key[key] = dict(sorted((self._by_key[key] | numbered).items()))
        index._by_key = self._by_key | index._by_key
        index._by_thumbprint = self._by_thumbprint | index._by_thumbprint
        index._keys = sorted(index._by_key, key=str) if fresh else self._keys
        index._names = [str(key) for key in index._keys] if fresh else self._names
        return index

    def changed_since(self, before: KeyIndex) -> Iterator[KeyVersion]:
        """Yields the versions that differ from those in an earlier index, or are new."""
        for key, numbered in self._by_key.items():
            if before._by_key.get(key) is numbered:
                continue  # shared by `updated`: nothing of this key has changed
            for number, version in numbered.items():
                if before.version(key, number) != version:
                    yield version

    def written_since(self, before: KeyIndex) -> Iterator[KeyVersion]:
        """Yields the versions with another revision than in an earlier index, also the same ones.

        Officers name the revision that they saw: it counts, whatever was written.
        """
        for key, numbered in self._by_key.items():
            if (earlier := before._by_key.get(key)) is None or earlier is numbered:
                continue
            for number, version in numbered.items():
                if number in earlier and version.revision != earlier[number].revision:
                    yield version

    def version(self, name: KeyName, number: int) -> KeyVersion | None:
        """Returns one version, whatever its state."""
        return self._by_key.get(name, {}).get(number)

    def by_thumbprint(self, thumbprint: str) -> KeyVersion | None:
        """Returns the version with a JWS key id, whatever its state."""
        return self._by_thumbprint.get(thumbprint)

    def versions(self, name: KeyName) -> tuple[KeyVersion, ...]:
        """Returns all versions of a key, oldest first; none of a key that does not exist."""
        return tuple(self._by_key.get(name, {}).values())

    def primary(self, name: KeyName, now: float) -> KeyVersion | None:
        """Returns the version that signs for the key at the time ``now``.

        It is the active one with the latest activation; of two at the same instant, the newer.
        """
        active = [v for v in self._by_key.get(name, {}).values() if v.active(now)]
        if len(active) > 1:
            return max(active, key=lambda v: (v.activate_at or 0.0, v.number))
        return active[0] if active else None

    def names(self, prefix: str = "", after: str = "", limit: int | None = None) -> list[KeyName]:
        """Returns up to ``limit`` names that start with ``prefix`` and come after ``after``.

        They are in the order of their text: the last name of a page is the ``after`` of the next.
        A prefix of one facility ends with a slash, or ``facilities/01`` matches 01-001 too.
        """
        start = max(bisect_left(self._names, prefix), bisect_right(self._names, after))
        # No name has a character above "z", so this is the end of the prefix's range.
        end = bisect_left(self._names, prefix + "\x7f")
        if limit is not None:
            end = min(end, start + limit)
        return self._keys[start:end]

    def by_key(self) -> Iterator[tuple[KeyName, Collection[KeyVersion]]]:
        """Returns each key with all its versions, oldest first."""
        return ((name, numbered.values()) for name, numbered in self._by_key.items())

    def __iter__(self) -> Iterator[KeyVersion]:
        for numbered in self._by_key.values():
            yield from numbered.values()

    def __len__(self) -> int:
        return sum(map(len, self._by_key.values()))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, KeyIndex):
            return NotImplemented
        return self.revision == other.revision and self._by_key == other._by_key

    __hash__ = None  # type: ignore[assignment]  # equality is by content, which is large


@dataclass(frozen=True, slots=True)
class ContentRules:
    """What HCERT and JWS payloads of a key must contain. None or empty: not restricted.

    ``countries`` and ``issuers``: allowed values of ``co`` and ``is`` in the entry; issuers are
    in NFC. ``certificate_types``: some of v, t, r. ``identifier_prefix``: ``ci`` (the UVCI)
    must begin with it. ``future_dates`` False refuses an event on a day that has not begun
    anywhere on Earth. ``required_members``: the JSON object of a JWS must have them.
    ``dcc_schema``: the published schema of DCCs is enforced. ``qr_level``: a QR code of this level
    (L, M, Q or H) must hold the text of an HCERT.

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


class TokenObject(NamedTuple):
    """A private key that a token holds."""

    cka_id: bytes
    label: str


def inventory_digest(keys: Iterable[TokenObject]) -> bytes:
    """Returns a digest of the keys on a token; their order does not matter."""
    lines = sorted(f"{key.cka_id.hex()} {key.label}" for key in keys)
    return hashlib.sha256("\n".join(lines).encode()).digest()

"""The values that everybody shares. This module imports nothing of ours but errors.

Times are seconds since the epoch in UTC; names are resource names of the API.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from signer.errors import Failure


class Algorithm(enum.StrEnum):
    """The closed list of signature algorithms; names as in JOSE (RFC 7518, RFC 8037)."""

    ES256 = "ES256"
    ES384 = "ES384"
    RS256 = "RS256"
    PS256 = "PS256"
    EDDSA = "EdDSA"

    @property
    def hash_name(self) -> str | None:
        """Name for hashlib, or None where the HSM takes the message itself."""
        return _HASHES[self]


_HASHES: Mapping[Algorithm, str | None] = {
    Algorithm.ES256: "sha256",
    Algorithm.ES384: "sha384",
    Algorithm.RS256: "sha256",
    Algorithm.PS256: "sha256",
    Algorithm.EDDSA: None,
}


class Format(enum.StrEnum):
    """What a payload is and what comes back for it (DESIGN section 7)."""

    DIGEST = "DIGEST"
    MESSAGE = "MESSAGE"
    JWS = "JWS"
    COSE_SIGN1 = "COSE_SIGN1"
    HCERT = "HCERT"


class KeyState(enum.StrEnum):
    """States of a key version (NIST SP 800-57 part 1, section 7)."""

    PRE_ACTIVE = "PRE_ACTIVE"
    ACTIVE = "ACTIVE"
    SUSPENDED = "SUSPENDED"
    DEACTIVATED = "DEACTIVATED"
    COMPROMISED = "COMPROMISED"
    DESTROY_SCHEDULED = "DESTROY_SCHEDULED"
    DESTROYED = "DESTROYED"


class Role(enum.StrEnum):
    """What a principal may be."""

    ISSUER = "issuer"
    OFFICER = "officer"
    AUDITOR = "auditor"
    OPERATOR = "operator"


IDENTIFIER = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?")
"""Ids of facilities and keys: 1 to 63 characters, lower case."""


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
        parts = name.split("/")
        if (
            len(parts) != 4
            or parts[0] != "facilities"
            or parts[2] != "keys"
            or not IDENTIFIER.fullmatch(parts[1])
            or not IDENTIFIER.fullmatch(parts[3])
        ):
            raise ValueError("expected facilities/{facility}/keys/{key}")
        return cls(parts[1], parts[3])


AUDIT_KEY = KeyName("_audit", "checkpoint")
"""Signs the audit log's checkpoints. No id begins with an underscore: nothing else can name it."""


def parse_key_or_version(name: str) -> tuple[KeyName, int | None]:
    """Reads a key's or a version's resource name.

    Returns the key and the version's number, or None for the key itself.
    Raises ValueError that says what is expected.
    """
    head, separator, number = name.partition("/versions/")
    if separator and not re.fullmatch(r"[1-9][0-9]{0,8}", number):
        raise ValueError("expected facilities/{facility}/keys/{key}/versions/{n}, n from 1")
    return KeyName.parse(head), int(number) if separator else None


@dataclass(frozen=True, slots=True)
class KeyVersion:
    """One version of a key as the registry knows it.

    ``spki`` is the pin: SubjectPublicKeyInfo in DER, against which signatures
    are checked. ``cka_id`` finds the private key on ``token`` (a label).
    ``kid`` is the COSE key id, ``thumbprint`` the JWS key id (RFC 7638).
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

    @property
    def name(self) -> str:
        return f"{self.key}/versions/{self.number}"

    def state_at(self, now: float) -> KeyState:
        """The state in force: a function of the record and the clock."""
        if self.state is not KeyState.ACTIVE:
            return self.state
        if self.activate_at is None or now < self.activate_at:
            return KeyState.PRE_ACTIVE
        if self.sign_until is not None and now >= self.sign_until:
            return KeyState.DEACTIVATED
        return KeyState.ACTIVE

    def active(self, now: float) -> bool:
        """Whether this version may sign at the time ``now``."""
        return self.state_at(now) is KeyState.ACTIVE


@dataclass(frozen=True, slots=True)
class ContentRules:
    """What a facility's HCERT and JSON payloads must be. None or empty: not restricted.

    ``countries`` and ``issuers`` are the allowed values of ``co`` and ``is`` of
    the entry; ``certificate_types`` are of v, t, r; ``identifier_prefix`` is what
    ``ci`` (the UVCI) starts with; ``future_dates`` False refuses a vaccination
    date that has begun nowhere on Earth; ``required_members`` are names of members that the
    JSON object of a JWS must have.
    """

    countries: frozenset[str] = frozenset()
    issuers: frozenset[str] = frozenset()
    certificate_types: frozenset[str] = frozenset()
    identifier_prefix: str | None = None
    future_dates: bool = True
    required_members: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class HcertTerms:
    """``iss`` (ISO 3166 alpha-2 country) and life in seconds of the certificates made."""

    issuer: str
    validity: int


@dataclass(frozen=True, slots=True)
class FormatContext:
    """All that formats depend on besides the payloads: same context, same bytes."""

    version: KeyVersion
    now: int
    hcert: HcertTerms | None = None
    content: ContentRules = field(default_factory=ContentRules)


class Prepared(NamedTuple):
    """A batch made ready for the HSM.

    ``to_sign[i]`` are the bytes to sign of item i, b"" where ``failures`` has i.
    ``prehashed``: they are digests already. ``carry`` is the format's own: what
    ``finish`` needs again.
    """

    to_sign: Sequence[bytes]
    failures: dict[int, Failure]
    carry: Sequence[object] = ()
    prehashed: bool = False


class MessageFormat(Protocol):
    """One format: pure functions from payloads to bytes to sign to finished messages."""

    def max_output(self, payloads: Sequence[bytes], context: FormatContext) -> int:
        """Upper bound in bytes of all outputs of the batch together."""

    def prepare(self, payloads: Sequence[bytes], context: FormatContext) -> Prepared:
        """Turns payloads into bytes to sign; what does not parse fails its item."""

    def finish(
        self, prepared: Prepared, signatures: Sequence[bytes], context: FormatContext
    ) -> list[bytes]:
        """Builds the outputs; an empty signature gives an empty output."""


@dataclass(frozen=True, slots=True)
class SignJob:
    """One batch for the HSM layer, in columns.

    ``inputs``: digests of the key's hash, or messages for EdDSA. ``owner`` shares
    the HSM fairly with other owners, ``weight`` times as fast as a weight of 1.
    ``check_every``: one signature in so many is checked with the pinned public
    key (1: every one). ``deadline`` is monotonic seconds.
    """

    version: KeyVersion
    inputs: Sequence[bytes]
    owner: str
    weight: int
    check_every: int
    deadline: float


class Signed(NamedTuple):
    """Raw signatures in the order of the inputs, b"" where ``failures`` has the index.

    ``attempts``: to how many workers the same item was given at most, one after
    the other; 0 where nothing reached an HSM.
    """

    signatures: list[bytes]
    failures: dict[int, Failure]
    attempts: int = 1

    @classmethod
    def all_failed(cls, job: SignJob, failure: Failure) -> Signed:
        """Returns a batch of which every item has failed alike."""
        count = len(job.inputs)
        return cls([b""] * count, dict.fromkeys(range(count), failure), 0)


class TokenAdmin(Protocol):
    """Administrative operations on one token, in a read-write session of their own."""

    @property
    def token(self) -> str:
        """The token's label."""

    def generate(self, algorithm: Algorithm, bits: int, cka_id: bytes, label: str) -> bytes:
        """Makes a key pair and returns its SubjectPublicKeyInfo in DER.

        ``bits`` is the length of an RSA modulus, 0 for every other algorithm.
        The private key is read back and compared with the strict template
        before this returns. Raises OperatorError where ``cka_id`` or ``label``
        is taken.
        """

    def sign(
        self, algorithm: Algorithm, cka_id: bytes, spki: bytes, inputs: Sequence[bytes]
    ) -> list[bytes]:
        """Signs digests of the key's hash (EdDSA: messages); returns raw signatures.

        Every signature is checked with ``spki``. Raises OperatorError.
        """

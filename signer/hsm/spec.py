"""What the front process and its workers must agree on about a token."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple


class WorkerMode(enum.StrEnum):
    """What a worker does with its token."""

    SIGN = "sign"
    ADMINISTER = "administer"  # create, read and destroy keys, in a read-write session
    LIST = "list"  # list all private keys, in the background
    MEASURE = "measure"  # measure what the token does, with objects of the session only
    INSPECT = "inspect"  # report what is seen without a login, then leave


class KeyLookup(enum.StrEnum):
    """How a worker finds the private key of a CKA_ID."""

    SEARCH = "search"  # by a search, when the key is first used
    INDEX = "index"  # in an index of all keys: where a search walks all objects of the token


@dataclass(frozen=True, slots=True)
class TokenSpec:
    """Which token a worker opens, and how. Paths are absolute; the PIN stays in its file."""

    label: str
    serial: str | None
    module: str
    pin_file: str
    state: str
    session_copies: bool
    environment: Mapping[str, str]
    key_lookup: KeyLookup = KeyLookup.SEARCH
    mode: WorkerMode = WorkerMode.SIGN


class PinState(enum.StrEnum):
    """What is known of the PIN in a token's file before it is tried."""

    ACCEPTED = "accepted"
    REJECTED = "rejected"
    UNTRIED = "untried"
    CONFIRMED = "confirmed"
    UNKNOWN = "unknown"


class SeenToken(NamedTuple):
    """A token that a module shows; ``flags`` are their names in PKCS#11, without CKF."""

    label: str
    serial: str
    flags: frozenset[str]


class TokenInspection(NamedTuple):
    """What is seen without a login; ``pin_problem`` says why nothing is known of the PIN."""

    tokens: tuple[SeenToken, ...]
    pin: PinState
    pin_problem: str


class FailureKind(enum.StrEnum):
    """Why a worker could not start or had to leave; also a metric's label."""

    CONFIGURATION = "configuration"
    AMBIGUOUS = "ambiguous"
    TOKEN_ABSENT = "token_absent"  # noqa: S105 - no password
    PIN_REJECTED = "pin_rejected"
    PIN_LATCHED = "pin_latched"
    PIN_DOUBTFUL = "pin_doubtful"
    PIN_LOCKED = "pin_locked"
    LOGIN_FAILED = "login_failed"  # by a code that does not name the PIN
    SESSION_LOST = "session_lost"
    BUSY = "busy"
    MODULE_FATAL = "module_fatal"
    HANG = "hang"
    DIED = "died"

    @property
    def ends_start(self) -> bool:
        """Whether the daemon must not listen: an operator has to change something first."""
        return self in (FailureKind.CONFIGURATION, FailureKind.AMBIGUOUS)

    @property
    def lasting(self) -> bool:
        """Whether another start fails alike: an operator or the token has to change first."""
        return self.ends_start or self.about_pin or self is FailureKind.TOKEN_ABSENT

    @property
    def about_pin(self) -> bool:
        """Whether the token does not serve because of its PIN."""
        return self in (
            FailureKind.PIN_REJECTED,
            FailureKind.PIN_LATCHED,
            FailureKind.PIN_DOUBTFUL,
            FailureKind.PIN_LOCKED,
        )


class HeldWrappingKey(NamedTuple):
    """What a token holds under the CKA_ID of a wrapping key.

    ``held`` is how many secret keys have it, ``wrong`` the attributes of the one that are not as
    a wrapping key has them.
    """

    held: int
    wrong: tuple[str, ...] = ()


class TokenFailure(Exception):
    """The token cannot be used, or cannot do one thing; ``kind`` says in which way.

    ``leave``: the session is in doubt, so that the worker must not go on. ``unsupported``:
    the token does not have the mechanism.
    """

    def __init__(
        self, kind: FailureKind, text: str, *, leave: bool = False, unsupported: bool = False
    ) -> None:
        self.kind = kind
        self.leave = leave
        self.unsupported = unsupported
        super().__init__(text)

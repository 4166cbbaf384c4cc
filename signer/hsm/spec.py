"""What the front process and its workers must agree on about a token."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol


class TokenSettings(Protocol):
    """A token's part of the configuration."""

    @property
    def label(self) -> str: ...
    @property
    def serial(self) -> str | None: ...
    @property
    def module(self) -> Path: ...
    @property
    def pin_file(self) -> Path: ...
    @property
    def session_copies(self) -> bool: ...
    @property
    def environment(self) -> Mapping[str, str]: ...


@dataclass(frozen=True, slots=True)
class TokenSpec:
    """Which token to open and how. Paths are absolute; the PIN stays in its file.

    ``look_only``: nobody logs in, see ``signer.hsm.worker.inspection``.
    """

    label: str
    serial: str | None
    module: str
    pin_file: str
    state: str
    session_copies: bool
    environment: Mapping[str, str]
    read_write: bool = False
    look_only: bool = False

    @classmethod
    def of(
        cls,
        settings: TokenSettings,
        state: Path,
        *,
        read_write: bool = False,
        look_only: bool = False,
    ) -> TokenSpec:
        """Takes what a worker needs from the configuration."""
        return cls(
            label=settings.label,
            serial=settings.serial,
            module=str(settings.module),
            pin_file=str(settings.pin_file),
            state=str(state),
            session_copies=settings.session_copies and not read_write,
            environment=dict(settings.environment),
            read_write=read_write,
            look_only=look_only,
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class PinState(enum.StrEnum):
    """What is known of the PIN in a token's file, before anybody tries it."""

    ACCEPTED = "accepted"
    REJECTED = "rejected"
    UNTRIED = "untried"
    CONFIRMED = "confirmed"
    UNKNOWN = "unknown"


class SeenToken(NamedTuple):
    """A token that a module shows; ``flags`` by their names in PKCS#11, without CKF."""

    label: str
    serial: str
    flags: frozenset[str]


class Sight(NamedTuple):
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
    SESSION_LOST = "session_lost"
    BUSY = "busy"
    MODULE_FATAL = "module_fatal"
    HANG = "hang"
    DIED = "died"

    @property
    def ends_start(self) -> bool:
        """Whether the daemon must not even listen: a person has to change something first."""
        return self in (FailureKind.CONFIGURATION, FailureKind.AMBIGUOUS)

    @property
    def lasting(self) -> bool:
        """Whether another start meets the same: a person or the token has to change first."""
        return self.ends_start or self.about_pin or self is FailureKind.TOKEN_ABSENT

    @property
    def about_pin(self) -> bool:
        """Whether the token's PIN keeps it from serving."""
        return self in (
            FailureKind.PIN_REJECTED,
            FailureKind.PIN_LATCHED,
            FailureKind.PIN_DOUBTFUL,
            FailureKind.PIN_LOCKED,
        )


class TokenFailure(Exception):  # noqa: N818 - it carries a kind of failure, not one error
    """The token cannot be used, or cannot do one thing; ``kind`` says in which way.

    ``leave``: the session is in doubt, so that the worker must not serve any longer.
    """

    def __init__(self, kind: FailureKind, text: str, *, leave: bool = False) -> None:
        self.kind = kind
        self.leave = leave
        super().__init__(text)

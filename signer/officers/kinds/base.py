"""What every kind of operation is made of.

A kind says four things of its details: what the appliance adds to what an officer
asked for, what is wrong with them, what they change, and how. The first three are
asked when an operation is proposed, the second again before it is executed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated, Any, Generic, Protocol, TypeVar

from pydantic import Field, ValidationError

from signer.clock import Clock
from signer.config.policy_documents import PolicyText
from signer.errors import OperatorError
from signer.keys.registry import RegistryState
from signer.keys.writing import Change
from signer.model import KeyName, KeyVersion, Suspension, TokenAdmin, parse_key_or_version
from signer.strict import StrictModel, problems_of

FACILITIES_SHOWN = 20
"""Lines of a difference for what is alike; the rest is counted."""


Moment = Annotated[int, Field(ge=0, le=32_503_680_000)]
"""Seconds since the epoch, up to the year 3000: milliseconds are told from them."""
Span = Annotated[int, Field(ge=0, le=3_155_760_000)]
"""Seconds, up to 100 years."""


class Details(StrictModel):
    """What an operation of some kind asks for."""


D = TypeVar("D", bound=Details)


class Problems(Exception):  # noqa: N818 - what is wrong with a proposal, all of it
    """Why an operation cannot be, a text each."""

    def __init__(self, *texts: str) -> None:
        self.texts = texts
        super().__init__("; ".join(texts))


@dataclass(frozen=True, slots=True)
class World:
    """All that operations depend on, at one moment.

    ``made_by`` is the id of the operation at work, empty while it is only proposed:
    what it made before an interruption is not in its own way. ``draft`` reads the policy
    that lies in the files, ``read_policy`` a policy's text; both raise ConfigError.
    ``needed`` is how many officers each kind needs.
    """

    now: float
    state: RegistryState
    policy: PolicyText
    tokens: tuple[str, ...]
    needed: Mapping[str, int]
    draft: Callable[[], PolicyText]
    read_policy: Callable[[bytes], PolicyText]
    document: Callable[[str], bytes | None]
    policy_folder: bool = True
    made_by: str = ""

    def version(self, name: str) -> KeyVersion:
        """Returns a version by its name; raises Problems."""
        key, number = _parsed(name)
        version = None if number is None else self.state.keys.version(key, number)
        if number is None:
            raise Problems(f"{name} is a key: name one version of it, as in {name}/versions/1")
        if version is None:
            raise Problems(f"{name} does not exist")
        return version

    def key(self, name: str) -> KeyName:
        """Returns a key's name; raises Problems where it is none."""
        key, number = _parsed(name)
        if number is not None:
            raise Problems(f"{name} is a version: name the key, {key}")
        return key

    def token(self, label: str) -> str:
        """Returns the token to use, the only one where none is said; raises Problems."""
        if not label and len(self.tokens) == 1:
            return self.tokens[0]
        if label not in self.tokens:
            raise Problems(*self.token_problems(label))
        return label

    def token_problems(self, label: str) -> list[str]:
        """Returns why an operation cannot use a token; ``token`` has filled in its label."""
        if label in self.tokens:
            return []
        return [f"token: name one of the tokens {', '.join(self.tokens)}"]

    def basis(self, key: KeyName) -> dict[str, str]:
        """Returns state and times of every version of a key: what officers looked at.

        With the revision that wrote it last: what comes back to a state is not what was.
        """
        return {each.name: self._seen(each) for each in self.state.keys.versions(key)}

    def _seen(self, version: KeyVersion) -> str:
        times = [(name, getattr(version, name)) for name in TIMES]
        told = [f"{name} {utc(time)}" for name, time in times if time is not None]
        changed = f"changed at revision {version.revision}"
        return ", ".join([str(version.state_at(self.now)), *told, changed])


TIMES = ("activate_at", "sign_until", "deactivate_at", "destroy_at")
"""What a version's record says of its life beside the state."""


def utc(time: float | None) -> str:
    """Returns a time for people."""
    return "none" if time is None else f"{datetime.fromtimestamp(time, UTC):%Y-%m-%dT%H:%M:%SZ}"


def _parsed(name: str) -> tuple[KeyName, int | None]:
    try:
        return parse_key_or_version(name)
    except ValueError as error:
        raise Problems(f"{name[:300]}: {error}") from None


@dataclass(slots=True)
class Effects:
    """What the last transaction of an operation writes, together with its end.

    ``waiting`` says for what; then the operation goes on later. Where ``policy_since`` or
    ``officers_since`` is given, all of it is refused if other revisions than these put
    policy and officers in force: somebody has decided otherwise since it was checked.
    """

    added: Sequence[KeyVersion] = ()
    changes: Sequence[Change] = ()
    officers: Mapping[str, bytes] | None = None
    lifted: Sequence[Suspension] = ()
    policy: bytes | None = None
    policy_since: int | None = None
    officers_since: int | None = None
    result: Mapping[str, Any] = field(default_factory=dict)
    waiting: str = ""


class StoppedError(Exception):
    """The daemon is stopping in the middle of an operation."""


class Work(Protocol):
    """What executing an operation may use."""

    @property
    def world(self) -> World: ...
    @property
    def id(self) -> str: ...
    @property
    def clock(self) -> Clock: ...
    def admin(self, token: str) -> AbstractContextManager[TokenAdmin]:
        """Opens an administrative worker that lives for this block."""

    def save(self, added: Sequence[KeyVersion], changes: Sequence[Change]) -> None:
        """Writes a part of what is done, in a transaction of its own."""

    def progress(self, done: int, total: int) -> None:
        """Tells how far it is."""

    def look(self) -> World:
        """Returns the world as it is now; making keys takes minutes."""

    def go_on(self) -> None:
        """Raises StoppedError where the daemon is stopping: the next start goes on."""


class Kind(ABC, Generic[D]):
    """One kind of operation. Methods raise Problems, OperatorError or ConfigError."""

    name: str
    details: type[D]
    names: str = ""
    """The member of the details that names a document by its SHA-256, if one does."""

    def complete(self, details: D, world: World, attachment: bytes) -> D:
        """Adds what the appliance knows; ``attachment`` is what an officer has sent along."""
        del world, attachment
        return details

    def problems(self, details: D, world: World) -> list[str]:
        """Returns what is wrong with it, now."""
        del details, world
        return []

    def check(self, details: D, world: World) -> None:
        """Raises Problems with everything that is wrong with it, now."""
        if problems := self.problems(details, world):
            raise Problems(*problems)

    def documents(self, details: D, world: World, attachment: bytes) -> list[bytes]:
        """Returns what is to be kept beside the proposal because it is named by hash."""
        del details, world
        if attachment:
            raise Problems(f"{self.name} takes no attachment")
        return []

    @abstractmethod
    def difference(self, details: D, world: World) -> list[str]:
        """Returns what it changes, a line each, for people."""

    @abstractmethod
    def execute(self, details: D, work: Work) -> Effects:
        """Does what needs the token; returns what the registry is to hold then.

        Repeating it finds what an interrupted attempt has made.
        """

    def read(self, members: Mapping[str, Any]) -> D:
        """Reads details from plain JSON values; raises Problems."""
        try:
            return self.details.model_validate(members)
        except ValidationError as error:
            texts = [f"{p.field or 'details'}: {p.description}" for p in problems_of(error, "")]
            raise Problems(*texts) from None


def found_problems(check: Callable[[], object]) -> list[str]:
    """Runs a check that raises; returns what it says, nothing where it passes."""
    try:
        check()
    except Problems as error:
        return list(error.texts)
    except OperatorError as error:
        return str(error).splitlines()
    return []


def shortened(lines: Sequence[str], what: str, most: int = FACILITIES_SHOWN) -> list[str]:
    """Returns the first lines, and how many more there are."""
    if len(lines) <= most:
        return list(lines)
    return [*lines[:most], f"... and {len(lines) - most} more {what}"]

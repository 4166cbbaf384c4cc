"""Every way a call or an item can fail, in one table.

A reason is what callers program against; its row says which gRPC code carries it,
whether a call or an item fails with it, and whether a retry can help.
The edge turns these values into ``google.rpc.Status``; no other package knows gRPC.
"""

import enum
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Self


class Code(enum.IntEnum):
    """The gRPC status codes we answer with (google/rpc/code.proto)."""

    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    INTERNAL = 13
    UNAVAILABLE = 14
    UNAUTHENTICATED = 16


class Extent(enum.Flag):
    """What a reason can apply to."""

    CALL = enum.auto()
    ITEM = enum.auto()
    BOTH = CALL | ITEM


class Reason(enum.StrEnum):
    """``ErrorInfo.reason`` of our errors: one row each.

    A row has the text, the gRPC code, what the reason can apply to, and whether the caller
    may simply retry.
    """

    code: Code
    scope: Extent
    retryable: bool

    def __new__(cls, text: str, *meaning: Any) -> Self:
        member = str.__new__(cls, text)
        member._value_ = text
        member.code, member.scope, member.retryable = meaning
        return member

    PEER_UNKNOWN = "PEER_UNKNOWN", Code.UNAUTHENTICATED, Extent.CALL, False
    POLICY_DENIED = "POLICY_DENIED", Code.PERMISSION_DENIED, Extent.CALL, False
    KEY_NOT_FOUND = "KEY_NOT_FOUND", Code.NOT_FOUND, Extent.CALL, False
    KEY_VERSION_NOT_ACTIVE = "KEY_VERSION_NOT_ACTIVE", Code.FAILED_PRECONDITION, Extent.BOTH, False
    KEY_VERSION_EXHAUSTED = "KEY_VERSION_EXHAUSTED", Code.FAILED_PRECONDITION, Extent.CALL, False
    FIELD_INVALID = "FIELD_INVALID", Code.INVALID_ARGUMENT, Extent.CALL, False
    QUOTA_EXCEEDED = "QUOTA_EXCEEDED", Code.RESOURCE_EXHAUSTED, Extent.CALL, True
    CLOSED_HOURS = "CLOSED_HOURS", Code.FAILED_PRECONDITION, Extent.CALL, False
    OVERLOADED = "OVERLOADED", Code.RESOURCE_EXHAUSTED, Extent.CALL, True
    DEADLINE_TOO_SHORT = "DEADLINE_TOO_SHORT", Code.DEADLINE_EXCEEDED, Extent.CALL, False
    PAYLOAD_INVALID = "PAYLOAD_INVALID", Code.INVALID_ARGUMENT, Extent.ITEM, False
    CONTENT_DENIED = "CONTENT_DENIED", Code.PERMISSION_DENIED, Extent.ITEM, False
    HSM_UNAVAILABLE = "HSM_UNAVAILABLE", Code.UNAVAILABLE, Extent.ITEM, True
    AUDIT_UNAVAILABLE = "AUDIT_UNAVAILABLE", Code.UNAVAILABLE, Extent.CALL, True
    CLOCK_DOUBTFUL = "CLOCK_DOUBTFUL", Code.UNAVAILABLE, Extent.CALL, True
    REQUEST_ID_REUSED = "REQUEST_ID_REUSED", Code.INVALID_ARGUMENT, Extent.CALL, False
    OPERATION_NOT_FOUND = "OPERATION_NOT_FOUND", Code.NOT_FOUND, Extent.CALL, False
    OPERATION_REFUSED = "OPERATION_REFUSED", Code.FAILED_PRECONDITION, Extent.CALL, False
    APPROVAL_INVALID = "APPROVAL_INVALID", Code.PERMISSION_DENIED, Extent.CALL, False
    REGISTRY_UNAVAILABLE = "REGISTRY_UNAVAILABLE", Code.UNAVAILABLE, Extent.CALL, True
    STREAM_ENDED = "STREAM_ENDED", Code.UNAVAILABLE, Extent.CALL, True
    INTERNAL = "INTERNAL", Code.INTERNAL, Extent.BOTH, False


CLIENT_LIMIT = "calls_per_client"
CLIENT_LIMITS = frozenset({CLIENT_LIMIT, "bytes_in_flight_per_client", "streams_per_client"})
"""``limit`` of an OVERLOADED that the caller alone causes."""


@dataclass(frozen=True, slots=True)
class Violation:
    """One bad field: its dotted path and what is wrong with it; "" stands for the whole."""

    field: str
    description: str

    def __str__(self) -> str:
        return f"{self.field}: {self.description}" if self.field else self.description


@dataclass(frozen=True, slots=True)
class Failure:
    """Why one item has no signature. The message never quotes the payload.

    ``rule`` is the dotted path of the rule that denies it, ``member`` that of the member of the
    payload that is wrong, as in ``v.0.dt``; "" if there is not one.
    """

    reason: Reason
    message: str
    retry_after: float | None = None
    rule: str = ""
    member: str = ""


@dataclass
class CallError(Exception):
    """Why a whole call is refused.

    ``message`` says what happened to what and what to do; ``metadata`` goes into
    ErrorInfo (the rule, or the limit of signer.yaml); ``retry_after`` is in seconds.
    """

    reason: Reason
    message: str
    metadata: Mapping[str, str] = field(default_factory=dict)
    retry_after: float | None = None
    violations: Sequence[Violation] = ()

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"


class ConfigError(Exception):
    """A configuration or policy that is refused as a whole.

    ``problems`` holds one dotted path and description for each thing wrong.
    """

    def __init__(self, source: str, problems: Sequence[Violation]) -> None:
        self.source = source
        self.problems = tuple(problems)
        lines = [f"{source} is refused:"]
        lines += [f"  {problem}" for problem in problems]
        super().__init__("\n".join(lines))


class OperatorError(Exception):
    """A command that cannot be carried out; the text names the cause and the remedy.

    ``unsupported``: the token does not have the mechanism.
    """

    def __init__(self, text: str, *, unsupported: bool = False) -> None:
        super().__init__(text)
        self.unsupported = unsupported

    def answer(self) -> CallError:
        """Returns the error of an officer's call that ends with this one; subclasses differ."""
        return CallError(Reason.OPERATION_REFUSED, str(self))


def clock_doubtful(doubt: str) -> CallError:
    """Returns the error of a call that is refused while the machine's clock is in doubt."""
    text = f"{doubt}: nothing is done until that is over or officers have confirmed the clock"
    return CallError(Reason.CLOCK_DOUBTFUL, text, retry_after=5.0)


@contextmanager
def answered() -> Iterator[None]:
    """Turns errors for operators that end an officer's call into CallError."""
    try:
        yield
    except OperatorError as error:
        raise error.answer() from error
    except ConfigError as error:
        raise CallError(Reason.OPERATION_REFUSED, str(error)) from error


def invalid(field_path: str, description: str) -> CallError:
    """Returns the error for one bad field of a request."""
    return CallError(
        Reason.FIELD_INVALID,
        f"{field_path}: {description}",
        violations=(Violation(field_path, description),),
    )

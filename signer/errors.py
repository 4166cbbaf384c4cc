"""Every way a call or an item can fail, in one table.

A reason is what callers program against; ``TABLE`` says which gRPC code carries
it, whether a call or an item fails with it, and whether a retry can help.
The edge turns these values into ``google.rpc.Status``; no other package knows gRPC.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field


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


class Reason(enum.StrEnum):
    """``ErrorInfo.reason`` of our errors."""

    PEER_UNKNOWN = "PEER_UNKNOWN"
    POLICY_DENIED = "POLICY_DENIED"
    KEY_NOT_FOUND = "KEY_NOT_FOUND"
    KEY_VERSION_NOT_ACTIVE = "KEY_VERSION_NOT_ACTIVE"
    FIELD_INVALID = "FIELD_INVALID"
    QUOTA_EXCEEDED = "QUOTA_EXCEEDED"
    CLOSED_HOURS = "CLOSED_HOURS"
    OVERLOADED = "OVERLOADED"
    DEADLINE_TOO_SHORT = "DEADLINE_TOO_SHORT"
    PAYLOAD_INVALID = "PAYLOAD_INVALID"
    CONTENT_DENIED = "CONTENT_DENIED"
    HSM_UNAVAILABLE = "HSM_UNAVAILABLE"
    AUDIT_UNAVAILABLE = "AUDIT_UNAVAILABLE"
    REQUEST_ID_REUSED = "REQUEST_ID_REUSED"
    OPERATION_NOT_FOUND = "OPERATION_NOT_FOUND"
    OPERATION_REFUSED = "OPERATION_REFUSED"
    APPROVAL_INVALID = "APPROVAL_INVALID"
    REGISTRY_UNAVAILABLE = "REGISTRY_UNAVAILABLE"
    INTERNAL = "INTERNAL"


class Extent(enum.Flag):
    """What a reason can apply to."""

    CALL = enum.auto()
    ITEM = enum.auto()


@dataclass(frozen=True, slots=True)
class Meaning:
    """How a reason is carried, and whether the caller may simply retry."""

    code: Code
    scope: Extent
    retryable: bool = False


TABLE: Mapping[Reason, Meaning] = {
    Reason.PEER_UNKNOWN: Meaning(Code.UNAUTHENTICATED, Extent.CALL),
    Reason.POLICY_DENIED: Meaning(Code.PERMISSION_DENIED, Extent.CALL),
    Reason.KEY_NOT_FOUND: Meaning(Code.NOT_FOUND, Extent.CALL),
    Reason.KEY_VERSION_NOT_ACTIVE: Meaning(Code.FAILED_PRECONDITION, Extent.CALL | Extent.ITEM),
    Reason.FIELD_INVALID: Meaning(Code.INVALID_ARGUMENT, Extent.CALL),
    Reason.QUOTA_EXCEEDED: Meaning(Code.RESOURCE_EXHAUSTED, Extent.CALL, retryable=True),
    Reason.CLOSED_HOURS: Meaning(Code.FAILED_PRECONDITION, Extent.CALL),
    Reason.OVERLOADED: Meaning(Code.RESOURCE_EXHAUSTED, Extent.CALL, retryable=True),
    Reason.DEADLINE_TOO_SHORT: Meaning(Code.DEADLINE_EXCEEDED, Extent.CALL),
    Reason.PAYLOAD_INVALID: Meaning(Code.INVALID_ARGUMENT, Extent.ITEM),
    Reason.CONTENT_DENIED: Meaning(Code.PERMISSION_DENIED, Extent.ITEM),
    Reason.HSM_UNAVAILABLE: Meaning(Code.UNAVAILABLE, Extent.ITEM, retryable=True),
    Reason.AUDIT_UNAVAILABLE: Meaning(Code.UNAVAILABLE, Extent.CALL, retryable=True),
    Reason.REQUEST_ID_REUSED: Meaning(Code.INVALID_ARGUMENT, Extent.CALL),
    Reason.OPERATION_NOT_FOUND: Meaning(Code.NOT_FOUND, Extent.CALL),
    Reason.OPERATION_REFUSED: Meaning(Code.FAILED_PRECONDITION, Extent.CALL),
    Reason.APPROVAL_INVALID: Meaning(Code.PERMISSION_DENIED, Extent.CALL),
    Reason.REGISTRY_UNAVAILABLE: Meaning(Code.UNAVAILABLE, Extent.CALL, retryable=True),
    Reason.INTERNAL: Meaning(Code.INTERNAL, Extent.CALL | Extent.ITEM),
}


CLIENT_LIMIT = "calls_per_client"
"""``limit`` in the metadata of an OVERLOADED that the caller alone causes."""


@dataclass(frozen=True, slots=True)
class Violation:
    """One bad field: its dotted path and what is wrong with it."""

    field: str
    description: str


@dataclass(frozen=True, slots=True)
class Failure:
    """Why one item has no signature. The message never quotes the payload."""

    reason: Reason
    message: str
    retry_after: float | None = None


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
        lines += [f"  {p.field}: {p.description}".replace("  : ", "  ") for p in problems]
        super().__init__("\n".join(lines))


class OperatorErrorKind(enum.StrEnum):
    """The kinds of OperatorError that callers handle differently."""

    OTHER = "other"
    UNSUPPORTED = "unsupported"  # the token does not have the mechanism


class OperatorError(Exception):
    """A command that cannot be carried out; the text names the cause and the remedy."""

    def __init__(self, text: str, kind: OperatorErrorKind = OperatorErrorKind.OTHER) -> None:
        super().__init__(text)
        self.kind = kind

    def answer(self) -> CallError:
        """Returns the error of an officer's call that ends with this one."""
        return CallError(Reason.OPERATION_REFUSED, str(self))


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

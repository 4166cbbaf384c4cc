"""What the client raises: one tree by gRPC code, one place that reads google.rpc.Status."""

from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from functools import partial
from typing import Any

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from signer.errors import Code, Reason, Violation

DOMAIN = "signer.v1"
"""``ErrorInfo.domain`` of the appliance; reasons of other domains are ignored."""
CLOSED = "CLOSED"
"""The reason of calls on a client that its own program closed."""
_LOST = (Code.UNAVAILABLE.name, grpc.StatusCode.CANCELLED.name)


class SignerClientError(Exception):
    """A call that failed as a whole, or (``ItemError``) one item of a call.

    ``code`` is the name of the gRPC code; ``reason`` is the appliance's reason (the
    table in docs/errors.md), or ``code`` again where the failure is not the
    appliance's (connection, TLS, limits of gRPC). ``message`` says what to do;
    ``metadata`` may name the rule; ``retry_after`` is in seconds; ``violations``
    lists bad fields; ``retryable``: the same call may succeed later.
    """

    def __init__(
        self,
        code: str,
        reason: str,
        message: str,
        *,
        metadata: Mapping[str, str] | None = None,
        retry_after: float | None = None,
        violations: Sequence[Violation] = (),
    ) -> None:
        super().__init__(f"{reason}: {message}")
        self.code = code
        self.reason = reason
        self.message = message
        self.metadata = dict(metadata or {})
        self.retry_after = retry_after
        self.violations = tuple(violations)
        self.retryable = is_retryable(code, reason)

    def __reduce__(self) -> tuple[Any, ...]:
        """Makes the same error again: for another process, or for another caller of a call."""
        details: dict[str, Any] = {
            "metadata": self.metadata,
            "retry_after": self.retry_after,
            "violations": self.violations,
        }
        return partial(type(self), **details), (self.code, self.reason, self.message)


class ItemError(SignerClientError):
    """Why one item has no signature: ``ItemResult.error``, and what ``sign_one`` raises.

    The other items of its call are not affected.
    """


class InvalidRequestError(SignerClientError):
    """INVALID_ARGUMENT: correct the request; ``violations`` names the fields."""


class UnauthenticatedError(SignerClientError):
    """UNAUTHENTICATED: the policy does not name the URI of this certificate."""


class DeniedError(SignerClientError):
    """PERMISSION_DENIED: the policy forbids it; ``metadata`` names the rule."""


class NotFoundError(SignerClientError):
    """NOT_FOUND: the call is allowed, but the key or version does not exist."""


class PreconditionError(SignerClientError):
    """FAILED_PRECONDITION: the version is not active, or it is outside opening hours."""


class ExhaustedError(SignerClientError):
    """RESOURCE_EXHAUSTED: over the quota, or the appliance is overloaded."""


class UnavailableError(SignerClientError):
    """UNAVAILABLE: no connection (TLS included), or the appliance cannot sign now."""


class DeadlineError(SignerClientError):
    """DEADLINE_EXCEEDED: no answer in time, or the time-out was too short."""


class InternalError(SignerClientError):
    """INTERNAL: a bug of the appliance; report the request id in the message."""


ERRORS: Mapping[Code, type[SignerClientError]] = {
    Code.INVALID_ARGUMENT: InvalidRequestError,
    Code.DEADLINE_EXCEEDED: DeadlineError,
    Code.NOT_FOUND: NotFoundError,
    Code.PERMISSION_DENIED: DeniedError,
    Code.RESOURCE_EXHAUSTED: ExhaustedError,
    Code.FAILED_PRECONDITION: PreconditionError,
    Code.INTERNAL: InternalError,
    Code.UNAVAILABLE: UnavailableError,
    Code.UNAUTHENTICATED: UnauthenticatedError,
}


_KINDS = {int(code): kind for code, kind in ERRORS.items()}
_CODES: Mapping[int, str] = {code.value[0]: code.name for code in grpc.StatusCode}


def is_retryable(code: str, reason: str) -> bool:
    """Whether the same call or item may succeed later.

    Reasons unknown to this release, and failures of the connection, are retryable
    by their gRPC code: UNAVAILABLE, and CANCELLED, with which a stopping daemon ends
    calls that have just arrived and calls that outlast its drain. Items of the latter may
    be recorded as signed, and counted, although their signatures were not delivered.
    """
    if reason in Reason.__members__:
        return Reason(reason).retryable
    return code in _LOST and reason != CLOSED


_Details = tuple[str | None, Mapping[str, str], float | None, tuple[Violation, ...]]
"""Reason (None: not from the appliance), metadata, retry_after and violations."""


def _read_details(details: Iterable[AnyMessage]) -> _Details:
    """Reads the error details that the appliance sends (google/rpc/error_details.proto)."""
    reason, metadata, retry_after = None, dict[str, str](), None
    violations: tuple[Violation, ...] = ()
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    bad = error_details_pb2.BadRequest()
    for detail in details:
        if detail.Unpack(info) and info.domain == DOMAIN:
            reason, metadata = info.reason, dict(info.metadata)
        elif detail.Unpack(retry):
            retry_after = retry.retry_delay.ToMilliseconds() / 1000
        elif detail.Unpack(bad):
            violations = tuple(Violation(v.field, v.description) for v in bad.field_violations)
    return reason, metadata, retry_after, violations


def closed(error: BaseException) -> UnavailableError:
    """Returns the failure of a call whose channel was closed by its own program."""
    return UnavailableError("CANCELLED", CLOSED, str(error))


def ended(text: str) -> UnavailableError:
    """Returns the failure of items without an answer, which may be sent again."""
    return UnavailableError(Code.UNAVAILABLE.name, Code.UNAVAILABLE.name, text)


def from_rpc_error(error: grpc.RpcError) -> SignerClientError:
    """Converts an error that a stub raised."""
    if not isinstance(error, grpc.Call | grpc.aio.AioRpcError):  # closed during the call
        return closed(error)
    try:
        status = rpc_status.from_call(error)  # type: ignore[arg-type]  # has all it needs
    except ValueError:  # trailers that contradict the status are not from the appliance
        status = None
    code = error.code()
    text = error.details() or "the server gave no text"
    return _from_details(code.value[0], text, status.details if status else ())


def _from_details(number: int, text: str, details: Iterable[AnyMessage]) -> SignerClientError:
    code = _CODES.get(number, "UNKNOWN")
    reason, metadata, retry_after, violations = _read_details(details)
    kind = _KINDS.get(number, SignerClientError)
    return kind(
        code,
        reason or code,
        text,
        metadata=metadata,
        retry_after=retry_after,
        violations=violations,
    )


def from_status(status: status_pb2.Status) -> ItemError:
    """Converts the ``google.rpc.Status`` of an item."""
    return of_call(_from_details(status.code, status.message, status.details))


def from_call_status(status: status_pb2.Status) -> SignerClientError:
    """Converts the ``google.rpc.Status`` of a request of a stream that failed as a whole."""
    return _from_details(status.code, status.message, status.details)


def of_call(error: SignerClientError) -> ItemError:
    """Returns the failure of a call as that of one of its items."""
    return ItemError(
        error.code,
        error.reason,
        error.message,
        metadata=error.metadata,
        retry_after=error.retry_after,
    )


def for_each(error: Exception) -> Exception:
    """Returns an error of a call for one more of its callers: each raises one of its own."""
    if not isinstance(error, SignerClientError):
        return error
    made = copy(error)
    made.__cause__ = error.__cause__
    return made


def late(timeout: float) -> DeadlineError:
    """Returns the failure of an item that was not answered within ``timeout`` seconds."""
    code = Code.DEADLINE_EXCEEDED.name
    return DeadlineError(code, code, f"no answer within {timeout:g} s")

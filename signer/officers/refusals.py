"""What officers hear when something is refused, in the words of the error table."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from signer.errors import CallError, ConfigError, OperatorError, Reason, invalid
from signer.keys.database import RegistryError
from signer.officers.approval import ApprovalError
from signer.officers.kinds.base import Problems
from signer.officers.store import Operation

MAX_REASON = 1000
"""Bytes of what an officer says to the others."""


def check_reason(reason: str) -> None:
    """Raises CallError where an officer says nothing, or too much."""
    if not reason.strip() or len(reason.encode()) > MAX_REASON:
        raise invalid("reason", f"say why, in 1 to {MAX_REASON} bytes")


@contextmanager
def answered() -> Iterator[None]:
    """Turns what goes wrong inside into what the caller hears."""
    try:
        yield
    except ApprovalError as error:
        raise not_signed(str(error)) from None
    except RegistryError as error:
        text = "the registry does not answer: nothing was changed; try again"
        raise CallError(Reason.REGISTRY_UNAVAILABLE, text, retry_after=5.0) from error
    except Problems as error:
        raise refused("; ".join(error.texts[:10])) from None
    except (OperatorError, ConfigError) as error:
        raise refused(str(error)) from None


def found(operation: Operation | None) -> Operation:
    if operation is None:
        raise CallError(
            Reason.OPERATION_NOT_FOUND, "there is no such operation: list them to find its id"
        )
    return operation


def refused(text: str) -> CallError:
    return CallError(Reason.OPERATION_REFUSED, text)


def not_signed(text: str) -> CallError:
    return CallError(Reason.APPROVAL_INVALID, text)

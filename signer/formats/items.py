"""What all formats share: items are independent, and one that is refused says why."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from signer.errors import Failure, Reason
from signer.model import Prepared


class ItemError(Exception):
    """Refuses one item. The message names a member or a rule, never a value of the payload."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.failure = Failure(reason, message)


def unreadable(message: str) -> ItemError:
    """Returns the error for a payload that is not what its format says."""
    return ItemError(Reason.PAYLOAD_INVALID, message)


def denied(message: str) -> ItemError:
    """Returns the error for a payload whose content breaks a rule."""
    return ItemError(Reason.CONTENT_DENIED, message)


def prepare_each(payloads: Sequence[bytes], prepare: Callable[[bytes], bytes]) -> Prepared:
    """Prepares item by item; an ItemError fails its own item and no other."""
    to_sign: list[bytes] = []
    failures: dict[int, Failure] = {}
    for index, payload in enumerate(payloads):
        try:
            to_sign.append(prepare(payload))
        except ItemError as error:
            to_sign.append(b"")
            failures[index] = error.failure
    return Prepared(to_sign, failures)


def finish_each(
    prepared: Prepared, signatures: Sequence[bytes], finish: Callable[[bytes, bytes], bytes]
) -> list[bytes]:
    """Builds the outputs from the bytes signed and their signatures; none gives b""."""
    return [
        finish(signed, signature) if signature else b""
        for signed, signature in zip(prepared.to_sign, signatures, strict=True)
    ]

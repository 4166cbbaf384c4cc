"""What ``SignerClient.operations`` returns, and how it is read from the API's messages."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple

from signer.client._values import reader
from signer.v1 import operations_pb2


class Prepared(NamedTuple):
    """A prepared operation: the bytes to sign, and what it changes, one line each.

    ``content`` is b"" where there are ``problems``.
    """

    content: bytes
    difference: tuple[str, ...]
    problems: tuple[str, ...]


class OfficerSignature(NamedTuple):
    """One officer's signature over an operation; ``signed``: when the appliance received it."""

    officer: str
    signature: bytes
    signed: datetime | None


class Operation(NamedTuple):
    """One operation.

    ``state`` is PROPOSED, APPROVED, EXECUTING, WAITING (for certificates), DONE, FAILED,
    REJECTED or EXPIRED, or that of a newer server. ``officers`` is how many must sign, the
    proposer included. ``done`` counts the finished steps of ``total``, which is 0 before it
    begins. ``note`` says why it failed or was rejected, or what it waits for. ``content``
    and ``difference`` come only from ``get``; ``result`` is None before its end.
    """

    id: str
    kind: str
    state: str
    proposer: str
    proposed: datetime | None
    expires: datetime | None
    officers: int
    signatures: tuple[OfficerSignature, ...]
    content: bytes
    difference: tuple[str, ...]
    done: int
    total: int
    note: str
    result: Mapping[str, Any] | None
    changed: datetime | None


class Officer(NamedTuple):
    """An officer, and the certificate (DER) whose key signs operations."""

    principal: str
    certificate: bytes


class Officers(NamedTuple):
    """The officers, how many each kind of operation needs, and the log's origin."""

    officers: tuple[Officer, ...]
    needed: Mapping[str, int]
    origin: str


class Suspension(NamedTuple):
    """What is stopped: ``scope`` is "everything", "group" or "facility"."""

    scope: str
    name: str
    since: datetime | None
    officer: str
    reason: str


read_prepared = reader(Prepared, operations_pb2.PrepareOperationResponse)
read_operation = reader(
    Operation,
    operations_pb2.Operation,
    proposed="propose_time",
    expires="expire_time",
    signatures=reader(OfficerSignature, operations_pb2.OfficerSignature, signed="sign_time"),
    result=lambda text: json.loads(text) if text else None,
    changed="change_time",
)
read_suspension = reader(Suspension, operations_pb2.Suspension, since="begin_time")
_read_officer = reader(Officer, operations_pb2.Officer)


def read_officers(message: operations_pb2.ListOfficersResponse) -> Officers:
    return Officers(
        tuple(map(_read_officer, message.officers)), dict(message.needed), message.origin
    )

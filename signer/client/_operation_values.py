"""What ``SignerClient.operations`` returns, and the reading of it from the API's messages."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple

from signer.client._values import read_enum, read_time
from signer.v1 import operations_pb2


class Prepared(NamedTuple):
    """What an operation would be: the bytes to sign, and what it changes, a line each.

    ``content`` is b"" where there are ``problems``.
    """

    content: bytes
    difference: tuple[str, ...]
    problems: tuple[str, ...]


class OfficerSignature(NamedTuple):
    """One officer's signature over an operation; ``signed`` is when the appliance got it."""

    officer: str
    signature: bytes
    signed: datetime | None


class Operation(NamedTuple):
    """One operation.

    ``state`` is a name of ``signer.officers.store.State``, or a newer server's own.
    ``officers`` is how many must sign, the proposer among them. ``done`` steps of
    ``total``, which is 0 before it begins. ``note`` says why it failed, was rejected, or
    what it waits for. ``content`` and ``difference`` come only from ``get``; ``result``
    is None before its end.
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


def read_prepared(message: operations_pb2.PrepareOperationResponse) -> Prepared:
    return Prepared(message.content, tuple(message.difference), tuple(message.problems))


def read_operation(message: operations_pb2.Operation) -> Operation:
    return Operation(
        message.id,
        message.kind,
        read_enum(operations_pb2.OperationState, message.state, "OPERATION_STATE_"),
        message.proposer,
        read_time(message.propose_time, message.HasField("propose_time")),
        read_time(message.expire_time, message.HasField("expire_time")),
        message.officers,
        tuple(
            OfficerSignature(
                s.officer, s.signature, read_time(s.sign_time, s.HasField("sign_time"))
            )
            for s in message.signatures
        ),
        message.content,
        tuple(message.difference),
        message.done,
        message.total,
        message.note,
        json.loads(message.result) if message.result else None,
        read_time(message.change_time, message.HasField("change_time")),
    )


def read_officers(message: operations_pb2.ListOfficersResponse) -> Officers:
    return Officers(
        tuple(Officer(each.principal, each.certificate) for each in message.officers),
        dict(message.needed),
        message.origin,
    )


def read_suspension(message: operations_pb2.Suspension) -> Suspension:
    return Suspension(
        message.scope,
        message.name,
        read_time(message.begin_time, message.HasField("begin_time")),
        message.officer,
        message.reason,
    )

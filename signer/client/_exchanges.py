"""The calls of the API as data: what is sent, and how the answer is read.

A function here returns an ``Exchange`` for its arguments. ``asked`` makes a method of a
class of blocking calls of it, ``awaited`` a coroutine method; ``paged`` and ``iterated`` do
the same for calls whose answers come in pages. ``timeout`` is in seconds everywhere, for
lists it is for each page.
"""

from collections.abc import Callable, Iterable, Mapping
from operator import attrgetter
from typing import Any, Generic, NamedTuple, TypeVar

from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.wrappers_pb2 import Int32Value, StringValue

from signer.client._values import (
    Key,
    KeyVersion,
    LogRecord,
    Reloaded,
    Status,
    WrappingKey,
    read_key,
    read_key_version,
    read_log_record,
    read_reloaded,
    read_status,
    read_wrapping_key,
)
from signer.v1 import control_pb2, evidence_pb2, keys_pb2, operations_pb2, signing_pb2

DEFAULT_TIMEOUT = 30.0
"""Seconds; the appliance's own bound of a call without a deadline."""

PAGE_SIZE = 500

_HEALTH = ("UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN")  # grpc.health.v1, by number

T = TypeVar("T")


class Exchange(NamedTuple, Generic[T]):
    """One call. ``patient``: it is repeated while the appliance says when to come back."""

    request: Message
    read: Callable[[Any], T]
    timeout: float
    patient: bool = False


class Listing(NamedTuple, Generic[T]):
    """Calls for one page after the other; ``items`` is the member that a page has them in."""

    request: Any
    items: str
    read: Callable[[Any], T]
    timeout: float
    patient: bool = False


def methods(channel: Any) -> Mapping[type[Message], Callable[..., Any]]:
    """Returns the unary methods of a channel, blocking or not, by the type of their request."""
    found: dict[type[Message], Callable[..., Any]] = {
        # HealthCheckRequest and HealthCheckResponse of grpc.health.v1 have one field each, as
        # the wrappers do: their bytes are the same, and the client needs no other package.
        StringValue: channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=StringValue.SerializeToString,
            response_deserializer=Int32Value.FromString,
        )
    }
    for file in (signing_pb2, keys_pb2, evidence_pb2, control_pb2, operations_pb2):
        for service in file.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                if not method.client_streaming:
                    request = GetMessageClass(method.input_type)
                    found[request] = channel.unary_unary(
                        f"/{service.full_name}/{method.name}",
                        request_serializer=request.SerializeToString,
                        response_deserializer=GetMessageClass(method.output_type).FromString,
                    )
    return found


def span_name(request: Message) -> str:
    """Returns the name of a call's span: that of its method."""
    if isinstance(request, StringValue):
        return "HealthCheck"
    return type(request).__name__.removesuffix("Request")


def get_key(name: str, *, timeout: float = DEFAULT_TIMEOUT) -> Exchange[Key]:
    """Returns a key with its primary version and what the caller may do with it."""
    request = keys_pb2.GetKeyRequest(name=name)
    return Exchange(request, lambda answer: read_key(answer.key), timeout)


def list_keys(parent: str = "", *, timeout: float = DEFAULT_TIMEOUT) -> Listing[Key]:
    """Yields the keys of ``facilities/{facility}``, or all visible ones, by name."""
    return Listing(
        keys_pb2.ListKeysRequest(parent=parent, page_size=PAGE_SIZE), "keys", read_key, timeout
    )


def get_key_version(name: str, *, timeout: float = DEFAULT_TIMEOUT) -> Exchange[KeyVersion]:
    """Returns one version, ``…/versions/{n}``, with its public key and certificate."""
    request = keys_pb2.GetKeyVersionRequest(name=name)
    return Exchange(request, lambda answer: read_key_version(answer.key_version), timeout)


def list_key_versions(parent: str = "", *, timeout: float = DEFAULT_TIMEOUT) -> Listing[KeyVersion]:
    """Yields the versions of a key, of a facility, or all that the caller may see.

    In the order of their keys' names, the oldest of a key first; without
    ``certification_request``. ``timeout`` is for each page.
    """
    request = keys_pb2.ListKeyVersionsRequest(parent=parent, page_size=PAGE_SIZE)
    return Listing(request, "key_versions", read_key_version, timeout)


def list_wrapping_keys(*, timeout: float = DEFAULT_TIMEOUT) -> Exchange[list[WrappingKey]]:
    """Returns all wrapping keys, the newest first (for officers, auditors and operators)."""
    request = keys_pb2.ListWrappingKeysRequest()
    return Exchange(
        request, lambda answer: list(map(read_wrapping_key, answer.wrapping_keys)), timeout
    )


def get_checkpoint(*, timeout: float = DEFAULT_TIMEOUT) -> Exchange[str]:
    """Returns the newest checkpoint of the audit log, a signed note (for auditors).

    The appliance refuses it for a moment after a start, and refuses auditors' calls
    while it is busy; within ``timeout`` they are repeated. ``signer audit checkpoint``
    fetches it and verifies it with the public audit key.
    """
    request = evidence_pb2.GetCheckpointRequest()
    return Exchange(request, attrgetter("note"), timeout, patient=True)


def list_records(
    start: int = 0,
    *,
    kinds: Iterable[str] = (),
    omit_items: bool = False,
    timeout: float = DEFAULT_TIMEOUT,
) -> Listing[LogRecord]:
    """Yields the records of the audit log from ``start`` on, in order (for auditors).

    0 is the oldest record that is not archived. ``kinds`` selects kinds; empty: all.
    ``omit_items`` leaves out digests and signatures. ``timeout`` is for each page.
    It ends where the log ended when the last page was read.
    """
    request = evidence_pb2.ListRecordsRequest(
        start=start, kinds=kinds, omit_items=omit_items, page_size=PAGE_SIZE
    )
    return Listing(request, "records", read_log_record, timeout, patient=True)


def inclusion_proof(
    seq: int, size: int, *, timeout: float = DEFAULT_TIMEOUT
) -> Exchange[list[bytes]]:
    """Returns the proof that record ``seq`` is in the log's first ``size`` records.

    For auditors: the audit path of RFC 6962 section 2.1.1, to be checked against the
    root of a checkpoint of that size.
    """
    request = evidence_pb2.GetInclusionProofRequest(seq=seq, size=size)
    return Exchange(request, lambda answer: list(answer.hashes), timeout, patient=True)


def consistency_proof(
    old_size: int, size: int, *, timeout: float = DEFAULT_TIMEOUT
) -> Exchange[list[bytes]]:
    """Returns the proof that the log's first ``old_size`` records are unchanged.

    For auditors: RFC 6962 section 2.1.2, to be checked against the roots of two
    checkpoints of these sizes; ``signer audit checkpoint --previous`` does it.
    """
    request = evidence_pb2.GetConsistencyProofRequest(old_size=old_size, size=size)
    return Exchange(request, lambda answer: list(answer.hashes), timeout, patient=True)


def reload(*, timeout: float = DEFAULT_TIMEOUT) -> Exchange[Reloaded]:
    """Makes the daemon read its files again (for operators)."""
    return Exchange(control_pb2.ReloadRequest(), read_reloaded, timeout)


def status(busiest: int = 10, *, timeout: float = DEFAULT_TIMEOUT) -> Exchange[Status]:
    """Returns the state of the daemon, with its ``busiest`` facilities (for operators)."""
    return Exchange(control_pb2.GetStatusRequest(busiest=busiest), read_status, timeout)


def health(service: str = "", *, timeout: float = DEFAULT_TIMEOUT) -> Exchange[str]:
    """Returns ``SERVING`` or ``NOT_SERVING`` for a service of grpc.health.v1."""

    def read(answer: Int32Value) -> str:
        number = answer.value
        return _HEALTH[number] if 0 <= number < len(_HEALTH) else str(number)

    return Exchange(StringValue(value=service), read, timeout)

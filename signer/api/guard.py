"""What every call passes: admission, identity, role, the message, deadline, errors.

Services get a ``Caller`` instead of gRPC's context; they return a message or raise
CallError, and do not use gRPC. A caller's principal is the one URI of the client's certificate,
compared whole: not the common name, and not gRPC's property of all alternative names, which
contains DNS names as well.
"""

import functools
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import grpc
from cryptography import x509
from google.protobuf.message import DecodeError
from google.rpc import status_pb2
from grpc_status import rpc_status

from signer.api import wire
from signer.clock import Clock
from signer.errors import CLIENT_LIMIT, CallError, Reason, invalid
from signer.events import CALL, Bug, CallBegan, CallDenied, CallEnded, CallTrace, Events
from signer.model import Role
from signer.policy.decide import UNKNOWN
from signer.signing.request import Served

DEFAULT_SECONDS = 30.0
"""Deadline of a call that has none."""
MESSAGE_SECONDS = 60.0
"""How long a call waits for its message, whatever its deadline."""
HEALTH_MESSAGE_SECONDS = 2.0
"""The same for a health check, whose message is a few bytes."""
HEALTH_CALLS = 24
"""Health checks that may wait for their message at once."""
HEALTH_CALLS_PER_CLIENT = 8
"""Those of one client: a third, so that one client cannot block the checks of others."""
_CANCELLED = 1
"""google.rpc.Code of a call that was cancelled, or whose deadline passed, before it began."""


@dataclass(slots=True)
class Caller:
    """The caller and its deadline (monotonic seconds); ``notes`` go into the call's log line."""

    principal: str
    roles: frozenset[Role]
    deadline: float
    call_id: str
    notes: dict[str, object]


class Guard(grpc.ServerInterceptor):
    """Wraps the handlers of all services.

    For a unary handler, gRPC waits for the message in a thread before it calls us: a client
    that sends none would hold the thread for ever. So every handler is registered as one for
    a stream of messages (the bytes on the wire are the same) and reads the one message
    itself, after admission and for a limited time. ``roles`` has the roles that may call each
    service; health is open to all.
    """

    def __init__(
        self,
        *,
        served: Served,
        roles: Mapping[str, frozenset[Role]],
        calls: int,
        calls_per_client: int,
        events: Events,
        clock: Clock,
    ) -> None:
        self._served = served
        self._roles = roles
        self._calls = CallLimit(calls, "calls")
        self._calls_per_client = CallLimit(calls_per_client, CLIENT_LIMIT)
        self._health_calls = CallLimit(HEALTH_CALLS)
        self._health_calls_per_client = CallLimit(HEALTH_CALLS_PER_CLIENT)
        self._timeouts = _MessageTimeouts()
        self._events = events
        self._clock = clock

    @property
    def calls(self) -> int:
        """Returns the number of calls in progress, without health checks."""
        return self._calls.held

    def expire(self, now: float) -> None:
        """Cancels the calls whose message was due by ``now`` (monotonic seconds).

        Infinity cancels all that wait for a message.
        """
        self._timeouts.expire(now)

    def intercept_service(
        self, continuation: Callable[[Any], Any], details: grpc.HandlerCallDetails
    ) -> Any:
        handler = continuation(details)
        if handler is None:
            return None
        if details.method.startswith("/grpc.health.v1.Health/"):
            return self._health(handler)
        if handler.unary_unary:
            return grpc.stream_unary_rpc_method_handler(
                self._unary(handler, details.method), None, handler.response_serializer
            )
        return grpc.stream_stream_rpc_method_handler(
            self._stream(handler.stream_stream, details.method),
            handler.request_deserializer,
            handler.response_serializer,
        )

    def _unary(self, handler: Any, method: str) -> Callable[..., Any]:
        def call(messages: Iterator[bytes], context: grpc.ServicerContext) -> Any:
            with self._admitted(method, context) as caller:
                with self._timeouts.until(context, self._message_until(caller)):
                    request = _only(messages, handler.request_deserializer)
                return handler.unary_unary(request, caller)

        return call

    def _stream(self, behaviour: Callable[..., Any], method: str) -> Callable[..., Any]:
        """Reflection, which waits for messages until its deadline."""

        def call(requests: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            with (
                self._admitted(method, context) as caller,
                self._timeouts.until(context, self._message_until(caller)),
            ):
                yield from behaviour(requests, context)

        return call

    def _health(self, handler: Any) -> Any:
        """A check's behaviour takes (request, context), a watch's (request, context, send)."""
        behaviour = handler.unary_unary or handler.unary_stream

        def call(messages: Iterator[bytes], context: grpc.ServicerContext, *send: Any) -> Any:
            client = b" ".join(_auth_context(context).get("peer_uri", ())).decode(errors="replace")
            until = self._clock.monotonic() + HEALTH_MESSAGE_SECONDS
            try:
                with (
                    self._health_calls.acquire("", "too many health checks"),
                    self._health_calls_per_client.acquire(client, "too many of your health checks"),
                    self._timeouts.until(context, until),
                ):
                    request = _only(messages, handler.request_deserializer)
                return behaviour(request, context, *send)
            except CallError as error:
                return context.abort_with_status(rpc_status.to_status(wire.call_status(error)))

        if handler.unary_unary:
            return grpc.stream_unary_rpc_method_handler(call, None, handler.response_serializer)
        # gRPC then passes ``send`` instead of waiting for answers in a thread.
        call.experimental_non_blocking = True  # type: ignore[attr-defined]
        return grpc.stream_stream_rpc_method_handler(call, None, handler.response_serializer)

    @contextmanager
    def _admitted(self, method: str, context: grpc.ServicerContext) -> Iterator[Caller]:
        """Admits one call for a block; an exception in it becomes the call's answer."""
        CALL.set(CallTrace())
        self._events.emit(CallBegan(method, context.invocation_metadata()))
        status = yield from self._booked(method, context)
        if status is not None:
            context.abort_with_status(rpc_status.to_status(status))

    def _booked(
        self, method: str, context: grpc.ServicerContext
    ) -> Generator[Caller, None, status_pb2.Status | None]:
        """Yields once; returns the status of a call that failed."""
        started = self._clock.monotonic()
        call_id = str(uuid.uuid4())
        notes: dict[str, object] = {"call_id": call_id}
        code, reason, status = 0, "ok", None
        try:
            with self._calls.acquire("", "too many calls"):
                caller = self._identify(method, context, started, call_id, notes)
                with self._calls_per_client.acquire(caller.principal, "too many of your calls"):
                    yield caller
        except CallError as error:
            status = wire.call_status(error)
            code, reason = status.code, error.reason
            notes |= {
                name: error.metadata[name] for name in ("rule", "limit") if name in error.metadata
            }
        except grpc.RpcError:  # gRPC's own: the client has gone
            code, reason = _CANCELLED, wire.code_name(_CANCELLED)
            raise
        except Exception as error:  # noqa: BLE001 - its text must not reach the caller
            self._events.emit(Bug(method, error, notes))
            text = f"internal error: report the id {call_id} to the operator"
            status = wire.call_status(CallError(Reason.INTERNAL, text, {"call_id": call_id}))
            code, reason = status.code, Reason.INTERNAL
        finally:
            seconds = self._clock.monotonic() - started
            self._events.emit(CallEnded(method, wire.code_name(code), reason, seconds, notes))
            CALL.set(None)
            if reason == "ok" and notes.get("failed") and notes["failed"] == notes["items"]:
                reason = "ALL_ITEMS_FAILED"
            if reason != "ok":
                principal, key = (str(notes.get(name, "")) for name in ("principal", "key"))
                self._events.emit(CallDenied(principal, key, reason))
        return status

    def _message_until(self, caller: Caller) -> float:
        return min(caller.deadline, self._clock.monotonic() + MESSAGE_SECONDS)

    def _identify(
        self,
        method: str,
        context: grpc.ServicerContext,
        now: float,
        call_id: str,
        notes: dict[str, object],
    ) -> Caller:
        policy = self._served.snapshot.policy
        principal = principal_of(_auth_context(context), policy.denied_certificates)
        roles = policy.roles.get(principal)
        if not roles:
            raise CallError(Reason.PEER_UNKNOWN, UNKNOWN.message, {"rule": UNKNOWN.rule})
        service = method.split("/")[1]
        if not roles & self._roles.get(service, frozenset()):
            raise CallError(
                Reason.POLICY_DENIED, f"{service} is not open to this role", {"rule": "roles"}
            )
        left = context.time_remaining()
        seconds = DEFAULT_SECONDS if left is None or left > 3600 * 24 else left
        notes["principal"] = principal
        return Caller(principal, roles, now + seconds, call_id, notes)


def _only(messages: Iterator[bytes], read: Callable[[bytes], Any]) -> Any:
    """Waits for the one message of a call; further messages are ignored."""
    message = next(messages, None)
    if message is None:
        raise invalid("request", "is missing: the call ended without a message")
    try:
        return read(message)
    except DecodeError:
        raise invalid("request", "cannot be parsed as the message of this method") from None


def _auth_context(context: grpc.ServicerContext) -> "AuthContext":
    return cast(AuthContext, context.auth_context())  # the stubs declare other values


class _MessageTimeouts:
    """The calls that wait for a message, with the time until which they may."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._until: dict[grpc.ServicerContext, float] = {}

    @contextmanager
    def until(self, context: grpc.ServicerContext, end: float) -> Iterator[None]:
        """While the block lasts, ``expire`` cancels this call from ``end`` on."""
        with self._lock:
            self._until[context] = end
        try:
            yield
        finally:
            with self._lock:
                del self._until[context]

    def expire(self, now: float) -> None:
        # Under the lock: a call that has just received its message must not be cancelled.
        with self._lock:
            for context, end in self._until.items():
                if end <= now:
                    context.cancel()


class CallLimit:
    """Allows ``limit`` calls under one name at once, and refuses more without waiting.

    ``setting`` names the limit in signer.yaml; empty for one that cannot be configured.
    """

    def __init__(self, limit: int, setting: str = "") -> None:
        self._limit = limit
        self._metadata = {"limit": setting} if setting else {}
        self._lock = threading.Lock()
        self._held: Counter[str] = Counter()

    @property
    def held(self) -> int:
        """Returns the number of calls under all names."""
        with self._lock:
            return self._held.total()

    @contextmanager
    def acquire(self, name: str, refusal: str) -> Iterator[None]:
        """Counts a call for a block; raises CallError OVERLOADED above the limit."""
        with self._lock:
            if self._held[name] >= self._limit:
                text = f"{refusal} ({self._limit} at once): try again"
                raise CallError(Reason.OVERLOADED, text, self._metadata, retry_after=0.1)
            self._held[name] += 1
        try:
            yield
        finally:
            with self._lock:
                self._held[name] -= 1
                if not self._held[name]:
                    del self._held[name]


_TLS_VERSION = "TLSv1.3"
AuthContext = Mapping[str, Iterable[bytes]]


def principal_of(context: AuthContext, denied_serials: frozenset[int]) -> str:
    """Returns the caller's principal from gRPC's auth context.

    Raises CallError PEER_UNKNOWN if the certificate does not have exactly one URI or is on
    the deny list, or if the connection is not known to use TLS 1.3 (grpcio reports the
    version from 1.85 on).
    """
    if list(context.get("ssl_tls_version", ())) != [_TLS_VERSION.encode()]:
        raise CallError(Reason.PEER_UNKNOWN, f"{_TLS_VERSION} is required: update the client")
    uris = list(context.get("peer_uri", ()))
    if len(uris) != 1:
        raise CallError(
            Reason.PEER_UNKNOWN,
            f"the client certificate has {len(uris)} URIs, exactly one is needed: "
            "ask your security officer for a certificate",
        )
    if denied_serials and _serial(b"".join(context.get("x509_pem_cert", ()))) in denied_serials:
        raise CallError(
            Reason.PEER_UNKNOWN,
            "the client certificate is on the deny list: ask your security officer for another",
        )
    return uris[0].decode(errors="replace")


@functools.lru_cache(maxsize=1024)
def _serial(pem: bytes) -> int:
    return x509.load_pem_x509_certificate(pem).serial_number

"""What every call passes: admission, identity, role, the message, deadline, errors.

Services get a ``Caller`` in the place of gRPC's context; they return a message
or raise CallError, and never see gRPC.
"""

from __future__ import annotations

import threading
import uuid
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import grpc
from google.protobuf.message import DecodeError
from google.rpc import status_pb2
from grpc_status import rpc_status

from signer.api import wire
from signer.api.identity import AuthContext, principal_of
from signer.clock import Clock
from signer.errors import CLIENT_LIMIT, CallError, Reason, invalid
from signer.events import Bug, CallBegan, CallEnded, Events
from signer.model import Role
from signer.policy.decide import UNKNOWN
from signer.signing.request import Served

DEFAULT_SECONDS = 30.0
"""Time of a call that came without a deadline."""
MESSAGE_SECONDS = 60.0
"""How long the message of a call may be under way, whatever the call's deadline."""
HEALTH_MESSAGE_SECONDS = 2.0
"""The same of a health check: its message is a few bytes."""
HEALTH_CALLS = 24
"""Health checks that wait for their message at once,"""
HEALTH_CALLS_PER_CLIENT = 8
"""and those of one client: a third, so that no client alone hides our health from others."""
_OPEN_SERVICES = ("/grpc.health.v1.Health/",)
_NOTED = ("rule", "limit")
"""What of an error's metadata goes into the log line of its call."""
_CANCELLED = 1
"""google.rpc.Code of a call that its client, or its time, ended before it began."""


@dataclass(slots=True)
class Caller:
    """Who calls and until when. ``notes`` go into the log line of the call."""

    principal: str
    roles: frozenset[Role]
    deadline: float
    call_id: str
    notes: dict[str, object]


class Guard(grpc.ServerInterceptor):
    """Wraps the handlers of all services.

    For a unary handler gRPC has a thread wait for the message before anything of ours
    runs; a client that sends none would hold the thread for ever. So every handler is
    given to gRPC as one of a stream of messages (the bytes on the wire are the same),
    and takes the one message itself: after admission, and for a bounded time.
    ``roles`` names for each service the roles that may call it; health is open to all.
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
        self._slots = Places(calls, "calls")
        self._shares = Places(calls_per_client, CLIENT_LIMIT)
        self._health_slots = Places(HEALTH_CALLS)
        self._health_shares = Places(HEALTH_CALLS_PER_CLIENT)
        self._waiting = _Waiting()
        self._events = events
        self._clock = clock

    @property
    def calls(self) -> int:
        """How many calls are at work, health checks aside."""
        return self._slots.all_taken

    def expire(self, now: float) -> None:
        """Ends the calls whose message should have come by ``now`` (monotonic seconds).

        Somebody must call this every now and then; infinity ends all that wait.
        """
        self._waiting.expire(now)

    def intercept_service(
        self, continuation: Callable[[Any], Any], details: grpc.HandlerCallDetails
    ) -> Any:
        handler = continuation(details)
        if handler is None:
            return None
        if details.method.startswith(_OPEN_SERVICES):
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
                with self._waiting.until(context, self._message_until(caller)):
                    request = _only(messages, handler.request_deserializer)
                return handler.unary_unary(request, caller)

        return call

    def _stream(self, behaviour: Callable[..., Any], method: str) -> Callable[..., Any]:
        """Reflection: it waits for messages as long as it lives."""

        def call(requests: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            with (
                self._admitted(method, context) as caller,
                self._waiting.until(context, self._message_until(caller)),
            ):
                yield from behaviour(requests, context)

        return call

    def _health(self, handler: Any) -> Any:
        """Checks have a behaviour of (request, context), watches of (request, context, send)."""
        behaviour = handler.unary_unary or handler.unary_stream

        def call(messages: Iterator[bytes], context: grpc.ServicerContext, *send: Any) -> Any:
            client = b" ".join(_auth_context(context).get("peer_uri", ())).decode(errors="replace")
            until = self._clock.monotonic() + HEALTH_MESSAGE_SECONDS
            try:
                with (
                    self._health_slots.taken("", "all health checks are taken"),
                    self._health_shares.taken(client, "all your health checks are taken"),
                    self._waiting.until(context, until),
                ):
                    request = _only(messages, handler.request_deserializer)
                return behaviour(request, context, *send)
            except CallError as error:
                return context.abort_with_status(rpc_status.to_status(wire.call_status(error)))

        if handler.unary_unary:
            return grpc.stream_unary_rpc_method_handler(call, None, handler.response_serializer)
        # gRPC then hands ``send`` over, in the place of a thread that waits for answers.
        call.experimental_non_blocking = True  # type: ignore[attr-defined]
        return grpc.stream_stream_rpc_method_handler(call, None, handler.response_serializer)

    @contextmanager
    def _admitted(self, method: str, context: grpc.ServicerContext) -> Iterator[Caller]:
        """Holds the places of one call; what fails meanwhile becomes its answer and is booked."""
        self._events.emit(CallBegan(method, context.invocation_metadata()))
        status = yield from self._booked(method, context)
        if status is not None:
            context.abort_with_status(rpc_status.to_status(status))

    def _booked(
        self, method: str, context: grpc.ServicerContext
    ) -> Generator[Caller, None, status_pb2.Status | None]:
        """Yields once; returns the answer of a call that failed."""
        started = self._clock.monotonic()
        call_id = str(uuid.uuid4())
        notes: dict[str, object] = {"call_id": call_id}
        code, reason, status = 0, "ok", None
        try:
            with self._slots.taken("", "all calls are taken"):
                caller = self._identify(method, context, started, call_id, notes)
                with self._shares.taken(caller.principal, "all your calls are taken"):
                    yield caller
        except CallError as error:
            status = wire.call_status(error)
            code, reason = status.code, error.reason
            notes |= {name: error.metadata[name] for name in _NOTED if name in error.metadata}
        except grpc.RpcError:  # gRPC's own, where there is nobody to answer any more
            code, reason = _CANCELLED, wire.code_name(_CANCELLED)
            raise
        except Exception as error:  # noqa: BLE001 - nothing of ours may reach the caller
            self._events.emit(Bug(method, error, notes))
            status = _internal(call_id)
            code, reason = status.code, Reason.INTERNAL
        finally:
            seconds = self._clock.monotonic() - started
            self._events.emit(CallEnded(method, wire.code_name(code), reason, seconds, notes))
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
    """Waits for the one message of a call; what comes behind it is not looked at."""
    message = next(messages, None)
    if message is None:
        raise invalid("request", "is missing: the call ended without a message")
    try:
        return read(message)
    except DecodeError:
        raise invalid("request", "is not the message of this method") from None


def _internal(call_id: str) -> status_pb2.Status:
    text = f"internal error: report the id {call_id} to the operator"
    return wire.call_status(CallError(Reason.INTERNAL, text, {"call_id": call_id}))


def _auth_context(context: grpc.ServicerContext) -> AuthContext:
    return cast(AuthContext, context.auth_context())  # the stubs have its values wrong


class _Waiting:
    """The calls that wait for a message, and until when: one look at them ends the late ones."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._until: dict[grpc.ServicerContext, float] = {}

    @contextmanager
    def until(self, context: grpc.ServicerContext, end: float) -> Iterator[None]:
        """Has ``expire`` end this call from ``end`` on, for as long as the block lasts."""
        with self._lock:
            self._until[context] = end
        try:
            yield
        finally:
            with self._lock:
                del self._until[context]

    def expire(self, now: float) -> None:
        # Under the lock, so that no call is ended that has just got its message.
        with self._lock:
            for context, end in self._until.items():
                if end <= now:
                    context.cancel()


class Places:
    """At most ``limit`` calls of one name at work at once; nobody waits for a place.

    ``setting`` of signer.yaml is that limit; empty where it is our own.
    """

    def __init__(self, limit: int, setting: str = "") -> None:
        self._limit = limit
        self._metadata = {"limit": setting} if setting else {}
        self._lock = threading.Lock()
        self._taken: Counter[str] = Counter()

    @property
    def all_taken(self) -> int:
        """How many places are taken under all names."""
        with self._lock:
            return self._taken.total()

    @contextmanager
    def taken(self, name: str, refusal: str) -> Iterator[None]:
        """Holds a place, or raises CallError OVERLOADED at once."""
        with self._lock:
            if self._taken[name] >= self._limit:
                text = f"{refusal} ({self._limit} at once): try again"
                raise CallError(Reason.OVERLOADED, text, self._metadata, retry_after=0.1)
            self._taken[name] += 1
        try:
            yield
        finally:
            with self._lock:
                self._taken[name] -= 1
                if not self._taken[name]:
                    del self._taken[name]

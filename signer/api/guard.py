"""What every call of our services passes: admission, identity, role, deadline, errors.

Services get a ``Caller`` in the place of gRPC's context; they return a message
or raise CallError, and never see gRPC.
"""

from __future__ import annotations

import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, cast

import grpc
from google.rpc import status_pb2
from grpc_status import rpc_status

from signer.api import wire
from signer.api.authn import AuthContext, principal_of
from signer.clock import Clock
from signer.errors import CallError, Reason
from signer.model import Role
from signer.policy.decide import UNKNOWN, roles_of
from signer.policy.rules import Policy

DEFAULT_SECONDS = 30.0
"""Time of a call that came without a deadline."""
_OPEN_SERVICES = ("/grpc.health.v1.Health/",)


@dataclass(slots=True)
class Caller:
    """Who calls and until when. ``notes`` go into the log line of the call."""

    principal: str
    roles: frozenset[Role]
    deadline: float
    call_id: str
    notes: dict[str, object]


@dataclass(slots=True)
class _Outcome:
    """How a call ended, for the books."""

    caller: Caller | None = None
    code: int = 0
    reason: str = "ok"


class CallObserver(Protocol):
    """Who counts and logs calls."""

    def call_done(
        self, method: str, code: str, reason: str, seconds: float, notes: Mapping[str, object]
    ) -> None: ...
    def our_bug(self, method: str, call_id: str, error: Exception) -> None: ...


class Guard(grpc.ServerInterceptor):
    """Wraps the handlers of all services but health.

    ``roles`` names for each service the roles that may call it.
    """

    def __init__(
        self,
        *,
        policy: Callable[[], Policy],
        roles: Mapping[str, frozenset[Role]],
        calls: int,
        calls_per_client: int,
        observer: CallObserver,
        clock: Clock,
    ) -> None:
        self._policy = policy
        self._roles = roles
        self._slots = _Places(calls)
        self._shares = _Places(calls_per_client)
        self._observer = observer
        self._clock = clock

    def intercept_service(
        self, continuation: Callable[[Any], Any], details: grpc.HandlerCallDetails
    ) -> Any:
        handler = continuation(details)
        if handler is None or details.method.startswith(_OPEN_SERVICES):
            return handler
        if handler.unary_unary:
            return grpc.unary_unary_rpc_method_handler(
                self._unary(handler.unary_unary, details.method),
                handler.request_deserializer,
                handler.response_serializer,
            )
        return grpc.stream_stream_rpc_method_handler(
            self._stream(handler.stream_stream, details.method),
            handler.request_deserializer,
            handler.response_serializer,
        )

    def _unary(self, behaviour: Callable[..., Any], method: str) -> Callable[..., Any]:
        def call(request: Any, context: grpc.ServicerContext) -> Any:
            started = self._clock.monotonic()
            note = _Outcome()
            try:
                with self._slots.taken("", "all calls are taken"):
                    note.caller = caller = self._identify(method, context, started)
                    with self._shares.taken(caller.principal, "all your calls are taken"):
                        return behaviour(request, caller)
            except CallError as error:
                status = wire.call_status(error)
                note.code, note.reason = status.code, error.reason
            except Exception as error:  # noqa: BLE001 - nothing of ours may reach the caller
                status = self._bug(method, error)
                note.code, note.reason = status.code, Reason.INTERNAL
            finally:
                self._observer.call_done(
                    method,
                    wire.code_name(note.code),
                    note.reason,
                    self._clock.monotonic() - started,
                    note.caller.notes if note.caller else {},
                )
            return context.abort_with_status(rpc_status.to_status(status))

        return call

    def _stream(self, behaviour: Callable[..., Any], method: str) -> Callable[..., Any]:
        def call(requests: Any, context: grpc.ServicerContext) -> Any:
            try:
                self._identify(method, context, self._clock.monotonic())
            except CallError as error:
                context.abort_with_status(rpc_status.to_status(wire.call_status(error)))
            return behaviour(requests, context)

        return call

    def _identify(self, method: str, context: grpc.ServicerContext, now: float) -> Caller:
        policy = self._policy()
        principal = principal_of(_auth_context(context), policy.denied_certificates)
        roles = roles_of(policy, principal)
        if not roles:
            raise CallError(Reason.PEER_UNKNOWN, UNKNOWN.message, {"rule": UNKNOWN.rule})
        service = method.split("/")[1]
        if not roles & self._roles.get(service, frozenset()):
            raise CallError(
                Reason.POLICY_DENIED, f"{service} is not open to this role", {"rule": "roles"}
            )
        left = context.time_remaining()
        seconds = DEFAULT_SECONDS if left is None or left > 3600 * 24 else left
        call_id = str(uuid.uuid4())
        notes: dict[str, object] = {"principal": principal, "call_id": call_id}
        return Caller(principal, roles, now + seconds, call_id, notes)

    def _bug(self, method: str, error: Exception) -> status_pb2.Status:
        call_id = str(uuid.uuid4())
        self._observer.our_bug(method, call_id, error)
        text = f"internal error: report the id {call_id} to the operator"
        return wire.call_status(CallError(Reason.INTERNAL, text, {"call_id": call_id}))


def _auth_context(context: grpc.ServicerContext) -> AuthContext:
    return cast(AuthContext, context.auth_context())  # the stubs have its values wrong


class _Places:
    """At most ``limit`` calls of one name at work at once; nobody waits for a place."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._taken: Counter[str] = Counter()

    @contextmanager
    def taken(self, name: str, refusal: str) -> Iterator[None]:
        """Holds a place, or raises CallError OVERLOADED at once."""
        with self._lock:
            if self._taken[name] >= self._limit:
                text = f"{refusal} ({self._limit} at once): try again"
                raise CallError(Reason.OVERLOADED, text, retry_after=0.1)
            self._taken[name] += 1
        try:
            yield
        finally:
            with self._lock:
                self._taken[name] -= 1
                if not self._taken[name]:
                    del self._taken[name]

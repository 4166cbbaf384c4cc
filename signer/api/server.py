"""The gRPC server: its services, its limits, mutual TLS, the drain."""

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from inspect import iscoroutinefunction
from typing import Any

import grpc
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health import OVERALL_HEALTH
from grpc_health.v1.health import SERVICE_NAME as HEALTH
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from signer.api.control_service import ControlService
from signer.api.described import DescribedSymbols
from signer.api.evidence_service import EvidenceService
from signer.api.guard import Caller, Guard
from signer.api.health import MAX_WATCHES, Health
from signer.api.key_service import KeyService
from signer.api.operation_service import OperationService
from signer.api.signing_service import SigningService
from signer.api.tls import Certificates
from signer.api.wire import read_batch_request
from signer.config.models import LimitsConfig
from signer.errors import OperatorError
from signer.event_loop import EventLoop, Threads
from signer.model import Role
from signer.v1 import (
    control_pb2_grpc,
    evidence_pb2_grpc,
    keys_pb2_grpc,
    operations_pb2_grpc,
    signing_pb2_grpc,
)

ROLES: Mapping[str, frozenset[Role]] = {
    "signer.v1.SigningService": frozenset({Role.ISSUER}),
    "signer.v1.KeyService": frozenset(Role),
    "signer.v1.OperationService": frozenset({Role.OFFICER}),
    "signer.v1.EvidenceService": frozenset({Role.AUDITOR}),
    "signer.v1.ControlService": frozenset({Role.OPERATOR}),
    reflection.SERVICE_NAME: frozenset(Role),
}
"""The roles that may call each service; a service that is not here may not be called."""

_READING = ("GetOperation", "ListOperations", "GetPolicy", "ListOfficers", "ListSuspensions")
METHOD_ROLES: Mapping[str, frozenset[Role]] = {
    f"signer.v1.OperationService/{name}": frozenset({Role.OFFICER, Role.AUDITOR})
    for name in _READING
}
"""The roles of single methods, which count before those of their service."""

HEALTH_SERVICES = frozenset({OVERALL_HEALTH, "signer.v1.SigningService"})
"""The names under which health answers, beside those of tokens."""


def health_of(token: str) -> str:
    """Returns the name under which health answers for one token."""
    return f"signer.v1.SigningService/{token}"


_PATIENCE_SECONDS = 1.0
"""How long a drain waits for watchers to read the end, and for messages to arrive."""
_SETTLE_SECONDS = 5.0
"""How long a drain waits for the records of calls that it has cut off."""
_LOOK_SECONDS = 0.05
"""How often a drain looks for calls in progress."""
_WITHOUT_PLACE = 4
"""Calls that gRPC accepts for each place: most of them wait for their message or are streams."""


def _options(limits: LimitsConfig) -> list[tuple[str, int]]:
    seconds = 1000
    return [
        # A second daemon on this port must fail, not share it silently.
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", limits.message_bytes),
        ("grpc.max_send_message_length", limits.message_bytes),
        ("grpc.max_metadata_size", 16 * 1024),
        ("grpc.max_allowed_incoming_connections", limits.connections),
        ("grpc.max_concurrent_streams", limits.streams_per_connection),
        ("grpc.max_connection_age_ms", limits.connection_age_seconds * seconds),
        ("grpc.max_connection_age_grace_ms", 60 * seconds),
        ("grpc.max_connection_idle_ms", 600 * seconds),
        ("grpc.keepalive_time_ms", 60 * seconds),
        ("grpc.keepalive_timeout_ms", 20 * seconds),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 10 * seconds),
        ("grpc.http2.max_ping_strikes", 3),
        ("grpc.server_handshake_timeout_ms", 10 * seconds),
    ]


class Server:
    """Our services, gRPC's health service and, if configured, reflection.

    Built and used from other threads than the event loop's.
    """

    def __init__(
        self,
        loop: EventLoop,
        *,
        signing: SigningService,
        keys: KeyService,
        operations: OperationService,
        evidence: EvidenceService,
        control: ControlService,
        health: Health,
        guard: Guard,
        threads: Threads,
        limits: LimitsConfig,
        reflect: bool,
    ) -> None:
        self.guard = guard
        self._loop, self._health, self._signing = loop, health, signing
        self._threads = threads
        wrapped: Any = _Handlers(guard, self._threads)
        signing_pb2_grpc.add_SigningServiceServicer_to_server(signing, wrapped)
        keys_pb2_grpc.add_KeyServiceServicer_to_server(keys, wrapped)
        operations_pb2_grpc.add_OperationServiceServicer_to_server(operations, wrapped)
        evidence_pb2_grpc.add_EvidenceServiceServicer_to_server(evidence, wrapped)
        control_pb2_grpc.add_ControlServiceServicer_to_server(control, wrapped)
        health_pb2_grpc.add_HealthServicer_to_server(health, wrapped)
        if reflect:
            servicer = reflection.aio.ReflectionServicer((*ROLES, HEALTH), DescribedSymbols())
            reflection_pb2_grpc.add_ServerReflectionServicer_to_server(  # type: ignore[no-untyped-call]
                servicer, wrapped
            )
        self._server = loop.call(
            grpc.aio.server,
            handlers=[wrapped],
            options=_options(limits),
            maximum_concurrent_rpcs=limits.calls * _WITHOUT_PLACE + MAX_WATCHES,
        )

    def listen(self, address: str, certificates: Certificates) -> int:
        """Binds and starts; returns the port. Raises OperatorError if it is in use."""
        try:
            port = self._loop.call(
                self._server.add_secure_port, address, certificates.credentials()
            )
        except RuntimeError as error:
            raise OperatorError(
                f"cannot listen on {address}: it is in use or not an address of this machine; "
                "stop the other program or change `listen` in the configuration"
            ) from error
        self._loop.run(self._server.start())
        return int(port)

    def expire(self, now: float) -> None:
        """Ends calls whose message was due by ``now`` (monotonic seconds), and idle streams."""
        self._loop.call(self.guard.expire, now)
        if self._signing.streams.open:
            self._loop.call(self._signing.streams.expire)

    def drain(self, seconds: float) -> None:
        """Reports NOT_SERVING, waits for calls in progress, then cancels the rest."""
        self._health.end()
        self._loop.run(self._drain(seconds))
        self._threads.close()

    async def _drain(self, seconds: float) -> None:
        self._signing.drain()
        stopped = asyncio.ensure_future(self._server.stop(seconds))
        await asyncio.wait((stopped,), timeout=_PATIENCE_SECONDS)
        self.guard.expire(math.inf)  # calls without a message, and idle reflection
        while not stopped.done() and (self.guard.places.taken or self._signing.streams.open):
            await asyncio.wait((stopped,), timeout=_LOOK_SECONDS)
        # What is left: watches that their clients do not read.
        await self._server.stop(None)
        await stopped
        await self._signing.settle(_SETTLE_SECONDS)


class _Handlers(grpc.GenericRpcHandler):
    """The handlers of all services by their method, each wrapped by the guard.

    gRPC asks one generic handler: for handlers that are registered one by one, it would wait
    for the next call of each method apart, which costs more the more methods there are.
    """

    def __init__(self, guard: Guard, threads: Threads) -> None:
        self._guard, self._threads = guard, threads
        self._methods: dict[str, Any] = {}

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        return self._methods.get(handler_call_details.method)

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        """Is called by generated code; the same handlers are registered by name."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        for name, handler in handlers.items():
            method = f"/{service}/{name}"
            self._methods[method] = self._wrapped(service, method, handler)

    def _wrapped(self, service: str, method: str, handler: Any) -> Any:
        if service == HEALTH:
            known = iscoroutinefunction(handler.unary_unary or handler.unary_stream)
            return self._guard.health(handler) if known else None
        if service == reflection.SERVICE_NAME:
            return self._guard.reflection(method, handler)
        if handler.stream_stream:
            return self._guard.stream(method, handler)
        if iscoroutinefunction(handler.unary_unary):  # SignBatch
            handler = handler._replace(request_deserializer=read_batch_request)
            return self._guard.unary(method, handler)
        return self._guard.unary(method, handler._replace(unary_unary=self._threaded(handler)))

    def _threaded(self, handler: Any) -> Callable[[Any, Caller], Awaitable[Any]]:
        behaviour = handler.unary_unary

        async def call(request: Any, caller: Caller) -> Any:
            return await self._threads.run(caller.principal, partial(behaviour, request, caller))

        return call

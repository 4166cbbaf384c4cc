"""The gRPC server: its services, its limits, mutual TLS, the drain."""

import math
from collections.abc import Mapping
from concurrent import futures

import grpc
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health import OVERALL_HEALTH
from grpc_health.v1.health import SERVICE_NAME as HEALTH
from grpc_reflection.v1alpha import reflection

from signer.api.control_service import ControlService
from signer.api.evidence_service import EvidenceService
from signer.api.guard import HEALTH_CALLS, Guard
from signer.api.health import MAX_WATCHES, Health
from signer.api.key_service import KeyService
from signer.api.operation_service import OperationService
from signer.api.signing_service import SigningService
from signer.api.tls import Certificates
from signer.config.models import LimitsConfig
from signer.errors import OperatorError
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
"""The roles that may call each service; nobody may call a service that is not here."""

HEALTH_SERVICES = frozenset({OVERALL_HEALTH, "signer.v1.SigningService"})
"""The names under which health answers."""

_SPARE_THREADS = HEALTH_CALLS + 8
"""Threads beyond `limits.calls`: they answer health checks and refuse calls over the limit."""
_PATIENCE_SECONDS = 1.0
"""How long a drain waits for watchers to read the end, and for messages to arrive."""


def _options(limits: LimitsConfig) -> list[tuple[str, int]]:
    seconds = 1000
    return [
        # A second daemon on this port must fail, not share it silently.
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", limits.message_bytes),
        ("grpc.max_send_message_length", limits.message_bytes),
        ("grpc.max_metadata_size", 16 * 1024),
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
    """Our services, gRPC's health service and, if configured, reflection."""

    def __init__(
        self,
        *,
        signing: SigningService,
        keys: KeyService,
        operations: OperationService,
        evidence: EvidenceService,
        control: ControlService,
        health: Health,
        guard: Guard,
        limits: LimitsConfig,
        reflect: bool,
    ) -> None:
        self.guard = guard
        self._server = grpc.server(
            futures.ThreadPoolExecutor(limits.calls + _SPARE_THREADS, "call"),
            interceptors=[guard],
            options=_options(limits),
            maximum_concurrent_rpcs=limits.calls * 4 + _SPARE_THREADS + MAX_WATCHES,
        )
        self._health = health
        signing_pb2_grpc.add_SigningServiceServicer_to_server(signing, self._server)
        keys_pb2_grpc.add_KeyServiceServicer_to_server(keys, self._server)
        operations_pb2_grpc.add_OperationServiceServicer_to_server(operations, self._server)
        evidence_pb2_grpc.add_EvidenceServiceServicer_to_server(evidence, self._server)
        control_pb2_grpc.add_ControlServiceServicer_to_server(control, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        if reflect:
            reflection.enable_server_reflection((*ROLES, HEALTH), self._server)

    def listen(self, address: str, certificates: Certificates) -> int:
        """Binds and starts; returns the port. Raises OperatorError if it is in use."""
        try:
            port = self._server.add_secure_port(address, certificates.credentials())
        except RuntimeError as error:
            raise OperatorError(
                f"cannot listen on {address}: it is in use or not an address of this machine; "
                "stop the other program or change `listen` in the configuration"
            ) from error
        self._server.start()
        return int(port)

    def drain(self, seconds: float) -> None:
        """Reports NOT_SERVING, waits for calls in progress, then cancels the rest."""
        self._health.end()
        stopped = self._server.stop(seconds)
        if not stopped.wait(_PATIENCE_SECONDS):
            # What is left: watches that their clients do not read, calls without a message.
            self._health.cancel()
            self.guard.expire(math.inf)
        stopped.wait()

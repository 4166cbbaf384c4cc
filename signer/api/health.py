"""grpc.health.v1: whether the daemon serves. Watching takes no thread.

grpc_health brings a servicer, but it sends to watchers while it holds the lock that the end of a
watch needs. A send waits for gRPC's one event thread; where that thread has just ended another
watch, it waits for the lock, and the whole server stands still. Here nothing is sent under a lock
that anybody else needs. Serving and not serving is one fact for all services.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

Send = Callable[[health_pb2.HealthCheckResponse | None], None]
"""Sends one answer of a watch, None ends it. It blocks until gRPC's event thread has sent."""


class Health(health_pb2_grpc.HealthServicer):
    """Tells the truth that ``set_serving`` was told last; at first: not serving."""

    def __init__(self, services: frozenset[str]) -> None:
        self._services = services
        self._lock = threading.Lock()
        self._serving = False
        self._ended = False
        self._watchers: set[_Watcher] = set()

    def set_serving(self, serving: bool) -> None:
        """Tells watchers of a change; after ``end`` there is none."""
        with self._lock:
            if self._ended or serving == self._serving:
                return
            self._serving = serving
            watchers = list(self._watchers)
        for watcher in watchers:
            watcher.tell(self)

    def end(self) -> None:
        """Says NOT_SERVING for good and ends all watches: a drain must not wait for them."""
        self.set_serving(False)
        with self._lock:
            self._ended = True
            watchers = list(self._watchers)
        for watcher in watchers:
            watcher.tell(self)

    def status(self, service: str) -> tuple[int, bool]:
        """Returns the status of a service, and whether it is the last that will be told."""
        with self._lock:
            if service not in self._services:
                return health_pb2.HealthCheckResponse.SERVICE_UNKNOWN, self._ended
            serving = self._serving
            return (
                health_pb2.HealthCheckResponse.SERVING
                if serving
                else health_pb2.HealthCheckResponse.NOT_SERVING
            ), self._ended

    def Check(  # noqa: N802 - the method's name in the API
        self, request: health_pb2.HealthCheckRequest, context: grpc.ServicerContext
    ) -> health_pb2.HealthCheckResponse:
        """Answers with the status; NOT_FOUND for a service that is none of ours."""
        status, _ = self.status(request.service)
        if status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN:
            context.set_code(grpc.StatusCode.NOT_FOUND)
            return health_pb2.HealthCheckResponse()
        return health_pb2.HealthCheckResponse(status=status)

    def Watch(  # type: ignore[override] # noqa: N802 - not a handler with a thread; see below
        self,
        request: health_pb2.HealthCheckRequest,
        context: grpc.ServicerContext,
        send_response_callback: Send,
    ) -> None:
        """Sends the status now and whenever it changes."""
        watcher = _Watcher(request.service, send_response_callback)
        with self._lock:
            self._watchers.add(watcher)
        if context.add_callback(lambda: self._leave(watcher)):
            watcher.tell(self)
        else:
            self._leave(watcher)

    # gRPC then hands a callback for answers to Watch, in the place of a thread.
    Watch.experimental_non_blocking = True  # type: ignore[attr-defined]

    def _leave(self, watcher: _Watcher) -> None:
        with self._lock:
            self._watchers.discard(watcher)


class _Watcher:
    """One watch. Its lock keeps answers in order: each tells what is true when it is sent."""

    def __init__(self, service: str, send: Send) -> None:
        self._service = service
        self._send = send
        self._lock = threading.Lock()
        self._told: int | None = None
        self._over = False

    def tell(self, health: Health) -> None:
        """Sends the status if that is news; ends the watch where nothing more will come."""
        with self._lock:
            status, last = health.status(self._service)
            if status != self._told:
                self._told = status
                self._send(health_pb2.HealthCheckResponse(status=status))
            if last and not self._over:
                self._over = True
                self._send(None)

"""grpc.health.v1: whether the daemon serves. No thread of gRPC's pool waits for a watcher.

The servicer of grpc_health sends to watchers in the thread that sets the status, under the lock
that the end of a watch needs. A send returns only when the client has read: one client that does
not read would delay the status for all others, and the daemon. Here each watch has its own
thread, and nothing waits for it. All services have the same status.
"""

import threading
from collections.abc import Callable

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

MAX_WATCHES = 500
"""Each client process that balances between appliances watches all of them."""
Send = Callable[[health_pb2.HealthCheckResponse | None], None]
"""Sends one answer of a watch; None ends it. It blocks until the client has room for it."""


class Health(health_pb2_grpc.HealthServicer):
    """Reports the status that ``set_serving`` set last; NOT_SERVING at first."""

    def __init__(self, services: frozenset[str]) -> None:
        self._services = services
        self._changed = threading.Condition()  # guards the attributes below
        self._serving = self._failed = self._ended = False
        self._watches: set[grpc.ServicerContext] = set()

    def set_serving(self, serving: bool) -> None:
        """Reports a change to all watchers; no effect after ``fail`` or ``end``."""
        with self._changed:
            if not (self._ended or self._failed) and serving != self._serving:
                self._serving = serving
                self._changed.notify_all()

    def fail(self) -> None:
        """Reports NOT_SERVING from now on; ``set_serving`` has no effect any more."""
        with self._changed:
            self._serving, self._failed = False, True
            self._changed.notify_all()

    def end(self) -> None:
        """Reports NOT_SERVING for good and ends all watches: a drain must not wait for them."""
        with self._changed:
            self._serving, self._ended = False, True
            self._changed.notify_all()

    def cancel(self) -> None:
        """Cancels the watches that are left: their clients do not read."""
        with self._changed:
            watches = list(self._watches)
        for context in watches:
            context.cancel()

    def Check(
        self, request: health_pb2.HealthCheckRequest, context: grpc.ServicerContext
    ) -> health_pb2.HealthCheckResponse:
        """Answers with the status; NOT_FOUND for an unknown service."""
        with self._changed:
            status = self._status(request.service)
        if status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN:
            context.set_code(grpc.StatusCode.NOT_FOUND)
            return health_pb2.HealthCheckResponse()
        return health_pb2.HealthCheckResponse(status=status)

    def Watch(  # type: ignore[override]
        self, request: health_pb2.HealthCheckRequest, context: grpc.ServicerContext, send: Send
    ) -> None:
        """Sends the status now and at every change; above MAX_WATCHES: UNIMPLEMENTED.

        With that code a client that balances uses the connection without a watch; with any
        other code it does not use the connection (gRPC proposal A17).
        """
        with self._changed:
            if len(self._watches) >= MAX_WATCHES:
                text = f"too many watches ({MAX_WATCHES} at once): use Check"
                context.abort(grpc.StatusCode.UNIMPLEMENTED, text)
            self._watches.add(context)
        if not context.add_callback(lambda: self._leave(context)):
            self._leave(context)
            return
        arguments = (request.service, context, send)
        threading.Thread(None, self._send_changes, "watch", arguments, daemon=True).start()

    def _send_changes(self, service: str, context: grpc.ServicerContext, send: Send) -> None:
        """The thread of one watch: sends every change until the watch or the service ends."""
        sent: int | None = None

        def changed() -> bool:
            return context not in self._watches or self._ended or self._status(service) != sent

        while True:
            with self._changed:
                self._changed.wait_for(changed)
                if context not in self._watches:
                    return
                status, last = self._status(service), self._ended
            if status != sent:
                sent = status
                send(health_pb2.HealthCheckResponse(status=status))
            if last:
                send(None)
                return

    def _status(self, service: str) -> int:
        if service not in self._services:
            return health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        if self._serving:
            return health_pb2.HealthCheckResponse.SERVING
        return health_pb2.HealthCheckResponse.NOT_SERVING

    def _leave(self, context: grpc.ServicerContext) -> None:
        with self._changed:
            self._watches.discard(context)
            self._changed.notify_all()

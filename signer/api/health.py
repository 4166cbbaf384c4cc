"""grpc.health.v1: whether the daemon serves. No thread of gRPC's pool waits for a watcher.

grpc_health brings a servicer, but it sends to watchers while it holds the lock that the end of a
watch needs, and in the thread of whoever brings the news. A send lasts until the client reads: one
that does not read would hold up the news for all others, and its bringer. Here each watch has a
thread of its own that sends, and nobody waits for one of them. Serving and not serving is one fact
for all services.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

MAX_WATCHES = 500
"""Every process that balances its calls between appliances watches each of them."""
Send = Callable[[health_pb2.HealthCheckResponse | None], None]
"""Sends one answer of a watch, None ends it. It blocks until the client has room for it."""


class Health(health_pb2_grpc.HealthServicer):
    """Tells the truth that ``set_serving`` was told last; at first: not serving."""

    def __init__(self, services: frozenset[str]) -> None:
        self._services = services
        self._changed = threading.Condition()  # guards all that follows
        self._serving = self._failed = self._ended = False
        self._watches: set[grpc.ServicerContext] = set()

    def set_serving(self, serving: bool) -> None:
        """Has watchers told of a change; after ``end`` there is none."""
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
        """Says NOT_SERVING for good and has all watches ended: a drain must not wait for them."""
        with self._changed:
            self._serving, self._ended = False, True
            self._changed.notify_all()

    def cancel(self) -> None:
        """Cuts off the watches that are still there: their clients do not read."""
        with self._changed:
            watches = list(self._watches)
        for context in watches:
            context.cancel()

    def Check(
        self, request: health_pb2.HealthCheckRequest, context: grpc.ServicerContext
    ) -> health_pb2.HealthCheckResponse:
        """Answers with the status; NOT_FOUND for a service that is none of ours."""
        with self._changed:
            status = self._status(request.service)
        if status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN:
            context.set_code(grpc.StatusCode.NOT_FOUND)
            return health_pb2.HealthCheckResponse()
        return health_pb2.HealthCheckResponse(status=status)

    def Watch(  # type: ignore[override]
        self,
        request: health_pb2.HealthCheckRequest,
        context: grpc.ServicerContext,
        send: Send,
    ) -> None:
        """Has the status sent now and whenever it changes; too many are UNIMPLEMENTED.

        By that code a client that balances learns to use the connection unwatched; by any
        other one that it must not use it (gRPC proposal A17).
        """
        with self._changed:
            if len(self._watches) >= MAX_WATCHES:
                text = f"all watches are taken ({MAX_WATCHES} at once): use Check"
                context.abort(grpc.StatusCode.UNIMPLEMENTED, text)
            self._watches.add(context)
        if not context.add_callback(lambda: self._leave(context)):
            self._leave(context)
            return
        arguments = (request.service, context, send)
        threading.Thread(target=self._tell, args=arguments, name="watch", daemon=True).start()

    def _tell(self, service: str, context: grpc.ServicerContext, send: Send) -> None:
        """The thread of one watch: sends what is news until the watch or the service ends."""
        told: int | None = None

        def news() -> bool:
            return context not in self._watches or self._ended or self._status(service) != told

        while True:
            with self._changed:
                self._changed.wait_for(news)
                if context not in self._watches:
                    return
                status, last = self._status(service), self._ended
            if status != told:
                told = status
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

"""grpc.health.v1: whether the daemon serves. Each watch is one coroutine; nothing waits for it.

All services have the same status, but for those that are away while the daemon serves: those of
tokens. It may be set by any thread and is answered from then on; watchers hear of it in the next
round of the event loop.
"""

import asyncio
from collections.abc import Collection
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from signer.api.identity import identity_of
from signer.api.places import Bound
from signer.event_loop import EventLoop

MAX_WATCHES = 500
"""Each client process that balances between appliances watches all of them."""
MAX_WATCHES_PER_CLIENT = 166
"""Those of one client: a third, so that one client cannot block the watches of others."""
Context = grpc.aio.ServicerContext[Any, Any]


class Health(health_pb2_grpc.HealthServicer):
    """Reports the status that ``set_serving`` set last; NOT_SERVING at first."""

    def __init__(self, services: frozenset[str], loop: EventLoop) -> None:
        self._services, self._loop = services, loop
        self._serving = self._failed = self._ended = False
        self._away: frozenset[str] = frozenset()
        self._watches: dict[asyncio.Task[Any], asyncio.Event] = {}  # set: there is news
        self._held = Bound(MAX_WATCHES, MAX_WATCHES_PER_CLIENT)

    def set_serving(self, serving: bool, away: Collection[str] = ()) -> None:
        """Reports a change to all watchers; no effect after ``fail`` or ``end``.

        The services ``away`` do not serve, whether or not the others do.
        """
        if self._ended or self._failed or (serving, frozenset(away)) == (self._serving, self._away):
            return
        # Two fields, of which a check may see one: each is right for its services.
        self._away, self._serving = frozenset(away), serving
        self._report()

    def fail(self) -> None:
        """Reports NOT_SERVING from now on; ``set_serving`` has no effect any more."""
        self._failed = True
        self._serving = False
        self._report()

    def end(self) -> None:
        """Reports NOT_SERVING for good and ends all watches: a drain must not wait for them."""
        self._ended = True
        self._serving = False
        self._report()

    async def Check(
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> health_pb2.HealthCheckResponse:
        """Answers with the status; NOT_FOUND for an unknown service."""
        status = self._status(request.service)
        if status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN:
            context.set_code(grpc.StatusCode.NOT_FOUND)
            context.set_details(
                f"no service has the name {request.service[:100]!r}; there are"
                f" {', '.join(map(repr, sorted(self._services)))}"
            )
            return health_pb2.HealthCheckResponse()
        return health_pb2.HealthCheckResponse(status=status)

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Context) -> None:
        """Sends the status now and at every change; above a limit of watches: UNIMPLEMENTED.

        With that code a client that balances uses the connection without a watch; with any
        other code it does not use the connection (gRPC proposal A17).
        """
        client = identity_of(context.auth_context()).name
        if exceeded := self._held.exceeded(client, 1):
            own, most = exceeded
            text = f"too many {'of your ' if own else ''}watches ({most} at once): use Check"
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, text)
        watch = asyncio.current_task()
        assert watch is not None  # noqa: S101 - gRPC runs every handler in a task
        news = self._watches[watch] = asyncio.Event()
        self._held.add(client, 1)
        sent: int | None = None
        try:
            while True:
                news.clear()
                status, last = self._status(request.service), self._ended
                if status != sent:
                    sent = status
                    await context.write(health_pb2.HealthCheckResponse(status=status))
                    continue  # it may have changed while the client read
                if last:
                    return
                await news.wait()
        finally:
            del self._watches[watch]
            self._held.add(client, -1)

    def _report(self) -> None:
        self._loop.soon(self._wake)

    def _wake(self) -> None:
        for news in self._watches.values():
            news.set()

    def _status(self, service: str) -> int:
        if service not in self._services:
            return health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        if self._serving and service not in self._away:
            return health_pb2.HealthCheckResponse.SERVING
        return health_pb2.HealthCheckResponse.NOT_SERVING

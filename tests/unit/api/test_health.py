import asyncio
from collections.abc import Iterator
from typing import Any, cast

import grpc
import pytest
from grpc_health.v1 import health_pb2

from signer.api.health import MAX_WATCHES, MAX_WATCHES_PER_CLIENT, Health
from signer.event_loop import EventLoop
from tests.unit.api.context import ISSUER, OPERATOR, Aborted, Context, until

UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Watch:
    """A watch by a client; without ``reads`` it does not read. On the loop only."""

    def __init__(self, health: Health, service: str, uri: str, *, reads: bool) -> None:
        self.context = Context(uri)
        self.context.gate = None if reads else asyncio.Event()
        request = health_pb2.HealthCheckRequest(service=service)
        self.task = asyncio.ensure_future(health.Watch(request, cast("Any", self.context)))

    @property
    def seen(self) -> list[int]:
        return [response.status for response in self.context.written]


class Stage:
    """Health on an event loop of its own."""

    def __init__(self) -> None:
        self.loop = EventLoop()
        self.health = Health(frozenset({"", "a"}), self.loop)
        self.told = ""

    def watch(self, service: str = "", *, uri: str = ISSUER, reads: bool = True) -> Watch:
        return self.loop.call(lambda: Watch(self.health, service, uri, reads=reads))

    def sees(self, watch: Watch, *statuses: Any, ended: bool = False) -> None:
        """Waits until a watch has seen just this."""
        self.loop.run(until(lambda: watch.seen == [*statuses] and watch.task.done() == ended))

    def check(self, service: str) -> tuple[Any, Any]:
        context: Any = Context()
        request = health_pb2.HealthCheckRequest(service=service)
        answer = self.loop.run(self.health.Check(request, context))
        self.told = context.status[1] if context.status else ""
        return answer.status, context.status and context.status[0]


@pytest.fixture
def stage() -> Iterator[Stage]:
    made = Stage()
    yield made
    made.loop.close()


def test_checks_answer_what_was_set_last(stage: Stage) -> None:
    assert stage.check("") == stage.check("a") == (NOT_SERVING, None)
    stage.health.set_serving(True)
    assert stage.check("") == stage.check("a") == (SERVING, None)
    assert stage.check("b") == (0, grpc.StatusCode.NOT_FOUND)
    assert stage.told == "no service has the name 'b'; there are '', 'a'"


def test_a_service_that_is_away_does_not_serve_and_others_do(stage: Stage) -> None:
    whole, token = stage.watch(""), stage.watch("a")
    stage.health.set_serving(True, ["a"])
    assert (stage.check("")[0], stage.check("a")[0]) == (SERVING, NOT_SERVING)
    stage.sees(whole, NOT_SERVING, SERVING)
    stage.health.set_serving(True)
    stage.sees(token, NOT_SERVING, SERVING)
    stage.health.set_serving(True, ["a"])
    stage.sees(token, NOT_SERVING, SERVING, NOT_SERVING)
    stage.sees(whole, NOT_SERVING, SERVING)
    stage.health.fail()
    stage.health.set_serving(True)
    assert (stage.check("")[0], stage.check("a")[0]) == (NOT_SERVING, NOT_SERVING)


def test_watchers_see_changes_only(stage: Stage) -> None:
    known, unknown = stage.watch("a"), stage.watch("b")
    stage.sees(known, NOT_SERVING)
    stage.sees(unknown, UNKNOWN)
    seen: list[Any] = [NOT_SERVING]
    for serving in (True, False, True):
        stage.health.set_serving(serving)
        seen.append(SERVING if serving else NOT_SERVING)
        stage.sees(known, *seen)
        stage.health.set_serving(serving)
    stage.health.end()
    stage.sees(known, *seen, NOT_SERVING, ended=True)
    stage.sees(unknown, UNKNOWN, ended=True)


def test_a_watch_that_has_left_is_forgotten(stage: Stage) -> None:
    watch = stage.watch()
    stage.sees(watch, NOT_SERVING)
    stage.loop.call(watch.task.cancel)
    stage.sees(watch, NOT_SERVING, ended=True)
    stage.health.set_serving(True)
    assert not stage.health._watches


@pytest.mark.parametrize("end", [Health.fail, Health.end])
def test_the_end_is_not_serving_and_final(stage: Stage, end: Any) -> None:
    stage.health.set_serving(True)
    watch = stage.watch()
    stage.sees(watch, SERVING)
    end(stage.health)
    stage.health.set_serving(True)
    assert stage.check("") == (NOT_SERVING, None)
    stage.health.end()
    stage.sees(watch, SERVING, NOT_SERVING, ended=True)
    stage.sees(stage.watch(), NOT_SERVING, ended=True)


def test_a_client_that_does_not_read_delays_nobody(stage: Stage) -> None:
    stuck, reading = stage.watch(reads=False), stage.watch()
    stage.sees(reading, NOT_SERVING)
    stage.health.set_serving(True)
    stage.sees(reading, NOT_SERVING, SERVING)
    stage.health.end()
    stage.sees(reading, NOT_SERVING, SERVING, NOT_SERVING, ended=True)
    stage.loop.call(stuck.task.cancel)
    stage.sees(stuck, ended=True)
    assert not stage.health._watches


def refused(stage: Stage, watch: Watch) -> None:
    """Expects that a watch is refused, by the code with which clients go on without one."""
    stage.sees(watch, ended=True)
    assert isinstance(watch.task.exception(), Aborted)
    assert watch.context.status[0] is grpc.StatusCode.UNIMPLEMENTED


def test_the_watches_of_one_client_leave_room_for_others(stage: Stage) -> None:
    watches = [stage.watch() for _ in range(MAX_WATCHES_PER_CLIENT)]
    for watch in watches:
        stage.sees(watch, NOT_SERVING)
    refused(stage, stage.watch())
    stage.sees(stage.watch(uri=OPERATOR), NOT_SERVING)
    left = watches.pop()
    stage.loop.call(left.task.cancel)
    stage.sees(left, NOT_SERVING, ended=True)
    stage.sees(stage.watch(), NOT_SERVING)


def test_all_watches_are_bounded(stage: Stage) -> None:
    uris = [f"spiffe://signer.example/{number}" for number in range(10)]
    watches = [stage.watch(uri=uri) for uri in uris for _ in range(MAX_WATCHES // 10)]
    for watch in watches:
        stage.loop.run(until(lambda: bool(watch.seen) or watch.task.done()))
    held = [watch for watch in watches if not watch.task.done()]
    assert len(held) < MAX_WATCHES
    for watch in set(watches) - set(held):
        refused(stage, watch)
    stage.sees(stage.watch(uri=OPERATOR), NOT_SERVING)

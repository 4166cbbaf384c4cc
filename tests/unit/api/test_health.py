import queue
import threading
from collections.abc import Callable
from typing import Any, cast

import grpc
import pytest
from grpc_health.v1 import health_pb2

from signer.api.health import MAX_WATCHES, Health

UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
END = None


class AbortedError(Exception):
    """How gRPC leaves a handler that has ended its call."""


class Context:
    """One call as gRPC shows it; ``leave`` is what its end sets off."""

    def __init__(self, *, gone: bool = False) -> None:
        self.gone = gone
        self.code: grpc.StatusCode | None = None
        self.leave: Callable[[], None] = lambda: None
        self.cancelled = threading.Event()

    def set_code(self, code: grpc.StatusCode) -> None:
        self.code = code

    def add_callback(self, callback: Callable[[], None]) -> bool:
        self.leave = callback
        return not self.gone

    def abort(self, code: grpc.StatusCode, text: str) -> None:
        assert code is grpc.StatusCode.UNIMPLEMENTED, text
        raise AbortedError

    def cancel(self) -> None:
        self.cancelled.set()
        self.leave()


class Watch:
    """A watch of a service whose client reads."""

    def __init__(self, health: Health, service: str = "", **options: Any) -> None:
        self.context = cast(Any, Context(**options))
        self._told: queue.SimpleQueue[Any] = queue.SimpleQueue()
        request = health_pb2.HealthCheckRequest(service=service)
        health.Watch(request, self.context, self._send)

    def _send(self, response: Any) -> None:
        self._told.put(response and response.status)

    def next(self) -> Any:
        return self._told.get(timeout=20)

    def silent(self) -> bool:
        return self._told.empty()


def check(health: Health, service: str) -> tuple[Any, Any]:
    context: Any = Context()
    answer = health.Check(health_pb2.HealthCheckRequest(service=service), context)
    return answer.status, context.code


@pytest.fixture
def health() -> Health:
    return Health(frozenset({"", "a"}))


def wait_for_no_threads() -> None:
    for thread in threading.enumerate():
        if thread.name == "watch":
            thread.join(20)
            assert not thread.is_alive()


def test_checks_tell_what_was_told_last(health: Health) -> None:
    assert check(health, "") == check(health, "a") == (NOT_SERVING, None)
    health.set_serving(True)
    assert check(health, "") == check(health, "a") == (SERVING, None)
    assert check(health, "b") == (0, grpc.StatusCode.NOT_FOUND)


def test_watchers_hear_of_changes_only(health: Health) -> None:
    known, unknown = Watch(health, "a"), Watch(health, "b")
    assert (known.next(), unknown.next()) == (NOT_SERVING, UNKNOWN)
    for serving in (True, False, True):
        health.set_serving(serving)
        assert known.next() == (SERVING if serving else NOT_SERVING)
        health.set_serving(serving)
    health.end()
    assert [known.next(), known.next()] == [NOT_SERVING, END]
    assert unknown.next() == END


def test_who_has_left_hears_nothing(health: Health) -> None:
    watch, never = Watch(health), Watch(health, gone=True)
    assert watch.next() == NOT_SERVING
    watch.context.leave()
    wait_for_no_threads()
    health.set_serving(True)
    assert watch.silent()
    assert never.silent()
    assert not health._watches


def test_the_end_is_not_serving_and_final(health: Health) -> None:
    health.set_serving(True)
    watch = Watch(health)
    assert watch.next() == SERVING
    health.end()
    health.set_serving(True)
    health.end()
    late = Watch(health)
    assert [watch.next(), watch.next()] == [NOT_SERVING, END]
    assert [late.next(), late.next()] == [NOT_SERVING, END]
    wait_for_no_threads()
    assert watch.silent()
    assert check(health, "") == (NOT_SERVING, None)


def test_who_does_not_read_holds_nobody_up(health: Health) -> None:
    """Not who brings the news, not other watchers, not the end of a watch."""
    context: Any = Context()
    sending = threading.Event()

    def send(_: object) -> None:
        sending.set()
        assert context.cancelled.wait(20), "the watch was not cut off"

    health.Watch(health_pb2.HealthCheckRequest(), context, send)
    assert sending.wait(20)
    reading, leaving = Watch(health), Watch(health)
    assert (reading.next(), leaving.next()) == (NOT_SERVING, NOT_SERVING)
    leaving.context.leave()
    health.set_serving(True)
    assert reading.next() == SERVING
    health.end()
    assert [reading.next(), reading.next()] == [NOT_SERVING, END]
    reading.context.leave()
    health.cancel()
    wait_for_no_threads()
    assert not reading.context.cancelled.is_set()
    assert not health._watches


def test_watches_are_bounded(health: Health) -> None:
    watches = [Watch(health) for _ in range(MAX_WATCHES)]
    with pytest.raises(AbortedError):
        Watch(health)
    watches.pop().context.leave()
    watches.append(Watch(health))
    assert {watch.next() for watch in watches} == {NOT_SERVING}
    for watch in watches:
        watch.context.leave()
    wait_for_no_threads()

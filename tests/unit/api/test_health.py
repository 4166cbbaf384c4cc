from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import grpc
from grpc_health.v1 import health_pb2

from signer.api.health import Health

UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
END = None


class Context:
    """One call as gRPC shows it; ``leave`` is what its end sets off."""

    def __init__(self, *, gone: bool = False) -> None:
        self.gone = gone
        self.code: grpc.StatusCode | None = None
        self.leave: Callable[[], None] = lambda: None

    def set_code(self, code: grpc.StatusCode) -> None:
        self.code = code

    def add_callback(self, callback: Callable[[], None]) -> bool:
        self.leave = callback
        return not self.gone


def watch(health: Health, service: str = "", **options: Any) -> tuple[list[Any], Context]:
    """Watches a service; returns what is told, as it comes, and the call."""
    told: list[Any] = []
    context: Any = Context(**options)

    def send(response: Any) -> None:
        told.append(response and response.status)

    health.Watch(health_pb2.HealthCheckRequest(service=service), context, send)
    return told, context


def check(health: Health, service: str) -> tuple[Any, Any]:
    context: Any = Context()
    answer = health.Check(health_pb2.HealthCheckRequest(service=service), context)
    return answer.status, context.code


def test_checks_tell_what_was_told_last() -> None:
    health = Health(frozenset({"", "a"}))
    assert check(health, "") == check(health, "a") == (NOT_SERVING, None)
    health.set_serving(True)
    assert check(health, "") == check(health, "a") == (SERVING, None)
    assert check(health, "b") == (0, grpc.StatusCode.NOT_FOUND)


def test_watchers_hear_of_changes_only() -> None:
    health = Health(frozenset({"", "a"}))
    told, _ = watch(health, "a")
    unknown, _ = watch(health, "b")
    for serving in (False, True, True, True, False, False, True):
        health.set_serving(serving)
    assert told == [NOT_SERVING, SERVING, NOT_SERVING, SERVING]
    assert unknown == [UNKNOWN]


def test_who_has_left_hears_nothing() -> None:
    health = Health(frozenset({""}))
    (told, context), (never, _) = watch(health), watch(health, gone=True)
    context.leave()
    health.set_serving(True)
    assert (told, never) == ([NOT_SERVING], [])
    assert not health._watchers


def test_the_end_is_not_serving_and_final() -> None:
    health = Health(frozenset({""}))
    health.set_serving(True)
    told, _ = watch(health)
    health.end()
    health.set_serving(True)
    health.end()
    late, _ = watch(health)
    assert told == [SERVING, NOT_SERVING, END]
    assert late == [NOT_SERVING, END]
    assert check(health, "") == (NOT_SERVING, None)


def test_a_watch_can_end_while_others_are_told() -> None:
    """gRPC's event thread ends watches and also does the sending: it may wait for neither."""
    health = Health(frozenset({""}))
    _, leaving = watch(health)
    sending, left = threading.Event(), threading.Event()

    def send(response: Any) -> None:
        if response.status == SERVING:
            sending.set()
            assert left.wait(20), "the end of a watch waited for a send"

    request: Any = health_pb2.HealthCheckRequest()
    context: Any = Context()
    health.Watch(request, context, send)
    teller = threading.Thread(target=health.set_serving, args=(True,))
    teller.start()
    assert sending.wait(20)
    leaving.leave()
    left.set()
    teller.join(20)
    assert not teller.is_alive()

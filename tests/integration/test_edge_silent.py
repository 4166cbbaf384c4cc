"""Clients that open calls and then neither send nor read: nobody else may notice."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import grpc
import psutil
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2_grpc
from grpc_status import rpc_status

from signer.api.health import MAX_WATCHES_PER_CLIENT
from tests.daemon import kill_workers
from tests.integration import edge

CALLS, SHARE = 3, 2
STREAMS = 70
"""More than the server has threads, and no more than one connection may have streams."""
SIGN = "/signer.v1.SigningService/SignBatch"
CHECK = "/grpc.health.v1.Health/Check"
WATCH = "/grpc.health.v1.Health/Watch"
REFLECT = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
LIMITS = {"limits": {"calls": CALLS, "calls_per_client": SHARE, "drain_seconds": 600}}


@pytest.fixture(scope="module")
def small(appliance: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """An appliance with few places, and reflection."""
    folder = tmp_path_factory.mktemp("silent")
    with edge.own(appliance, folder, config={"reflection": True} | LIMITS) as made:
        yield made


class Silent:
    """Calls of one client that have headers and nothing else, until the end of the block."""

    def __init__(self, dev: Any, name: str) -> None:
        self._stubs = edge.connect(dev, name)
        self._over = threading.Event()
        self.calls: list[Any] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for call in self.calls:
            call.cancel()
        self._over.set()
        self._stubs.channel.close()

    def open(self, method: str, count: int = STREAMS, timeout: float | None = None) -> None:
        channel: Any = self._stubs.channel
        for _ in range(count):
            if method in (WATCH, REFLECT):
                call = channel.stream_stream(method)(self._nothing(), timeout=timeout)
            else:
                call = channel.stream_unary(method).future(self._nothing(), timeout=timeout)
            self.calls.append(call)

    def _nothing(self) -> Iterator[bytes]:
        self._over.wait()
        yield from ()

    def ended(self) -> list[Any]:
        return [call for call in self.calls if call.done()]

    def reasons(self) -> set[tuple[str, str]]:
        """Code and reason of all calls that have ended."""
        return {reason(call) for call in self.ended()}


def reason(call: Any) -> tuple[str, str]:
    status = rpc_status.from_call(call)
    if status is None:
        return call.code().name, ""
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    return call.code().name, info.reason


def others_are_served(small: Any, signer: str | None) -> None:
    """Health answers a client that has nothing to do with it, and so does everything else."""
    with edge.connect(small.dev, "auditor") as auditor:
        for service in ("", "signer.v1.SigningService"):
            check = health_pb2.HealthCheckRequest(service=service)
            assert auditor.health.Check(check, timeout=edge.SECONDS).status == SERVING
        watcher = auditor.health.Watch(health_pb2.HealthCheckRequest(), timeout=edge.SECONDS)
        assert next(watcher).status == SERVING
        watcher.cancel()
    if signer is not None:
        with edge.connect(small.dev, signer) as other:
            assert len(other.sign().signatures) == 1


# --- headers, and no message ------------------------------------------------------------------


def test_a_stranger_without_a_message_is_refused_at_once(small: Any) -> None:
    with Silent(small.dev, "stranger") as silent:
        silent.open(SIGN)
        edge.until(lambda: len(silent.ended()) == STREAMS, "all are refused")
        told = silent.reasons()
        assert ("UNAUTHENTICATED", "PEER_UNKNOWN") in told
        # Many at once may also find no place.
        assert told <= {("UNAUTHENTICATED", "PEER_UNKNOWN"), ("RESOURCE_EXHAUSTED", "OVERLOADED")}
        others_are_served(small, "issuer")


def test_a_known_client_without_messages_has_its_share_and_no_more(small: Any) -> None:
    with Silent(small.dev, "operator") as silent:
        silent.open("/signer.v1.KeyService/ListKeys")
        edge.until(lambda: len(silent.ended()) == STREAMS - SHARE, "the rest is refused")
        assert silent.reasons() == {("RESOURCE_EXHAUSTED", "OVERLOADED")}
        others_are_served(small, "issuer")
    with edge.connect(small.dev, "operator") as operator:
        edge.until(lambda: can_ask(operator), "its places are free again")


def test_an_issuer_without_messages_leaves_places_for_others(small: Any) -> None:
    with Silent(small.dev, "issuer") as silent:
        silent.open(SIGN)
        edge.until(lambda: len(silent.ended()) == STREAMS - SHARE, "the rest is refused")
        others_are_served(small, None)
        with edge.connect(small.dev, "operator") as operator:
            assert edge.status(operator).ready
    with edge.connect(small.dev) as issuer:
        edge.until(lambda: can_sign(issuer), "its places are free again")


def can_ask(operator: edge.Stubs) -> bool:
    return succeeds(lambda: edge.status(operator))


def can_sign(issuer: edge.Stubs) -> bool:
    return succeeds(issuer.sign)


def succeeds(call: Callable[[], object]) -> bool:
    """Whether there was a place for it; no other refusal is expected."""
    try:
        call()
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
            raise
        return False
    return True


@pytest.mark.parametrize("method", [CHECK, WATCH])
def test_health_checks_without_a_message_are_few_and_end(small: Any, method: str) -> None:
    """They have no deadline; the appliance ends them."""
    with Silent(small.dev, "stranger") as silent:
        silent.open(method)
        others_are_served(small, "issuer")
        edge.until(lambda: len(silent.ended()) == STREAMS, "all have ended")
        assert silent.reasons() == {("RESOURCE_EXHAUSTED", "OVERLOADED"), ("CANCELLED", "")}


def test_a_call_that_ends_without_a_message_is_refused(small: Any) -> None:
    with edge.connect(small.dev) as issuer:
        call: Any = issuer.channel.stream_unary(SIGN)
        refusal = edge.refused(lambda: call(iter(()), timeout=edge.SECONDS))
    assert (refusal.code, refusal.reason) == ("INVALID_ARGUMENT", "FIELD_INVALID")
    assert "without a message" in refusal.message


# --- reflection, which holds a thread ---------------------------------------------------------


def test_reflection_takes_places(small: Any) -> None:
    with Silent(small.dev, "operator") as silent:
        silent.open(REFLECT)
        edge.until(lambda: len(silent.ended()) == STREAMS - SHARE, "the rest is refused")
        assert silent.reasons() == {("RESOURCE_EXHAUSTED", "OVERLOADED")}
        others_are_served(small, "issuer")
    with edge.connect(small.dev, "operator") as operator:
        edge.until(lambda: can_ask(operator), "its places are free again")


# --- watchers ---------------------------------------------------------------------------------


class Deaf:
    """Opens watches and reads none: there is room for less than one answer."""

    def __init__(self, dev: Any, name: str) -> None:
        identity = dev["clients"][name]
        credentials = grpc.ssl_channel_credentials(
            Path(dev["ca"]).read_bytes(),
            Path(identity["key"]).read_bytes(),
            Path(identity["cert"]).read_bytes(),
        )
        options = [
            ("grpc.ssl_target_name_override", dev["server_name"]),
            ("grpc.http2.lookahead_bytes", 5),
            ("grpc.http2.bdp_probe", 0),
        ]
        self._channel = grpc.secure_channel(dev["address"], credentials, options)
        self._stub: Any = health_pb2_grpc.HealthStub(self._channel)
        self.watches: list[Any] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def watch(self, count: int) -> None:
        self.watches += [self._stub.Watch(health_pb2.HealthCheckRequest()) for _ in range(count)]


def started(watch: Any) -> bool:
    """Whether the server has begun to answer."""
    return watch.initial_metadata() is not None


def test_who_does_not_read_holds_nobody_up(make_appliance: Callable[..., Any]) -> None:
    made = make_appliance(config={"reflection": True} | LIMITS)
    [worker] = [
        child
        for child in psutil.Process(made.process.pid).children(recursive=True)
        if "signer.hsm.worker" in child.cmdline()
    ]
    with ExitStack() as stack:
        deaf = stack.enter_context(Deaf(made.dev, "stranger"))
        auditor = stack.enter_context(edge.connect(made.dev, "auditor"))
        deaf.watch(8)
        assert all(started(watch) for watch in deaf.watches)
        watcher = auditor.health.Watch(health_pb2.HealthCheckRequest(), timeout=120)
        assert next(watcher).status == SERVING
        # The token goes and comes back.
        (made.dir / "token").rename(made.dir / "hidden")
        kill_workers(made.dir, worker)
        assert next(watcher).status == NOT_SERVING
        (made.dir / "hidden").rename(made.dir / "token")
        assert next(watcher).status == SERVING
        # Nor do they, calls without a message and idle reflection hold up the end.
        silent = stack.enter_context(Silent(made.dev, "operator"))
        silent.open(REFLECT, 1)
        silent.open("/signer.v1.KeyService/ListKeys", 1)
        made.process.send_signal(signal.SIGTERM)
        assert next(watcher).status == NOT_SERVING
        assert next(watcher, None) is None
        assert made.process.wait(timeout=60) == 0
    assert made.stop() == 0


def test_the_watches_of_one_client_are_bounded(small: Any) -> None:
    """One more than it may have is told by the code with which clients go on unwatched."""
    request = health_pb2.HealthCheckRequest()
    with ExitStack() as stack:
        watches = []
        for number in range(MAX_WATCHES_PER_CLIENT):
            if number % STREAMS == 0:  # a connection has no more streams
                stubs = stack.enter_context(edge.connect(small.dev, "stranger"))
            watches.append(stubs.health.Watch(request))
            assert next(watches[-1]).status == SERVING
        stranger = stack.enter_context(edge.connect(small.dev, "stranger"))
        code, text = edge.refused_by_grpc(
            lambda: next(stranger.health.Watch(request, timeout=edge.SECONDS))
        )
        assert code == "UNIMPLEMENTED"
        assert "use Check" in text
        assert stranger.health.Check(request, timeout=edge.SECONDS).status == SERVING
        others_are_served(small, "issuer")
        watches.pop().cancel()
        edge.until(lambda: watched(stranger), "a watch is free again")


def watched(stubs: edge.Stubs) -> bool:
    """Whether there was a watch for it."""
    watcher = stubs.health.Watch(health_pb2.HealthCheckRequest(), timeout=edge.SECONDS)
    try:
        next(watcher)
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.UNIMPLEMENTED:
            raise
        return False
    watcher.cancel()
    return True


def test_reflection_goes_on_beside_it(small: Any) -> None:
    """A stream that is used as meant, more often than there are places."""
    with edge.connect(small.dev, "operator") as operator:
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(operator.channel)
        for _ in range(CALLS + 1):
            edge.until(
                lambda: succeeds(lambda: list(stub.ServerReflectionInfo(iter(()), timeout=20))),
                "it ends with its last request",
            )

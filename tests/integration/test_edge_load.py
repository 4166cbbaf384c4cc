"""Too much at once: what is refused is refused at once, and health stays reachable."""

import re
import resource
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2

from signer.daemon.process_limits import KEPT
from signer.tools.dev import key_plan as plan
from signer.v1 import signing_pb2
from tests.integration import edge, outputs

CALLS, SHARE, BATCH = 3, 2, 2500
QUEUED = SHARE * BATCH + 10
OTHER = plan.principal("other")
SMALL = "facilities/01-002/keys/records"


def change(policy: dict[str, Any]) -> None:
    for facility in ("01-001", "01-002"):
        policy["facilities"][facility]["clients"].append(OTHER)


@pytest.fixture(scope="module")
def small(appliance: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """An appliance with few places and one worker."""
    limits = {"calls": CALLS, "calls_per_client": SHARE, "queued_items": QUEUED}
    with edge.own(
        appliance, tmp_path_factory.mktemp("small"), policy=change, config={"limits": limits}
    ) as made:
        yield made


def occupy(stubs: edge.Stubs, items: int) -> Any:
    """Begins a batch that takes an RSA key a while."""
    request = signing_pb2.SignBatchRequest(
        key=edge.RSA, format="FORMAT_MESSAGE", payloads=[b"message"] * items
    )
    return stubs.signing.SignBatch.future(request, timeout=120)


def overloaded(call: Any) -> str:
    refusal = edge.refused(call, "OVERLOADED")
    assert refusal.retry_after is not None
    assert refusal.retry_after > 0
    return refusal.message


def measured(appliance: Any, metric: str) -> float:
    """The sum of a metric's series."""
    _, text = appliance.get("/metrics")
    lines = (line for line in text.splitlines() if re.match(rf"{metric}[{{ ]", line))
    return sum(float(line.split()[-1]) for line in lines)


def queued(appliance: Any) -> float:
    return measured(appliance, "signer_queue_items")


def test_too_much_is_refused_and_the_rest_is_served(small: Any, tmp_path: Path) -> None:
    issued = edge.issue(tmp_path, edge.client_authority(small), "other", OTHER)
    with (
        edge.connect(small.dev) as issuer,
        edge.connect(small.dev, "operator") as operator,
        edge.connect_with(small.dev, issued.certificate, issued.key) as other,
    ):
        # Both places of one client.
        floods = [occupy(issuer, BATCH) for _ in range(SHARE)]
        edge.until(lambda: queued(small) > BATCH, "two batches are at work")
        assert "your calls" in overloaded(issuer.sign)
        assert edge.status(operator).ready

        # The queue is full for large batches; small ones of others get their turn.
        assert "wait already" in overloaded(lambda: other.sign([b"{}"] * 4096, key=SMALL))
        assert len(other.sign(key=SMALL).signatures) == 1
        assert not any(flood.done() for flood in floods)

        # All places.
        edge.until(lambda: queued(small) < QUEUED - 1000, "room for another")
        floods.append(occupy(other, 1000))
        # Not before it is there: the operator's own call could take its place.
        at_work = "signer_calls_at_work"
        edge.until(lambda: measured(small, at_work) == CALLS, "it is at work")
        edge.until(lambda: is_full(operator), "all calls are taken")
        for service in ("", "signer.v1.SigningService"):
            check = health_pb2.HealthCheckRequest(service=service)
            answer = issuer.health.Check(check, timeout=5)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        assert small.get("/livez")[0] == 200
        assert small.get("/readyz")[0] == 200

        # Nobody at work has noticed.
        key = small.key("01-001/records-rsa")
        for flood in floods:
            response = flood.result()
            assert not response.failures
            outputs.check_raw(key, response.signatures[-1], b"message")
        assert len(issuer.sign().signatures) == 1


def is_full(operator: edge.Stubs) -> bool:
    """Whether the operator's call is refused, which then must be for all the calls at work."""
    try:
        edge.status(operator)
    except grpc.RpcError:
        assert "too many calls" in overloaded(lambda: edge.status(operator))
        return True
    return False


def test_large_batches_of_one_client_wait_for_each_other(
    make_appliance: Callable[..., Any],
) -> None:
    """Together they are far beyond its share of bytes; each alone has room."""
    limits = {"bytes_in_flight_per_client": 512 << 10}
    made = make_appliance(config={"limits": limits})
    asked = signing_pb2.SignBatchRequest(
        key=SMALL, format="FORMAT_MESSAGE", payloads=[bytes(1000)] * 200
    )
    with edge.connect(made.dev) as issuer:
        calls = [issuer.signing.SignBatch.future(asked, timeout=120) for _ in range(12)]
        for call in calls:
            assert not call.result().failures


def test_watching_health_takes_no_thread(small: Any) -> None:
    """More watchers than there are threads (calls + 32 spare ones)."""
    with edge.connect(small.dev, "auditor") as auditor, edge.connect(small.dev) as issuer:
        watchers = []
        for _ in range(CALLS + 32 + 14):
            watcher = auditor.health.Watch(health_pb2.HealthCheckRequest(), timeout=edge.SECONDS)
            assert next(watcher).status == health_pb2.HealthCheckResponse.SERVING
            watchers.append(watcher)
        check = health_pb2.HealthCheckRequest()
        assert auditor.health.Check(check, timeout=5).status == (
            health_pb2.HealthCheckResponse.SERVING
        )
        assert len(issuer.sign().signatures) == 1
        for watcher in watchers:
            watcher.cancel()


def test_watchers_that_come_and_go_hold_nobody_up(small: Any) -> None:
    """Each watch that ends meets others that begin: no lock may be in its way."""
    request = health_pb2.HealthCheckRequest(service="signer.v1.SigningService")
    with edge.connect(small.dev, "auditor") as auditor:

        def come_and_go(_: int) -> None:
            for _ in range(50):
                watcher = auditor.health.Watch(request, timeout=edge.SECONDS)
                assert next(watcher).status == health_pb2.HealthCheckResponse.SERVING
                watcher.cancel()

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(come_and_go, range(8)))
    with edge.connect(small.dev) as issuer:
        assert len(issuer.sign().signatures) == 1


def test_a_service_that_is_none_of_ours_has_no_health(small: Any) -> None:
    request = health_pb2.HealthCheckRequest(service="signer.v1.Nothing")
    with edge.connect(small.dev, "auditor") as auditor:
        check = edge.refused_by_grpc(lambda: auditor.health.Check(request, timeout=edge.SECONDS))
        assert check[0] == "NOT_FOUND"
        watcher = auditor.health.Watch(request, timeout=edge.SECONDS)
        assert next(watcher).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        watcher.cancel()


def test_connections_are_bounded(make_appliance: Callable[..., Any]) -> None:
    """One more is closed; nothing happens to those that are open."""
    made = make_appliance(config={"limits": {"connections": 3}})
    check = health_pb2.HealthCheckRequest()
    with ExitStack() as stack:
        connected = [stack.enter_context(edge.connect(made.dev, "stranger")) for _ in range(3)]
        for stubs in connected:
            stubs.health.Check(check, timeout=edge.SECONDS)
        with edge.connect(made.dev) as issuer:
            assert edge.refused_by_grpc(issuer.sign)[0] == "UNAVAILABLE"
        for stubs in connected:
            stubs.health.Check(check, timeout=edge.SECONDS)
        connected.pop().channel.close()
        edge.until(lambda: signs(made), "there is room again")


def signs(made: Any) -> bool:
    """Whether a new connection is open for a call."""
    with edge.connect(made.dev) as issuer:
        try:
            return len(issuer.sign().signatures) == 1
        except grpc.RpcError as error:
            assert error.code() is grpc.StatusCode.UNAVAILABLE
            return False


def test_few_descriptors_limit_the_connections(make_appliance: Callable[..., Any]) -> None:
    made = make_appliance(start=False)
    made._command = ["prlimit", f"--nofile={KEPT - 100}:", *made._command]
    made.start()
    raised, _ = resource.prlimit(made.process.pid, resource.RLIMIT_NOFILE)
    assert raised == 1024 + KEPT  # `limits.connections`, and its own
    with edge.connect(made.dev) as issuer:
        assert len(issuer.sign().signatures) == 1

"""Floods of one client: the front process stays small, and others are served."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2

from signer.v1 import signing_pb2
from tests.appliances import Appliance
from tests.daemon import RECORDS, Daemon, until
from tests.integration import edge
from tests.integration.test_audit_daemon import DCC

MOST_KIB = 250 * 1024
"""The most that the front process may ever hold in a flood."""
MINISTRY = "facilities/moh/keys/dcc"
METHOD = "/signer.v1.SigningService/SignBatch"
TOO_MANY = {grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.INVALID_ARGUMENT}


@pytest.fixture(scope="module")
def flooded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon with the default limits."""
    appliance = Appliance(tmp_path_factory.mktemp("flooded") / "dev")
    appliance.init()
    made = Daemon(appliance.dir / "signer.yaml")
    made.start()
    yield made
    assert made.stop() == 0


def request(payloads: list[bytes], key: str = RECORDS, form: str = "FORMAT_JWS") -> bytes:
    asked = signing_pb2.SignBatchRequest(key=key, payloads=payloads, format=form)
    return asked.SerializeToString()


def deaf(dev: Any, name: str = "issuer") -> grpc.Channel:
    """Connects as a client that has room for a few bytes of each answer."""
    identity = dev["clients"][name]
    files = (dev["ca"], identity["key"], identity["cert"])
    credentials = grpc.ssl_channel_credentials(*(Path(each).read_bytes() for each in files))
    options = [
        ("grpc.ssl_target_name_override", dev["server_name"]),
        ("grpc.http2.lookahead_bytes", 5),
        ("grpc.http2.bdp_probe", 0),
        ("grpc.use_local_subchannel_pool", 1),
    ]
    return grpc.secure_channel(dev["address"], credentials, options)


def send_all(daemon: Daemon, messages: list[bytes], name: str = "issuer") -> set[Any]:
    """Sends messages from 16 callers; returns the codes of what was refused."""
    with edge.connect(daemon.dev, name) as stubs:
        raw: Any = stubs.channel.unary_unary(METHOD)

        def call(message: bytes) -> Any:
            try:
                raw(message, timeout=120)
            except grpc.RpcError as error:
                assert isinstance(error, grpc.Call)
                return error.code()

        with ThreadPoolExecutor(16) as pool:
            return set(pool.map(call, messages)) - {None}


def unread_answers(daemon: Daemon) -> None:
    """1,089 calls whose answers of some hundred kilobytes are never read."""
    message = request([b""] * 4096)
    with ExitStack() as stack:
        calls = []
        for _ in range(11):
            channel = deaf(daemon.dev)
            stack.callback(channel.close)
            raw: Any = channel.unary_unary(METHOD)
            calls += [raw.future(message, timeout=120) for _ in range(99)]
        until(lambda: sum(call.done() for call in calls) >= len(calls) - 256, "the rest is refused")
        codes = {call.code() for call in calls if call.done()}
        assert grpc.StatusCode.RESOURCE_EXHAUSTED in codes
        served(daemon)
        for call in calls:
            call.cancel()


def empty_items(daemon: Daemon) -> None:
    """4 MiB of empty payloads are two million items."""
    message = request([]) + b"\x1a\x00" * (2 << 20)
    assert send_all(daemon, [message[: 4 << 20]] * 32) <= TOO_MANY


def invented_names(daemon: Daemon) -> None:
    """Certificates whose members have names that nobody has sent before."""

    def payload(number: int) -> bytes:
        names = ",".join(f'"{number:05}{index:020}":0' for index in range(2600))
        return DCC[:-1] + b"," + names.encode() + b"}"

    batches = [
        request([payload(20 * number + one) for one in range(20)], MINISTRY, "FORMAT_HCERT")
        for number in range(12)
    ]
    assert send_all(daemon, batches) <= TOO_MANY


def failing_items(daemon: Daemon) -> None:
    """Batches of one good item and 4,095 that fail."""
    assert send_all(daemon, [request([b"{}"] + [b""] * 4095)] * 40) <= TOO_MANY


def invented_keys(daemon: Daemon) -> None:
    """Refused calls, each for a key and a facility that do not exist."""
    codes = send_all(
        daemon,
        [request([b"{}"], f"facilities/{number:063}/keys/{number:063}") for number in range(2000)],
    )
    assert codes == {grpc.StatusCode.PERMISSION_DENIED}


def strangers(daemon: Daemon) -> None:
    """Connections and watches of a client that no policy names."""
    with ExitStack() as stack:
        watches = []
        for _ in range(200):
            channel = deaf(daemon.dev, "stranger")
            stack.callback(channel.close)
            watch: Any = channel.unary_stream(
                "/grpc.health.v1.Health/Watch",
                request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            )
            watches += [watch(health_pb2.HealthCheckRequest()) for _ in range(3)]
        for each in watches:
            each.initial_metadata()  # it was answered, or refused
        served(daemon)
        for each in watches:
            each.cancel()


def served(daemon: Daemon) -> None:
    """Expects that another client and probes are served."""
    assert daemon.get("/livez")[0] == 200
    with edge.connect(daemon.dev, "operator") as operator:
        assert edge.status(operator).ready


@pytest.mark.parametrize(
    "flood", [unread_answers, empty_items, invented_names, failing_items, invented_keys, strangers]
)
def test_a_flood_leaves_the_front_small_and_others_served(
    flooded: Daemon, flood: Callable[[Daemon], None]
) -> None:
    assert flooded.process is not None
    process = Path(f"/proc/{flooded.process.pid}")
    (process / "clear_refs").write_text("5")  # the peak counts from now on (proc_pid_clear_refs(5))
    flood(flooded)
    served(flooded)
    assert flooded.sign() == {"ok": 3}
    lines = dict(line.split(":") for line in (process / "status").read_text().splitlines())
    peak = int(lines["VmHWM"].split()[0])
    assert peak <= MOST_KIB, f"{peak} KiB"

import socket
import struct
import time
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPException

import pytest
from prometheus_client import CollectorRegistry, Gauge

from signer.errors import OperatorError
from signer.events import Bug, Events
from signer.observe.http import MAX_REQUESTS, HttpPort

REASONS: list[str] = []
FAILED: list[Exception] = []
STUCK: list[str] = []


def page() -> str:
    if "broken" in REASONS:
        raise ValueError("what nobody may read")
    return "<p>page ế</p>"


def served(host: str = "127.0.0.1", port: int = 0) -> HttpPort:
    registry = CollectorRegistry()
    Gauge("signer_ready", "Readiness.", registry=registry).set(1)
    return HttpPort(
        (host, port),
        registry,
        dict,
        reasons=lambda: REASONS,
        page=page,
        stuck=lambda: "".join(STUCK),
        events=Events({Bug: lambda bug: FAILED.append(bug.error)}),
    )


@pytest.fixture
def port() -> Iterator[int]:
    for each in (REASONS, FAILED, STUCK):
        each.clear()
    http = served()
    yield int(http._server.server_port)
    http.close()


def get(port: int, path: str, method: str = "GET") -> tuple[int, str]:
    connection = HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def test_alive_and_ready(port: int) -> None:
    assert get(port, "/livez") == (200, "alive\n")
    assert get(port, "/readyz") == (200, "ready\n")


def test_not_ready_says_why_and_is_still_alive(port: int) -> None:
    REASONS.extend(["token a: absent", "token b: the PIN is latched"])
    assert get(port, "/readyz") == (503, "token a: absent\ntoken b: the PIN is latched\n")
    assert get(port, "/livez")[0] == 200


def test_metrics_are_those_of_the_registry(port: int) -> None:
    status, text = get(port, "/metrics")
    assert status == 200
    assert "signer_ready 1.0" in text


def test_the_page_needs_nothing_but_itself(port: int) -> None:
    assert get(port, "/") == (200, "<p>page ế</p>")  # the first answer leaves nothing behind
    connection = HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/")
    response = connection.getresponse()
    assert (response.status, response.read().decode()) == (200, "<p>page ế</p>")
    assert response.headers["Content-Type"] == "text/html; charset=utf-8"
    assert response.headers["Content-Security-Policy"].startswith("default-src 'none';")
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    connection.close()


@pytest.mark.parametrize("path", ["/x", "/metrics/", "/livez/../x", "/index.html"])
def test_everything_else_is_not_there(port: int, path: str) -> None:
    assert get(port, path)[0] == 404


def test_a_port_in_use_is_refused(port: int) -> None:
    with pytest.raises(OperatorError, match=f"cannot serve metrics on 127.0.0.1:{port}: .*change"):
        served(port=port)


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
def test_an_ipv6_address_is_served() -> None:
    http = served("[::1]")
    try:
        connection = HTTPConnection("::1", int(http._server.server_port), timeout=10)
        connection.request("GET", "/livez")
        assert connection.getresponse().status == 200
        connection.close()
    finally:
        http.close()


def test_an_answer_that_fails_tells_us_and_not_the_caller(
    port: int, capfd: pytest.CaptureFixture[str]
) -> None:
    REASONS.append("broken")
    assert get(port, "/") == (500, "see the log\n")
    [error] = FAILED
    assert str(error) == "what nobody may read"
    assert capfd.readouterr() == ("", "")


def test_a_process_whose_main_loop_is_stuck_is_not_alive(port: int) -> None:
    STUCK.append("the main loop is stuck for 61 s")
    assert get(port, "/livez") == (503, "the main loop is stuck for 61 s\n")


def test_clients_that_send_nothing_are_few_and_not_for_long(
    port: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("signer.observe.http.REQUEST_SECONDS", 3.0)
    idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(MAX_REQUESTS)]
    for each in idle:
        each.sendall(b"GET / HT")
    one_too_many = socket.create_connection(("127.0.0.1", port), timeout=20)
    assert hung_up(one_too_many)
    for each in idle:
        each.settimeout(20)
        assert hung_up(each)
    garbage = socket.create_connection(("127.0.0.1", port), timeout=20)
    garbage.sendall(b"\x00\xff\r\n\r\n")
    garbage.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    garbage.close()  # with a reset
    for each in (*idle, one_too_many):
        each.close()
    assert alive_again(port)
    assert capfd.readouterr() == ("", "")


def alive_again(port: int) -> bool:
    """Places are free a moment after their clients were hung up on."""
    for _ in range(200):
        try:
            return get(port, "/livez") == (200, "alive\n")
        except (OSError, HTTPException):
            time.sleep(0.05)
    return False


def hung_up(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True

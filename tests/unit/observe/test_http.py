from __future__ import annotations

import socket
from collections.abc import Iterator
from http.client import HTTPConnection

import pytest
from prometheus_client import CollectorRegistry, Gauge

from signer.errors import OperatorError
from signer.observe.http import HttpPort

REASONS: list[str] = []


@pytest.fixture
def port() -> Iterator[int]:
    registry = CollectorRegistry()
    Gauge("signer_ready", "Readiness.", registry=registry).set(1)
    http = HttpPort(("127.0.0.1", 0), registry, lambda: REASONS, lambda: "<p>page ế</p>")
    REASONS.clear()
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
        HttpPort(("127.0.0.1", port), CollectorRegistry(), list, str)


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
def test_an_ipv6_address_is_served() -> None:
    http = HttpPort(("[::1]", 0), CollectorRegistry(), list, str)
    try:
        connection = HTTPConnection("::1", int(http._server.server_port), timeout=10)
        connection.request("GET", "/livez")
        assert connection.getresponse().status == 200
        connection.close()
    finally:
        http.close()

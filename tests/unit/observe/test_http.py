import re
import socket
import struct
import threading
import time
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPException

import pytest
from prometheus_client import CollectorRegistry, Gauge

from signer.errors import OperatorError
from signer.events import Bug, Events
from signer.observe.http import MAX_REQUESTS, HttpPort, Paced

REASONS: list[str] = []
FAILED: list[Exception] = []
STUCK: list[str] = []


AWAY: list[str] = []
PAGES: list[str] = []


def page() -> str:
    if "broken" in REASONS:
        raise ValueError("what nobody may read")
    return PAGES[-1] if PAGES else "<p>page ế</p>"


def served(host: str = "127.0.0.1", port: int = 0) -> HttpPort:
    registry = CollectorRegistry()
    Gauge("signer_ready", "Readiness.", registry=registry).set(1)
    return HttpPort(
        (host, port),
        registry,
        dict,
        reasons=lambda: REASONS,
        away=lambda: AWAY,
        page=page,
        stuck=lambda: "".join(STUCK),
        events=Events({Bug: lambda bug: FAILED.append(bug.error)}),
    )


@pytest.fixture
def port() -> Iterator[int]:
    for each in (REASONS, AWAY, FAILED, STUCK, PAGES):
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


@pytest.mark.parametrize("path", ["/", "/metrics", "/livez", "/readyz", "/none"])
def test_head_gets_the_headers_of_get_and_no_body(port: int, path: str) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as link:
        link.sendall(f"HEAD {path} HTTP/1.0\r\n\r\n".encode())
        answer = b"".join(iter(lambda: link.recv(65_536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert body == b""
    assert re.findall(rb"(?mi)^server: (.*)\r?$", head) == [b"signer"]
    status, text = get(port, path)
    assert f" {status} ".encode() in head.splitlines()[0]
    [length] = re.findall(rb"(?mi)^content-length: (\d+)\r?$", head)
    assert path == "/metrics" or int(length) == len(text.encode())


def test_ready_without_a_token_says_so(port: int) -> None:
    AWAY.append("token b is away: it is locked")
    assert get(port, "/readyz") == (200, "ready\ntoken b is away: it is locked\n")
    REASONS.append("stopped")
    assert get(port, "/readyz") == (503, "stopped\n")


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


def test_silent_clients_keep_nobody_out_and_do_not_stay(
    port: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("signer.observe.http.SILENT_SECONDS", 5.0)
    idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(3 * MAX_REQUESTS)]
    for each in idle:
        each.sendall(b"GET / HT")
    for _ in range(20):
        assert get(port, "/livez") == (200, "alive\n")
    for each in idle:
        each.settimeout(20)
        assert hung_up(each)
    garbage = socket.create_connection(("127.0.0.1", port), timeout=20)
    garbage.sendall(b"\x00\xff\r\n\r\n")
    garbage.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    garbage.close()  # with a reset
    for each in idle:
        each.close()
    assert get(port, "/livez") == (200, "alive\n")
    assert capfd.readouterr() == ("", "")


def test_clients_that_do_not_read_their_answers_keep_nobody_out(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("signer.observe.http.ANSWER_SECONDS", 0.1)
    PAGES.append("long" * (8 << 20))
    greedy = []
    for _ in range(2 * MAX_REQUESTS):
        client = socket.create_connection(("127.0.0.1", port))
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        greedy.append(client)
    end = time.monotonic() + 20
    while not alive(port):  # all places are taken by clients that have just asked
        assert time.monotonic() < end
        time.sleep(0.05)
    for client in greedy:
        client.close()


def alive(port: int) -> bool:
    try:
        return get(port, "/livez") == (200, "alive\n")
    except (OSError, HTTPException):
        return False


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("", "text/plain; version=0.0.4; charset=utf-8"),
        ("text/html,*/*", "text/plain; version=0.0.4; charset=utf-8"),
        (
            "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.2",
            "application/openmetrics-text; version=1.0.0; charset=utf-8; escaping=underscores",
        ),
    ],
)
def test_metrics_are_in_the_format_that_the_client_reads(port: int, accept: str, kind: str) -> None:
    connection = HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/metrics?name[]=nothing", headers={"Accept": accept})
    response = connection.getresponse()
    assert (response.status, response.headers["Content-Type"]) == (200, kind)
    text = response.read().decode()
    assert text.endswith("# EOF\n") == kind.startswith("application/openmetrics-text")
    assert "signer_ready 1.0" in text
    connection.close()
    assert get(port, "/metrics", "POST")[0] == 405


def test_what_is_expensive_is_computed_for_all_who_ask_meanwhile() -> None:
    begun, gate = list[int](), threading.Event()

    def compute() -> int:
        begun.append(len(begun))
        assert gate.wait(20)
        return begun[-1]

    paced, got = Paced(compute), list[int]()
    threads = [threading.Thread(target=lambda: got.append(paced.get())) for _ in range(20)]
    threads[0].start()
    while not begun:
        time.sleep(0.001)
    for thread in threads[1:]:
        thread.start()
    gate.set()
    for thread in threads:
        thread.join(20)
    assert got.count(0) == 1, "the others had not asked when it was begun"
    assert len(got) == 20
    assert len(begun) < 20


def test_between_two_computations_is_a_pause_of_nine_times_their_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, pauses = [0.0], list[float]()
    monkeypatch.setattr("signer.observe.http.time.monotonic", lambda: clock[0])
    monkeypatch.setattr("signer.observe.http.time.sleep", pauses.append)

    def compute() -> None:
        clock[0] += 0.5

    paced = Paced(compute)
    paced.get()
    clock[0] += 1.5
    paced.get()
    clock[0] += 100
    paced.get()
    assert pauses == pytest.approx([0.0, 3.0, 0.0])


def test_a_computation_that_fails_fails_for_one_who_asks_and_is_repeated_for_the_next() -> None:
    answers = iter([ValueError("x"), 7])

    def compute() -> object:
        if isinstance(answer := next(answers), Exception):
            raise answer
        return answer

    paced = Paced(compute)
    with pytest.raises(ValueError, match="x"):
        paced.get()
    assert paced.get() == 7


def hung_up(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True

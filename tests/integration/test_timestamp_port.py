"""The time-stamp port of a real appliance: OpenSSL's request and its verdict, over HTTP."""

import re
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from signer.formats.timestamp import MAX_BYTES
from signer.formats.timestamp_reading import read_timestamp
from tests.appliances import Appliance, serving
from tests.integration import edge

PRINCIPAL = "spiffe://dev.signer.example/time-stamps"
QUERY, REPLY = "application/timestamp-query", "application/timestamp-reply"
SLOWEST = 30.0


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    made = Appliance(tmp_path_factory.mktemp("stamping") / "appliance")
    made.init()
    address = f"127.0.0.1:{free_port()}"
    key = "facilities/moh/keys/tsa"
    made.configure({"timestamps": {"listen": address, "principal": PRINCIPAL, "key": key}})
    made.edit_policy(lambda policy: policy["facilities"]["moh"]["clients"].append(PRINCIPAL))
    with serving(made):
        yield made


def port_of(own: Any) -> int:
    text = (own.dir / "signer.yaml").read_text()
    found = re.search(r"(?s)timestamps:.*?listen: 127\.0\.0\.1:(\d+)", text)
    assert found
    return int(found[1])


def post(
    own: Any, body: bytes, kind: str = QUERY, method: str = "POST"
) -> tuple[int, str | None, bytes]:
    connection = HTTPConnection("127.0.0.1", port_of(own), timeout=SLOWEST)
    try:
        connection.request(method, "/", body, {"Content-Type": kind})
        answer = connection.getresponse()
        return answer.status, answer.headers["Content-Type"], answer.read()
    finally:
        connection.close()


def query(folder: Path, *words: str) -> bytes:
    (folder / "document").write_bytes(b"a document")
    command = ["openssl", "ts", "-query", "-data", str(folder / "document"), *words]
    subprocess.run([*command, "-out", str(folder / "query")], capture_output=True, check=True)
    return (folder / "query").read_bytes()


def openssl(own: Any, folder: Path, made: bytes) -> bool:
    (folder / "answer").write_bytes(made)
    command = ["openssl", "ts", "-verify", "-queryfile", str(folder / "query")]
    command += ["-in", str(folder / "answer"), "-CAfile", str(own.dir / "pki" / "dcc-ca.pem")]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def text_of(folder: Path, made: bytes) -> str:
    (folder / "answer").write_bytes(made)
    command = ["openssl", "ts", "-reply", "-in", str(folder / "answer"), "-text"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def test_openssl_accepts_what_the_port_answers(own: Any, tmp_path: Path) -> None:
    began = int(time.time())
    status, kind, made = post(own, query(tmp_path, "-sha256", "-cert"))
    assert (status, kind) == (200, REPLY)
    assert openssl(own, tmp_path, made)
    assert began <= read_timestamp(made).time <= time.time()
    query(tmp_path, "-sha256", "-cert")
    assert not openssl(own, tmp_path, made)  # another nonce


def test_many_at_once_have_serial_numbers_of_their_own(own: Any, tmp_path: Path) -> None:
    request = query(tmp_path, "-sha256", "-no_nonce")
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: post(own, request)[2], range(40)))
    assert len({read_timestamp(each).serial for each in made}) == 40


def test_calls_are_those_of_the_principal(own: Any, tmp_path: Path) -> None:
    post(own, query(tmp_path, "-sha256"))
    edge.until(lambda: PRINCIPAL in own.log.read_text(), "the call is in the log")


REFUSED = {
    "no request": (b"GET /", (), "the data submitted has the wrong format"),
    "another policy": (
        None,
        ("-sha256", "-tspolicy", "1.2.3"),
        "the requested TSA policy is not supported by the TSA",
    ),
    "sha224": (None, ("-sha224",), "unrecognized or unsupported algorithm identifier"),
}


@pytest.mark.parametrize(("body", "words", "said"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_stamped_gets_an_answer_that_says_why(
    own: Any, tmp_path: Path, body: bytes | None, words: tuple[str, ...], said: str
) -> None:
    status, kind, made = post(own, query(tmp_path, *words) if body is None else body)
    assert (status, kind) == (200, REPLY)
    text = text_of(tmp_path, made)
    assert "Status: Rejected." in text
    assert said in text


@pytest.mark.parametrize(
    ("body", "kind", "method", "expected"),
    [
        (b"x", QUERY, "PUT", 405),
        (b"", QUERY, "GET", 405),
        (b"x", "application/octet-stream", "POST", 415),
        (bytes(MAX_BYTES + 1), QUERY, "POST", 413),
    ],
)
def test_other_requests_are_refused_by_http(
    own: Any, body: bytes, kind: str, method: str, expected: int
) -> None:
    assert post(own, body, kind, method)[0] == expected


def test_a_body_that_does_not_come_ends_and_holds_nobody_up(own: Any, tmp_path: Path) -> None:
    head = f"POST / HTTP/1.0\r\nContent-Type: {QUERY}\r\nContent-Length: 70\r\n\r\n".encode()
    silent = [socket.create_connection(("127.0.0.1", port_of(own))) for _ in range(16)]
    try:
        for each in silent:
            each.sendall(head)
        edge.until(lambda: bool(stamped(own, tmp_path)), "others are answered again")
    finally:
        for each in silent:
            each.close()


def stamped(own: Any, folder: Path) -> bytes:
    try:
        return post(own, query(folder, "-sha256"))[2]
    except OSError:
        return b""


def test_a_principal_without_the_right_gets_no_time_stamp_and_no_reason(
    own: Any, tmp_path: Path
) -> None:
    facility = "moh"
    own.edit_policy(lambda policy: policy["facilities"][facility]["clients"].remove(PRINCIPAL))
    with edge.connect(own.dev, "operator") as operator:
        edge.reload(operator)
    text = text_of(tmp_path, post(own, query(tmp_path, "-sha256"))[2])
    assert "the request cannot be handled due to system failure" in text
    assert "policy" not in text
    edge.until(lambda: "PEER_UNKNOWN" in own.log.read_text(), "the log says why")

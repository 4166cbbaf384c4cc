"""The clients of docs/clients, as printed, against an appliance and against one that refuses."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from signer.tools.dev import pki
from signer.v1 import signing_pb2
from tests.e2e.terminal import Terminal, blocks, check_outputs
from tests.unit.client.conftest import Played, PlayedOperations, Refusal, serving, signed, status

pytestmark = pytest.mark.clients

PAGES = {"python": "python", "node": "npm", "go": "go", "java": "mvn"}
"""A page for each language, and the program that it needs first."""
CLIENT = "/tmp/appliance/client-issuer.yaml"  # noqa: S108  as printed
ANSWERED, PAUSE = 40, 0.3


@pytest.fixture(scope="module")
def terminal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    """A terminal beside that of an appliance."""
    made = Terminal("bash", tmp_path_factory.mktemp("clients"), forks=False)
    with made.appliance():
        yield made


@pytest.fixture(params=PAGES)
def page(request: pytest.FixtureRequest) -> str:
    needed = PAGES[request.param]
    if shutil.which(needed) is None:
        pytest.skip(f"NOT TESTED: {needed} is not installed: docs/clients/{request.param}.md")
    return f"docs/clients/{request.param}.md"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The certificates of both sides of the appliance that is played."""
    made = tmp_path_factory.mktemp("pki")
    authority = pki.authority(made, "ca", "ca")
    pki.server(made, authority)
    pki.client(made, authority, "me", "spiffe://signer.example/me")
    return made


class Refusing(Played):
    """Refuses as appliances do: first calls for load, a stream in its midst, single requests."""

    def __init__(self) -> None:
        super().__init__(script=self._script, stream=self._stream)
        self.times: list[float] = []

    def _script(
        self, request: signing_pb2.SignBatchRequest, number: int
    ) -> signing_pb2.SignBatchResponse:
        self.times.append(time.monotonic())
        if number == 0:
            code = grpc.StatusCode.RESOURCE_EXHAUSTED
            raise Refusal(status(code, "OVERLOADED", retry_after=PAUSE))
        if number == 1:  # without RetryInfo
            raise Refusal(status(grpc.StatusCode.UNAVAILABLE, "AUDIT_UNAVAILABLE"))
        if request.key.endswith("recrods"):
            raise Refusal(status(grpc.StatusCode.NOT_FOUND, "KEY_NOT_FOUND"))
        answer = signed(request)
        answer.signatures[0] = b"eyJhbGciOiJFUzI1NiIsImtpZCI6I"
        answer.signatures[1] = b""
        bad = status(grpc.StatusCode.INVALID_ARGUMENT, "PAYLOAD_INVALID")
        answer.failures[1].CopyFrom(bad)
        return answer

    def _stream(self, requests: Any, number: int) -> Iterator[signing_pb2.SignStreamResponse]:
        for count, request in enumerate(requests):
            if number == 0 and count == ANSWERED:
                code = grpc.StatusCode.UNAVAILABLE
                raise Refusal(status(code, "STREAM_ENDED", retry_after=PAUSE))
            answer = signing_pb2.SignStreamResponse(tag=request.tag)
            if number == 1 and count < ANSWERED:
                code = grpc.StatusCode.RESOURCE_EXHAUSTED
                answer.error.CopyFrom(status(code, "OVERLOADED", retry_after=PAUSE))
            else:
                answer.batch.CopyFrom(signed(request.batch))
            yield answer


def test_it_does_as_printed(terminal: Terminal, page: str) -> None:
    check_outputs(page, terminal)


def test_it_repeats_what_may_be_repeated_under_the_same_ids(
    terminal: Terminal, page: str, files: Path
) -> None:
    """The page above has built the program; its last block runs it, here for another appliance."""
    played = Refusing()
    *_, last = [block.text for block in blocks(page) if block.language == "sh"]
    *_, output = [block.text for block in blocks(page) if block.language == "text"]
    with serving(played, PlayedOperations(), files) as address:
        lines = ("ca: ca.pem", "certificate: me.pem", "key: me.key")
        where = (f"address: {address}", f"server_name: {pki.SERVER_NAME}")
        (files / "client.yaml").write_text("\n".join((*where, *lines)))
        done = terminal.run(
            terminal.here(last).replace(terminal.here(CLIENT), str(files / "client.yaml"))
        )
    assert (done.returncode, done.stdout) == (0, output), done.stderr[-3000:]
    ids = [request.request_id for request in played.requests]
    assert len(ids) == 5  # refused twice, answered, asked again; then the key with the typing error
    assert len(set(ids[:4])) == 1
    assert ids[4] != ids[0]
    assert played.times[1] - played.times[0] >= PAUSE
    # On streams: each record has one id, however often it was sent; all were answered.
    sent = {message.tag: set[str]() for message in played.messages}
    for message in played.messages:
        sent[message.tag].add(message.batch.request_id)
        assert message.timeout.seconds == 30
    assert sorted(sent) == list(range(1000))
    assert {len(each) for each in sent.values()} == {1}
    assert len(set.union(*sent.values())) == 1000
    assert played.streams >= 3

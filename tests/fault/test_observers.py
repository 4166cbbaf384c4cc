"""The running daemon whose log, traces or metrics nobody takes: nothing else may notice."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from signer.client import SignerClientError
from tests.daemon import Daemon, until


class Writing:
    """A daemon whose stderr is something else than a file."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.open: list[int] = []

    def start(self, stderr: int) -> None:
        daemon = self.daemon
        daemon.process = subprocess.Popen(
            [sys.executable, *daemon.program, str(daemon.config)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
        )
        until(lambda: answers(daemon), "it serves")

    def pipe(self) -> tuple[int, int]:
        ends = os.pipe()
        self.open += ends
        return ends

    def close(self, descriptor: int) -> None:
        self.open.remove(descriptor)
        os.close(descriptor)


def answers(daemon: Daemon) -> bool:
    try:
        return daemon.get("/readyz")[0] == 200
    except OSError:
        return False


@pytest.fixture
def writing(daemon: Daemon) -> Iterator[Writing]:
    made = Writing(daemon)
    yield made
    if daemon.running:
        assert daemon.stop() == 0
    for descriptor in made.open:
        os.close(descriptor)


def nobody_has_ever_read(writing: Writing) -> None:
    """A pipe that is full: whoever writes to it waits for ever."""
    _, end = writing.pipe()
    os.set_blocking(end, False)
    with suppress(BlockingIOError):
        while True:
            os.write(end, b"x" * 4096)
    os.set_blocking(end, True)
    writing.start(end)


def the_reader_has_left(writing: Writing) -> None:
    reading, end = writing.pipe()
    writing.start(end)
    writing.close(reading)


def the_disk_is_full(writing: Writing) -> None:
    descriptor = os.open("/dev/full", os.O_WRONLY)
    writing.open.append(descriptor)
    writing.start(descriptor)


def refused(daemon: Daemon) -> str:
    with daemon.client("stranger") as client:
        try:
            client.sign("facilities/01-001/keys/records", "MESSAGE", [b"m"])
        except SignerClientError as error:
            return error.reason
    return "ok"


@pytest.mark.parametrize("begin", [nobody_has_ever_read, the_reader_has_left, the_disk_is_full])
def test_a_log_that_nobody_takes_is_dropped_and_nothing_else(
    writing: Writing, begin: Callable[[Writing], None]
) -> None:
    daemon = writing.daemon
    begin(writing)
    for _ in range(3):
        assert daemon.sign() == {"ok": 3}
        assert refused(daemon) == "PEER_UNKNOWN"
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGHUP)
    with daemon.client("operator") as operator:
        operator.reload()
    assert daemon.sign() == {"ok": 3}
    assert daemon.health() == "SERVING"
    if begin is not nobody_has_ever_read:  # there they wait, up to a number
        until(lambda: daemon.metric("signer_log_lines_dropped_total") > 0, "they are counted")
        assert "lines of the log are dropped" in daemon.get("/")[1]
    assert daemon.stop() == 0


def test_a_collector_that_is_gone_delays_nothing(daemon: Daemon) -> None:
    settings = daemon.config.read_text()
    daemon.config.write_text(
        f'{settings}\ntracing: {{endpoint: "http://127.0.0.1:9/v1/traces", sample: 1}}\n'
    )
    daemon.start()
    for _ in range(3):
        assert daemon.sign() == {"ok": 3}
    until(lambda: daemon.metric("signer_spans_dropped_total") > 0, "they are counted")
    assert "traces are dropped" in daemon.get("/")[1]
    assert daemon.stop() == 0

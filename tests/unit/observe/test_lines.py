"""Lines are written by a thread of their own: whatever stderr does, nobody waits for it."""

import json
import logging
import os
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from signer.observe import lines
from signer.observe.lines import LibraryMessages, LogLines


class Sink:
    """What takes batches, and blocks while ``gate`` is closed."""

    def __init__(self) -> None:
        self.batches: list[bytes] = []
        self.gate = threading.Event()
        self.gate.set()
        self.blocked = threading.Event()

    def write(self, data: bytes) -> None:
        if not self.gate.is_set():
            self.blocked.set()
            assert self.gate.wait(30)
        self.batches.append(data)

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in b"".join(self.batches).splitlines()]


@pytest.fixture
def sink() -> Sink:
    return Sink()


def test_a_line_is_one_json_object_with_level_and_the_time_of_the_event(sink: Sink) -> None:
    log = LogLines("info", write=sink.write)
    sink.gate.clear()
    log.add("info", "first", {})
    assert sink.blocked.wait(30)
    before = time.time()
    log.add(
        "warning", "something", {"text": 'two\nlines, "ä" \ud800', "number": 1, "of": ValueError}
    )
    after = time.time()
    log.add("debug", "nothing", {})
    time.sleep(0.05)
    sink.gate.set()
    log.close()
    line = sink.lines()[1]
    assert list(line) == ["text", "number", "of", "level", "time", "event"]
    assert (line["text"], line["number"]) == ('two\nlines, "ä" \ud800', 1)
    assert (line["level"], line["event"]) == ("warning", "something")
    assert line["of"] == repr(ValueError)
    written = line["time"]
    assert written.endswith("Z")
    assert before - 1e-5 <= datetime.fromisoformat(written).timestamp() <= after + 1e-5
    assert len(sink.lines()) == 2
    assert all(each.endswith(b"\n") and each.isascii() for each in sink.batches)


def test_a_level_can_change(sink: Sink) -> None:
    log = LogLines("error", write=sink.write)
    log.add("warning", "no", {})
    log.set_level("debug")
    log.add("debug", "yes", {})
    log.close()
    assert [line["event"] for line in sink.lines()] == ["yes"]


def test_what_came_while_a_batch_was_written_is_the_next_batch(sink: Sink) -> None:
    log = LogLines("info", write=sink.write)
    sink.gate.clear()
    log.add("info", "first", {})
    assert sink.blocked.wait(30)
    for number in range(100):
        log.add("info", "more", {"number": number})
    sink.gate.set()
    log.close()
    assert [line.get("number") for line in sink.lines()] == [None, *range(100)]
    assert len(sink.batches) == 2


def test_a_stderr_that_blocks_delays_nobody_and_drops_infos_first(
    sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "QUEUED_LINES", 10)
    monkeypatch.setattr(lines, "FAULT_LINES", 5)
    dropped: list[int] = []
    log = LogLines("info", dropped.append, sink.write)
    sink.gate.clear()
    log.add("info", "first", {})
    assert sink.blocked.wait(30)
    for number in range(15):
        log.add("info", "info", {"number": number})
    assert sum(dropped) == 5
    log.add("warning", "call", {}, fault=False)  # a refused call is not a fault
    assert sum(dropped) == 6
    for number in range(7):
        log.add("error", "fault", {"number": number})
    assert sum(dropped) == 8
    sink.gate.set()
    log.close()
    kept = [line["event"] for line in sink.lines()]
    assert kept == ["first"] + ["info"] * 10 + ["fault"] * 5


def test_an_end_does_not_wait_long_for_a_stderr_that_blocks(
    sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "CLOSE_SECONDS", 0.1)
    log = LogLines("info", write=sink.write)
    sink.gate.clear()
    log.add("info", "first", {})
    began = time.monotonic()
    log.close()
    assert time.monotonic() - began < 10
    assert sink.batches == []
    sink.gate.set()


def test_a_stderr_that_fails_fails_nothing() -> None:
    dropped, failing, written = list[int](), [True], list[bytes]()

    def write(data: bytes) -> None:
        if failing.pop() if failing else False:
            raise OSError
        written.append(data)

    log = LogLines("info", dropped.append, write)
    log.add("info", "lost", {})
    while not dropped:
        time.sleep(0.001)
    log.add("info", "kept", {})
    log.close()
    assert dropped == [1]
    assert [json.loads(line)["event"] for line in written] == ["kept"]


def test_fields_that_json_does_not_have_cost_only_themselves(sink: Sink) -> None:
    log = LogLines("info", write=sink.write)
    endless: list[object] = []
    endless.append(endless)
    log.add("info", "odd", {"endless": endless})
    log.add("info", "next", {})
    log.close()
    odd, following = sink.lines()
    assert (odd["event"], odd["unprintable"]) == ("odd", "ValueError")
    assert following["event"] == "next"


def test_a_new_line_after_the_end_begins_again(sink: Sink) -> None:
    log = LogLines("info", write=sink.write)
    for _ in range(2):
        log.add("info", "line", {})
        log.close()
        log.close()
    assert len(sink.lines()) == 2


PROGRAM = """
import sys
from signer.observe.lines import LogLines

log = LogLines("info")
for number in range(5000):
    log.add("info", "line", {"number": number})
sys.exit("the start was refused")
"""


@pytest.mark.parametrize("blocking", [True, False])
def test_a_process_that_ends_has_written_its_lines(*, blocking: bool) -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, blocking)
    with os.fdopen(reading, "rb") as pipe:
        child = subprocess.Popen([sys.executable, "-c", PROGRAM], stderr=writing)
        os.close(writing)
        told = pipe.read().decode().splitlines()
        assert child.wait(30) == 1
    # ``sys.exit`` prints its text before the threads end.
    numbers = [json.loads(line)["number"] for line in told if line.startswith("{")]
    assert numbers == list(range(5000))
    assert "the start was refused" in told


def test_a_process_whose_stderr_is_gone_or_full_ends_all_the_same() -> None:
    reading, writing = os.pipe()
    try:
        child = subprocess.Popen([sys.executable, "-c", PROGRAM], stderr=writing)
        assert child.wait(30) == 1  # nobody has read a byte
    finally:
        os.close(reading)
        os.close(writing)


WITHOUT_STDERR = """
import os, sys
other = os.open(sys.argv[1], os.O_WRONLY)
assert other == 2, other
from signer.observe.lines import LogLines

log = LogLines("info", lambda number: print("dropped", number))
log.add("info", "line", {})
log.close()
"""


def test_a_process_without_stderr_writes_into_no_other_file(tmp_path: Path) -> None:
    other = tmp_path / "audit log"
    other.touch()
    command = [sys.executable, "-c", WITHOUT_STDERR, str(other)]
    shell = ["sh", "-c", 'exec "$@" 2>&-', "sh", *command]
    done = subprocess.run(shell, stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout == "dropped 1\n"
    assert other.read_bytes() == b""


@pytest.fixture
def captured(sink: Sink) -> Iterator[LogLines]:
    """All that is not ours becomes lines, for one test."""
    root, log = logging.getLogger(), LogLines("info", write=sink.write)
    before = root.handlers, warnings.showwarning, threading.excepthook, sys.unraisablehook
    LibraryMessages(log).capture()
    try:
        yield log
    finally:
        root.handlers, warnings.showwarning, threading.excepthook, sys.unraisablehook = before


def test_messages_of_libraries_are_lines_without_their_text(sink: Sink, captured: LogLines) -> None:
    error = ValueError("a secret of the payload")
    logging.getLogger("grpc._cython.cygrpc").error("Unexpected %s", "secret", exc_info=error)
    logging.getLogger("some.library").warning("a secret")
    logging.getLogger("asyncio").debug("nothing")
    captured.close()
    first, second = sink.lines()
    assert (first["event"], first["level"]) == ("library", "warning")
    assert (first["library"], first["error"]) == ("grpc._cython.cygrpc", "ValueError")
    assert first["place"].startswith("test_lines.py:")
    assert (second["library"], second["error"]) == ("some.library", "")
    assert "secret" not in str(sink.lines())


def test_what_python_itself_says_is_a_line_without_its_text(sink: Sink, captured: LogLines) -> None:
    """Python would write it to stderr, and wait there for as long as nobody reads."""

    class Careless:
        def __del__(self) -> None:
            raise KeyError("a secret")

    def fail() -> None:
        raise LookupError("a secret")

    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
    Careless()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("a secret", UserWarning, stacklevel=1)
    captured.close()
    said = [(line["library"], line["error"]) for line in sink.lines()]
    assert said == [
        ("thread", "LookupError"),
        ("unraisable", "KeyError"),
        ("warnings", "UserWarning"),
    ]
    assert all(line["place"].startswith("test_lines.py:") for line in sink.lines())
    assert "secret" not in str(sink.lines())

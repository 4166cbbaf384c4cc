"""What tests start as a fork behaves as what an interpreter starts."""

import signal
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.fork_server import fork_server


class Ended(NamedTuple):
    code: int
    out: str
    err: str


def run(program: str, *arguments: str, given: str = "", **options: object) -> Ended:
    with (
        tempfile.TemporaryFile("w+") as read,
        tempfile.TemporaryFile("w+") as out,
        tempfile.TemporaryFile("w+") as err,
    ):
        read.write(given)
        read.seek(0)
        command = ["-c", program, *arguments]
        fork = fork_server().start(command, stdin=read, stdout=out, stderr=err, **options)  # type: ignore[arg-type]
        code = fork.wait(60)
        out.seek(0)
        err.seek(0)
        return Ended(code, out.read(), err.read())


@pytest.mark.parametrize(
    ("program", "code", "said"),
    [
        ("", 0, ""),
        ("import sys; sys.exit(3)", 3, ""),
        ("import sys; sys.exit('in words')", 1, "in words\n"),
        ("import os; os._exit(4)", 4, ""),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL, ""),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM, ""),
    ],
)
def test_it_ends_as_it_ends(program: str, code: int, said: str) -> None:
    assert run(program) == (code, "", said)


def test_what_nobody_catches_is_shown() -> None:
    ended = run("raise ValueError('seen')")
    assert ended.code == 1
    assert ended.err.startswith("Traceback")
    assert ended.err.endswith("ValueError: seen\n")


def test_what_it_gets_is_its_own(tmp_path: Path) -> None:
    program = "import os, sys; print(sys.argv, sys.stdin.read(), os.getcwd(), dict(os.environ))"
    ended = run(program, "a", "b", given="text", cwd=tmp_path, env={"NAME": "value"})
    assert ended == (0, f"{['-c', 'a', 'b']} text {tmp_path} {{'NAME': 'value'}}\n", "")


def test_no_other_descriptor_is_open_in_it() -> None:
    found = run("import os; print(sorted(os.listdir('/proc/self/fd')))")
    assert found.out == "['0', '1', '2', '3']\n"  # the last is that of the folder itself


def test_its_threads_and_its_last_words_come_before_its_end() -> None:
    program = (
        "import atexit, threading, time\n"
        "atexit.register(print, 'at the end')\n"
        "threading.Thread(target=lambda: (time.sleep(0.05), print('from a thread'))).start()\n"
        "print('from the program')"
    )
    assert run(program).out.splitlines() == ["from the program", "from a thread", "at the end"]


def test_it_is_waited_for_and_killed(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as log:
        fork = fork_server().start(
            ["-c", "print('up', flush=True); import time; time.sleep(600)"],
            stdout=subprocess.PIPE,
            stderr=log,
        )
    with fork:
        assert fork.stdout is not None
        assert fork.stdout.readline() == "up\n"
        assert fork.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            fork.wait(0.01)
        fork.kill()
        assert fork.wait(60) == fork.poll() == -signal.SIGKILL
        assert fork.stdout.read() == ""


def test_a_program_for_shells_passes_on_words_signals_and_its_end(tmp_path: Path) -> None:
    waits = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))\n"
        "print(sys.argv, flush=True)\n"
        "while True: time.sleep(0.01)"  # a signal just before a long sleep would be seen after it
    )
    path = tmp_path / "bin" / "wait"
    fork_server().program(path, "-c", waits)
    with subprocess.Popen([path, "one"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "['-c', 'one']\n"
        process.terminate()
        assert process.wait(60) == 7

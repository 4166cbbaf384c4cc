"""Starts programs of ours as forks of a process that has imported what they import.

Half of the CPU time of a test with a daemon of its own would else go into the same imports
again. Each program is a process of its own all the same, with its own descriptors, environment,
signals and exit code. Where a new interpreter belongs to what is tested (what a command imports,
what a user starts), ``subprocess`` starts it.
"""

import atexit
import gc
import importlib
import json
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import IO, Any

_ROOT = Path(__file__).parents[1]
_LONGEST = 100_000  # bytes of an order
_COMMANDS = (
    *("audit", "checks", "control", "dev", "keys", "main", "operations", "policy"),
    *("policy.effective", "serve", "sign", "upkeep", "verify"),
)
_IMPORTED = (
    *(f"signer.cli.{name}" for name in _COMMANDS),
    "rich.progress",
    "rich.table",
    "sqlalchemy.dialects.sqlite",
    "sqlite3",
)
"""What programs import, also when they run; anything else is imported by each fork."""
_FROM_A_SHELL = """#!{python} -IS
import json, os, select, signal, socket, sys
signals = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # until it is known where they go
order = [{arguments!r} + sys.argv[1:], dict(os.environ), os.getcwd()]
server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
server.connect({address!r})
socket.send_fds(server, [json.dumps(order).encode()], [0, 1, 2])
pid = int(server.recv(16))
for each in signals:
    signal.signal(each, lambda number, _: os.kill(pid, number))
signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
while not select.select([server], [], [], 0.1)[0]:
    pass  # a signal that comes just before a call of the system is seen after it
code = int(server.recv(16))
sys.exit(code if code >= 0 else 128 - code)
"""


class Fork(subprocess.Popen[Any]):
    """A program that the server started: a Popen without ``communicate``.

    It is a child of the server, which says on ``said`` how it ended.
    """

    _child_created = False  # not by Popen, whose destructor would wait for it
    _sigint_wait_secs = 0.0  # after a Ctrl-C in a ``with`` block

    def __init__(self, args: Sequence[str], said: socket.socket, stdout: IO[str] | None) -> None:
        self.args, self.stdout = args, stdout
        self.stdin = self.stderr = None
        self.returncode: int | None = None
        self._said, self._lock = said, threading.Lock()
        self.pid = self._receive()

    def poll(self) -> int | None:
        with suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None and not select.select([self._said], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        with self._lock:
            if self.returncode is None:
                self.returncode = self._receive()
                self._said.close()
        return self.returncode

    def _receive(self) -> int:
        number = self._said.recv(16)
        assert number, "the fork server has died"
        return int(number)


class ForkServer:
    """The server as a test sees it. It ends with the process that started it."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="signer-forks-"))
        self._address = str(self._folder / "orders")
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as orders:
            orders.bind(self._address)
            orders.listen(16)
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.fork_server", str(orders.fileno())],
                cwd=_ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                pass_fds=(orders.fileno(),),
            )
        self.bin = self._folder / "bin"
        """A folder for the PATH of shells, with a ``signer``."""
        self.program(self.bin / "signer", "-m", "signer")

    def start(
        self,
        arguments: Sequence[str],
        *,
        stdout: IO[Any] | int,
        stderr: IO[Any],
        stdin: IO[Any] | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> Fork:
        """Starts ``python *arguments``, which are ``-m``, ``-c`` or a file.

        ``stdout`` is a file, or PIPE for text.
        """
        order = [list(arguments), dict(env or os.environ), str(cwd or Path.cwd())]
        server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        server.connect(self._address)
        if isinstance(stdout, int):
            read, out = os.pipe()
            reading = open(read)  # noqa: SIM115, PTH123 - the caller closes it, as with Popen
        else:
            out, reading = os.dup(stdout.fileno()), None
        given = os.open(os.devnull, os.O_RDONLY) if stdin is None else os.dup(stdin.fileno())
        text = json.dumps(order).encode()
        assert len(text) <= _LONGEST
        socket.send_fds(server, [text], [given, out, stderr.fileno()])
        os.close(given)
        os.close(out)
        return Fork(arguments, server, reading)

    def program(self, path: Path, *arguments: str) -> None:
        """Makes a program for shells that starts ``python *arguments`` and its own ones."""
        path.parent.mkdir(exist_ok=True)
        text = _FROM_A_SHELL.format(
            python=sys.executable, arguments=list(arguments), address=self._address
        )
        path.write_text(text)
        path.chmod(0o755)

    def close(self) -> None:
        """Ends the server; what it started goes on."""
        self._process.communicate()
        shutil.rmtree(self._folder)


@cache
def fork_server() -> ForkServer:
    """The server of this process, started when it is first asked for."""
    made = ForkServer()
    atexit.register(made.close)
    return made


# --- the server's process ------------------------------------------------------------------------


def _serve(orders: socket.socket) -> tuple[bytes, list[int]] | None:
    """Returns in each fork, with its order and descriptors; in the server at its end."""
    awake, wakes = os.pipe2(os.O_NONBLOCK)
    signal.set_wakeup_fd(wakes)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's is for pytest
    running: dict[int, socket.socket] = {}  # by pid: who is told how it ended
    while True:
        ready, _, _ = select.select([0, awake, orders.fileno()], [], [])
        if awake in ready:
            os.read(awake, 512)
            _tell(running)
        if 0 in ready:
            return None
        if orders.fileno() not in ready:
            continue
        asker, _ = orders.accept()
        order, given, _, _ = socket.recv_fds(asker, _LONGEST, 3)
        pid = os.fork()
        if pid == 0:
            asker.detach()  # all descriptors are closed there: no object owns one
            return order, given
        for descriptor in given:
            os.close(descriptor)
        running[pid] = asker
        _send(asker, pid)


def _tell(running: dict[int, socket.socket]) -> None:
    """Says of forks that have ended how they did."""
    while running:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        with running.pop(pid) as asker:
            _send(asker, os.waitstatus_to_exitcode(status))


def _send(asker: socket.socket, number: int) -> None:
    with suppress(OSError):  # nobody wants to know
        asker.send(str(number).encode())


def _become(order: bytes, given: list[int]) -> None:
    """Runs a program in this process as if the interpreter had started with it."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, descriptor in enumerate(given):
        os.dup2(descriptor, number)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    arguments, environment, folder = json.loads(order)
    os.environ.clear()
    os.environ.update(environment)
    time.tzset()
    os.chdir(folder)
    try:
        _run(*arguments)
    except SystemExit as ended:
        code = ended.code or 0
        _ends_with.append(code if isinstance(code, int) else 1)
        raise
    _ends_with.append(0)


def _run(program: str, *arguments: str) -> None:
    if program == "-m":
        sys.argv = list(arguments)
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    elif program == "-c":
        sys.argv = [program, *arguments[1:]]
        exec(compile(arguments[0], "<string>", "exec"), {"__name__": "__main__"})  # noqa: S102
    else:
        sys.argv = [program, *arguments]
        sys.path[0] = str(Path(program).parent)
        runpy.run_path(program, run_name="__main__")


_ends_with: list[int] = []
"""The exit code of a fork, once it has one."""


def _end() -> None:
    """Ends a fork after its own ``atexit``: all else would copy the memory only to free it."""
    if _ends_with:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(_ends_with[0])


def main() -> None:
    atexit.register(_end)  # the first, which is called last
    for name in _IMPORTED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # what is never written to stays one memory for all
    orders = socket.socket(fileno=int(sys.argv[1]))
    order = _serve(orders)
    orders.detach()
    if order is not None:
        _become(*order)


if __name__ == "__main__":
    main()

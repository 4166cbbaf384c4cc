"""A development appliance as a child process, for benches, tests and the demo."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Self

from signer.client import SignerClient
from signer.errors import OperatorError


class DevAppliance:
    """``signer dev up DIR`` in a child process; logs go to ``DIR.log``.

    ``arguments`` follow DIR on the command line; ``environment`` is added to ours.
    As a context manager it is started and stopped.
    """

    def __init__(
        self,
        directory: Path,
        arguments: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        python: str | Path = sys.executable,
    ) -> None:
        self.dir = directory.resolve()
        self.log = self.dir.with_name(f"{self.dir.name}.log")
        self.process: subprocess.Popen[str] | None = None
        self._command = [str(python), "-m", "signer", "dev"]
        self._arguments = tuple(arguments)
        self._environment = {**os.environ, **(environment or {})}

    @property
    def dev(self) -> dict[str, Any]:
        """The content of dev.json."""
        described: dict[str, Any] = json.loads((self.dir / "dev.json").read_text())
        return described

    @property
    def running(self) -> bool:
        """Whether the process is running."""
        return self.process is not None and self.process.poll() is None

    def init(self) -> None:
        """Provisions the folder without serving; raises OperatorError with the program's text."""
        done = subprocess.run(
            [*self._command, "init", str(self.dir), *self._arguments],
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise OperatorError(f"signer dev init ended with {done.returncode}:\n{done.stderr}")

    def start(self, timeout: float = 120) -> float:
        """Starts it and waits for ``ready``; returns how many seconds that took.

        Raises OperatorError with the end of the log if it exits or is not ready within
        ``timeout`` seconds; then no process is left.
        """
        began = time.monotonic()
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("a") as log:
            process = self._launch([*self._command, "up", str(self.dir), *self._arguments], log)
        self.process = process
        # A process that is not ready in time is killed, which ends the reading below.
        late = threading.Timer(timeout, process.kill)
        late.start()
        try:
            line = process.stdout.readline() if process.stdout is not None else ""
        finally:
            late.cancel()
        if line.strip() != "ready":
            code = self.stop(signal.SIGKILL)
            raise OperatorError(
                f"signer dev up {self.dir} was not ready within {timeout:g} s (exit code {code});"
                f" the end of {self.log}:\n{self.log_end()}"
            )
        return time.monotonic() - began

    def stop(self, with_signal: signal.Signals = signal.SIGTERM, timeout: float = 60) -> int:
        """Stops the process, after ``timeout`` seconds by SIGKILL; returns its exit code."""
        process = self.process
        if process is None:
            return 0
        if process.poll() is None:
            process.send_signal(with_signal)
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        if process.stdout is not None:
            process.stdout.close()
        return code

    def _launch(self, command: list[str], log: IO[str]) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )

    def log_end(self) -> str:
        """The last lines of the log."""
        if not self.log.exists():
            return ""
        return "\n".join(self.log.read_text().splitlines()[-20:])

    def client(self, name: str = "issuer") -> SignerClient:
        """Connects as one of the clients of dev.json."""
        return connect(self.dev, name)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def connect(dev: Mapping[str, Any], name: str) -> SignerClient:
    """Connects to the appliance that ``dev`` (dev.json) describes, as the client ``name``."""
    identity = dev["clients"][name]
    return SignerClient.from_files(
        dev["address"],
        server_name=dev["server_name"],
        ca=dev["ca"],
        certificate=identity["cert"],
        key=identity["key"],
    )

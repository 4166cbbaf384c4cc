"""A program that measures once for every line of its input, and waits in between.

The C loop and the load clients are such programs: with ``--step`` they print ``ready``, then
one line of JSON for each measurement, and end where their input ends.
"""

import contextlib
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from typing import Self

from signer.errors import OperatorError

_PATIENCE = 120.0  # seconds, beyond those that a measurement takes; a token may be slow to open


class Stepping:
    """The program as a context manager. Every failure is an OperatorError with its own text."""

    def __init__(
        self, what: str, command: Sequence[str], environment: Mapping[str, str], seconds: float
    ) -> None:
        self._what = what
        self._command = command
        self._environment = environment
        self._timeout = seconds + _PATIENCE

    def __enter__(self) -> Self:
        self._errors = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            self._command,
            env=dict(self._environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        try:
            self._line()
        except BaseException:
            self.__exit__()
            raise
        return self

    def begin(self, line: str = "") -> None:
        """Starts a measurement; the program may read the line."""
        assert self._process.stdin is not None  # noqa: S101  it is a pipe
        try:
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()
        except OSError as error:
            raise self._failed() from error

    def finish(self) -> str:
        """Waits for the end of the measurement; returns the line that describes it."""
        return self._line()

    def _line(self) -> str:
        assert self._process.stdout is not None  # noqa: S101  it is a pipe
        late = threading.Timer(self._timeout, self._process.kill)
        late.start()
        try:
            line = self._process.stdout.readline()
        finally:
            late.cancel()
        if not line:
            raise self._failed()
        return line

    def _failed(self) -> OperatorError:
        code = self._process.wait()
        self._errors.seek(0)
        text = self._errors.read().decode(errors="replace").strip()
        return OperatorError(f"{self._what} failed: {text or f'exit code {code}'}")

    def __exit__(self, *_: object) -> None:
        process = self._process
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._errors.close()

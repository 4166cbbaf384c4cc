"""Load clients: programs of their own, whose CPU is measured, one line of JSON a slice.

The one in Go (tests/load/client) costs least; if it is not built, and for programs that
gather, there is one in Python (``python -m signer.tools.bench.python_load``). Both have the
same options.
"""

import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from signer.algorithms import Algorithm
from signer.errors import OperatorError
from signer.model import Format, KeyName
from signer.tools.bench.cases import Case
from signer.tools.bench.stepping import Stepping

_VERIFIED = {Algorithm.ES256, Algorithm.RS256}  # by the client in Go
PYTHON = (sys.executable, "-m", "signer.tools.bench.python_load")


class Turn(NamedTuple):
    """What a load client measured in one turn; see tests/load/client/main.go."""

    rate: float
    items: int
    latencies: list[int]
    failures: dict[str, int]
    cpu: float  # seconds
    refused: Sequence[int] = ()  # how long the calls took that were OVERLOADED, in µs


class Traffic(NamedTuple):
    """What one load client sends."""

    format: Format
    keys: Sequence[KeyName]
    batch: int
    callers: int
    window: int = 0
    connections: int = 1
    gathers: bool = False
    bad: str | None = None  # one of workload.BAD
    client: str = "issuer"
    public_key: str | None = None
    pace: float = 0.0
    deadline: float = 60.0
    overloads: bool = False  # its pace is said at each turn
    cosigner: KeyName | None = None

    @property
    def in_python(self) -> bool:
        """Whether only the client in Python sends it."""
        return self.gathers or self.overloads or self.pace > 0 or self.cosigner is not None


class LoadTool(NamedTuple):
    """How load clients are started: the one in Go, or None."""

    program: Path | None

    def name(self, case: Case) -> str:
        """Which client drives a case."""
        alone = traffic_of(case, "").in_python
        return "python" if self.program is None or alone else "go"

    @contextmanager
    def running(
        self, dev: Mapping[str, Any], traffic: Traffic, *, seconds: float, warm_up: float
    ) -> Iterator["RunningLoad"]:
        """Starts a client of the appliance that ``dev`` (dev.json) describes."""
        with tempfile.NamedTemporaryFile("w", suffix=".names") as names:
            names.write("".join(f"{key}\n" for key in traffic.keys))
            names.flush()
            command = self._command(dev, traffic, names.name)
            command += ["--seconds", str(seconds), "--warm-up", str(warm_up), "--step"]
            with Stepping("the load client", command, os.environ, seconds + warm_up) as process:
                yield RunningLoad(process)

    def _command(self, dev: Mapping[str, Any], traffic: Traffic, names: str) -> list[str]:
        identity = dev["clients"][traffic.client]
        go = self.program is not None and not traffic.in_python
        command = [str(self.program)] if go else list(PYTHON)
        command += ["--address", dev["address"], "--server-name", dev["server_name"]]
        command += ["--ca", dev["ca"], "--certificate", identity["cert"], "--key", identity["key"]]
        command += ["--names", names, "--format", traffic.format.name]
        command += ["--batch", str(traffic.batch), "--callers", str(traffic.callers)]
        command += ["--window", str(traffic.window), "--connections", str(traffic.connections)]
        if traffic.bad is not None:
            command += ["--bad", traffic.bad]
        if traffic.in_python:
            command += ["--pace", str(traffic.pace), "--deadline", str(traffic.deadline)]
        if traffic.cosigner is not None:
            command += ["--cosigner", str(traffic.cosigner)]
        if traffic.gathers:
            command.append("--gather")
        elif go and traffic.public_key is not None:
            command += ["--public-key", traffic.public_key]
        return command


class RunningLoad:
    """A client that is connected and waits."""

    def __init__(self, process: Stepping) -> None:
        self._process = process

    def begin(self, pace: float | None = None) -> None:
        """Starts the load, which ends by itself; ``pace``: so many requests a second."""
        self._process.begin("" if pace is None else str(pace))

    def finish(self) -> Turn:
        """Waits for its end; returns the measurements."""
        return read_turn(self._process.finish())


def traffic_of(case: Case, public_key: str) -> Traffic:
    """Returns what the measured client of a case sends. ``public_key``: of its first key."""
    verified = len(case.keys) == 1 and case.algorithm in _VERIFIED
    return Traffic(
        case.format,
        case.keys,
        case.batch,
        case.callers,
        case.window,
        case.connections,
        case.gathers,
        public_key=public_key if verified else None,
        pace=case.pace,
        overloads=case.overload is not None,
        deadline=case.overload.deadline if case.overload else 60.0,
        cosigner=case.cosigner,
    )


def floods_of(case: Case, dev: Mapping[str, Any]) -> list[Traffic]:
    """Returns what other facilities' clients send, each a principal of its own if there is one."""
    return [
        Traffic(
            flood.format,
            [flood.key],
            flood.batch,
            flood.callers,
            bad=flood.bad,
            client=flood.client if flood.client in dev["clients"] else "issuer",
        )
        for flood in case.floods
    ]


def read_turn(line: str) -> Turn:
    """Reads a client's line of JSON. Raises OperatorError if it is not one."""
    try:
        read = json.loads(line)
        items, failures = int(read["items"]), read["failures"]
        return Turn(
            rate=float(read["rate"]),
            items=items,
            latencies=[int(took) for took in read.get("latencies_us") or ()],
            failures={str(reason): int(number) for reason, number in failures.items()},
            cpu=float(read["client_cpu_us_per_item"]) * max(1, items) / 1e6,
            refused=[int(took) for took in read.get("refused_us") or ()],
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise OperatorError(f"the load client printed what is not a result: {line!r}") from error


def gauge(metrics: str, name: str) -> float:
    """Returns a value without labels from ``metrics`` (http://host:port). Raises OperatorError."""
    address = urlsplit(metrics)
    connection = HTTPConnection(address.hostname or "", address.port, timeout=10)
    try:
        connection.request("GET", "/metrics")
        page = connection.getresponse().read().decode()
    except OSError as error:
        raise OperatorError(f"{metrics}/metrics cannot be read: {error}") from error
    finally:
        connection.close()
    for line in page.splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return float(value)
    raise OperatorError(f"{metrics}/metrics does not contain {name}")

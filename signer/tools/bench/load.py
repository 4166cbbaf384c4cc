"""The load generator. It shares the CPUs with the appliance, so its calls are cheap.

Requests are serialised before the clock starts and answers stay bytes; one in ``_READ_EVERY``
is parsed, to check that it contains signatures and no failures.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from http.client import HTTPConnection
from typing import Any, NamedTuple, Self
from urllib.parse import urlsplit

import grpc

from signer.client import secure_channel
from signer.errors import OperatorError
from signer.v1 import signing_pb2

METHOD = "/signer.v1.SigningService/SignBatch"
_READ_EVERY = 16
_CPU_SECONDS = "process_cpu_seconds_total"  # of the front process

Requests = Callable[[int], bytes]
"""The n-th request of a caller, serialised."""


class Call(NamedTuple):
    """One call: when it began and ended, monotonic seconds."""

    began: float
    ended: float


class Window(NamedTuple):
    """Calls and CPU time between two moments of steady load."""

    seconds: float
    calls: list[Call]
    front_cpu_seconds: float

    @property
    def rate(self) -> float:
        """Calls that ended, per second."""
        return len(self.calls) / self.seconds

    def latency(self, quantile: float) -> float:
        """Seconds that a call took, at a quantile from 0 to 1."""
        took = sorted(call.ended - call.began for call in self.calls)
        if not took:
            raise OperatorError("no call ended in time: run the bench with more --seconds")
        return took[min(len(took) - 1, int(quantile * len(took)))]


class _Sender(NamedTuple):
    call: "grpc.UnaryUnaryMultiCallable[bytes, bytes]"
    requests: Requests
    items: int

    def run(self, stop: threading.Event, calls: list[Call], errors: list[str]) -> None:
        """Calls until ``stop`` is set or a call fails."""
        number = 0
        try:
            while not stop.is_set():
                began = time.monotonic()
                answer = self.call(self.requests(number), timeout=60.0)
                calls.append(Call(began, time.monotonic()))
                if number % _READ_EVERY == 0:
                    self._read(answer)
                number += 1
        except (grpc.RpcError, OperatorError) as error:
            errors.append(str(error))
            stop.set()

    def _read(self, answer: bytes) -> None:
        response = signing_pb2.SignBatchResponse.FromString(answer)
        if response.failures:
            first = next(iter(response.failures.values()))
            raise OperatorError(f"{len(response.failures)} items failed: {first.message}")
        if len(response.signatures) != self.items or not all(response.signatures):
            raise OperatorError("signatures are missing in an answer without failures")


class Load:
    """``callers`` threads on one connection, each with one call at a time."""

    def __init__(self, dev: Mapping[str, Any], requests: Sequence[Requests], items: int) -> None:
        identity = dev["clients"]["issuer"]
        self._channel = secure_channel(
            dev["address"],
            server_name=dev["server_name"],
            ca=dev["ca"],
            certificate=identity["cert"],
            key=identity["key"],
        )
        # Without serialisers gRPC takes and gives bytes.
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(METHOD)
        self._stop = threading.Event()
        self._errors: list[str] = []
        self._calls: list[list[Call]] = [[] for _ in requests]
        self._threads = [
            threading.Thread(
                target=_Sender(call, source, items).run, args=(self._stop, calls, self._errors)
            )
            for source, calls in zip(requests, self._calls, strict=True)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._channel.close()

    def wait(self, seconds: float) -> None:
        """Waits; raises OperatorError as soon as a call fails."""
        if self._stop.wait(seconds):
            raise OperatorError(f"a call of the bench failed: {self._errors[0]}")

    def between(self, since: float, until: float) -> list[Call]:
        """Returns the calls that ended in that time (monotonic seconds)."""
        return [c for calls in self._calls for c in list(calls) if since <= c.ended < until]


def measure(load: Load, metrics: str, seconds: float) -> Window:
    """Measures a running load, after a warm-up."""
    load.wait(0.7)  # warm-up
    cpu, since = gauge(metrics, _CPU_SECONDS), time.monotonic()
    load.wait(seconds)
    until, after = time.monotonic(), gauge(metrics, _CPU_SECONDS)
    return Window(until - since, load.between(since, until), after - cpu)


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

"""At 70 % of its capacity for a while: memory, descriptors, threads, sessions stay as they are."""

import statistics
import threading
import time
from collections import Counter
from contextlib import ExitStack
from typing import NamedTuple, Self

import psutil
import pytest

from signer.v1 import signing_pb2
from tests.daemon import RECORDS, Daemon
from tests.integration import edge

pytestmark = pytest.mark.usefixtures("two_workers")

LOAD, CALLERS, ITEMS, SAMPLES = 0.7, 3, 50, 30
MIB = 1 << 20
FRONT_GROWTH, WORKER_GROWTH = 8 * MIB, 4 * MIB
"""What samples may differ by without a leak: in ten minutes one of 1 KB a call is 20 MiB."""


class Sample(NamedTuple):
    """What the daemon has: bytes of memory, of the front and of its largest worker, and counts."""

    front: int
    worker: int
    files: int
    threads: int
    sessions: frozenset[int]


def sample(daemon: Daemon) -> Sample:
    assert daemon.process is not None
    front, workers = psutil.Process(daemon.process.pid), daemon.workers()
    return Sample(
        front.memory_info().rss,
        max(worker.memory_info().rss for worker in workers),
        front.num_fds() + sum(worker.num_fds() for worker in workers),
        front.num_threads(),
        frozenset(worker.pid for worker in workers),  # each has one session
    )


class Callers:
    """Threads that each sign a batch after the other, or at times that are ``pause`` apart."""

    def __init__(self, daemon: Daemon, pause: float = 0.0) -> None:
        self._daemon, self._pause, self._end = daemon, pause, threading.Event()
        self._threads = [threading.Thread(target=self._sign) for _ in range(CALLERS)]
        self._request = signing_pb2.SignBatchRequest(
            key=RECORDS, format="FORMAT_MESSAGE", payloads=[b"soak"] * ITEMS
        )
        self.ends: Counter[str] = Counter()
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()

    def _sign(self) -> None:
        with edge.connect(self._daemon.dev) as stubs:
            due = time.monotonic()
            while not self._end.is_set():
                # Without a request id: what the appliance remembers of these grows to a limit.
                answer = stubs.signing.SignBatch(self._request, timeout=60)
                with self._lock:
                    self.ends.update(ok=ITEMS - len(answer.failures), failed=len(answer.failures))
                due = max(due + self._pause, time.monotonic() - self._pause)
                self._end.wait(max(0.0, due - time.monotonic()))


def capacity(daemon: Daemon, seconds: float) -> float:
    """Batches a second of callers that wait for their answers."""
    with Callers(daemon) as callers:
        time.sleep(seconds)
    return callers.ends["ok"] / ITEMS / seconds


@pytest.mark.parametrize("seconds", [20, pytest.param(600, marks=pytest.mark.torture)])
def test_nothing_grows_under_a_constant_load(daemon: Daemon, seconds: int) -> None:
    daemon.start()
    pause = CALLERS / (LOAD * capacity(daemon, min(seconds / 4, 20)))
    samples = []
    with ExitStack() as stack:
        operator = stack.enter_context(daemon.client("operator"))
        callers = stack.enter_context(Callers(daemon, pause))
        for _ in range(SAMPLES):
            time.sleep(seconds / SAMPLES)
            operator.reload()
            assert daemon.metric("signer_workers", state="serving") == 2
            samples.append(sample(daemon))
    assert callers.ends["ok"]
    assert not callers.ends["failed"]
    assert {each.sessions for each in samples} == {samples[0].sessions}
    before, after = samples[SAMPLES // 3 : 2 * SAMPLES // 3], samples[2 * SAMPLES // 3 :]
    print(f"{callers.ends['ok'] / seconds:.0f} items/s; {samples[0]}; {samples[-1]}")

    def growth(of: str) -> float:
        middle = [statistics.median(getattr(each, of) for each in part) for part in (before, after)]
        return float(middle[1] - middle[0])

    assert growth("front") < FRONT_GROWTH
    assert growth("worker") < WORKER_GROWTH
    assert growth("files") < 3
    assert growth("threads") < 3

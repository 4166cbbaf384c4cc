"""``signer token bench``: what the customer's own HSM does, and with how many sessions.

Each session is a worker process with a key of its own session. Nothing is made on the token, and
no key of the token signs, but for the failover: that uses one that two tokens hold, for canaries.
"""

import asyncio
import os
import signal
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from signer.algorithms import Algorithm
from signer.clock import SystemClock
from signer.config.models import Config, TokenConfig
from signer.errors import CallError, OperatorError
from signer.event_loop import EventLoop
from signer.events import Events
from signer.hsm.front.admin import AdminWorker, open_admin
from signer.hsm.front.pool import Pool, canary_job
from signer.hsm.front.service import Hsm
from signer.hsm.front.slot import WorkerStatus
from signer.hsm.spec import WorkerMode
from signer.keys.registry import Registry
from signer.model import KeyVersion
from signer.text import count
from signer.tools.bench.figures import quantile

Advance = Callable[[int, int, str], object]
"""Called with the steps that are done, their number, and what is done next."""

KNEE = 0.9
"""The knee is the fewest sessions that reach this part of the best rate."""
CALLERS = 4  # that ask for canaries during a failover
BACK_SECONDS = 30.0  # how long the loss of a token is watched at most
_AFTER_SECONDS = 1.0


@dataclass(frozen=True)
class Plan:
    """What is measured: the algorithm and its length of RSA, numbers of sessions, seconds each."""

    algorithm: Algorithm
    bits: int
    sessions: Sequence[int]
    seconds: float


def measure(token: TokenConfig, state: Path, plan: Plan, advance: Advance) -> dict[str, Any]:
    """Measures one token; returns the figures. Times are in ms, rates in signatures a second.

    ``stopped``: why the token opened no more sessions. Raises OperatorError, also if the PIN may
    not be tried. It is tried by one session first.
    """
    numbers = sorted(set(plan.sessions))
    steps = 2 * len(numbers) + 2
    with ExitStack() as stack, ThreadPoolExecutor(numbers[-1]) as threads:
        workers: list[AdminWorker] = []
        rows: list[dict[str, float]] = []
        stopped = ""
        for number in numbers:
            advance(2 * len(rows), steps, f"opening {count(number, 'session')}")
            try:
                while len(workers) < number:
                    worker = stack.enter_context(open_admin(token, state, WorkerMode.MEASURE))
                    worker.call("make", algorithm=plan.algorithm, bits=plan.bits)
                    workers.append(worker)
            except OperatorError as error:
                if not rows:
                    raise
                stopped = f"session {len(workers) + 1} was not opened: {error}"
                break
            advance(2 * len(rows) + 1, steps, f"signing in {count(number, 'session')}")
            rows.append(_signed(workers, plan, threads))
        advance(steps - 2, steps, "looking keys up")
        first = workers[0]
        look_up = first.call("look_up", seconds=plan.seconds)
        advance(steps - 1, steps, "unwrapping keys")
        unwrap = first.call("unwrap", seconds=plan.seconds)
        opened = [worker.call("opened") for worker in workers]
        described = first.describe()
    advance(steps, steps, "done")
    return {
        "token": described,
        "algorithm": plan.algorithm.value,
        "bits": plan.bits or None,
        "sessions": rows,
        "knee": knee(rows),
        "stopped": stopped or None,
        "look_up": look_up,
        "unwrap": unwrap if unwrap["mechanism"] else None,
        "login": {
            name: statistics.median(each[name] for each in opened)
            for name in ("login_ms", "open_ms")
        },
    }


def _signed(
    workers: Sequence[AdminWorker], plan: Plan, threads: ThreadPoolExecutor
) -> dict[str, float]:
    """Has all workers sign at the same time; returns the row of so many sessions."""
    order = {"algorithm": plan.algorithm, "at": time.monotonic() + 0.2, "seconds": plan.seconds}
    done = list(threads.map(lambda worker: worker.call("sign", **order), workers))
    times = [each for one in done for each in one["times_ms"]]
    return {
        "sessions": len(workers),
        "rate": sum(one["rate"] for one in done),
        "p50_ms": quantile(times, 0.50),
        "p99_ms": quantile(times, 0.99),
    }


def knee(rows: Sequence[dict[str, float]]) -> int:
    """Returns the fewest sessions that reach nearly the best rate."""
    best = max(row["rate"] for row in rows)
    return int(next(row["sessions"] for row in rows if row["rate"] >= KNEE * best))


# --- one token of two is lost ------------------------------------------------------------------


def shared_version(config: Config) -> KeyVersion | None:
    """Returns a version that signs now and that two configured tokens hold, None if none does.

    Raises OperatorError if the registry cannot be read.
    """
    labels, now = {token.label for token in config.tokens}, SystemClock().now()
    if len(labels) < 2:
        return None
    with Registry.open(config.registry) as registry:
        keys = registry.state().keys
    for name in keys.names():
        version = keys.primary(name, now)
        if version is not None and len(labels & {at.token for at in version.placements}) > 1:
            return version
    return None


def measure_failover(
    config: Config, version: KeyVersion, seconds: float, advance: Advance
) -> dict[str, Any]:
    """Kills all workers of one token after the other while canaries are signed.

    Returns for each token how long a call takes usually, and at most after the kill; the calls
    that failed; and after how many seconds the token served again. Raises OperatorError.
    """
    tokens = [token for token in config.tokens if version.cka_id_on(token.label) is not None]
    lost = []
    with _Tokens(config, tokens, version) as served:
        for number, token in enumerate(tokens):
            advance(number, len(tokens), f"losing token {token.label}")
            lost.append(served.loss(token.label, seconds))
    advance(len(tokens), len(tokens), "done")
    return {"key": str(version.key), "lost": lost}


class _Tokens:
    """The tokens that hold one key, with workers of our own, as the daemon has them."""

    def __init__(self, config: Config, tokens: Sequence[TokenConfig], version: KeyVersion) -> None:
        self._loop, self._clock, self._version = EventLoop(), SystemClock(), version
        self._start_seconds = max(token.start_seconds for token in tokens)
        pools = {
            token.label: Pool.of(
                token,
                config,
                loop=self._loop,
                events=Events(),
                clock=self._clock,
                keys=lambda: [version],
            )
            for token in tokens
        }
        self._hsm = Hsm(pools)

    def __enter__(self) -> Self:
        self._hsm.start()
        self._hsm.wait_for_outcomes(self._start_seconds)
        if reasons := self._hsm.away().values():
            self.__exit__()
            raise OperatorError("; ".join(reasons))
        return self

    def __exit__(self, *_: object) -> None:
        self._hsm.close()
        self._loop.close()

    def loss(self, label: str, seconds: float) -> dict[str, Any]:
        """Kills the workers of a token in the middle of a load; returns what its callers saw."""
        pool, workers = self._hsm.pools[label], len(self._hsm.pools[label].status())
        if not _until(lambda: self._serve(workers, pool), self._start_seconds):
            raise OperatorError(f"token {label} does not serve with all of its workers")
        load = _Load(self._hsm, self._version, self._clock.monotonic)
        running = asyncio.run_coroutine_threadsafe(load.run(), self._loop.loop)
        time.sleep(seconds)
        usual, killed = quantile(load.times(), 0.99), self._clock.monotonic()
        for pid in serving_pids(pool.status()):
            with suppress(ProcessLookupError):  # it has just left by itself
                os.kill(pid, signal.SIGKILL)
        _until(lambda: not pool.serving, 1.0)
        back = _until(lambda: pool.serving > 0, BACK_SECONDS)
        back_after = self._clock.monotonic() - killed
        time.sleep(_AFTER_SECONDS)
        load.end()
        running.result()
        return {
            "token": label,
            "usual_ms": 1e3 * usual,
            "longest_ms": 1e3 * max(load.times(killed), default=0.0),
            "failed": load.failed,
            "back_seconds": back_after if back else None,
        }

    def _serve(self, workers: int, pool: Pool) -> bool:
        return pool.serving == workers and not self._hsm.away() and not pool.breaker.is_open


def serving_pids(workers: Iterable[WorkerStatus]) -> list[int]:
    """Returns the process ids of the workers that serve: none of 0, which is our whole group.

    One in its login is left alone, which some modules do not bear.
    """
    return [worker.pid for worker in workers if worker.pid > 0 and worker.state == "serving"]


class _Load:
    """Callers that each ask for one canary after the other."""

    def __init__(self, hsm: Hsm, version: KeyVersion, now: Callable[[], float]) -> None:
        self._hsm, self._version, self._now = hsm, version, now
        self._calls: list[tuple[float, float]] = []  # when each ended, and how long it took
        self._ended = False
        self.failed = 0

    def times(self, since: float = 0.0) -> list[float]:
        """Returns how many seconds the calls took that ended after ``since``."""
        return [took for at, took in list(self._calls) if at >= since]

    def end(self) -> None:
        self._ended = True

    async def run(self) -> None:
        await asyncio.gather(*(self._call() for _ in range(CALLERS)))

    async def _call(self) -> None:
        while not self._ended:
            began = self._now()
            try:
                signed = await self._hsm.sign_now(canary_job(self._version, began + BACK_SECONDS))
                self.failed += bool(signed.failures)
            except CallError:
                self.failed += 1
            now = self._now()
            self._calls.append((now, now - began))


def _until(condition: Callable[[], bool], seconds: float) -> bool:
    """Waits until a condition holds, up to so many seconds; returns whether it does."""
    end = time.monotonic() + seconds
    while not (holds := condition()) and time.monotonic() < end:
        time.sleep(0.01)
    return holds

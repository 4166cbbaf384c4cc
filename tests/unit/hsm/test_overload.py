"""More is asked for than an HSM signs: the admission, with workers and clients in a simulation."""

import asyncio
import heapq
import itertools
import random
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, cast

import pytest

from signer.errors import CallError, Reason
from signer.event_loop import EventLoop
from signer.hsm.front.chunks import Batch, Chunk, SignJob
from signer.hsm.front.dispatcher import WATCH_SECONDS
from signer.hsm.front.pool import Admission, Pool
from signer.hsm.spec import TokenSpec
from tests.stand_ins import Recorder, SetClock, key_version

WORKERS, ITEM = 2, 0.0004  # seconds
CAPACITY = WORKERS / ITEM  # items a second
DURABLE, ANSWERED = 0.01, 0.03  # seconds until an intent is on disk; from a signature to its caller


class Simulation:
    """Workers that take chunks, and calls that come by themselves, in the order of their times."""

    def __init__(
        self, loop: EventLoop, seed: int, noise: float = 0.0, between: float = 0.0
    ) -> None:
        """``between`` chunks a worker waits for this part of their time."""
        self.clock, self.noise, self.between = SetClock(0.0), noise, between
        spec = TokenSpec("t", None, "", "", "", session_copies=True, environment={})
        self.pool = Pool(
            spec,
            workers=WORKERS,
            start_seconds=60.0,
            hang_seconds=9.0,
            max_queued=200_000,
            loop=loop,
            events=Recorder().events,
            clock=self.clock,
        )
        for slot in self.pool._dispatcher.slots:
            slot.state = "serving"
        self.scheduler, self.costs = self.pool._scheduler, self.pool._dispatcher.costs
        self.random = random.Random(seed)
        self.versions = {"b": key_version(cka_id=b"b"), "a": key_version(cka_id=b"a")}
        self.idle, self.numbers = WORKERS, itertools.count()
        self.due: list[tuple[float, int, Any]] = []
        self.good: Counter[str] = Counter()
        self.late: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.hints: list[float] = []
        self.look()

    def at(self, time: float, act: Any) -> None:
        heapq.heappush(self.due, (time, next(self.numbers), act))

    def run(self, seconds: float) -> None:
        while self.due and self.due[0][0] <= seconds:
            self.clock.time, _, act = heapq.heappop(self.due)
            act()

    def look(self) -> None:
        self.pool._dispatcher.look_at_pace()
        self.at(self.clock.time + WATCH_SECONDS, self.look)

    def calls(self, owner: str, items: int, deadline: float, times: Iterator[float]) -> None:
        """An owner's calls, which do not wait for each other."""
        if (moment := next(times, None)) is None:
            return

        def call() -> None:
            until = self.clock.time + deadline
            version = replace(self.versions["a"], cka_id=owner.encode())
            made = SignJob(version, [bytes(32)] * items, owner, 1, 1, until)
            try:
                admission = self.pool.admit(made)
            except CallError as error:
                assert error.reason is Reason.OVERLOADED
                self.refused[owner] += 1
                self.hints.append(error.retry_after or 0.0)
            else:
                self.at(self.clock.time + DURABLE, lambda: self.queue(admission))
            self.calls(owner, items, deadline, times)

        self.at(moment, call)

    def queue(self, admission: Admission) -> None:
        admission.release()
        batch = Batch(admission.job, self.clock.time, cast("asyncio.Future[None]", Future()))
        self.scheduler.add(batch)
        self.at(admission.job.deadline, lambda: self.ended(batch))
        self.give()

    def ended(self, batch: Batch) -> None:
        if batch.remaining:
            self.late[batch.job.owner] += 1
            self.scheduler.abandon(batch)

    def give(self) -> None:
        while self.idle and (chunk := self.scheduler.take(10**9)) is not None:
            self.idle -= 1
            took = chunk.items * ITEM * self.random.uniform(1, 1 + self.noise)
            self.at(self.clock.time + took, lambda c=chunk, t=took: self.signed(c, t))

    def signed(self, chunk: Chunk, took: float) -> None:
        self.costs.learn(chunk.portions[0].batch.kind, took, chunk.items)
        self.pool._dispatcher.pace.done(chunk.seconds)
        self.at(self.clock.time + self.between * took, self.free)
        for portion in chunk.portions:
            batch = portion.batch
            batch.store(portion.start, [b"s"] * len(portion), {})
            if not batch.remaining and self.clock.time + ANSWERED <= batch.job.deadline:
                self.good[batch.job.owner] += len(batch.signatures)

    def free(self) -> None:
        self.idle += 1
        self.give()

    def poisson(self, rate: float, seconds: float) -> Iterator[float]:
        time = 0.0
        while (time := time + self.random.expovariate(rate)) < seconds:
            yield time


@pytest.mark.parametrize(("noise", "between"), [(0.0, 0.0), (0.5, 0.0), (0.2, 0.6)])
@pytest.mark.parametrize("deadline", [1.0, 3.0])
@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.torture) for seed in range(1, 10))]
)
def test_at_three_times_the_capacity_nine_tenths_of_it_are_answered_in_time(
    loop: EventLoop, seed: int, deadline: float, noise: float, between: float
) -> None:
    world, seconds, owners = Simulation(loop, seed, noise, between), 20.0, 10
    rate = 3 * CAPACITY / 100 / owners
    for number in range(owners):
        world.calls(f"f{number}", 100, deadline, world.poisson(rate, seconds))
    world.run(seconds)
    possible = CAPACITY / (1 + noise / 2) / (1 + between) * seconds
    assert world.good.total() >= 0.9 * possible
    assert world.late.total() < 0.1 * world.good.total() / 100
    assert max(world.hints) < deadline
    least, most = min(world.good.values()), max(world.good.values())
    assert least > 0.5 * most, "each facility has about its share"


def test_small_facilities_do_not_notice_greedy_ones(loop: EventLoop) -> None:
    world, seconds = Simulation(loop, 1, noise=0.2), 20.0
    for greedy in ("g0", "g1"):
        world.calls(greedy, 1000, 5.0, world.poisson(2 * CAPACITY / 1000, seconds))
    for number in range(50):
        world.calls(f"s{number:02}", 1, 1.0, world.poisson(1.0, seconds))
    world.run(seconds)
    assert {owner[0] for owner in [*world.refused, *world.late]} == {"g"}
    assert sum(world.good[f"s{number:02}"] for number in range(50)) > 900

"""Costs are robust against a stall, and forgotten."""

import pytest

from signer.algorithms import Algorithm
from signer.hsm.front.chunks import CHUNK_SECONDS
from signer.hsm.front.costs import FORGET_SECONDS, Cost, Costs, Pace
from signer.hsm.front.scheduler import Scheduler
from tests.stand_ins import SetClock
from tests.unit.hsm.test_scheduler import job

KIND = (Algorithm.ES256, 91)


def test_an_unknown_cost_makes_a_small_chunk() -> None:
    costs = Costs(SetClock())
    assert costs.measured(KIND).item == 0
    assert int(CHUNK_SECONDS / costs.estimate(KIND).item) == 16


def test_the_first_measurement_counts_and_each_kind_has_its_own() -> None:
    costs = Costs(SetClock())
    costs.learn(KIND, 0.002)
    assert costs.measured(KIND).item == costs.estimate(KIND).item == 0.002
    assert costs.measured((Algorithm.ES256, 92)).item == 0


def test_stalls_do_not_count() -> None:
    costs = Costs(SetClock())
    for number in range(40):
        costs.learn(KIND, 3.0 if number % 3 == 0 else 5e-5)
    assert costs.measured(KIND).item == 5e-5


def test_a_first_chunk_that_stalls_does_not_count_for_long() -> None:
    costs = Costs(SetClock())
    costs.learn(KIND, 5.0)  # the token looked for the key
    costs.learn(KIND, 5e-5)
    assert costs.measured(KIND).item == 5e-5


def test_a_token_that_becomes_slow_is_noticed() -> None:
    costs = Costs(SetClock())
    for seconds in [5e-5] * 100 + [2e-3] * 5:
        costs.learn(KIND, seconds)
    assert costs.measured(KIND).item == 2e-3


def test_no_worker_reports_a_cost_of_nothing() -> None:
    costs = Costs(SetClock())
    costs.learn(KIND, 0.0)
    assert costs.measured(KIND).item > 0


MESSAGES = (Algorithm.EDDSA, 44)
MEGABYTE = 1 << 20


def test_long_messages_cost_by_their_bytes_beyond_what_an_item_costs() -> None:
    costs = Costs(SetClock())
    costs.learn(MESSAGES, 20 * 1e-4, 20, 20 * 300)
    assert costs.measured(MESSAGES) == Cost(1e-4)
    costs.learn(MESSAGES, 2 * 1e-4 + 0.01, 2, MEGABYTE)
    item, byte = costs.measured(MESSAGES)
    assert item == 1e-4
    assert byte * MEGABYTE == pytest.approx(0.01)
    assert costs.measured(MESSAGES).of(3, 2 * MEGABYTE) == pytest.approx(3e-4 + 0.02)


def test_where_only_long_messages_were_measured_an_item_costs_something() -> None:
    costs = Costs(SetClock())
    costs.learn(MESSAGES, 0.01, 1, MEGABYTE)
    assert costs.measured(MESSAGES).item == 0
    assert costs.estimate(MESSAGES).item == costs.estimate(KIND).item > 0
    assert costs.estimate(MESSAGES).byte * MEGABYTE == pytest.approx(0.01)
    scheduler = Scheduler(costs.estimate)
    scheduler.add(job("a", [b"", bytes(MEGABYTE), b""], algorithm=Algorithm.EDDSA))
    chunks = [scheduler.take(100), scheduler.take(100), scheduler.take(100)]
    assert [chunk and chunk.items for chunk in chunks] == [1, 1, 1]


def test_stalls_over_long_messages_do_not_count() -> None:
    costs = Costs(SetClock())
    for number in range(20):
        costs.learn(MESSAGES, 3.0 if number % 3 == 0 else 0.01, 1, MEGABYTE)
    assert costs.measured(MESSAGES).of(1, MEGABYTE) == pytest.approx(0.01)
    costs.learn(MESSAGES, 5e-5, 1, 100)
    assert costs.measured(MESSAGES).item == 5e-5


def test_costs_are_forgotten() -> None:
    clock = SetClock()
    costs = Costs(clock)
    costs.learn(KIND, 0.5)
    clock.time += FORGET_SECONDS - 1
    costs.forget()
    assert costs.measured(KIND).item == 0.5
    clock.time += 1
    costs.forget()
    assert costs.measured(KIND).item == 0
    costs.learn(KIND, 0.1)
    assert costs.measured(KIND).item == 0.1, "what was before does not count again"


def test_the_pace_is_what_becomes_of_the_time_of_busy_workers() -> None:
    pace = Pace()
    for _ in range(60):
        pace.done(0.1)
        pace.look(0.2, busy=True)
    assert pace.value == pytest.approx(0.5, abs=0.01)
    pace.look(0.2, busy=True)
    assert 0.4 < pace.value < 0.5, "one stall changes it little"
    for _ in range(1000):
        pace.look(0.2, busy=True)
    assert pace.value > 0.05, "it is never nothing"
    for _ in range(300):
        pace.look(0.2, busy=False)
    assert pace.value == pytest.approx(1, abs=0.01)
    pace.done(9.0)
    pace.look(0.2, busy=True)
    assert pace.value <= 1, "an estimate that is too high makes nothing faster"

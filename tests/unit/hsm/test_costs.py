"""Costs are robust against a stall, and forgotten."""

from signer.algorithms import Algorithm
from signer.hsm.front.scheduler import CHUNK_SECONDS, FORGET_SECONDS, Costs
from tests.stand_ins import SetClock

KIND = (Algorithm.ES256, 91)


def test_an_unknown_cost_makes_a_small_chunk() -> None:
    costs = Costs(SetClock())
    assert costs.measured(KIND) == 0
    assert int(CHUNK_SECONDS / costs.estimate(KIND)) == 16


def test_the_first_measurement_counts_and_each_kind_has_its_own() -> None:
    costs = Costs(SetClock())
    costs.learn(KIND, 0.002)
    assert costs.measured(KIND) == costs.estimate(KIND) == 0.002
    assert costs.measured((Algorithm.ES256, 92)) == 0


def test_stalls_do_not_count() -> None:
    costs = Costs(SetClock())
    for number in range(40):
        costs.learn(KIND, 3.0 if number % 3 == 0 else 5e-5)
    assert costs.measured(KIND) == 5e-5


def test_a_first_chunk_that_stalls_does_not_count_for_long() -> None:
    costs = Costs(SetClock())
    costs.learn(KIND, 5.0)  # the token looked for the key
    costs.learn(KIND, 5e-5)
    assert costs.measured(KIND) == 5e-5


def test_a_token_that_becomes_slow_is_noticed() -> None:
    costs = Costs(SetClock())
    for seconds in [5e-5] * 100 + [2e-3] * 5:
        costs.learn(KIND, seconds)
    assert costs.measured(KIND) == 2e-3


def test_no_worker_reports_a_cost_of_nothing() -> None:
    costs = Costs(SetClock())
    costs.learn(KIND, 0.0)
    assert costs.measured(KIND) > 0


def test_costs_are_forgotten() -> None:
    clock = SetClock()
    costs = Costs(clock)
    costs.learn(KIND, 0.5)
    clock.time += FORGET_SECONDS - 1
    costs.forget()
    assert costs.measured(KIND) == 0.5
    clock.time += 1
    costs.forget()
    assert costs.measured(KIND) == 0
    costs.learn(KIND, 0.1)
    assert costs.measured(KIND) == 0.1, "what was before does not count again"

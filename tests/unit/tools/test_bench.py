import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from signer.errors import OperatorError
from signer.model import Format, KeyName
from signer.tools.bench.cases import CASES, load_keys, requests
from signer.tools.bench.load import Call, Window
from signer.tools.bench.run import CaseRow, _Round, _row, misses
from signer.v1 import signing_pb2


def test_requests_go_round_the_keys_of_all_callers_together() -> None:
    keys = [KeyName("f", str(number)) for number in range(5)]
    callers = [requests(Format.MESSAGE, keys, 3, caller, 2) for caller in range(2)]
    named = [
        signing_pb2.SignBatchRequest.FromString(callers[number % 2](number // 2)).key
        for number in range(10)
    ]
    assert named == [str(key) for key in keys] * 2


@pytest.mark.parametrize("message_format", sorted({case.format for case in CASES}))
def test_requests_are_whole_and_their_payloads_differ(message_format: Format) -> None:
    key = KeyName("f", "k")
    source = requests(message_format, [key], 50, 0, 1)
    first, second = (signing_pb2.SignBatchRequest.FromString(source(n)) for n in range(2))
    assert first.key == str(key)
    assert signing_pb2.Format.Name(first.format) == f"FORMAT_{message_format}"
    assert len({*first.payloads, *second.payloads}) == 100
    if message_format in {Format.JWS, Format.HCERT}:
        assert all(isinstance(json.loads(payload), dict) for payload in first.payloads)


def test_the_names_of_load_keys_are_those_of_signer_dev() -> None:
    assert [str(key) for key in load_keys(10)][-1] == "facilities/l-00010/keys/records"
    assert len({case.name for case in CASES}) == len(CASES)


@given(st.lists(st.floats(0, 10), min_size=1, max_size=200))
def test_latencies_are_quantiles(took: list[float]) -> None:
    window = Window(2.0, [Call(5.0, 5.0 + seconds) for seconds in took], 1.0)
    assert window.rate == len(took) / 2
    middle, late = window.latency(0.5), window.latency(0.99)
    below = sum(call.ended - call.began <= late for call in window.calls)
    assert middle <= late
    assert below >= 0.99 * len(took)


def test_a_window_without_calls_asks_for_more_time() -> None:
    with pytest.raises(OperatorError, match="--seconds"):
        Window(1.0, [], 0.0).latency(0.5)


def row(**changes: float) -> CaseRow:
    message = CASES[0]
    made = _row(message, 64, [_Round(100.0, 200.0, 150.0, 0.001, 0.002, 4e-6)])
    return CaseRow(**{**made.__dict__, **changes})


def test_ratios_are_medians_of_the_rounds_own() -> None:
    rounds = [
        _Round(plain=100, best=200, rate=150, p50=0.001, p99=0.002, front_cpu=4e-6),
        _Round(plain=200, best=250, rate=200, p50=0.003, p99=0.009, front_cpu=5e-6),
        _Round(plain=400, best=500, rate=800, p50=0.002, p99=0.004, front_cpu=6e-6),
    ]
    made = _row(CASES[0], 64, rounds)
    assert made.ratio_plain == 1.5  # of 1.5, 1.0 and 2.0: not 200 / 200
    assert made.ratio_best == 0.8
    assert (made.p50_ms, made.p99_ms) == (2.0, 4.0)
    assert made.front_cpu_us_per_item == pytest.approx(5)
    assert set(made.as_dict()) == {
        *("case", "format", "algorithm", "batch", "callers", "checks", "rate", "plain", "best"),
        *("ratio_plain", "ratio_best", "p50_ms", "p99_ms", "front_cpu_us_per_item"),
    }


@pytest.mark.parametrize(
    ("changes", "missed"),
    [
        ({"ratio_best": 0.85}, []),
        ({"ratio_best": 0.84}, ["ratio_best 0.84, goal at least 0.85"]),
        (
            {"ratio_best": 1.0, "front_cpu_us_per_item": 8.5},
            ["front_cpu_us_per_item 8.50, goal at most 8"],
        ),
    ],
)
def test_goals_are_least_ratios_and_most_costs(
    changes: dict[str, float], missed: list[str]
) -> None:
    assert misses(CASES[0], row(**changes)) == missed

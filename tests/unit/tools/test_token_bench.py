"""What is made of the figures of a token."""

import copy
from typing import Any

import pytest

from signer.cli.measure_token import table
from signer.hsm.front.slot import WorkerStatus
from signer.tools.token_bench import knee, serving_pids

FOUND: dict[str, Any] = {
    "token": {
        "label": "t" * 32,
        "manufacturer": "m" * 32,
        "model": "m" * 16,
        "library": "l" * 32,
        "library_version": "12.34",
    },
    "algorithm": "PS256",
    "bits": 3072,
    "sessions": [
        {"sessions": 1, "rate": 123456.7, "p50_ms": 12345.678, "p99_ms": 12345.678},
        {"sessions": 64, "rate": 1234567.8, "p50_ms": 0.01, "p99_ms": 99999.9},
    ],
    "knee": 64,
    "stopped": "session 65 was not opened: " + "too many sessions are open " * 9,
    "look_up": {"missing_ms": 123456.7, "found_ms": 123456.7},
    "unwrap": {"mechanism": "AES_KEY_WRAP_PAD", "unwrap_ms": 12345.6},
    "login": {"login_ms": 123456.7, "open_ms": 123456.7},
    "failover": {
        "key": "facilities/f/keys/k",
        "lost": [
            {
                "token": "t" * 16,
                "usual_ms": 12.3,
                "longest_ms": 1234.5,
                "failed": 3,
                "back_seconds": None,
            }
        ],
    },
}


def row(sessions: int, rate: float) -> dict[str, float]:
    return {"sessions": sessions, "rate": rate}


@pytest.mark.parametrize(
    ("rates", "fewest"),
    [([100], 1), ([100, 200, 390, 400], 4), ([100, 200, 300, 400], 8), ([400, 200], 1)],
)
def test_the_knee_is_the_fewest_sessions_near_the_best_rate(rates: list[int], fewest: int) -> None:
    assert knee([row(2**at, rate) for at, rate in enumerate(rates)]) == fewest


def test_the_table_is_at_most_80_columns_wide() -> None:
    lines = list(table(FOUND))
    assert max(map(len, lines)) <= 80
    assert [line for line in lines if "< enough" in line] == [lines[6]]
    assert any(line.startswith("session 65 was not opened") for line in lines)
    assert any("3 calls failed" in line for line in lines)
    assert any("not within the time" in line for line in lines)


def test_the_table_says_what_the_token_does_not_do() -> None:
    found = copy.deepcopy(FOUND)
    found |= {"unwrap": None, "failover": None, "stopped": None}
    found["look_up"]["found_ms"] = None
    text = "\n".join(table(found))
    assert "the module has no AES key wrap" in text
    assert "of a key the token has none" in text
    assert "lost" not in text


def test_only_workers_that_serve_are_killed() -> None:
    """The process id 0 would be that of all processes of the terminal."""
    workers = [
        WorkerStatus("t", pid, state, 1, 0, "")
        for pid, state in ((11, "serving"), (0, "serving"), (0, "starting"), (12, "starting"))
    ]
    assert serving_pids(workers) == [11]

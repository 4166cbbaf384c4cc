"""``signer token bench`` on SoftHSM: alone, as slow as over a network, with a wrong PIN."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from signer.tools.dev import slow_configuration
from tests.appliances import Appliance, TwoTokens
from tests.commands import Done, signer
from tests.fault.shim import Shim

SLOW_MS = 20


@pytest.fixture
def made(tmp_path: Path) -> Appliance:
    """An appliance that does not serve."""
    appliance = Appliance(tmp_path / "dev")
    appliance.init()
    return appliance


def bench(config: Path, *more: object) -> Done:
    return signer("token", "bench", "--config", config, "--seconds", 0.4, *more)


def figures(config: Path, *more: object) -> dict[str, Any]:
    done = bench(config, "--json", *more)
    assert done.code == 0, done.err
    found: dict[str, Any] = json.loads(done.out)
    return found


def objects(made: Appliance) -> set[Path]:
    """SoftHSM keeps each object of a token in a file."""
    return set((made.dir / "token").glob("*/*.object"))


def test_the_token_holds_afterwards_what_it_held_before(made: Appliance) -> None:
    before = objects(made)
    assert len(before) > 10
    done = bench(made.dir / "signer.yaml", "--sessions", "2,1")
    assert done.code == 0, done.err
    assert objects(made) == before
    lines = done.out.splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert lines[0].startswith("token signer-dev: SoftHSM project")
    assert [line.split()[0] for line in lines[5:7]] == ["1", "2"]
    assert "unwrap of a P-256 key: " in done.out
    assert done.err.splitlines()[:2] == ["opening 1 session", "signing in 1 session"]


@pytest.mark.parametrize(("algorithm", "bits"), [("EdDSA", None), ("ES384", None), ("PS256", 3072)])
def test_each_algorithm_is_measured(made: Appliance, algorithm: str, bits: int | None) -> None:
    before = objects(made)
    length = ("--bits", bits) if bits else ()
    found = figures(made.dir / "signer.yaml", "--sessions", 1, "--algorithm", algorithm, *length)
    assert (found["algorithm"], found["bits"], found["knee"]) == (algorithm, bits, 1)
    [row] = found["sessions"]
    assert row["rate"] > 0
    assert 0 < row["p50_ms"] <= row["p99_ms"]
    assert found["unwrap"]["mechanism"] == "AES_KEY_WRAP_PAD"
    assert found["login"]["open_ms"] > found["login"]["login_ms"] > 0
    assert found["failover"] is None
    assert objects(made) == before


def test_figures_show_what_a_call_takes(made: Appliance, shim_module: Path) -> None:
    """By what the calls take at least: two for a signature, three or four for a search."""
    config = slow_configuration(made.dir, SLOW_MS, shim_module)
    found = figures(config, "--sessions", "1,4")
    one, four = found["sessions"]
    for row in (one, four):
        assert row["rate"] <= row["sessions"] * 1000 / (2 * SLOW_MS)
        assert row["p50_ms"] >= 2 * SLOW_MS
    assert four["rate"] > one["rate"], "sessions wait for the HSM side by side"
    assert found["knee"] == 4
    assert found["look_up"]["missing_ms"] >= 3 * SLOW_MS
    assert found["look_up"]["found_ms"] >= 4 * SLOW_MS
    assert found["unwrap"]["unwrap_ms"] >= SLOW_MS
    assert found["login"]["login_ms"] >= SLOW_MS
    calls = Shim(made.dir / "state" / "shim").calls
    assert calls["C_Login"] == 4


def test_a_token_with_few_sessions_is_measured_as_far_as_it_opens_some(
    made: Appliance, shim_module: Path
) -> None:
    config = slow_configuration(made.dir, 0, shim_module)
    Shim(made.dir / "state" / "shim").on("C_OpenSession", skip=2, code=0xB1)
    found = figures(config, "--sessions", "1,2,4")
    assert [row["sessions"] for row in found["sessions"]] == [1, 2]
    assert "session 3 was not opened: token signer-dev cannot open a session" in found["stopped"]


def test_a_wrong_pin_is_tried_once(made: Appliance) -> None:
    pin = made.dir / "pin"
    right = pin.read_text()
    pin.write_text("00000000\n")
    config = made.dir / "signer.yaml"
    first, second = (bench(config, "--sessions", 4) for _ in range(2))
    assert (first.code, second.code) == (1, 1)
    assert "rejects the PIN" in first.err
    assert "is not tried again" in second.err
    assert right.strip() not in first.err + second.err
    assert "00000000" not in first.err + second.err
    pin.write_text(right)
    assert bench(config, "--sessions", 1).code == 0, "it has worked before"


def test_a_token_of_two_is_lost_and_no_call_fails(tmp_path: Path) -> None:
    two = TwoTokens(tmp_path / "dev")
    two.init()
    before = objects(two)
    found = figures(two.dir / "signer.yaml", "--token", "signer-dev", "--sessions", 1, "--failover")
    lost = found["failover"]["lost"]
    assert [each["token"] for each in lost] == ["signer-dev", "signer-dev-2"]
    for each in lost:
        assert each["failed"] == 0
        assert each["longest_ms"] > 0
        assert each["back_seconds"] > 0
    assert objects(two) == before


def test_without_a_second_token_there_is_no_failover(made: Appliance) -> None:
    done = bench(made.dir / "signer.yaml", "--failover")
    assert done.code == 2
    assert "two of the configured tokens hold" in done.err


@pytest.mark.parametrize("numbers", ["0", "65", "1,,2", "many", "1;2"])
def test_wrong_numbers_of_sessions_are_refused(made: Appliance, numbers: str) -> None:
    done = bench(made.dir / "signer.yaml", "--sessions", numbers)
    assert done.code == 2
    assert "write numbers from 1 to 64" in done.err


Made = Callable[..., Appliance]


def test_a_daemon_goes_on_beside_the_bench(make_appliance: Made) -> None:
    serving = make_appliance()
    assert bench(serving.dir / "signer.yaml", "--sessions", 2).code == 0
    with serving.client() as client:
        [result] = client.sign_batch("facilities/01-001/keys/records", "MESSAGE", [b"m"])
    assert result.ok

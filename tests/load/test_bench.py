"""The C loop and ``signer bench``, run for a moment: that they measure, not how much."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from signer.algorithms import Algorithm
from signer.config.models import Config, load_config
from signer.errors import OperatorError
from signer.model import KeyName
from signer.tools.bench.c_loop import CLoop, cka_ids
from tests.fault.shim import compiled
from tests.torture import long

SOURCE = Path(__file__).parent / "loop.c"
RECORDS = KeyName("01-001", "records")


def rate(loop: CLoop, mode: Any, algorithm: Algorithm, ids: list[bytes], **more: Any) -> float:
    with loop.running(mode, algorithm, ids, seconds=0.1, **more) as running:
        first = running.rate()
        assert running.rate() > 0  # it waits between measurements
        return first


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = tmp_path_factory.mktemp("loop") / "loop"
    command = ["cc", "-O2", "-Wall", "-Wextra", "-Werror"]
    command += ["-o", str(built), str(SOURCE), "-ldl", "-lpthread", "-lcrypto"]
    subprocess.run(command, check=True)
    return built


@pytest.fixture(scope="session")
def config(appliance: Any) -> Config:
    return load_config(Path(appliance.dev["config"]))


@pytest.mark.parametrize("mode", ["plain", "best"])
@pytest.mark.parametrize(
    ("short", "algorithm"),
    [
        ("records", Algorithm.ES256),
        ("records-rsa", Algorithm.PS256),
        ("records-rs256", Algorithm.RS256),
        ("records-ed25519", Algorithm.EDDSA),
    ],
)
def test_the_loop_signs_with_every_mechanism(
    program: Path, config: Config, mode: Any, short: str, algorithm: Algorithm
) -> None:
    [cka_id] = cka_ids(config, [KeyName("01-001", short)])
    assert rate(CLoop(program, config), mode, algorithm, [cka_id]) > 0


@pytest.mark.parametrize("algorithm", [Algorithm.ES256, Algorithm.PS256, Algorithm.RS256])
def test_the_loop_checks_what_it_signs(
    appliance: Any, program: Path, config: Config, algorithm: Algorithm
) -> None:
    names = {"ES256": "records", "PS256": "records-rsa", "RS256": "records-rs256"}
    key = appliance.key(f"01-001/{names[algorithm]}")
    ids = cka_ids(config, [KeyName.parse(key["name"])])
    loop, right = CLoop(program, config), Path(key["public_key"])
    wrong = Path(appliance.key("01-002/records")["public_key"])
    assert rate(loop, "plain", algorithm, ids, check=right) > 0
    if algorithm is Algorithm.ES256:
        with pytest.raises(OperatorError, match="wrong signature"):
            rate(loop, "plain", algorithm, ids, check=wrong)


def test_the_loop_goes_round_several_keys(program: Path, config: Config) -> None:
    ids = cka_ids(config, [RECORDS, KeyName("01-002", "records"), KeyName("moh", "digest")])
    assert len(set(ids)) == 3
    assert rate(CLoop(program, config), "best", Algorithm.ES256, ids, threads=3) > 0


def test_the_loop_misses_keys_that_are_not_there(program: Path, config: Config) -> None:
    with pytest.raises(OperatorError, match="lacks a private key"):
        rate(CLoop(program, config), "plain", Algorithm.ES256, [b"\xff\xfe"])


def test_the_pin_is_no_argument(program: Path) -> None:
    done = subprocess.run([program, "--pin", "1"], capture_output=True, check=False)
    assert done.returncode == 2


def bench(appliance: Any, program: Path, *more: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "signer", "bench", "--dir", str(appliance.dir)]
    command += ["--loop", str(program), "--rounds", "1", "--slice", "0.2", *map(str, more)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)


def test_the_bench_prints_one_object_a_case(appliance: Any, program: Path, tmp_path: Path) -> None:
    cases = ("single-1", "jws", "flood-bad")
    chosen = [word for case in (*cases, "keys-10") for word in ("--case", case)]
    done = bench(appliance, program, "--load", tmp_path / "absent", "--json", *chosen)
    assert done.returncode == 1
    assert "keys-10: not measured" in done.stderr  # and the others are
    assert "the load client in Python is used" in done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert tuple(row["case"] for row in rows) == cases, done.stderr
    for row in rows:
        assert row["checks"] == 64
        assert row["client"] == "python"
        assert isinstance(row["judged"], bool)
        for name in ("rate", "plain", "best", "p50_ms", "p99_ms", "client_cpu_us_per_item"):
            assert row[name] > 0, name


@pytest.mark.torture
def test_the_bench_compares_two_checkouts_that_are_busy(
    make_appliance: Any, program: Path, tmp_path: Path
) -> None:
    mine = make_appliance(workers=2, start=False)
    root = Path(__file__).parents[2]
    done = bench(
        *(mine, program, "--load", tmp_path / "absent", "--against", root),
        *("--json", "--case", "busy-front", "--rounds", "2"),
    )
    assert done.returncode in {0, 1}, done.stderr
    [row] = map(json.loads, done.stdout.splitlines())
    assert "error" not in row["against"], done.stderr
    assert row["front_cpu_us_per_item"] > 0
    for name in ("rate", "ratio_rate", "ratio_p50", "ratio_p99", "ratio_front_cpu"):
        assert row["against"][name] > 0, name
    mine.start()
    with mine.client("officer-a") as officer:
        assert not officer.operations.suspensions()
        operations = list(officer.operations.list())
    assert {(each.kind, each.state) for each in operations} == {("resume", "DONE")}


def test_an_overload_of_a_slow_token_is_measured(
    make_appliance: Any, program: Path, tmp_path: Path
) -> None:
    made = make_appliance(workers=2, start=False)
    shim = compiled(tmp_path)
    done = bench(made, program, *("--latency", 5, "--shim", shim, "--json", "--case", "overload"))
    assert done.returncode in {0, 1}, done.stderr
    [row] = map(json.loads, done.stdout.splitlines())
    assert row["plain"] <= 2 * 1000 / (2 * 5), "two threads, and two calls for a signature"
    assert row["p50_ms"] >= 100 / 2 * 2 * 5, "a hundred items, two workers"
    assert row["ratio_capacity"] > 0
    assert (row["client"], row["checks"]) == ("python", 1)
    assert set(row["failures"]) <= {"OVERLOADED", "DEADLINE_EXCEEDED", "DEADLINE_TOO_SHORT"}
    both = bench(made, program, "--latency", 1, "--against", tmp_path)
    assert both.returncode == 2
    made.start()
    serves = bench(made, program, "--latency", 1, "--shim", shim)
    assert serves.returncode == 1
    assert "serves: stop it to use --latency" in serves.stderr


GO_CLIENT = Path("build/load")


@pytest.mark.skipif(not GO_CLIENT.exists(), reason="`make bench` builds the client in Go")
@pytest.mark.parametrize(
    "case", ["hcert-single-16", "flood-bad", *long("single-16", "jws", "cose")]
)
def test_the_client_in_go_measures_and_verifies(appliance: Any, program: Path, case: str) -> None:
    done = bench(appliance, program, "--load", GO_CLIENT, "--json", "--case", case)
    assert done.returncode in {0, 1}, done.stderr
    [row] = map(json.loads, done.stdout.splitlines())
    assert (row["client"], row["failures"]) == ("go", {})
    assert row["rate"] > 0


@pytest.mark.parametrize("folder", ["absent", "."])
def test_another_checkout_must_be_one(
    appliance: Any, program: Path, tmp_path: Path, folder: str
) -> None:
    done = bench(appliance, program, "--against", tmp_path / folder)
    assert done.returncode == 1
    assert "is not a checkout" in done.stderr


def test_the_bench_needs_the_compiled_loop(appliance: Any, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "signer", "bench", "--dir", str(appliance.dir)]
    done = subprocess.run(
        [*command, "--loop", str(tmp_path / "absent")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "make bench" in done.stderr

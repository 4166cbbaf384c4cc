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

SOURCE = Path(__file__).parent / "loop.c"
RECORDS = KeyName("01-001", "records")


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
    assert CLoop(program, config).rate(mode, algorithm, [cka_id], seconds=0.1) > 0


@pytest.mark.parametrize("algorithm", [Algorithm.ES256, Algorithm.PS256, Algorithm.RS256])
def test_the_loop_checks_what_it_signs(
    appliance: Any, program: Path, config: Config, algorithm: Algorithm
) -> None:
    names = {"ES256": "records", "PS256": "records-rsa", "RS256": "records-rs256"}
    key = appliance.key(f"01-001/{names[algorithm]}")
    ids = cka_ids(config, [KeyName.parse(key["name"])])
    loop, right = CLoop(program, config), Path(key["public_key"])
    wrong = Path(appliance.key("01-002/records")["public_key"])
    assert loop.rate("plain", algorithm, ids, seconds=0.1, check=right) > 0
    if algorithm is Algorithm.ES256:
        with pytest.raises(OperatorError, match="wrong signature"):
            loop.rate("plain", algorithm, ids, seconds=0.1, check=wrong)


def test_the_loop_goes_round_several_keys(program: Path, config: Config) -> None:
    ids = cka_ids(config, [RECORDS, KeyName("01-002", "records"), KeyName("moh", "digest")])
    assert len(set(ids)) == 3
    assert CLoop(program, config).rate("best", Algorithm.ES256, ids, seconds=0.1, threads=3) > 0


def test_the_loop_misses_keys_that_are_not_there(program: Path, config: Config) -> None:
    with pytest.raises(OperatorError, match="lacks a private key"):
        CLoop(program, config).rate("plain", Algorithm.ES256, [b"\xff\xfe"], seconds=0.1)


def test_the_pin_is_no_argument(program: Path) -> None:
    done = subprocess.run([program, "--pin", "1"], capture_output=True, check=False)
    assert done.returncode == 2


@pytest.mark.parametrize("case", ["jws", "flood"])
def test_the_bench_prints_one_object_a_case(appliance: Any, program: Path, case: str) -> None:
    command = [sys.executable, "-m", "signer", "bench", "--dir", str(appliance.dir)]
    command += ["--loop", str(program), "--rounds", "1", "--seconds", "1.5", "--json"]
    done = subprocess.run(
        [*command, "--case", case], capture_output=True, text=True, check=False, env=os.environ
    )
    assert done.returncode in {0, 1}, done.stderr  # 1: a goal is missed, as may be here
    assert done.stdout, done.stderr
    [row] = map(json.loads, done.stdout.splitlines())
    assert row["case"] == case
    assert row["checks"] == 64
    for name in ("rate", "plain", "best", "p50_ms", "p99_ms", "front_cpu_us_per_item"):
        assert row[name] > 0, name


def test_the_bench_needs_the_compiled_loop(appliance: Any, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "signer", "bench", "--dir", str(appliance.dir)]
    done = subprocess.run(
        [*command, "--loop", str(tmp_path / "absent")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "make bench" in done.stderr

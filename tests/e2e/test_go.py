"""A Go client made from the .proto files alone: it signs over a stream."""

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.streaming import check

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
BUILD = ROOT / "build" / "go-client"
PLUGINS = ("protoc-gen-go", "protoc-gen-go-grpc")


def run(*command: str | Path) -> None:
    environment = {**os.environ, "GOFLAGS": "-buildvcs=false -mod=readonly"}
    done = subprocess.run(
        [str(each) for each in command],
        cwd=BUILD,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command}:\n{done.stderr[-4000:]}"


@pytest.fixture(scope="session")
def program() -> Path:
    """The client, built once for each state of its sources; modules are pinned by go.sum."""
    if shutil.which("go") is None:
        pytest.skip("NOT TESTED: Go is not installed, so no Go client proves SignStream")
    sources = [*sorted((HERE / "go").iterdir()), ROOT / "proto" / "signer" / "v1" / "signing.proto"]
    wanted = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
    built, stamp = BUILD / "bin" / "client", BUILD / "built.sha256"
    if stamp.exists() and stamp.read_text() == wanted and built.exists():
        return built
    shutil.rmtree(BUILD, ignore_errors=True)
    shutil.copytree(HERE / "go", BUILD)
    (BUILD / "bin").mkdir()
    run("go", "build", "-o", "bin/", *(plugin_module(name) for name in PLUGINS))
    run(
        *(sys.executable, "-m", "grpc_tools.protoc"),
        *("-I", ROOT / "proto", "-I", sysconfig.get_path("purelib")),
        *(f"--plugin={name}={BUILD / 'bin' / name}" for name in PLUGINS),
        *("--go_out=.", "--go_opt=module=signer", "--go-grpc_out=.", "--go-grpc_opt=module=signer"),
        ROOT / "proto" / "signer" / "v1" / "signing.proto",
    )
    run("go", "vet", ".")
    run("go", "build", "-o", built, ".")
    stamp.write_text(wanted)
    return built


def plugin_module(name: str) -> str:
    module = "grpc" if name.endswith("grpc") else "protobuf"
    return f"google.golang.org/{module}/cmd/{name}"


def test_items_signed_over_a_stream_verify_with_gos_own_crypto(
    program: Path, appliance: Any
) -> None:
    check([str(program)], appliance)

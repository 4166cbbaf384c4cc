"""README's guide for officers, run as it is printed: two officers, openssl as the authority."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from signer.client import DeniedError
from tests.e2e import verifiers

README = Path(__file__).parents[2] / "README.md"
KEY = "facilities/moh/keys/dcc2"


class Guide:
    """The blocks of the guide by the name in their first line, and a folder to run them in."""

    def __init__(self, appliance: Any, folder: Path) -> None:
        self.appliance, self.folder = appliance, folder
        text = README.read_text()
        section = text[text.index("## For officers") : text.index("## For auditors")]
        self.blocks = dict(re.findall(r"(?ms)^```sh\n# (\w+)\n(.*?)^```", section))
        assert len(self.blocks) == section.count("```sh")

    def run(self, name: str) -> str:
        """Runs a block; only the folders are the test's own."""
        commands = self.blocks["key"].split("mkdir")[0] if name != "key" else ""
        commands += f"mkdir -p /tmp/csca && cd /tmp/csca\n{self.blocks[name]}"
        for shown, ours in (("appliance", self.appliance.dir), ("csca", self.folder)):
            commands = re.sub(rf"/\w+/{shown}\b", str(ours), commands)
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", commands],
            env={**os.environ, "PATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{name}: {done.stdout}{done.stderr}"
        return done.stdout


@pytest.fixture(scope="module")
def guide(appliance: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("officers")
    made = type(appliance)(folder / "dev")
    made.init()
    made.start()
    yield Guide(made, folder)
    assert made.stop() == 0


def certificate(guide: Guide, payload: bytes, version: int) -> dict[str, Any]:
    """Signs a vaccination certificate with the key, and verifies it with the trust list's."""
    with guide.appliance.client() as client:
        [result] = client.sign_batch(KEY, "HCERT", [payload])
    assert result.ok, result.error
    assert result.key_version == f"{KEY}/versions/{version}"
    pem = guide.folder / ("dcc.pem" if version == 1 else "requests/moh.dcc2.v2.pem")
    [claims] = verifiers.hcert([result.signature.decode()], pem)
    assert claims["dcc"] == json.loads(payload)
    return claims


def test_officers_make_a_ministry_key_and_rotate_it(
    guide: Guide, vaccinations: dict[str, bytes]
) -> None:
    payload = next(iter(vaccinations.values()))
    guide.run("key")
    with guide.appliance.client() as client, pytest.raises(DeniedError):
        client.sign_batch(KEY, "HCERT", [payload])

    assert f"{KEY}/versions/1" in guide.run("activate")
    first = certificate(guide, payload, 1)

    assert f"{KEY}/versions/1" in guide.run("rotate")
    end = time.monotonic() + 20
    with guide.appliance.client("officer-a") as client:
        while (primary := client.get_key(KEY).primary) is None or primary.name.endswith("/1"):
            assert time.monotonic() < end, "the new version does not take over"
            time.sleep(0.1)
    second = certificate(guide, payload, 2)
    assert first["kid"] != second["kid"]
    trusted = json.loads((guide.folder / "trust-list.json").read_text())
    kids = {bytes.fromhex(claims["kid"]) for claims in (first, second)}
    assert kids <= {base64.b64decode(each["kid"]) for each in trusted}

    guide.run("stop")
    certificate(guide, payload, 2)


def test_the_log_proves_that_two_officers_stood_behind_it(guide: Guide) -> None:
    """Runs after the test above; the log is the appliance's own."""
    audit = guide.appliance.dir / "audit"
    command = [sys.executable, "-m", "signer", "audit", "verify", "--json"]
    command += ["--dir", str(audit), "--key", str(audit / "audit.pub.pem")]
    end = time.monotonic() + 10
    while True:  # the newest records are signed within a second
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        report = json.loads(done.stdout)
        if report["whole"] or time.monotonic() > end:
            break
        time.sleep(0.5)
    assert report["problems"] == []
    assert len(report["officers"]) == 2
    assert report["operations"] == 6
    assert report["acts"] == 2  # certificates for the rotation; a suspension

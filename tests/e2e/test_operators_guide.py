"""README's guide for SREs, run as it is printed: a doctor, a daemon, Prometheus with its rules."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from signer.tools.dev import free_ports

ROOT = Path(__file__).parents[2]
NOT_HERE = re.compile(r"^(sudo apt-get|make setup) .*\n", re.MULTILINE)
"""What the machine of the tests has already."""


def test_an_sre_gets_a_monitored_service(tmp_path: Path) -> None:
    [block] = re.findall(r"(?ms)^```sh\n# operator\n(.*?)^```", (ROOT / "README.md").read_text())
    assert len(block.replace("\\\n", "").splitlines()) == 10, "ten commands are promised"
    commands, left_out = NOT_HERE.subn("", block)
    assert left_out == 2
    # Only folders and ports are the test's own.
    shutil.copytree(ROOT / "config", tmp_path / "config")
    metrics, prometheus = free_ports()
    scraping = tmp_path / "config" / "prometheus" / "prometheus.yml"
    scraping.write_text(scraping.read_text().replace(":9464", f":{metrics}"))
    commands = commands.replace("/tmp/site", str(tmp_path / "site"))  # noqa: S108  as printed
    commands = commands.replace(":9464", f":{metrics}").replace(":9097", f":{prometheus}")
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", f"trap 'kill $(jobs -p); wait' EXIT\n{commands}"],
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    logs = "".join(
        (tmp_path / "site" / name).read_text()[-3000:] for name in ("log", "prometheus.log")
    )
    assert done.returncode == 0, done.stdout + done.stderr + logs
    assert "\nready\n" in done.stdout
    assert f'signer_ready{{instance="127.0.0.1:{metrics}", job="signer"}}' in done.stdout
    assert "ALERTS{" not in done.stdout, "an alert fires on a healthy service"

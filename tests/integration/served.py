"""``signer serve`` as a process of its own, and its log as an auditor sees it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import yaml

from signer.tools.dev import free_ports
from tests.integration import edge

SIGNER = [sys.executable, "-m", "signer"]


class Served:
    """One process with a configuration of its own."""

    def __init__(self, config: Path) -> None:
        self.config = config
        self.settings = yaml.safe_load(config.read_text())
        self.log = config.with_suffix(".log")
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            command = [*SIGNER, "serve", "--config", str(self.config)]
            self.process = subprocess.Popen(command, stderr=log, stdin=subprocess.DEVNULL)
        edge.eventually(self.ready, f"{self.config.name} serves: {self.log}", 60)

    def stop(self) -> int:
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(60)

    def ready(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log.read_text()[-3000:]
        host, port = self.settings["metrics"].split(":")
        connection = HTTPConnection(host, int(port), timeout=5)
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    def verified(self) -> dict[str, Any]:
        """What ``signer audit verify`` says once all is signed."""
        audit = self.config.parent / self.settings["audit"]["directory"]
        return verified(audit, self.settings["audit"]["origin"])


def beside(made: Any) -> Path:
    """The configuration of a second appliance on the registry and token of one that is made.

    It has all else of its own; ``signer init --join`` begins its log.
    """
    config = yaml.safe_load((made.dir / "signer.yaml").read_text())
    port, metrics = free_ports()
    shutil.copytree(made.dir / "policy", made.dir / "policy-2")
    config |= {
        "listen": f"127.0.0.1:{port}",
        "metrics": f"127.0.0.1:{metrics}",
        "policy": "policy-2",
        "state": "state-2",
    }
    config["audit"] |= {"directory": "audit-2", "origin": "second/audit"}
    (made.dir / "state-2").mkdir(mode=0o700)
    path = Path(made.dir / "second.yaml")
    path.write_text(yaml.safe_dump(config))
    return path


def verified(audit: Path, origin: str, *, whole: bool = True) -> dict[str, Any]:
    """The report on a log; where it is to be ``whole``, once its newest records are signed."""
    command = [*SIGNER, "audit", "verify", "--json", "--dir", str(audit)]
    command += ["--key", str(audit / "audit.pub.pem"), "--origin", origin]
    report: dict[str, Any] = {}

    def told() -> bool:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        report.update(json.loads(done.stdout))
        return bool(report["whole"]) or not whole

    edge.eventually(told, "the log is whole and signed")
    return report

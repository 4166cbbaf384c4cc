"""``signer serve`` as a process of its own, and its log as an auditor sees it."""

from __future__ import annotations

import json
import subprocess
import sys
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import edge
import yaml

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

"""A Prometheus of the tests' own, Debian's program, in a folder of its own on loopback."""

import json
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from tests.ports import free_ports

SECONDS = 60.0
"""How long it may take to start or to stop on a busy machine."""

Parameters = Mapping[str, str | float | Sequence[str]]


class PrometheusServer:
    """A server that runs. ``config`` is the text of prometheus.yml; ``folder`` is empty."""

    def __init__(self, folder: Path, config: str) -> None:
        self._port, _ = free_ports()
        self.url = f"http://127.0.0.1:{self._port}"
        self._log = folder / "log"
        (folder / "prometheus.yml").write_text(config)
        command = ["prometheus", f"--web.listen-address=127.0.0.1:{self._port}"]
        command += ["--config.file=prometheus.yml", "--storage.tsdb.path=data"]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        try:
            self._wait()
        except BaseException:
            self.close()
            raise

    def query(self, expression: str) -> list[Any]:
        """What an instant query finds: each has ``metric``, its labels, and ``value``."""
        return list(self.get("query", {"query": expression})["result"])

    def get(self, path: str, parameters: Parameters) -> Any:
        """``data`` of one call of the HTTP API; an error of it fails the test."""
        status, body = self._ask(f"/api/v1/{path}?{urlencode(parameters, doseq=True)}")
        answer = json.loads(body)
        assert (status, answer["status"]) == (200, "success"), (parameters, answer)
        return answer["data"]

    def close(self) -> None:
        """Ends it."""
        self._process.terminate()
        try:
            self._process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _wait(self) -> None:
        end = time.monotonic() + SECONDS
        while not self._ready():
            alive = self._process.poll() is None and time.monotonic() < end
            assert alive, f"Prometheus does not serve:\n{self._log.read_text()}"
            time.sleep(0.05)

    def _ready(self) -> bool:
        try:
            return self._ask("/-/ready")[0] == 200
        except OSError:
            return False

    def _ask(self, path: str) -> tuple[int, bytes]:
        with closing(HTTPConnection("127.0.0.1", self._port, timeout=SECONDS)) as connection:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read()

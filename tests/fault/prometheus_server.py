"""Debian's Prometheus with the appliance's own rules, in a hurry.

The rules are those of config/prometheus, word for word but for their durations: what is
looked at over an hour is looked at over two minutes, what must last for half an hour must
last for seconds. Thresholds are as they are, so a disk that hangs really hangs.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import threading
from collections.abc import Mapping
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import yaml
from daemon import SECONDS, until

SHIPPED = Path(__file__).parents[2] / "config/prometheus"
SCRAPE = "2s"
RANGE, LEAST_RANGE = 30, 10.0
"""Ranges are so many times shorter; the shortest still has a few scrapes."""
WAIT, LEAST_WAIT = 3600, 3.0
"""So are ``for`` and the intervals of groups; the shortest still takes two scrapes to fail."""

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_RANGE = re.compile(r"(?<=\[)(\d+)([smhd])(?=\])")
_WAIT = re.compile(r"(?m)(?<= for: )(\d+)([smhd])$")
_INTERVAL = re.compile(r"(?m)(?<= interval: )\d+[smhd]")


def hurried(rules: str) -> str:
    """The text of rules with shorter durations."""

    def shorter(times: int, least: float) -> Any:
        def duration(found: re.Match[str]) -> str:
            seconds = int(found[1]) * _UNITS[found[2]] / times
            return f"{max(seconds, least) * 1000:.0f}ms"

        return duration

    rules = _RANGE.sub(shorter(RANGE, LEAST_RANGE), rules)
    rules = _WAIT.sub(shorter(WAIT, LEAST_WAIT), rules)
    return _INTERVAL.sub("1s", rules)


def without_durations(rules: str) -> str:
    """The text of rules with all durations taken out."""
    for pattern in (_RANGE, _WAIT, _INTERVAL, re.compile(r"\b\d+ms\b|(?<= interval: )1s")):
        rules = pattern.sub("", rules)
    return rules


class Alert(NamedTuple):
    """An alert that has fired; ``instance`` is empty for one of the whole service."""

    name: str
    instance: str


class Prometheus:
    """Scrapes daemons by their name, and remembers every alert that fires."""

    def __init__(self, folder: Path, targets: Mapping[str, str]) -> None:
        """Takes the address of each daemon's metrics."""
        self._folder = folder
        (folder / "rules").mkdir(parents=True)
        for path in SHIPPED.glob("rules/*.yml"):
            (folder / "rules" / path.name).write_text(hurried(path.read_text()))
        self.fired: dict[Alert, Mapping[str, str]] = {}
        """The annotations of every alert that was seen firing."""
        self._watch(targets)
        self._over = threading.Event()
        self._poller = threading.Thread(target=self._poll, daemon=True)
        self._process = self._start()
        try:
            until(self._ready, f"Prometheus answers; its log: {self._log}")
            scraped = len(targets)
            until(lambda: self.value("count(up == 1)") == scraped, "it has scraped all of them")
            self._poller.start()
        except BaseException:
            self.stop()
            raise

    def leave(self) -> None:
        """Scrapes nothing any more."""
        self._watch({})
        self._process.send_signal(signal.SIGHUP)

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The samples of an instant query; raises AssertionError where it is none."""
        answer = self._get(f"/api/v1/query?query={quote(expression)}")
        assert answer["status"] == "success", answer
        return list(answer["data"]["result"])

    def value(self, expression: str) -> float | None:
        """The value of the one sample of an instant query, None where there is none."""
        found = self.query(expression)
        return float(found[0]["value"][1]) if found else None

    def until(self, *alerts: Alert, seconds: float = 4 * SECONDS) -> None:
        """Waits until alerts have been seen firing."""

        def missing() -> list[Alert]:
            return [each for each in alerts if each not in self.fired]

        until(lambda: not missing(), f"{alerts} fire", seconds)

    def stop(self) -> None:
        self._over.set()
        if self._poller.is_alive():
            self._poller.join()
        self._process.terminate()
        self._process.wait(SECONDS)

    def _watch(self, targets: Mapping[str, str]) -> None:
        """Writes the shipped configuration for these targets."""
        config = yaml.safe_load((SHIPPED / "prometheus.yml").read_text())
        config["global"] = {"scrape_interval": SCRAPE, "evaluation_interval": "1s"}
        del config["alerting"]  # there is nobody to tell
        [job] = config["scrape_configs"]
        job["scrape_timeout"] = SCRAPE
        job["static_configs"] = [
            {"targets": [address], "labels": {"instance": name}}
            for name, address in targets.items()
        ]
        (self._folder / "prometheus.yml").write_text(yaml.safe_dump(config))

    def _start(self) -> subprocess.Popen[bytes]:
        """Starts it on a free port, which its log then tells."""
        self._log = self._folder / "log"
        with self._log.open("wb") as log:
            return subprocess.Popen(
                [
                    "prometheus",
                    f"--config.file={self._folder / 'prometheus.yml'}",
                    f"--storage.tsdb.path={self._folder / 'data'}",
                    "--web.listen-address=127.0.0.1:0",
                    "--log.format=json",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def _ready(self) -> bool:
        assert self._process.poll() is None, self._log.read_text()
        told = re.findall(r'"address":"127\.0\.0\.1:([1-9]\d*)"', self._log.read_text())
        if not told:
            return False
        self._port = int(told[-1])
        try:
            return self._request("/-/ready")[0] == 200
        except OSError:
            return False

    def _poll(self) -> None:
        while not self._over.wait(0.25):
            for alert in self._get("/api/v1/alerts")["data"]["alerts"]:
                if alert["state"] == "firing":
                    labels = alert["labels"]
                    name = Alert(labels["alertname"], labels.get("instance", ""))
                    self.fired.setdefault(name, alert["annotations"])

    def _get(self, path: str) -> Any:
        return json.loads(self._request(path)[1])

    def _request(self, path: str) -> tuple[int, bytes]:
        connection = HTTPConnection("127.0.0.1", self._port, timeout=SECONDS)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

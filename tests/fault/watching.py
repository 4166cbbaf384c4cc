"""A real Prometheus with the appliance's own rules, in a hurry.

The rules are those of config/prometheus, word for word but for their durations: what is
looked at over an hour is looked at over two minutes, what must last for half an hour must
last for seconds. Thresholds are as they are, so a disk that hangs really hangs.
"""

import re
import signal
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from tests.daemon import until
from tests.prometheus_server import PrometheusServer

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

    def shorter(times: int, least: float) -> Callable[[re.Match[str]], str]:
        def duration(found: re.Match[str]) -> str:
            seconds = int(found[1]) * _UNITS[found[2]] / times
            return f"{max(seconds, least) * 1000:.0f}ms"

        return duration

    rules = _RANGE.sub(shorter(RANGE, LEAST_RANGE), rules)
    rules = _WAIT.sub(shorter(WAIT, LEAST_WAIT), rules)
    return _INTERVAL.sub("1s", rules)


def without_durations(rules: str) -> str:
    """The text of rules with all durations taken out."""
    for pattern in (_RANGE, _WAIT, _INTERVAL, re.compile(r"\b\d+ms\b")):
        rules = pattern.sub("", rules)
    return rules


class Alert(NamedTuple):
    """An alert that has fired; ``instance`` is empty for one of the whole service."""

    name: str
    instance: str


class Watching(PrometheusServer):
    """Scrapes daemons by their name, and remembers every alert that fires."""

    def __init__(self, folder: Path, targets: Mapping[str, str]) -> None:
        """Takes the address of each daemon's metrics; returns when it has seen all of them."""
        self.fired: dict[Alert, Mapping[str, str]] = {}
        """The annotations of every alert that was seen firing."""
        self._config = folder / "prometheus.yml"
        (folder / "rules").mkdir()
        for path in SHIPPED.glob("rules/*.yml"):
            (folder / "rules" / path.name).write_text(hurried(path.read_text()))
        super().__init__(folder, _configuration(targets))
        self._over = threading.Event()
        self._poller = threading.Thread(target=self._poll, daemon=True)
        try:
            scraped = len(targets)
            until(lambda: self.value("count(up == 1)") == scraped, "all are scraped")
            # It takes seconds until the first one is: until then, none is monitored.
            until(lambda: "SignerMissing" not in self._alerted(), "this is not alerted any more")
        finally:
            self._poller.start()

    def leave(self) -> None:
        """Scrapes nothing any more."""
        self._config.write_text(_configuration({}))
        self._process.send_signal(signal.SIGHUP)

    def value(self, expression: str) -> float | None:
        """The value of the one sample of an instant query, None where there is none."""
        found = self.query(expression)
        return float(found[0]["value"][1]) if found else None

    def until(self, *alerts: Alert) -> None:
        """Waits until alerts have been seen firing."""
        for alert in alerts:
            until(lambda: alert in self.fired, f"{alert} fires")

    def close(self) -> None:
        self._over.set()
        self._poller.join()
        super().close()

    def _alerted(self) -> set[str]:
        """The names of alerts that fire or are about to."""
        return {alert["labels"]["alertname"] for alert in self.get("alerts", {})["alerts"]}

    def _poll(self) -> None:
        while not self._over.wait(0.25):
            for alert in self.get("alerts", {})["alerts"]:
                if alert["state"] == "firing":
                    labels = alert["labels"]
                    name = Alert(labels["alertname"], labels.get("instance", ""))
                    self.fired.setdefault(name, alert["annotations"])


def _configuration(targets: Mapping[str, str]) -> str:
    """The shipped configuration for these targets."""
    config: dict[str, Any] = yaml.safe_load((SHIPPED / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": SCRAPE, "evaluation_interval": "1s"}
    del config["alerting"]  # there is nobody to tell
    [job] = config["scrape_configs"]
    job["scrape_timeout"] = SCRAPE
    job["static_configs"] = [
        {"targets": [address], "labels": {"instance": name}} for name, address in targets.items()
    ]
    return yaml.safe_dump(config)

"""The example for Alertmanager: whom each alert reaches, and which ones a cause silences.

A real Alertmanager takes the alerts; nobody is notified.
"""

import json
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
import yaml

from signer.tools.dev import reserve_ports
from tests.prometheus.test_rules import ALERTS, FOLDER

FILE = FOLDER / "alertmanager.yml"
CONFIG = yaml.safe_load(FILE.read_text())
SECONDS = 60
PLACE = {"job": "signer", "instance": "a"}


def amtool(*words: object) -> str:
    command = ["amtool", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    return done.stdout


def test_it_is_accepted() -> None:
    assert "SUCCESS" in amtool("check-config", FILE)


@pytest.mark.parametrize("severity", ["page", "ticket"])
def test_pages_wake_somebody_and_tickets_wait(severity: str) -> None:
    reached = {"page": "on-call", "ticket": "tickets"}[severity]
    alerts = [rule for rule in ALERTS if rule["labels"]["severity"] == severity]
    assert alerts
    for rule in alerts:
        labels = [f"alertname={rule['alert']}", f"severity={severity}", "job=signer"]
        found = amtool("config", "routes", "test", f"--config.file={FILE}", *labels, "instance=a")
        assert found.strip() == reached, rule["alert"]


def test_it_names_alerts_that_exist() -> None:
    known = {rule["alert"] for rule in ALERTS}
    for rule in CONFIG["inhibit_rules"]:
        for matcher in (*rule["source_matchers"], *rule["target_matchers"]):
            name, _, value = matcher.partition(" ")
            if name == "alertname":
                assert {*value.split('"')[1].split("|")} <= known, matcher


class Alertmanager:
    """A server that runs; alerts are given to it as Prometheus does."""

    def __init__(self, folder: Path) -> None:
        self._port, _ = reserve_ports()
        address = f"127.0.0.1:{self._port}"
        command = ["prometheus-alertmanager", f"--config.file={FILE}", "--cluster.listen-address="]
        command += [f"--web.listen-address={address}", f"--storage.path={folder / 'data'}"]
        self._log = (folder / "log").open("wb")
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log
        )

    def ask(self, method: str, body: object = None) -> Any:
        connection = HTTPConnection("127.0.0.1", self._port, timeout=10)
        try:
            headers = {"Content-Type": "application/json"}
            connection.request(method, "/api/v2/alerts", json.dumps(body), headers)
            answer = connection.getresponse()
            content = answer.read()
            assert answer.status == 200, content
            return json.loads(content or "null")
        finally:
            connection.close()

    def fire(self, *alerts: dict[str, str]) -> None:
        until = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
        self.ask("POST", [{"labels": PLACE | labels, "endsAt": until} for labels in alerts])

    def silenced(self) -> dict[str, bool]:
        """By the names of the alerts that fire, whether a cause silences them."""
        return {
            alert["labels"]["alertname"]: bool(alert["status"]["inhibitedBy"])
            for alert in self.ask("GET")
        }

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(SECONDS)
        self._log.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Alertmanager]:
    made = Alertmanager(tmp_path)
    end = time.monotonic() + SECONDS
    try:
        while True:
            assert made.process.poll() is None, (tmp_path / "log").read_text()
            try:
                made.ask("GET")
                break
            except OSError:
                assert time.monotonic() < end
                time.sleep(0.05)
        yield made
    finally:
        made.close()


@pytest.mark.parametrize(
    ("fired", "expected"),
    [
        (
            [{"alertname": "SignerDown"}, {"alertname": "SignerCheckpointOld"}],
            {"SignerDown": False, "SignerCheckpointOld": True},
        ),
        (
            [{"alertname": "SignerDown", "instance": "b"}, {"alertname": "SignerNotReady"}],
            {"SignerDown": False, "SignerNotReady": False},
        ),
        (
            [{"alertname": "SignerTokenDown"}, {"alertname": "SignerNotReady"}],
            {"SignerTokenDown": False, "SignerNotReady": True},
        ),
        (
            [
                {"alertname": "SignerCertificateEndingSoon", "certificate": "server"},
                {"alertname": "SignerCertificateEnding", "certificate": "client_ca"},
            ],
            {"SignerCertificateEndingSoon": False, "SignerCertificateEnding": False},
        ),
        (
            [
                {"alertname": "SignerKeyEndingSoon", "group": "01"},
                {"alertname": "SignerKeyEnding", "group": "01"},
            ],
            {"SignerKeyEndingSoon": False, "SignerKeyEnding": True},
        ),
    ],
    ids=lambda value: "" if isinstance(value, list) else "+".join(value),
)
def test_a_cause_silences_what_follows_from_it(
    manager: Alertmanager, fired: list[dict[str, str]], expected: dict[str, bool]
) -> None:
    manager.fire(*fired)
    end = time.monotonic() + SECONDS
    while manager.silenced() != expected:
        assert time.monotonic() < end, manager.silenced()
        time.sleep(0.05)

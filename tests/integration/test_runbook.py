"""Every command of the runbook does what the runbook says, as it is printed."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from signer.client import SignerClientError
from tests.daemon import kill_workers, until
from tests.fork_server import fork_server
from tests.integration.document import Document

ROOT = Path(__file__).parents[2]
RUNBOOK = (ROOT / "docs/runbook.md").read_text()
REPORTS = (ROOT / "signer/observe/reports.py").read_text()

SHOWN = {
    "look": ("SERVING", "ready", "signer-dev", '"event": "worker_left"'),
    "calls": ("1 KEY_NOT_FOUND  spiffe://dev.signer.example/issuer",),
    "alive": ("alive", '"event"'),
    "runs": ('"event": "started"',),
    "clock": ("+00:00",),
    "registry": (),
    "workers": ('"cause": "died"', '"event": "login"'),
    "wrong": (),
    "audit": ("Filesystem",),
    "slow": (),
    "checkpoints": (),
    "shipping": (),
    "room": ("Filesystem", "audit"),
    "reload": ("certificates: as before",),
    "doctor": ("registry", "token"),
    "check": ("signer.yaml",),
    "ports": ("LISTEN",),
    "unaccounted": (),
    "unlatch": (),
    "snapshot": (),
    "refused": (),
    "differs": (),
}
"""What each block prints about an appliance that has lost a worker; nothing else happened."""


@pytest.fixture
def runbook(
    make_appliance: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Document:
    """The runbook beside an appliance of which a worker has died, and a call failed."""
    appliance = make_appliance(workers=2)
    with appliance.client() as client, pytest.raises(SignerClientError):
        client.sign_batch("facilities/01-001/keys/nothing", "JWS", [b"{}"])
    workers = psutil.Process(appliance.process.pid).children()
    kill_workers(appliance.dir, workers[0])
    until(lambda: '"worker_left"' in appliance.log.read_text(), "the worker's end is logged")
    until(lambda: appliance.get("/readyz")[0] == 200, "it serves")
    config = configured_elsewhere(appliance.dir, tmp_path_factory.mktemp("etc"))
    names = {
        "CONFIG": config,
        "METRICS": appliance.dev["metrics"],
        "AUDIT": appliance.dir / "audit",  # CONFIG is in another folder
        "LOG": appliance.log,
    }
    assert re.findall(r"(?m)^([A-Z]+)=", RUNBOOK) == list(names)
    document = Document("runbook.md")
    document.environment = os.environ | {key: str(value) for key, value in names.items()}
    document.environment |= {"PATH": f"{fork_server().bin}:{os.environ['PATH']}"}
    return document


def configured_elsewhere(data: Path, folder: Path) -> Path:
    """An appliance's configuration in another folder, as packages have it, with its data there."""
    config = yaml.safe_load((data / "signer.yaml").read_text())
    config["tls"] = {name: str(data / path) for name, path in config["tls"].items()}
    config["registry"] = f"sqlite:///{data}/registry.sqlite"
    config["audit"]["directory"] = str(data / "audit")
    for name in ("policy", "state", "client"):
        config[name] = str(data / config[name])
    [token] = config["tokens"]
    token["pin_file"] = str(data / "pin")
    token["environment"] = {"SOFTHSM2_CONF": str(data / "softhsm2.conf")}
    path = folder / "signer.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def test_every_block_works_as_it_is_printed(runbook: Document) -> None:
    for name, shown in SHOWN.items():
        done = runbook.command(["bash", "-uc", runbook.blocks[name]])
        assert done.errors == "", name
        for text in shown:
            assert text in done.out, name


def test_every_block_is_run() -> None:
    assert Document("runbook.md").not_run_in(Path(__file__).read_text()) == []


def test_commands_search_for_events_that_exist() -> None:
    looked = re.findall(r'"event": "(?:\(([^)]*)\)|([^"(]*))', RUNBOOK)
    events = {event for either in looked for part in either for event in part.split("|") if event}
    assert len(events) > 8
    told = set(re.findall(r'"(\w+)"', REPORTS))
    assert events <= told
    named = set(re.findall(r"(?m)`(\w+)`", RUNBOOK))
    assert {"worker_left", "not_ready", "bug"} <= named & told

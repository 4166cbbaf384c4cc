"""Every block of commands in docs/officers.md, run as it is printed."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration import officers
from tests.integration.document import Document

CSV = """facility,group,profile,clients,key,algorithm,bits
01-003,01,records,spiffe://dev.signer.example/issuer,records,ES256,
"""


class Desk(Document):
    """Two officers with their files, and a folder of their own."""

    def __init__(self, appliance: Any, folder: Path) -> None:
        super().__init__("officers.md")
        self.office, self.folder = officers.Office(appliance.dev), folder
        pki = appliance.dir / "pki"
        self.environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PKI": str(pki),
            **{name: str(appliance.dir / f"client-officer-{name.lower()}.yaml") for name in "AB"},
            **{f"{name}_KEY": str(pki / f"officer-{name.lower()}.key") for name in "AB"},
        }
        self.blocks = {name: f"cd {folder}\n{text}" for name, text in self.blocks.items()}


@pytest.fixture(scope="module")
def desk(appliance: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    folder = tmp_path_factory.mktemp("officers")
    made = type(appliance)(folder / "dev")
    made.init()
    made.start()
    yield Desk(made, folder)
    assert made.stop() == 0


def test_every_block_of_the_document_is_run_here(desk: Desk) -> None:
    names = {"card", "draft", "stop", "resume", "enrol", "ceremony", "publish"}
    assert set(desk.blocks) == names


def test_a_smart_card_proposes_and_approves(desk: Desk) -> None:
    desk.run("draft")
    with desk.office.client("officer-b") as client:
        [proposed] = client.operations.list("PROPOSED")
    desk.environment = {**desk.environment, "ID": proposed.id}
    assert "DONE" in desk.run("card")
    assert len(desk.office.versions("facilities/01-001/keys/records")) == 2


def test_what_is_stopped_is_listed_and_resumed(desk: Desk) -> None:
    told = desk.run("stop")
    assert "01-002" in told
    assert "the province asked for it" in told
    desk.run("resume")
    with desk.office.client("officer-a") as client:
        assert [each.name for each in client.operations.suspensions()] == ["01-002"]


def test_facilities_are_enrolled(desk: Desk) -> None:
    (desk.folder / "facilities.csv").write_text(CSV)
    desk.run("enrol")
    assert list(desk.office.versions("facilities/01-003/keys/records"))


def test_a_ceremony_is_held_and_checked(desk: Desk) -> None:
    desk.run("ceremony")
    transcript = json.loads((desk.folder / "ceremony" / "transcript.json").read_text())
    assert "auditor on duty" in json.dumps(transcript)


def test_verifiers_get_what_they_need(desk: Desk) -> None:
    desk.run("publish")
    kids = [each["kid"] for each in json.loads((desk.folder / "trust-list.json").read_text())]
    assert len(kids) == 2  # the ministry's certified keys
    assert json.loads((desk.folder / "jwks.json").read_text())["keys"]
    assert "BEGIN CERTIFICATE" in (desk.folder / "certificates.pem").read_text()

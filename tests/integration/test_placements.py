"""A key that officers make is copied to a second token and placed there, as the guide says."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.appliances import TwoTokens
from tests.commands import signer
from tests.daemon import Daemon
from tests.integration.officers import Office

KEY = "facilities/01-001/keys/records-2"
VERSION = f"{KEY}/versions/1"


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    appliance = TwoTokens(tmp_path / "dev")
    appliance.init()
    made = Daemon(appliance.dir / "signer.yaml")
    made.start()
    yield made
    assert made.stop() == 0


def objects(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*/*.object")}


def copy_new(daemon: Daemon, before: set[str]) -> None:
    """What an HSM does to clone a key: here the new files of the first token."""
    [source] = (daemon.folder / "token").glob("*/")
    [target] = (daemon.folder / "token-2").glob("*/")
    for name in objects(daemon.folder / "token") - before:
        (target / name).write_bytes((source / name).read_bytes())
    generation = target / "generation"  # by it SoftHSM sees that there is something new
    generation.write_bytes((int.from_bytes(generation.read_bytes()) + 1).to_bytes(8))


def shown(daemon: Daemon) -> dict[str, Any]:
    client = daemon.folder / "client-officer-a.yaml"
    done = signer("keys", "show", VERSION, "--json", "--client", client)
    assert done.code == 0, done.err
    value: dict[str, Any] = json.loads(done.out)
    return value


def test_a_new_key_is_placed_on_the_second_token_by_two_officers(daemon: Daemon) -> None:
    office = Office(daemon.dev)
    before = objects(daemon.folder / "token")
    office.do("create-key", key=KEY, algorithm="ES256", activate=True, token="signer-dev")
    refused = office.propose("add-placement", version=VERSION, token="signer-dev-2")
    office.approve(refused.id)
    assert office.ended(refused.id).state == "FAILED", "the second token lacks the key"
    copy_new(daemon, before)
    office.do("add-placement", version=VERSION, token="signer-dev-2")
    version = shown(daemon)
    assert [place.partition(" ")[0] for place in version["placements"]] == [
        "signer-dev",
        "signer-dev-2",
    ]
    assert daemon.reason() == ""
    busy = "signer_worker_busy_seconds_total"
    before_signing = daemon.metric(busy, token="signer-dev-2")
    with daemon.client() as client:
        results = client.sign_batch(KEY, "MESSAGE", [b"m"] * 400, timeout=60)
    assert all(result.error is None for result in results)
    assert daemon.metric(busy, token="signer-dev-2") > before_signing
    office.log_in_order()

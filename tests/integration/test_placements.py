"""A key that officers make is copied to a second token and placed there, as the guide says."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from signer.daemon.accounts import UNACCOUNTED
from signer.keys import schema
from signer.keys.registry import Registry
from tests.appliances import TwoTokens
from tests.commands import signer
from tests.daemon import Daemon, until, verified
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


def place(daemon: Daemon) -> Office:
    office = Office(daemon.dev)
    before = objects(daemon.folder / "token")
    office.do("create-key", key=KEY, algorithm="ES256", activate=True, token="signer-dev")
    refused = office.propose("add-placement", version=VERSION, token="signer-dev-2")
    office.approve(refused.id)
    assert office.ended(refused.id).state == "FAILED", "the second token lacks the key"
    copy_new(daemon, before)
    office.do("add-placement", version=VERSION, token="signer-dev-2")
    return office


def on_second(daemon: Daemon) -> float:
    """For how long the second token has been busy when the key has signed."""
    with daemon.client() as client:
        results = client.sign_batch(KEY, "MESSAGE", [b"m"] * 400, timeout=60)
    assert all(result.error is None for result in results)
    return daemon.metric("signer_worker_busy_seconds_total", token="signer-dev-2")


def test_a_new_key_is_placed_on_the_second_token_by_two_officers(daemon: Daemon) -> None:
    office = place(daemon)
    version = shown(daemon)
    assert [place.partition(" ")[0] for place in version["placements"]] == [
        "signer-dev",
        "signer-dev-2",
    ]
    assert daemon.reason() == ""
    before = daemon.metric("signer_worker_busy_seconds_total", token="signer-dev-2")
    assert on_second(daemon) > before
    office.log_in_order()


def test_a_placement_that_is_pointed_elsewhere_by_hand_is_not_used(daemon: Daemon) -> None:
    """The row gets the CKA_ID of another key of that token, by SQL."""
    place(daemon)
    assert on_second(daemon) > 0
    placements = schema.placements
    with (
        Registry.open(f"sqlite:///{daemon.folder / 'registry.sqlite'}") as registry,
        registry.writing() as write,
    ):
        rows = sa.select(placements).order_by(placements.c.id)
        other, *_, ours = write.connection.execute(rows).all()
        write.connection.execute(sa.delete(placements).where(placements.c.id == other.id))
        changed = sa.update(placements).where(placements.c.id == ours.id)
        values = {"cka_id": other.cka_id, "revision": write.revision}
        assert write.connection.execute(changed.values(values)).rowcount == 1
    until(lambda: UNACCOUNTED in daemon.reason(), "it is shown")
    on_second(daemon)  # all of it is signed, where the key was made
    assert daemon.metric("signer_signature_checks_total", result="correct") > 0
    assert daemon.metric("signer_signature_checks_total", result="wrong") == 0
    audit = daemon.settings["audit"]
    directory = daemon.folder / audit.get("directory", "audit")
    report = verified(directory, audit.get("origin", "signer/audit"), whole=False)
    assert any("its placement on token signer-dev-2" in text for text in report["problems"])

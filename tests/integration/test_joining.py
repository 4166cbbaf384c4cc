"""A further appliance begins its log on a registry that another one's log accounts for."""

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import yaml

from tests.commands import Done, signer
from tests.daemon import Daemon, beside, verified
from tests.integration.officers import Office
from tests.integration.place import KEY, Place

STOPPED = KEY.replace("records", "stopped")
OF_STOPPED = "key_id = (SELECT id FROM keys WHERE key = 'stopped')"
EDITS = {
    "a stopped key": f"UPDATE key_versions SET state = 'ACTIVE' WHERE {OF_STOPPED}",
    "a deleted suspension": "DELETE FROM suspensions",
    "a key that nobody made": "UPDATE key_versions SET cka_id = x'00' WHERE " + OF_STOPPED,
    "another officer": "UPDATE officers SET principal = 'spiffe://dev.signer.example/stranger'"
    " WHERE principal LIKE '%officer-b'",
    "a deleted key": f"DELETE FROM key_versions WHERE {OF_STOPPED}",
    "a wrapping key": "INSERT INTO wrapping_keys (id, token, created, destroyed, revision)"
    " VALUES ('invented', 'signer', 9.0, false, 0)",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """An appliance with a log, on which officers have made and stopped something."""
    made = Place(tmp_path_factory.mktemp("first"))
    done = made.init("officer-a", "officer-b")
    assert done.code == 0, done.err
    daemon, office = Daemon(made.config), Office(made.dev)
    daemon.start()
    for key in (KEY, STOPPED):
        office.do("create-key", key=key, algorithm="ES256", activate=True)
    with office.client("officer-a") as client:
        client.operations.suspend_key(STOPPED, "seen forged")
        client.operations.suspend_facility("clinic", "seen forged")
    verified(made.dir / "audit", "signer/audit")
    beside(made)
    yield made
    assert daemon.stop() == 0


def joined(
    place: Place,
    folder: Path,
    *edits: str,
    log: Path | None = None,
    reason: str | None = None,
    name: str = "audit",
) -> Done:
    """A second appliance joins, on a copy of the registry with these changes."""
    copy = folder / "registry.sqlite"
    with (
        closing(sqlite3.connect(place.dir / "registry.sqlite")) as registry,
        closing(sqlite3.connect(copy)) as edited,
    ):
        registry.backup(edited)
        for edit in edits:
            edited.execute(edit)
        edited.commit()
    settings = yaml.safe_load((place.dir / "second.yaml").read_text())
    settings["registry"] = f"sqlite:///{copy}"
    settings["audit"]["directory"] = str(folder / name)
    config = place.dir / f"{folder.name}.yaml"
    config.write_text(yaml.safe_dump(settings))
    options = [] if log is None else ["--log", str(log)]
    options += [] if reason is None else ["--without-log", reason]
    return signer("init", "--join", *options, "--config", config)


def test_an_appliance_joins_a_registry_that_the_log_accounts_for(
    place: Place, tmp_path: Path
) -> None:
    done = joined(place, tmp_path, log=place.dir / "audit")
    assert done.code == 0, done.err
    assert "the log of signer/audit accounts for the registry" in done.out
    first = verified(place.dir / "audit", "signer/audit")
    begun = verified(tmp_path / "audit", "second/audit", whole=False)["joined"]
    assert first["joined"] is None
    assert begun["log"] == "signer/audit"
    assert 0 < begun["records"] <= first["records"]
    assert len(bytes.fromhex(begun["root"])) == 32


def test_without_a_log_a_reason_is_demanded_and_recorded(place: Place, tmp_path: Path) -> None:
    refused = joined(place, tmp_path)
    assert refused.code == 2
    assert "give a copy of it with --log DIR" in refused.err
    assert 'say why with --without-log "REASON"' in refused.err
    assert joined(place, tmp_path, log=place.dir / "audit", reason="both").code == 2
    assert joined(place, tmp_path, reason=" ").code == 2
    assert not (tmp_path / "audit").exists(), "nothing was begun"
    done = joined(place, tmp_path, reason="the disk of the first one burnt")
    assert done.code == 0, done.err
    assert "compared with no log: the disk of the first one burnt" in done.err
    log = tmp_path / "audit"
    report = verified(log, "second/audit", whole=False)
    assert report["joined"] == {"without_log": "the disk of the first one burnt"}
    told = signer("audit", "verify", "--dir", log, "--key", log / "audit.pub.pem")
    assert "taken as it was: the disk of the first one burnt. Compare its baseline" in " ".join(
        told.out.split()
    )


@pytest.mark.parametrize("what", EDITS)
def test_an_appliance_does_not_join_an_edited_registry(
    place: Place, tmp_path: Path, what: str
) -> None:
    done = joined(place, tmp_path, EDITS[what], log=place.dir / "audit")
    assert done.code == 1
    assert "the log of signer/audit does not account for the registry" in done.err
    assert not list(tmp_path.glob("audit/*")), "nothing was begun"


def test_a_log_that_is_not_whole_accounts_for_nothing(place: Place, tmp_path: Path) -> None:
    log = tmp_path / "copy"
    shutil.copytree(place.dir / "audit", log)
    [segment] = sorted(log.glob("*.log"))
    content = bytearray(segment.read_bytes())
    content[len(content) // 2] ^= 1
    segment.write_bytes(content)
    done = joined(place, tmp_path, log=log)
    assert done.code == 1
    assert not list(tmp_path.glob("audit/*"))

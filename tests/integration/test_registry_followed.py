"""What the daemon does when the registry changes under it."""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from signer.client import SignerClientError
from signer.config.policy_files import PolicyFile, policy_text
from signer.daemon.accounts import UNACCOUNTED
from signer.keys.registry import Registry
from tests.appliances import Appliance
from tests.daemon import Daemon, until

NAME = "facilities/01-001/keys/records"
Make = Callable[..., Any]


def execute(appliance: Any, *statements: str) -> None:
    """Changes the registry as another program would: with a new revision."""
    path = appliance.dir / "registry.sqlite"
    with closing(sqlite3.connect(path)) as connection, connection:
        counted = (
            "UPDATE revision SET value = value + 1",
            "UPDATE key_versions SET revision = (SELECT value FROM revision)",
        )
        for statement in (*statements, *counted):
            connection.execute(statement)


def reason(appliance: Any, name: str = NAME) -> str:
    """How one item ends: ok, or a reason."""
    with appliance.client("issuer") as client:
        try:
            [item] = client.sign_batch(name, "MESSAGE", [b"m"], timeout=5)
        except SignerClientError as error:
            return error.reason
    return "ok" if item.error is None else item.error.reason


def set_state(appliance: Any, state: str) -> None:
    where = "key_id = (SELECT id FROM keys WHERE facility = '01-001' AND key = 'records')"
    execute(appliance, f"UPDATE key_versions SET state = '{state}' WHERE {where}")


def test_a_stop_by_hand_is_obeyed_and_its_end_is_not(make_appliance: Make) -> None:
    appliance = make_appliance()
    assert reason(appliance) == "ok"
    set_state(appliance, "SUSPENDED")
    until(lambda: reason(appliance) == "KEY_VERSION_NOT_ACTIVE", "it is stopped")
    assert reason(appliance, "facilities/01-002/keys/records") == "ok"
    assert appliance.get("/readyz")[0] == 200
    assert '"obeyed": ["' in appliance.log_end()
    set_state(appliance, "ACTIVE")
    until(lambda: UNACCOUNTED in appliance.get("/readyz")[1], "a reason is given")
    assert reason(appliance) == "KEY_VERSION_NOT_ACTIVE"
    set_state(appliance, "SUSPENDED")
    until(lambda: appliance.get("/readyz")[0] == 200, "the row is as it was")


def test_a_row_that_cannot_be_read_stops_its_key_and_serves_again_when_repaired(
    make_appliance: Make,
) -> None:
    appliance = make_appliance()
    set_state(appliance, "ARCHIVED")
    until(lambda: reason(appliance) == "KEY_VERSION_NOT_ACTIVE", "its key stops")
    until(lambda: "state of key_versions is not" in appliance.log_end(), "the log says why")
    set_state(appliance, "ACTIVE")
    until(lambda: reason(appliance) == "ok", "it is read again")


def test_keys_that_were_moved_to_another_token_by_hand_stop(make_appliance: Make) -> None:
    appliance = make_appliance()
    execute(appliance, "UPDATE key_versions SET token = 'elsewhere'")
    until(lambda: "registry_unaccounted" in appliance.log_end(), "it is told")
    assert reason(appliance) == "KEY_VERSION_NOT_ACTIVE"
    assert "registry_unreadable" not in appliance.log_end()


def test_a_policy_with_a_path_for_a_name_writes_no_file(tmp_path: Path) -> None:
    """Anyone who can write the registry could otherwise write files on every appliance."""
    appliance = Appliance(tmp_path / "outer" / "dev")
    appliance.init()
    daemon = Daemon(appliance.dir / "signer.yaml")  # not in development: the registry decides
    before = {path: path.read_bytes() for path in appliance.dir.glob("*.yaml")}
    daemon.start()
    try:
        [file] = (appliance.dir / "policy").glob("*.yaml")
        text = policy_text([PolicyFile("../../signer.yaml", file.read_bytes())])
        url = f"sqlite:///{appliance.dir}/registry.sqlite"
        with Registry.open(url) as registry, registry.writing() as write:
            write.put_policy(text)
        until(lambda: "registry_un" in daemon.log.read_text(), "it is reported")
        assert daemon.sign(1) == {"ok": 1}
    finally:
        daemon.stop()
    assert {path: path.read_bytes() for path in appliance.dir.glob("*.yaml")} == before
    assert not (appliance.dir.parent / "signer.yaml").exists()
    assert [path.name for path in (appliance.dir / "policy").iterdir()] == [file.name]

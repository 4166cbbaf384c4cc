"""Tokens that are absent, ambiguous, or refuse the PIN."""

import json
import secrets
import shutil
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from signer.config.models import load_config
from signer.hsm.front.process import token_spec
from signer.hsm.spec import TokenSpec
from signer.tools.dev import softhsm
from tests.appliances import Appliance
from tests.daemon import RECORDS, Daemon, kill_workers, until
from tests.fault.daemon import OTHERS
from tests.integration.hsm_probe import ask

pytestmark = pytest.mark.usefixtures("two_workers")


def spec(daemon: Daemon) -> TokenSpec:
    config = load_config(daemon.folder / "signer.yaml")
    return token_spec(config.tokens[0], config.state)


def alter(daemon: Daemon, statement: str, *values: object) -> None:
    """Changes the registry; a start in development takes what it has as given."""
    with closing(sqlite3.connect(daemon.folder / "registry.sqlite")) as registry:
        done = registry.execute(statement, values)
        assert done.rowcount == 1
        registry.execute("UPDATE revision SET value = value + 1")
        registry.execute("UPDATE key_versions SET revision = (SELECT value FROM revision)")
        registry.commit()
    with Appliance(daemon.folder):
        pass


def id_of_records(daemon: Daemon) -> bytes:
    """The CKA_ID of the version that RECORDS signs with."""
    with closing(sqlite3.connect(daemon.folder / "registry.sqlite")) as registry:
        [[cka_id]] = registry.execute(
            "SELECT cka_id FROM key_versions JOIN keys ON keys.id = key_id"
            " WHERE facility = '01-001' AND key = 'records'"
        ).fetchall()
    return bytes(cka_id)


def events(daemon: Daemon, name: str) -> list[dict[str, Any]]:
    """The lines of the daemon's log about one event."""
    lines = (json.loads(line) for line in daemon.log.read_text().splitlines() if line[:1] == "{")
    return [line for line in lines if line["event"] == name]


def hide_token(daemon: Daemon) -> None:
    (daemon.folder / "token").rename(daemon.folder / "hidden")


def show_token(daemon: Daemon) -> None:
    (daemon.folder / "hidden").rename(daemon.folder / "token")


# --- absent -------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["folder", "token"])
def test_an_absent_token_is_waited_for(daemon: Daemon, what: str) -> None:
    hide_token(daemon)
    if what == "token":
        (daemon.folder / "token").mkdir()
    daemon.start(ready=False)
    until(daemon.reason, "it says why it does not serve")
    assert "signer-dev" in daemon.reason()
    until(lambda: "starting" not in daemon.reason(), "the reason is known")
    if what == "token":
        assert "no token with label 'signer-dev'" in daemon.reason()
    assert daemon.health() == "NOT_SERVING"
    assert daemon.sign() == {"HSM_UNAVAILABLE": 3}
    assert daemon.get("/livez")[0] == 200
    if what == "token":
        (daemon.folder / "token").rmdir()
    show_token(daemon)
    until(lambda: not daemon.reason(), "it serves by itself")
    until(lambda: daemon.health() == "SERVING", "and says so")
    assert daemon.sign() == {"ok": 3}


def test_a_token_that_goes_and_comes_back(daemon: Daemon) -> None:
    daemon.start()
    assert daemon.sign() == {"ok": 3}
    hide_token(daemon)
    kill_workers(daemon.folder, *daemon.workers())
    until(lambda: "C_Initialize" in daemon.reason(), "it says why it does not serve")
    until(lambda: daemon.health() == "NOT_SERVING", "health follows")
    with daemon.client() as client:
        [item] = client.sign_batch(RECORDS, "MESSAGE", [b"m"], timeout=5)
    assert item.error is not None
    assert (item.error.code, item.error.reason) == ("UNAVAILABLE", "HSM_UNAVAILABLE")
    assert item.error.retry_after
    show_token(daemon)
    until(lambda: not daemon.reason(), "it serves again")
    assert daemon.sign(300) == {"ok": 300}


@pytest.mark.parametrize("lookup", ["index", "search"])
def test_a_token_that_goes_while_workers_sign(daemon: Daemon, lookup: str) -> None:
    """SoftHSM returns no error when its folder is gone: its searches find nothing."""
    daemon.configure(token={"key_lookup": lookup})
    daemon.start()
    assert daemon.sign(40) == {"ok": 40}
    hide_token(daemon)
    with daemon.client() as client:

        def refused() -> bool:
            items = client.sign_batch(OTHERS, "MESSAGE", [b"m"] * 40, timeout=30)
            assert {item.error and item.error.reason for item in items} == {"HSM_UNAVAILABLE"}
            return daemon.health() == "NOT_SERVING"

        until(refused, "health says that the token is away")
        assert "no token with label" in daemon.reason() or "C_Initialize" in daemon.reason()
        show_token(daemon)
        until(lambda: not daemon.reason(), "it serves again")
        assert all(item.ok for item in client.sign_batch(OTHERS, "MESSAGE", [b"m"], timeout=30))


# --- the PIN ------------------------------------------------------------------------------


def wrong_pin_tries(daemon: Daemon) -> bool:
    """Whether the token counts a wrong PIN (SoftHSM: CKF_USER_PIN_COUNT_LOW)."""
    answer = ask("flags", spec(daemon))
    assert not answer["locked"]
    return bool(answer["count_low"])


def test_a_wrong_pin_is_tried_once_and_latched(daemon: Daemon) -> None:
    pin = daemon.folder / "pin"
    right = pin.read_text()
    assert not wrong_pin_tries(daemon)
    pin.write_text(secrets.token_hex(16))
    daemon.start(ready=False)
    until(lambda: "rejected this PIN before" in daemon.reason(), "both workers have started")
    assert daemon.metric("signer_login_attempts_total") == 1
    assert daemon.metric("signer_login_attempts_total", result="pin_rejected") == 1
    assert daemon.metric("signer_pin_latched") == 1
    assert "unlatch" in daemon.reason()
    assert daemon.health() == "NOT_SERVING"
    assert daemon.sign() == {"HSM_UNAVAILABLE": 3}
    assert wrong_pin_tries(daemon)

    # No restart tries again.
    [latch] = (daemon.folder / "state").glob("pin-*.json")
    before = latch.read_bytes()
    assert daemon.stop() == 0
    daemon.start(ready=False)
    until(lambda: daemon.metric("signer_worker_restarts_total") >= 4, "workers try to start")
    assert daemon.metric("signer_login_attempts_total") == 0
    assert daemon.metric("signer_worker_restarts_total", cause="pin_latched") >= 4
    assert latch.read_bytes() == before

    # A corrected PIN that has worked before serves without a restart.
    pin.write_text(right)
    until(lambda: not daemon.reason(), "it serves")
    assert daemon.sign() == {"ok": 3}
    assert not wrong_pin_tries(daemon)
    assert daemon.metric("signer_pin_latched") == 0


def test_a_first_pin_that_is_wrong_needs_an_operator(daemon: Daemon) -> None:
    shutil.rmtree(daemon.folder / "state")  # as on an appliance that never logged in
    pin = daemon.folder / "pin"
    right = pin.read_text()
    pin.write_text(secrets.token_hex(16))
    daemon.start(ready=False)
    until(lambda: "rejected this PIN before" in daemon.reason(), "the PIN is latched")
    # The token counts a wrong PIN now: an unknown one is not tried unasked.
    pin.write_text(right)
    until(lambda: "counts a wrong PIN already" in daemon.reason(), "it does not dare")
    assert daemon.metric("signer_login_attempts_total") == 1
    assert daemon.run("token", "unlatch").code == 0
    until(lambda: not daemon.reason(), "it serves without a restart")
    assert daemon.sign() == {"ok": 3}
    assert daemon.metric("signer_login_attempts_total", result="pin_rejected") == 1


def test_unlatching_allows_one_more_try_and_no_two(daemon: Daemon) -> None:
    (daemon.folder / "pin").write_text(secrets.token_hex(16))
    daemon.start(ready=False)
    until(lambda: "rejected this PIN before" in daemon.reason(), "the PIN is latched")
    assert daemon.run("token", "unlatch").code == 0
    until(lambda: daemon.metric("signer_login_attempts_total") == 2, "it is tried once more")
    left = daemon.metric("signer_worker_restarts_total", cause="pin_latched")
    until(
        lambda: daemon.metric("signer_worker_restarts_total", cause="pin_latched") >= left + 2,
        "workers start again",
    )
    assert daemon.metric("signer_login_attempts_total") == 2


def test_unlatching_a_pin_that_was_never_tried_reports_that(daemon: Daemon) -> None:
    shutil.rmtree(daemon.folder / "state")
    done = daemon.run("token", "unlatch")
    assert done.code == 1
    assert "no PIN was rejected" in done.errors


@pytest.mark.parametrize("fault", ["missing", "open", "empty", "folder", "damaged latch"])
def test_a_bad_pin_file_ends_the_start(daemon: Daemon, fault: str) -> None:
    pin = daemon.folder / "pin"
    text = str(pin)
    match fault:
        case "missing":
            pin.unlink()
        case "open":
            pin.chmod(0o640)
        case "empty":
            pin.write_text("\n")
        case "folder":
            pin.unlink()
            pin.mkdir(0o700)
        case _:
            [latch] = (daemon.folder / "state").glob("pin-*.json")
            latch.write_text("{")
            text = str(latch)
    refused = daemon.refused()
    assert refused.code == 1
    assert text in refused.errors
    assert "Traceback" not in refused.errors


# --- ambiguous, or no module at all -------------------------------------------------------


def test_a_state_that_cannot_be_kept_ends_the_start(daemon: Daemon) -> None:
    shutil.rmtree(daemon.folder / "state")
    (daemon.folder / "state").symlink_to(daemon.folder / "nowhere" / "state")
    (daemon.folder / "nowhere").touch()  # as a disk that is not mounted, whoever runs this
    refused = daemon.refused()
    assert refused.code == 1
    assert "the folder of latches and locks cannot be created" in refused.errors
    assert "Traceback" not in refused.errors


@pytest.mark.parametrize("lookup", ["search", "index"])
def test_two_private_keys_of_one_id_fail_this_key_only(daemon: Daemon, lookup: str) -> None:
    cka_id = id_of_records(daemon)
    ask("duplicate", spec(daemon), cka_id=cka_id.hex(), label="other")
    daemon.configure(token={"key_lookup": lookup})
    daemon.start()
    assert daemon.sign() == {"HSM_UNAVAILABLE": 3}
    assert daemon.sign(key=OTHERS) == {"ok": 3}
    with daemon.client() as client:
        [item] = client.sign_batch(RECORDS, "MESSAGE", [b"m"])
    assert item.error is not None
    assert "holds two keys with the CKA_ID of facilities/01-001" in item.error.message
    [line] = events(daemon, "key_refused")
    assert (line["verdict"], line["key_version"]) == ("AMBIGUOUS", f"{RECORDS}/versions/1")
    until(lambda: events(daemon, "registry_and_token_differ"), "token and registry are compared")
    [difference] = events(daemon, "registry_and_token_differ")[0]["differences"]
    assert f"two private keys with the CKA_ID {cka_id.hex()}" in difference
    assert daemon.metric("signer_worker_restarts_total") == 0
    assert daemon.health() == "SERVING"


def test_two_private_keys_of_one_label_both_sign(daemon: Daemon) -> None:
    """Workers find keys by their id; a key of a stranger is reported."""
    ask("duplicate", spec(daemon), cka_id=b"other".hex(), label=f"{RECORDS}/versions/1")
    daemon.start()
    assert daemon.sign() == {"ok": 3}
    until(lambda: events(daemon, "registry_and_token_differ"), "token and registry are compared")
    [difference] = events(daemon, "registry_and_token_differ")[0]["differences"]
    assert f"does not know: CKA_ID {b'other'.hex()}" in difference


def test_two_tokens_with_one_label_need_a_serial(daemon: Daemon) -> None:
    serial = spec(daemon).serial
    conf = daemon.folder / "softhsm2.conf"
    subprocess.run(
        [
            *("softhsm2-util", "--init-token", "--free", "--label", softhsm.LABEL),
            *("--pin", "12345678", "--so-pin", "12345678"),
        ],
        env={"PATH": "/usr/bin:/bin:/usr/local/bin", "SOFTHSM2_CONF": str(conf)},
        check=True,
        capture_output=True,
    )
    daemon.configure(token={"serial": None})
    refused = daemon.refused()
    assert refused.code == 1
    assert "2 tokens with label 'signer-dev'" in refused.errors
    assert "serial" in refused.errors
    daemon.configure(token={"serial": serial})
    daemon.start()
    assert daemon.sign() == {"ok": 3}


@pytest.mark.parametrize("fault", ["absent", "no library", "no module"])
def test_a_module_that_cannot_be_loaded_ends_the_start(
    daemon: Daemon, tmp_path: Path, fault: str
) -> None:
    module = tmp_path / "module.so"
    if fault == "no library":
        module.write_text("this is no library")
    elif fault == "no module":
        source = tmp_path / "empty.c"
        source.write_text("int nothing_of_pkcs11;\n")
        subprocess.run(["cc", "-shared", "-fPIC", "-o", str(module), str(source)], check=True)
    daemon.configure(token={"module": str(module)})
    refused = daemon.refused()
    assert refused.code == 1
    assert str(module) in refused.errors
    assert "Traceback" not in refused.errors


# --- registry and token disagree ----------------------------------------------------------


def test_a_key_that_the_token_lacks_fails_and_others_go_on(daemon: Daemon) -> None:
    alter(
        daemon,
        "UPDATE key_versions SET cka_id = ? WHERE key_id ="
        " (SELECT id FROM keys WHERE facility = '01-001' AND key = 'records')",
        b"an absent key",
    )
    daemon.start()
    assert daemon.sign() == {"HSM_UNAVAILABLE": 3}
    assert daemon.sign(key=OTHERS) == {"ok": 3}
    with daemon.client() as client:
        [item] = client.sign_batch(RECORDS, "MESSAGE", [b"m"])
    assert item.error is not None
    assert "does not hold the key" in item.error.message
    assert [line["verdict"] for line in events(daemon, "key_refused")] == ["NO_KEY"]
    assert daemon.metric("signer_worker_restarts_total") == 0
    assert daemon.health() == "SERVING"


def test_a_key_that_another_program_destroys_fails_and_others_go_on(daemon: Daemon) -> None:
    daemon.configure(token={"session_copies": False})  # a copy would go on signing
    daemon.start()
    assert daemon.sign(200) == {"ok": 200}
    ask("destroy", spec(daemon), cka_id=id_of_records(daemon).hex())
    assert daemon.sign(200) == {"HSM_UNAVAILABLE": 200}
    assert daemon.sign(key=OTHERS) == {"ok": 3}
    assert {line["verdict"] for line in events(daemon, "key_refused")} == {"NO_KEY"}
    assert daemon.metric("signer_worker_restarts_total") == 0


def test_a_wrong_pin_of_a_key_stops_this_key_only(daemon: Daemon) -> None:
    with closing(sqlite3.connect(daemon.folder / "registry.sqlite")) as registry:
        [[spki]] = registry.execute(
            "SELECT spki FROM key_versions JOIN keys ON keys.id = key_id"
            " WHERE facility = 'moh' AND key = 'digest'"
        ).fetchall()
    alter(
        daemon,
        "UPDATE key_versions SET spki = ? WHERE key_id ="
        " (SELECT id FROM keys WHERE facility = '01-001' AND key = 'records')",
        spki,
    )
    daemon.start()
    with daemon.client() as client:
        assert spki_of(client) == spki
        results = client.sign_batch(RECORDS, "MESSAGE", [b"m"] * 400)
        assert [result.signature for result in results] == [b""] * 400
        reasons = {result.error.reason for result in results if result.error}
        assert reasons <= {"HSM_UNAVAILABLE", "KEY_VERSION_NOT_ACTIVE"}
        assert "HSM_UNAVAILABLE" in reasons
        for _ in range(2):
            with pytest.raises(Exception, match="KEY_VERSION_NOT_ACTIVE"):
                client.sign_batch(RECORDS, "MESSAGE", [b"m"])
    assert daemon.metric("signer_signature_checks_total", result="wrong") > 0
    assert daemon.sign(300, key=OTHERS) == {"ok": 300}
    assert daemon.health() == "SERVING"


def spki_of(client: Any) -> bytes:
    return bytes(client.get_key_version(f"{RECORDS}/versions/1").public_key)

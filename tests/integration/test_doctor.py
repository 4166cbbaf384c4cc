"""``signer doctor`` on a real appliance, with each thing broken in turn."""

import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from signer.config.models import load_config
from signer.errors import OperatorError
from signer.hsm.front.admin import inspect, open_admin
from signer.hsm.spec import PinState
from signer.tools.dev import key_plan as plan
from signer.tools.dev import pki
from signer.tools.doctor import examine, worst
from signer.tools.doctor.finding import Finding, Level
from tests.appliances import Appliance
from tests.commands import signer

OK, WARNING, WRONG = Level


class Copy:
    """A stopped appliance of the test's own, to be broken."""

    def __init__(self, folder: Path) -> None:
        self.dir = folder
        self.config = folder / "signer.yaml"

    def configure(self, **changes: Any) -> None:
        settings = yaml.safe_load(self.config.read_text())
        token = changes.pop("token", {})
        settings["tokens"][0] |= token
        for name, value in changes.items():
            both = isinstance(value, dict)
            settings[name] = (settings.get(name) or {}) | value if both else value
        self.config.write_text(yaml.safe_dump(settings))

    def findings(self, later: float = 0.0) -> dict[str, Finding]:
        """What is found, by what was looked at; ``later`` is where the clock stands instead."""
        found = examine(self.config, time.time() + later)
        named = {each.check: each for each in found}
        assert len(named) == len(found), "one thing has two findings"
        return named

    def sql(self, statement: str) -> None:
        with closing(sqlite3.connect(self.dir / "registry.sqlite")) as registry, registry:
            registry.execute(statement)

    def log_in(self) -> None:
        """Has a worker try the PIN."""
        config = load_config(self.config)
        with open_admin(config.tokens[0], config.state):
            pass


@pytest.fixture(scope="module")
def provisioned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An appliance that has signed once, and was stopped."""
    made = Appliance(tmp_path_factory.mktemp("doctor") / "dev")
    made.init()
    made.set_workers(1)
    with made, made.client() as client:
        assert client.sign_batch("facilities/01-001/keys/records", "JWS", [b"{}"])[0].ok
    return made.dir


@pytest.fixture
def machine(provisioned: Path, tmp_path: Path) -> Copy:
    folder = tmp_path / "dev"
    shutil.copytree(provisioned, folder)
    conf = folder / "softhsm2.conf"
    conf.write_text(conf.read_text().replace(str(provisioned), str(folder)))
    return Copy(folder)


def run(config: Path, *options: str, files: int = 1024) -> subprocess.CompletedProcess[str]:
    """Runs the command in a shell that may have so many files open."""
    limited = ["sh", "-c", f'ulimit -S -n {files} && exec "$@"', "sh"]
    command = [sys.executable, "-m", "signer", "doctor", "--config", str(config), *options]
    return subprocess.run(
        [*limited, *command], capture_output=True, text=True, check=False, timeout=60
    )


# --- in order ----------------------------------------------------------------------------------

USUAL = {"audit sync", "mirror", "clock", "memory", "open files", "core dumps"}
"""What a development machine, and a busy one, may be warned of."""


def test_a_machine_in_order(machine: Copy) -> None:
    found = machine.findings()
    assert {check for check, each in found.items() if each.level is not OK} <= USUAL
    assert all(each.seen and each.remedy for each in found.values() if each.level is not OK)
    assert not any(each.remedy for each in found.values() if each.level is OK)
    assert "2 officers" in found["registry"].seen


def test_before_the_first_start_nothing_is_wrong(machine: Copy) -> None:
    for path in machine.dir.glob("registry.sqlite*"):
        path.unlink()
    shutil.rmtree(machine.dir / "audit")
    shutil.rmtree(machine.dir / "state")
    before = sorted(machine.dir.rglob("*"))
    found = machine.findings()
    assert worst(list(found.values())) is WARNING
    for check in ("registry", "audit"):
        assert found[check].level is WARNING
        assert "`signer init" in found[check].remedy
    assert "not tried yet" in found["pin signer-dev"].seen
    assert "the first start creates it" in found["state"].seen
    assert sorted(machine.dir.rglob("*")) == before


def test_a_running_daemon_is_told_from_other_programs(appliance: Any) -> None:
    ran = run(appliance.dir / "signer.yaml", "--json")
    told = json.loads(ran.stdout)
    found = {each["check"]: each for each in told["findings"]}
    assert ran.returncode == 0, ran.stdout
    assert told["level"] in ("ok", "warning")
    pid = appliance.process.pid
    assert found["daemon"]["seen"] == f"it is running (process {pid}) and is ready"
    for check in ("listen", "metrics"):
        assert found[check]["seen"].endswith("is in use by the running daemon")
    assert "the daemon" in found["open files"]["seen"]


def test_the_table_is_plain_ascii_and_its_end_counts(machine: Copy) -> None:
    machine.configure(token={"label": "khóa"})
    ran = run(machine.config, files=256)
    assert ran.returncode == 1, ran.stderr
    assert ran.stdout.isascii()
    assert r"wrong  token kh\xf3a" in ran.stdout
    assert "warning  open files" in ran.stdout
    assert "256 open files (this shell" in ran.stdout
    assert ran.stdout.splitlines()[-1].startswith("1 wrong, ")


# --- broken ------------------------------------------------------------------------------------


def write(name: str, text: str) -> Callable[[Copy], object]:
    return lambda machine: (machine.dir / name).write_text(text)


def chmod(name: str, mode: int) -> Callable[[Copy], None]:
    return lambda machine: (machine.dir / name).chmod(mode)


def remove(name: str) -> Callable[[Copy], None]:
    def removed(machine: Copy) -> None:
        path = machine.dir / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return removed


def configure(**changes: Any) -> Callable[[Copy], None]:
    return lambda machine: machine.configure(**changes)


def sql(statement: str) -> Callable[[Copy], None]:
    return lambda machine: machine.sql(statement)


def certify(left: timedelta) -> Callable[[Copy], None]:
    """A server's certificate that ends so soon."""

    def certified(machine: Copy) -> None:
        folder = machine.dir / "pki"
        issuer = pki.authority(folder, "ca", "as it is")
        old = x509.load_pem_x509_certificate((folder / "server.pem").read_bytes())
        now = datetime.now(UTC)
        names = (issuer.certificate.subject, old.subject, old.public_key(), old.serial_number)
        made = x509.CertificateBuilder(*names, now - timedelta(days=400), now + left)
        signed = made.sign(issuer.key, hashes.SHA256())
        (folder / "server.pem").write_bytes(signed.public_bytes(Encoding.PEM))

    return certified


def other_key(machine: Copy) -> None:
    shutil.copy(machine.dir / "pki" / "issuer.key", machine.dir / "pki" / "server.key")


def no_chain(machine: Copy) -> None:
    chain = machine.dir / "pki" / "server.pem"
    chain.write_bytes(chain.read_bytes() + (machine.dir / "pki" / "client-ca.pem").read_bytes())


def leaf_as_authority(machine: Copy) -> None:
    shutil.copy(machine.dir / "pki" / "issuer.pem", machine.dir / "pki" / "client-ca.pem")


def state_of_all(machine: Copy) -> None:
    (machine.dir / "state").chmod(0o777)


def mirrored(machine: Copy) -> None:
    (machine.dir / "mirror").mkdir()
    machine.configure(audit={"mirror": "mirror"})


ISSUER = plan.principal("issuer")


def stamping(principal: str, key: str) -> Callable[[Copy], None]:
    """A time-stamp port for this principal and key."""
    port = {"listen": "127.0.0.1:3161", "principal": principal, "key": f"facilities/{key}"}
    return configure(timestamps=port)


BROKEN = {
    "configuration": (write("signer.yaml", "listen: 1\n"), "configuration", WRONG, "host:port"),
    "policy": (write("policy/policy.yaml", "profiles: {}\n"), "policy", WRONG, "facilities"),
    "certificate-gone": (remove("pki/server.pem"), "tls.certificate", WRONG, "is not a file"),
    "certificate-ends": (certify(timedelta(days=9.5)), "tls.certificate", WARNING, "in 9 days"),
    "certificate-ended": (certify(timedelta(days=-1)), "tls", WRONG, "tls.certificate: ended on"),
    "chain": (no_chain, "tls.certificate", WRONG, "was not issued by the next one"),
    "key-of-another": (other_key, "tls", WRONG, "tls.key: is not the key of the first certificate"),
    "key-open": (chmod("pki/server.key", 0o644), "tls.key", WRONG, "mode 0644"),
    "client-ca": (leaf_as_authority, "tls.client_ca", WRONG, "is not a CA certificate"),
    "client": (write("client-operator.yaml", "ca: x\n"), "client", WRONG, "address"),
    "module-gone": (
        configure(token={"module": "m.so"}),
        "tokens[0].module",
        WRONG,
        "is not a file",
    ),
    "module-other": (
        configure(token={"module": "/etc/hostname"}),
        "token signer-dev",
        WRONG,
        "cannot be loaded",
    ),
    "token-gone": (remove("token"), "token signer-dev", WRONG, ""),
    "token-other": (configure(token={"serial": "77"}), "token signer-dev", WRONG, "serial 77"),
    "pin-open": (chmod("pin", 0o640), "tokens[0].pin_file", WRONG, "mode 0640"),
    "pin-of-systemd": (
        configure(token={"pin_file": "/run/credentials/no-such.service/pin"}),
        "tokens[0].pin_file",
        WARNING,
        "only while the service runs",
    ),
    "pin-empty": (write("pin", ""), "pin signer-dev", WRONG, "is empty"),
    "state-nowhere": (configure(state="none/there"), "state", WRONG, "is not a folder"),
    "state-of-all": (state_of_all, "state", WRONG, "is writable by other users"),
    "registry-gone": (remove("registry.sqlite"), "registry", WRONG, "an audit log exists"),
    "registry-other": (write("registry.sqlite", "x" * 999), "registry", WRONG, "not a database"),
    "registry-newer": (
        sql("update alembic_version set version_num = '9999'"),
        "registry",
        WRONG,
        "by a newer version of signer",
    ),
    "registry-older": (
        sql("update alembic_version set version_num = '0001'"),
        "registry",
        WRONG,
        "schema 0001 is older",
    ),
    "registry-nobody": (sql("delete from officers"), "registry", WARNING, "contains no officers"),
    "log-gone": (remove("audit"), "audit", WRONG, "but the registry contains officers"),
    "log-key-gone": (remove("audit/audit.pub.pem"), "audit", WARNING, "is missing"),
    "disk-low": (
        configure(audit={"low_disk_bytes": 1 << 50}),
        "audit disk",
        WRONG,
        "nothing is signed below",
    ),
    "mirror-gone": (configure(audit={"mirror": "absent"}), "mirror", WRONG, "is not a folder"),
    "mirror-here": (mirrored, "mirror", WARNING, "on the disk of the log itself"),
    "time-stamps-of-nobody": (
        stamping(f"{ISSUER}-2", "moh/keys/tsa"),
        "timestamps.principal",
        WRONG,
        f"no rule of the policy names {ISSUER}-2",
    ),
    "time-stamps-by-another-key": (
        stamping(ISSUER, "01-001/keys/records"),
        "timestamps.key",
        WRONG,
        "TIMESTAMP is not allowed with this key (profiles.records.formats)",
    ),
    "address-of-another": (configure(listen="192.0.2.1:7443"), "listen", WRONG, "cannot be"),
}


@pytest.mark.parametrize(("break_it", "check", "level", "text"), BROKEN.values(), ids=BROKEN)
def test_what_is_broken_is_found(
    machine: Copy, break_it: Callable[[Copy], None], check: str, level: Level, text: str
) -> None:
    break_it(machine)
    found = machine.findings()[check]
    assert found.level is level, found
    assert text in found.seen
    assert found.remedy


@pytest.mark.parametrize("name", [name for name in BROKEN if name.startswith("time-stamps")])
def test_check_finds_a_time_stamp_port_that_the_policy_does_not_allow(
    machine: Copy, name: str
) -> None:
    break_it, field, _, text = BROKEN[name]
    break_it(machine)
    done = signer("check", "--json", "--config", machine.config)
    [problem] = json.loads(done.out)["problems"]
    assert (done.code, problem["path"]) == (1, field)
    assert text in problem["problem"]


def test_a_time_stamp_port_that_the_policy_allows_is_in_order(machine: Copy) -> None:
    stamping(ISSUER, "moh/keys/tsa")(machine)
    assert machine.findings()["timestamps"].level is OK
    assert signer("check", "--config", machine.config).code == 0


def test_a_port_of_another_program(machine: Copy) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        machine.configure(metrics=f"127.0.0.1:{taken.getsockname()[1]}")
        found = machine.findings()
    assert found["metrics"].level is WRONG
    assert "by another program" in found["metrics"].seen
    assert found["listen"].level is OK


def test_a_clock_behind_the_log(machine: Copy) -> None:
    found = machine.findings(later=-3600)
    assert found["clock"].level is WRONG
    assert "behind the last record of the audit log" in found["clock"].seen


@pytest.fixture
def elsewhere() -> Iterator[Path]:
    """A folder on another disk."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


def test_a_mirror_on_another_disk(machine: Copy, elsewhere: Path) -> None:
    machine.configure(audit={"mirror": str(elsewhere)})
    found = machine.findings()["mirror"]
    assert (found.level, "contains no checkpoint" in found.seen) == (WARNING, True), found
    shutil.copy(machine.dir / "audit" / "checkpoints" / "newest", elsewhere)
    assert machine.findings()["mirror"].level is OK
    assert [path.name for path in elsewhere.iterdir()] == ["newest"]


def test_whose_files_they_are(machine: Copy) -> None:
    if os.geteuid():
        pytest.skip("only root gives files away")
    os.chown(machine.dir / "state", 4711, 4711)
    os.chown(machine.dir / "pin", 4712, 4712)
    found = machine.findings()
    assert found["state"].level is found["tokens[0].pin_file"].level is WARNING
    assert "as the user of the daemon" in found["state"].remedy
    assert "chown 4711" in found["tokens[0].pin_file"].remedy
    assert found["tls.key"].level is OK  # root's


def test_root_judges_secrets_as_the_user_of_the_daemon_reads_them(machine: Copy) -> None:
    """As docs/packaging.md installs them; `chmod 600` would take them from the daemon."""
    if os.geteuid():
        pytest.skip("only root gives files away")
    os.chown(machine.dir / "state", 4711, 4711)
    for name in ("pki/server.key", "pin"):
        os.chown(machine.dir / name, 0, 4711)
        (machine.dir / name).chmod(0o640)
    found = machine.findings()
    assert found["tls.key"].level is found["tokens[0].pin_file"].level is OK
    assert found["pin signer-dev"].level is OK
    (machine.dir / "pin").chmod(0o644)
    assert machine.findings()["tokens[0].pin_file"].remedy.startswith("chmod 640 ")


def test_who_looks_before_the_first_start_leaves_no_lock(machine: Copy) -> None:
    state = machine.dir / "state"
    for path in state.iterdir():
        path.unlink()
    assert "not tried yet" in machine.findings()["pin signer-dev"].seen
    assert list(state.iterdir()) == []


def test_no_pin_is_ever_tried(machine: Copy) -> None:
    """Neither a new one, nor one that is latched; the token counts nothing."""
    config, pin = load_config(machine.config), machine.dir / "pin"
    right = pin.read_text()
    pin.write_text("a wrong one\n")
    records = [path.read_bytes() for path in (machine.dir / "state").glob("pin-*")]
    for _ in range(3):
        assert "not tried yet" in machine.findings()["pin signer-dev"].seen
    seen = inspect(config.tokens[0], config.state)
    assert seen.pin is PinState.UNTRIED
    assert "USER_PIN_COUNT_LOW" not in seen.tokens[0].flags
    assert [path.read_bytes() for path in (machine.dir / "state").glob("pin-*")] == records

    with pytest.raises(OperatorError, match="rejects the PIN"):
        machine.log_in()
    for _ in range(3):
        found = machine.findings()["pin signer-dev"]
        assert (found.level, "is latched" in found.seen) == (WRONG, True), found
    assert "USER_PIN_FINAL_TRY" not in inspect(config.tokens[0], config.state).tokens[0].flags

    pin.write_text(right)
    found = machine.findings()["pin signer-dev"]
    assert (found.level, found.seen) == (WARNING, "the token counts a wrong PIN")
    machine.log_in()
    assert machine.findings()["pin signer-dev"].level is OK

"""The state that earlier versions left is opened, verified and gone on with.

And that of later ones is refused before anything is changed.
"""

import json
import os
import re
import shutil
import sqlite3
import tarfile
from collections.abc import Iterator
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import yaml

from signer import cbor
from signer.audit.format.record import frame
from signer.audit.format.segments import list_segments, open_segment, read_frames
from signer.client import SignerClientError
from signer.keys.registry import Registry
from signer.keys.schema import VERSION
from signer.tools.dev import pki
from signer.tools.dev.appliance import connect
from signer.tools.dev.key_plan import principal
from tests.commands import Done, signer
from tests.daemon import Daemon, verified
from tests.fork_server import fork_server
from tests.integration import edge
from tests.integration.document import Document
from tests.ports import free_ports

HERE = Path(__file__).parent
STATES = sorted(path.name for path in HERE.glob("schema-*"))
RECORDS = edge.RECORDS
VERSION_2 = 2  # of the log's format, which this release writes


class Machine:
    """A machine on which an earlier version ran, and today's is installed."""

    def __init__(self, state: str, folder: Path) -> None:
        self.dir = folder / "signer"
        shutil.copytree(HERE / state, self.dir)
        with tarfile.open(self.dir / "token.tar.gz") as archive:
            archive.extractall(self.dir, filter="data")
        with closing(sqlite3.connect(self.dir / "registry.sqlite")) as registry, registry:
            registry.executescript((self.dir / "registry.sql").read_text())
        (self.dir / "pin").chmod(0o600)
        (self.dir / "softhsm2.conf").write_text(
            f"directories.tokendir = {self.dir}/token\nobjectstore.backend = file\n"
        )
        self.config = self.dir / "signer.yaml"
        settings = yaml.safe_load(self.config.read_text())
        listen, metrics = free_ports()
        settings |= {"listen": f"127.0.0.1:{listen}", "metrics": f"127.0.0.1:{metrics}"}
        settings |= {"tokens": [settings["tokens"][0] | {"workers": 1}]}
        del settings["client"]
        settings["clock"] = {"absence_days": 3650}  # what is stored here is old
        self.config.write_text(yaml.safe_dump(settings))
        self._certify(settings)
        for name, file in (("officer-a", "an.pem"), ("officer-b", "binh.pem")):
            shutil.copy(self.dir / "pki" / f"{name}.pem", folder / file)
        self.document = Document("upgrade.md", folder)
        self.document.environment = {
            **os.environ,
            "PATH": f"{fork_server().bin}:{os.environ['PATH']}",
            "HERE": str(self.dir),
        }
        self.signed: list[dict[str, str]] = json.loads((self.dir / "signed.json").read_text())

    def _certify(self, settings: dict[str, Any]) -> None:
        folder = self.dir / "pki"
        folder.mkdir()
        pki.server(folder, pki.authority(folder, "ca", "servers"))
        clients = pki.authority(folder, "client-ca", "clients")
        for name in ("issuer", "officer-a", "officer-b"):
            pki.client(folder, clients, name, principal(name))
        self.dev = {
            "address": settings["listen"],
            "server_name": pki.SERVER_NAME,
            "ca": str(folder / "ca.pem"),
            "clients": {
                name: {"cert": str(folder / f"{name}.pem"), "key": str(folder / f"{name}.key")}
                for name in ("issuer", "officer-a", "officer-b")
            },
        }

    def run(self, *arguments: str) -> Done:
        return signer(*arguments, "--config", self.config)

    def done(self, *arguments: str) -> str:
        ran = self.run(*arguments)
        assert ran.code == 0, ran.err
        return ran.out

    def refused(self) -> str:
        """Why a daemon does not start; nothing was changed."""
        before = self.contents()
        ran = self.run("serve")
        assert ran.code == 1, ran.err
        assert "Traceback" not in ran.err
        assert self.contents() == before
        return ran.err

    def contents(self) -> dict[str, str]:
        """All that the state is, but for the files that each start makes."""
        kept = [path for name in ("audit", "state") for path in (self.dir / name).rglob("*")]
        files = {
            str(path.relative_to(self.dir)): sha256(path.read_bytes()).hexdigest()
            for path in kept
            if path.is_file() and path.name not in ("lock", "ballast") and path.suffix != ".lock"
        }
        with closing(sqlite3.connect(self.dir / "registry.sqlite")) as registry, registry:
            return files | {"registry": "\n".join(registry.iterdump())}

    def upgrade(self) -> None:
        """The steps of the document, up to the start."""
        policy = self.dir / "policy" / "policy.yaml"
        before_officers = "officer:" in policy.read_text()
        if before_officers:
            assert "roles.officer: is not known here" in self.document.block("look").errors
            document = yaml.safe_load(policy.read_text())
            del document["roles"]["officer"]
            policy.write_text(json.dumps(document))
        self.document.run("look", "migrate")
        if before_officers:
            assert "the audit log continues" in self.document.run("officers")

    def sign(self) -> None:
        with connect(self.dev, "issuer") as client:
            for each in self.signed:
                assert client.sign_batch(each["key"], "JWS", [each["payload"].encode()])[0].ok


@pytest.fixture
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Machine:
    return Machine(getattr(request, "param", STATES[-1]), tmp_path)


@pytest.fixture
def serving(machine: Machine) -> Iterator[Daemon]:
    served = Daemon(machine.config)
    yield served
    if served.process is not None and served.process.poll() is None:
        assert served.stop() == 0


def test_every_block_of_the_document_is_run_here() -> None:
    assert Document("upgrade.md").not_run_in(Path(__file__).read_text()) == []


def test_there_is_a_state_of_every_schema() -> None:
    names = [f"schema-{number:04d}" for number in range(1, len(STATES) + 1)]
    assert names == STATES
    assert names[-1] == f"schema-{VERSION}"


@pytest.mark.parametrize("machine", STATES, indirect=True)
def test_a_state_is_verified_upgraded_and_gone_on_with(machine: Machine, serving: Daemon) -> None:
    audit = machine.dir / "audit"
    before = verified(audit, "signer/audit")
    assert before["problems"] == []
    known = machine.dir / "known"
    shutil.copy(audit / "checkpoints" / "newest", known)
    names, versions = keys(machine), segment_versions(audit)

    machine.upgrade()
    serving.start()
    machine.sign()
    assert "0 wrong" in machine.document.run("after")
    assert serving.stop() == 0

    assert keys(machine).items() >= names.items()
    told = machine.done("audit", "verify", "--json", "--checkpoint", str(known))
    after = json.loads(told)
    assert after["problems"] == []
    assert segment_versions(audit) == [
        *versions,
        *([] if versions[-1] == VERSION_2 else [VERSION_2]),
    ]
    assert after["items"] == before["items"] + len(machine.signed)
    assert len(after["officers"]) == 2
    for each in (machine.signed[0], machine.signed[-1]):
        (machine.dir / "signed").write_text(each["output"])
        machine.done("audit", "find", "--file", str(machine.dir / "signed"))


def segment_versions(audit: Path) -> list[int]:
    found = []
    for segment in list_segments(audit):
        with open_segment(segment) as (header, _):
            found.append(header.version)
    return found


def keys(machine: Machine) -> dict[str, str]:
    """The versions that the registry has, by the thumbprint of their public keys."""
    with closing(sqlite3.connect(machine.dir / "registry.sqlite")) as registry, registry:
        return dict(registry.execute("select thumbprint, state from key_versions"))


@pytest.mark.parametrize("machine", STATES[:-1], indirect=True)
def test_an_older_registry_is_not_upgraded_by_a_start(machine: Machine) -> None:
    assert "run `signer registry migrate --config FILE` once" in machine.refused()


# --- a downgrade -------------------------------------------------------------------------------


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_a_registry_of_a_later_version_is_refused(
    machine: Machine, database: str, request: pytest.FixtureRequest
) -> None:
    url = f"sqlite:///{machine.dir}/registry.sqlite"
    if database == "postgresql":
        url = request.getfixturevalue("postgres").database()
        settings = yaml.safe_load(machine.config.read_text())
        machine.config.write_text(yaml.safe_dump(settings | {"registry": url}))
    with Registry.open(url, create=True) as registry, registry.writing() as write:
        write.connection.exec_driver_sql("update alembic_version set version_num = '9999'")
    text = machine.refused()
    assert "the registry was written by a newer version of signer (its schema is 9999" in text
    assert "install that version, or restore the backup" in text
    assert "postgresql" not in text  # nor the password in its URL


def test_a_log_with_a_record_of_a_later_version_is_refused(machine: Machine) -> None:
    """Nor does an override cut off what a later version can read."""
    segment = list_segments(machine.dir / "audit")[-1]
    with open_segment(segment) as (header, frames):
        last = list(frames)[-1]
    head = cbor.encode_record({"seq": 10**6, "time": 2**60, "kind": "revelation"}, 2)
    with segment.path.open("ab") as file:
        file.write(frame(last.chain, cbor.encode_record([head, None], 1))[0])
    refusal = "was written by a newer version of signer"
    assert header.first > 0
    assert refusal in machine.refused()
    overridden = machine.run("serve", "--override-audit-log")
    assert overridden.code == 1
    assert refusal in overridden.err
    assert refusal in machine.run("audit", "verify").err


def test_a_log_of_a_later_format_is_refused(machine: Machine) -> None:
    segment = list_segments(machine.dir / "audit")[0]
    data = segment.path.read_bytes()
    first = next(read_frames(data, bytes(32)))
    body = re.sub(rb"^signer audit log \d\n", b"signer audit log 3\n", first.body)
    assert body != first.body
    segment.path.write_bytes(frame(bytes(32), body)[0])
    for later in list_segments(machine.dir / "audit")[1:]:
        later.path.unlink()
    assert "was written by a newer version of signer" in machine.refused()


def test_rejected_pins_of_a_later_version_are_respected(machine: Machine) -> None:
    [latch] = (machine.dir / "state").glob("pin-*.json")
    latch.write_text(json.dumps(json.loads(latch.read_text()) | {"attempts": 1}))
    ran = machine.run("serve")
    assert ran.code == 1
    assert "the record of rejected PINs, was written by a newer version of signer" in ran.err


def test_a_configuration_of_a_later_version_is_refused(machine: Machine) -> None:
    machine.config.write_text(machine.config.read_text() + "ceremonies: true\n")
    assert "ceremonies: is not known here" in machine.refused()


# --- two appliances, one of them upgraded ------------------------------------------------------


def test_who_runs_on_while_the_registry_is_migrated_signs_and_follows(
    machine: Machine, serving: Daemon
) -> None:
    serving.start()
    with closing(sqlite3.connect(machine.dir / "registry.sqlite")) as registry, registry:
        registry.execute("alter table suspensions add column until float")
        registry.execute("update alembic_version set version_num = '9999'")
    machine.sign()
    with connect(machine.dev, "officer-a") as client, pytest.raises(SignerClientError) as told:
        client.operations.suspend_key(RECORDS, "seen forged")
    assert told.value.reason == "OPERATION_REFUSED"
    assert "brought to schema 9999 by a newer version of signer" in told.value.message
    # An appliance of the later version stops a facility: the one before it hears of that.
    with closing(sqlite3.connect(machine.dir / "registry.sqlite")) as registry, registry:
        registry.execute("update revision set value = value + 1")
        registry.execute(
            "insert into suspensions (scope, name, since, officer, reason, until)"
            " values ('facility', '01-001', 1.0, 'o', 'r', 2.0)"
        )
    with connect(machine.dev, "issuer") as client:
        edge.until(lambda: stopped(client), "the suspension is followed")
    assert serving.stop() == 0
    assert "written by a newer version" in machine.refused()


def stopped(client: Any) -> bool:
    try:
        client.sign_batch(RECORDS, "JWS", [b"{}"])
    except SignerClientError as error:
        return error.reason == "KEY_VERSION_NOT_ACTIVE"
    return False

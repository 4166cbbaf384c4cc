"""docs/backup.md, run as it is printed: appliances are backed up, lost, and come back."""

import os
import re
import shutil
import signal
import subprocess
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any, Self

import pytest

from signer.audit.format.record import RecordKind
from signer.audit.format.segments import list_segments
from signer.audit.read.reader import Reader
from signer.client import SignerClientError
from tests.commands import signer
from tests.fork_server import fork_server
from tests.integration import edge, officers
from tests.integration.document import Document, Ran

RECORDS = "facilities/01-001/keys/records"
LATE = "facilities/01-001/keys/late"


class Site(Document):
    """An appliance, the machine of its backups, and the one of its mirror."""

    def __init__(self, made: Any, folder: Path) -> None:
        super().__init__("backup.md")
        self.made, self.dir, self.dev = made, made.dir, made.dev
        self.backup, self.mirror = folder / "backup", folder / "mirror"
        self.environment = {
            **os.environ,
            "PATH": f"{fork_server().bin}:{os.environ['PATH']}",
            "HERE": str(self.dir),
            "BACKUP": str(self.backup),
            "MIRROR": str(self.mirror),
            "LOG": str(made.log),
        }

    @contextmanager
    def serving(self, name: str = "start") -> Iterator[None]:
        """The daemon of a block while it serves; it must end cleanly."""
        command = re.sub(r"(?m)^signer", "exec signer", self.blocks[name])
        with self.made.log.open("a") as log:
            daemon = subprocess.Popen(
                ["sh", "-eu", "-c", command],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stderr=log,
            )
        try:
            edge.until(lambda: self._ready(daemon), "the daemon serves")
            yield
        finally:
            daemon.terminate()
            code = daemon.wait(60)
        assert code == 0

    def _ready(self, daemon: subprocess.Popen[bytes]) -> bool:
        assert daemon.poll() is None, self.made.log_end()
        try:
            return bool(self.made.get("/readyz")[0] == 200)
        except OSError:
            return False

    # --- what befalls it -------------------------------------------------------------------

    def lose(self) -> None:
        """The machine burns: the daemon dies where it stands, and the disk is gone."""
        self.made.stop(signal.SIGKILL)
        shutil.rmtree(self.dir)

    def sign(self, request_id: str, key: str = RECORDS, items: int = 1) -> list[bytes]:
        """Signs the same messages for every id, so that a repetition is one."""
        messages = [b"%d" % number for number in range(items)]
        with edge.connect(self.dev) as stubs:
            made = stubs.sign(messages, key=key, format="FORMAT_MESSAGE", request_id=request_id)
        assert not made.failures
        return list(made.signatures)

    def make_key(self, name: str) -> str:
        """Makes a key of the name; returns its public key."""
        officers.Office(self.dev).do("create-key", key=name, algorithm="ES256", activate=True)
        return self.signer("keys", "show", name, "--pem").out

    # --- what it says ----------------------------------------------------------------------

    def signer(self, *arguments: str) -> Ran:
        return Ran(*signer(*arguments, "--config", self.dir / "signer.yaml"))

    def found(self, signature: bytes) -> bool:
        return self.signer("audit", "find", sha256(signature).hexdigest()).code == 0

    def kinds(self) -> list[RecordKind]:
        reader = Reader(list_segments(self.dir / "audit"))
        return [record.kind for record in reader.records(0, reader.size)]

    def checkpointed(self) -> None:
        """Waits until the mirror knows all records of the moment."""
        size, newest = len(self.kinds()), self.mirror / "newest"
        edge.until(
            lambda: newest.exists() and int(newest.read_text().splitlines()[1]) >= size,
            "the mirror has a checkpoint of all",
        )


class Load:
    """A caller that signs batch after batch inside a ``with`` block."""

    def __init__(self, site: Site) -> None:
        self.answered: dict[str, list[bytes]] = {}
        self._site, self._over = site, threading.Event()
        self._thread = threading.Thread(target=self._call)

    def __enter__(self) -> Self:
        self._thread.start()
        edge.until(lambda: len(self.answered) > 3, "calls are answered")
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _call(self) -> None:
        while not self._over.is_set():
            request_id = str(uuid.uuid4())
            self.answered[request_id] = self._site.sign(request_id, items=50)


@pytest.fixture
def site(make_appliance: Callable[..., Any], tmp_path: Path) -> Site:
    config = {"audit": {"mirror": str(tmp_path / "mirror"), "segment_bytes": 1 << 20}}
    return Site(make_appliance(config=config), tmp_path)


def test_every_block_of_the_document_is_run_here() -> None:
    assert Document("backup.md").not_run_in(Path(__file__).read_text()) == []


def test_a_lost_machine_comes_back_whole(site: Site) -> None:
    with Load(site) as load:
        site.run("night", "minute")
    site.checkpointed()
    site.run("minute", "check")
    site.lose()
    site.run("restore", "missing")
    with site.serving("start"):
        for request_id, signatures in load.answered.items():
            assert site.sign(request_id, items=50) == signatures
        site.sign(str(uuid.uuid4()))
        site.checkpointed()
    assert RecordKind.OVERRIDE not in site.kinds()
    site.run("missing")


def test_a_record_that_the_copy_has_torn_is_cut_and_told(site: Site) -> None:
    request_id = str(uuid.uuid4())
    kept = site.sign(request_id)
    site.checkpointed()
    site.run("night", "minute", "check")
    live = list_segments(site.dir / "audit")[-1].path
    copy = site.backup / "audit" / live.name
    whole = copy.stat().st_size
    site.sign("")
    with copy.open("ab") as file:  # what cp leaves that reads while the record is written
        file.write(live.read_bytes()[whole : whole + 100])
    assert site.block("check").code == 1
    site.checkpointed()
    site.lose()
    shutil.rmtree(site.mirror)  # so that nothing but the ordinary log knows of the record
    site.run("restore")
    assert "but a checkpoint covers" in site.block("line").errors
    with site.serving():
        assert site.sign(request_id) == kept
    assert RecordKind.RECOVERY in site.kinds()
    [torn] = (site.dir / "audit").glob("*.torn")
    assert torn.stat().st_size == 100


def test_what_came_after_the_last_copy_is_missed_told_and_overridden(site: Site) -> None:
    before, after = str(uuid.uuid4()), str(uuid.uuid4())
    kept = site.sign(before)
    site.run("night", "minute")
    missing = site.sign(after)
    site.make_key(LATE)
    edge.until(lambda: bool(serves(site, LATE)), "the new key is served")
    site.checkpointed()
    knows = int((site.mirror / "newest").read_text().splitlines()[1])
    site.lose()

    site.run("restore")
    seen = site.block("missing")
    assert seen.code == 1
    assert re.search(
        rf"the log ends after \d+ records, but a checkpoint covers {knows}", seen.errors
    )
    refused = site.block("start")
    assert refused.code == 1
    assert f"a checkpoint covers {knows}" in refused.errors
    with site.serving("override"):
        assert site.sign(before) == kept
        assert site.sign(after) != missing  # it is signed again
        assert not serves(site, LATE)
    assert site.found(kept[0])
    assert not site.found(missing[0])
    site.run("anew")
    with site.serving():
        site.sign("")
        site.checkpointed()
        site.run("minute", "check")

    told = site.block("auditor")
    assert told.code == 0, told.errors
    said = " ".join(told.out.split())
    [overridden] = re.findall(r"Records are missing, as was declared at record (\d+)\.", said)
    assert f'"seq": {overridden}' in told.out
    assert f"a checkpoint covers {knows}" in told.out
    for checkpoint in site.mirror.glob("*.overridden"):
        assert site.signer("audit", "verify", "--checkpoint", str(checkpoint)).code == 1

    shutil.rmtree(site.dir / "audit")
    assert site.signer("init").code == 1
    with site.serving("override"):
        site.sign("")
    assert site.kinds()[0] is RecordKind.OVERRIDE


def serves(site: Site, key: str) -> bool:
    """Whether a key signs; where it does not, nobody knows it."""
    with site.made.client() as client:
        try:
            reason, _ = "", client.sign_batch(key, "MESSAGE", [b"m"])
        except SignerClientError as error:
            reason = error.reason
    assert reason in {"", "KEY_NOT_FOUND"}
    return not reason


def test_a_damaged_log_is_mended_from_the_copy(site: Site) -> None:
    first = site.sign("", items=4096)
    for _ in range(4):
        site.sign("", items=4096)
    site.checkpointed()
    site.run("night")
    assert site.made.stop() == 0
    site.run("minute")
    closed, *_, last = [segment.path for segment in list_segments(site.dir / "audit")]
    data = bytearray(closed.read_bytes())
    data[len(data) // 2] ^= 1
    closed.write_bytes(data)
    assert site.block("missing").code == 1
    site.run("minute", "repair")
    last.write_bytes(last.read_bytes()[:-1000])
    assert site.block("missing").code == 1
    site.run("minute", "aside", "missing")
    assert (site.dir / "audit.damaged" / f"{closed.name}.damaged").exists()
    with site.serving():
        site.sign("")
    assert site.found(first[0])


def test_a_registry_older_than_the_token_is_told(site: Site) -> None:
    site.run("night")
    site.make_key(LATE)
    assert site.made.stop() == 0
    site.run("registry")
    assert '"state": "DONE"' in site.run("decided")
    with site.serving():
        assert site.signer("keys", "show", LATE).code == 1
        edge.until(lambda: "registry_and_token_differ" in site.made.log.read_text(), "it is told")
        assert f"label '{LATE}/versions/1'" in site.made.log.read_text()
        site.sign("")

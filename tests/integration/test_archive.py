"""docs/archiving.md works as printed: a log is archived beside its daemon, and proven later."""

import fcntl
import json
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from signer.audit.format.segments import list_segments
from signer.audit.read.reader import Reader
from signer.v1 import evidence_pb2
from tests.fork_server import fork_server
from tests.integration import edge
from tests.integration.document import Document

SIGNER = """
import time
from signer.clock import SystemClock
from signer.cli.main import main
SystemClock.now = lambda self: time.time() + {days} * 86_400
main()
"""


class Site(Document):
    """An appliance whose log has several segments, and the places around it."""

    def __init__(self, made: Any, folder: Path) -> None:
        super().__init__("archiving.md")
        self.made, self.folder = made, folder
        self.audit, self.archive, self.mirror = made.dir / "audit", folder / "a", folder / "mirror"
        self.archive.mkdir()
        self.environment: dict[str, str] = {
            **os.environ,
            "HERE": str(made.dir),
            "MIRROR": str(self.mirror),
            "ARCHIVE": str(self.archive),
            "KEY": str(self.audit / "audit.pub.pem"),
            "TOGETHER": str(folder / "together"),
            "SIGNATURE": str(folder / "signature"),
            "PROOF": str(folder / "proof.json"),
        }
        self.later(days=0)

    def later(self, *, days: int) -> None:
        """Commands run from now on are run so many days later; the daemon is not."""
        path = self.folder / f"bin-{days}" / "signer"
        fork_server().program(path, "-c", SIGNER.format(days=days))
        self.environment["PATH"] = f"{path.parent}:{os.environ['PATH']}"

    def segments(self) -> list[str]:
        return [segment.path.name for segment in list_segments(self.audit)]

    def json(self, name: str) -> str:
        """What a block says to programs."""
        done = self.sh(self.blocks[name].rstrip() + " --json")
        assert done.code == 0, f"{name}: {done.out}{done.errors}"
        return done.out

    @contextmanager
    def audit_locked(self) -> Iterator[None]:
        """While another command archives."""
        descriptor = os.open(self.audit, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        try:
            yield
        finally:
            os.close(descriptor)

    @staticmethod
    def payloads() -> list[bytes]:
        return [b"%d" % number for number in range(4000)]

    def sign(self, request_id: str) -> list[bytes]:
        """Signs a batch that fills a third of a segment; the same for every id."""
        with edge.connect(self.made.dev) as stubs:
            made = stubs.sign(self.payloads(), format="FORMAT_MESSAGE", request_id=request_id)
        assert not made.failures
        return list(made.signatures)

    def grow(self, segments: int) -> str:
        """Signs until the log has so many segments; returns the first request's id."""
        first = str(uuid.uuid4())
        self.sign(first)
        while len(self.segments()) < segments:
            self.sign("")
        return first

    def restart(self) -> None:
        """Every start keeps a checkpoint under its size, as every hour does."""
        assert self.made.stop() == 0
        self.made.start()
        self.checkpointed()

    def checkpointed(self) -> None:
        """Waits until the mirror and the folder have a checkpoint of all records."""
        reader = Reader(list_segments(self.audit))
        for folder in (self.mirror, self.audit / "checkpoints"):
            newest = folder / "newest"
            edge.until(
                lambda: newest.exists() and int(newest.read_text().splitlines()[1]) >= reader.size,
                "there is a checkpoint of all",
            )


@pytest.fixture
def site(make_appliance: Callable[..., Any], tmp_path: Path) -> Site:
    config = {"audit": {"mirror": str(tmp_path / "mirror"), "segment_bytes": 1 << 20}}
    return Site(make_appliance(config=config), tmp_path)


def test_every_block_of_the_document_is_run_here() -> None:
    assert Document("archiving.md").not_run_in(Path(__file__).read_text()) == []


def test_a_log_is_archived_beside_its_daemon_and_an_old_signature_proven(site: Site) -> None:
    request_id = site.grow(segments=3)
    (site.folder / "signature").write_bytes(site.sign(request_id)[7])
    site.restart()
    site.grow(segments=6)
    site.checkpointed()
    all_segments = site.segments()
    site.run("archive")
    assert site.segments() == all_segments, "all is of today"

    site.later(days=31)
    site.run("archive")
    here, there = site.segments(), [each.path.name for each in list_segments(site.archive)]
    assert there
    assert there + here == all_segments
    beside = {"audit.pub.pem", "checkpoints", "policies"}
    assert {path.name for path in site.archive.iterdir()} == {*there, *beside}
    checkpoints = {path.name for path in (site.archive / "checkpoints").iterdir()}
    assert checkpoints == {each.name for each in site.audit.glob("checkpoints/*[0-9]")}

    assert_records_are_gone(site, request_id)
    site.grow(segments=len(here) + 1)
    site.restart()
    assert_records_are_gone(site, request_id)
    site.checkpointed()

    ends, begins = json.loads(site.json("there")), json.loads(site.json("here"))
    assert ends["records"] == begins["first"] > ends["signed_records"] > 0
    gone = site.sh('signer audit verify --config "$HERE/signer.yaml"')
    assert gone.code == 1
    assert "are missing" in gone.errors
    early = site.sh('signer audit verify --dir "$ARCHIVE" --checkpoint "$MIRROR/newest"')
    assert early.code == 1
    assert "but a checkpoint covers" in early.errors

    site.run("together")
    site.run("prove")
    site.run("archive")
    site.run("there")
    site.run("here")


def assert_records_are_gone(site: Site, request_id: str) -> None:
    """Nothing is signed twice, and whoever reads the log is told where it begins."""
    with edge.connect(site.made.dev) as stubs:
        payloads = site.payloads()
        repeated = edge.refused(
            lambda: stubs.sign(payloads, format="FORMAT_MESSAGE", request_id=request_id)
        )
        assert repeated.reason == "REQUEST_ID_REUSED"
        assert "its records were archived" in repeated.message
        stubs.sign([b"another"], format="FORMAT_MESSAGE")
    with edge.connect(site.made.dev, "auditor") as stubs:
        first = list_segments(site.audit)[0].first
        page = stubs.evidence.ListRecords(evidence_pb2.ListRecordsRequest(), timeout=edge.SECONDS)
        assert page.records[0].seq == first
        size = page.records[-1].seq + 1
        for seq, known in ((0, False), (first, True)):
            ask = evidence_pb2.GetInclusionProofRequest(seq=seq, size=size)
            if known:
                assert stubs.evidence.GetInclusionProof(ask, timeout=edge.SECONDS).hashes
            else:
                refusal = edge.refused(lambda: stubs.evidence.GetInclusionProof(ask))
                assert refusal.reason == "FIELD_INVALID"


def test_what_stands_against_it_is_told_and_nothing_is_removed(site: Site) -> None:
    site.grow(segments=4)
    site.checkpointed()
    site.later(days=31)
    all_segments = site.segments()

    def refused(because: str) -> None:
        done = site.block("archive")
        assert done.code != 0
        assert because in done.errors
        assert site.segments() == all_segments

    inside = site.sh(
        'signer audit archive --config "$HERE/signer.yaml" --to "$HERE/audit/policies"'
    )
    assert inside.code == 2
    assert site.sh('signer audit archive --config "$HERE/signer.yaml" --to /absent').code == 2

    site.mirror.rename(site.folder / "away")
    refused("not known what the next start reads")
    (site.folder / "away").rename(site.mirror)

    (site.archive / all_segments[0]).write_bytes(b"another log")
    refused("differs from")
    (site.archive / all_segments[0]).unlink()

    damaged = site.audit / all_segments[1]
    data = damaged.read_bytes()
    damaged.write_bytes(data[:5000] + bytes([data[5000] ^ 1]) + data[5001:])
    refused(all_segments[1])
    damaged.write_bytes(data)
    (site.archive / all_segments[1]).unlink()  # the copy is as damaged as it was

    with site.audit_locked():
        refused("another command is archiving")
    site.run("archive")
    assert site.segments() != all_segments
    site.restart()


def test_what_the_mirror_has_not_seen_stays(site: Site) -> None:
    """A start compares the log with the mirror's newest checkpoint, too, however old it is."""
    site.checkpointed()
    old = (site.mirror / "newest").read_text()
    site.grow(segments=4)
    site.checkpointed()
    site.later(days=31)
    assert site.made.stop() == 0
    for path in site.mirror.iterdir():
        path.unlink()
    (site.mirror / "newest").write_text(old)
    all_segments = site.segments()
    site.run("archive")
    assert site.segments() == all_segments
    site.made.start()
    site.checkpointed()
    site.run("archive")
    assert site.segments() != all_segments
    site.restart()

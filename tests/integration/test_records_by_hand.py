"""Somebody with the disk appends records to the log of a stopped appliance, and SQL fits them.

The log is whole then: the records are chained and the next checkpoint covers them. None of them
gives a key what no operation of officers permits; each raises an alarm and is named.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import sqlalchemy as sa

from signer.audit.format.record import RecordKind, Value
from signer.audit.format.segments import list_segments
from signer.audit.read.ledger import Ledger
from signer.audit.write.log import AuditLog, Listener
from signer.audit.write.recovery import open_audit_log
from signer.clock import SystemClock
from signer.daemon.accounts import UNACCOUNTED
from signer.keys import schema
from signer.keys.registry import Registry
from signer.model import KeyName, KeyState, KeyVersion
from signer.officers.approval import Signature, parse
from signer.officers.keys_record import KeysRecord, VersionRow
from signer.officers.offline_check import ApprovalFold
from signer.officers.records import ApprovedOperation
from signer.officers.standing_fold import StandingFold
from signer.officers.store import OperationStore
from tests.daemon import Daemon, verified
from tests.integration.officers import Office
from tests.integration.place import KEY, Place
from tests.integration.test_registry_by_hand import signs, store_operation

STOPPED = "facilities/clinic/keys/stopped"


class Site(NamedTuple):
    """A stopped appliance, with a key that an officer has stopped."""

    place: Place
    daemon: Daemon
    office: Office
    kept: Path

    @property
    def audit(self) -> Path:
        return self.place.dir / "audit"

    @property
    def origin(self) -> str:
        origin: str = self.daemon.settings["audit"].get("origin", "signer/audit")
        return origin

    @property
    def database(self) -> Path:
        return self.place.dir / "registry.sqlite"

    def registry(self) -> Registry:
        return Registry.open(f"sqlite:///{self.database}")

    def version(self) -> KeyVersion:
        with self.registry() as registry:
            return registry.versions(KeyName.parse(STOPPED))[0]

    def active(self) -> KeyVersion:
        """The stopped version as somebody wants to have it, and makes it by SQL."""
        made = replace(self.version(), state=KeyState.ACTIVE)
        with self.registry() as registry, registry.writing() as write:
            row = sa.update(schema.key_versions).where(schema.key_versions.c.state == "SUSPENDED")
            done = write.connection.execute(row.values(state="ACTIVE", revision=write.revision))
            assert done.rowcount == 1
            return replace(made, revision=write.revision)

    def operation(self, kind: str) -> ApprovedOperation:
        """An operation that officers have approved, and that is done."""
        with self.registry() as registry:
            found = OperationStore(registry).page((), 99, None)
        return next(ApprovedOperation.of(o) for o in found if o.proposal.kind == kind)

    @contextmanager
    def log(self, **settings: Any) -> Iterator[AuditLog]:
        log = open_audit_log(
            self.audit,
            origin=self.origin,
            clock=SystemClock(),
            low_disk_bytes=1,
            ballast_bytes=0,
            **settings,
        )
        try:
            yield log
        finally:
            log.close()

    def append(self, *records: Mapping[str, Value], kind: RecordKind = RecordKind.KEYS) -> None:
        with self.log() as log:
            for fields in records:
                log.append(kind, fields)

    def keep(self) -> None:
        shutil.copytree(self.audit, self.kept / "audit")
        shutil.copy(self.database, self.kept / "registry.sqlite")

    def put_back(self) -> None:
        shutil.rmtree(self.audit)
        shutil.copytree(self.kept / "audit", self.audit)
        shutil.copy(self.kept / "registry.sqlite", self.database)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Site:
    folder = tmp_path_factory.mktemp("records")
    place = Place(folder)
    done = place.init("officer-a", "officer-b")
    assert done.code == 0, done.err
    daemon, office = Daemon(place.config), Office(place.dev)
    daemon.start()
    for key in (KEY, STOPPED):
        office.do("create-key", key=key, algorithm="ES256", activate=True)
    with office.client("officer-a") as client:
        client.operations.suspend_key(STOPPED, "seen forged")
    office.do("resume", target=STOPPED)
    with office.client("officer-a") as client:
        client.operations.suspend_key(STOPPED, "seen forged again")
    assert signs(office, "issuer", KEY)
    assert not signs(office, "issuer", STOPPED)
    assert daemon.stop() == 0
    site = Site(place, daemon, office, tmp_path_factory.mktemp("kept"))
    site.keep()
    return site


@pytest.fixture
def site(made: Site) -> Iterator[Site]:
    yield made
    if made.daemon.running:
        assert made.daemon.stop() == 0
    made.put_back()


Append = Callable[[Site, KeyVersion], None]


def keys(version: KeyVersion, approved: ApprovedOperation | None, **fields: Value) -> Any:
    [record] = KeysRecord(version.revision, [VersionRow.of(version)], approved=approved).to_fields(
        0.0
    )
    return {**record, **fields}


def without_an_operation(site: Site, version: KeyVersion) -> None:
    site.append(keys(version, None))


def of_another_kind(site: Site, version: KeyVersion) -> None:
    """It names the key, and is about something else."""
    site.append(keys(version, site.operation("create-key")))


def used_before(site: Site, version: KeyVersion) -> None:
    """Officers resumed this very key, before the last stop."""
    site.append(keys(version, site.operation("resume")))


def as_a_part_of_a_baseline(site: Site, version: KeyVersion) -> None:
    site.append(keys(version, None, baseline=True, part=2, parts=2, development=False))


def as_another_baseline(site: Site, version: KeyVersion) -> None:
    given: dict[str, Any] = {"part": 1, "parts": 1, "development": True, "suspensions": []}
    with site.registry() as registry:
        given["deployment"] = registry.state().deployment
    site.append(keys(version, None, baseline=True, **given))


def of_nobodys_execution(site: Site, version: KeyVersion) -> None:
    """Its execution is on record, and no officer has signed it."""
    told = parse(site.operation("resume").content)
    name = version.name
    details = {**told.details, "target": name}
    details["basis"] = {name: f"SUSPENDED, changed at revision {site.version().revision - 1}"}
    identity = told.id.replace(told.id[:8], "0" * 8)
    invented = replace(told, id=identity, details=details)
    signatures = tuple(Signature(who, b"", 0.0) for who in ("a", "b"))
    carried = ApprovedOperation(invented.id, invented.canonical(), signatures)
    site.append(carried.to_fields(), kind=RecordKind.EXECUTION)
    site.append(keys(version, carried))
    with site.registry() as registry, registry.writing() as write:
        signers = ("officer-a", "officer-a")
        ended = version.revision
        store_operation(
            site.office, write.connection, carried.content, signers, state="DONE", ended=ended
        )


APPENDED: Sequence[Append] = (
    without_an_operation,
    of_another_kind,
    used_before,
    as_a_part_of_a_baseline,
    as_another_baseline,
    of_nobodys_execution,
)


@pytest.mark.parametrize("append", APPENDED, ids=lambda append: append.__name__)
def test_a_record_that_no_operation_permits_serves_nothing_and_is_shown(
    site: Site, append: Append
) -> None:
    with site.log() as log:
        number = log.size
    append(site, site.active())
    for _ in range(2):  # also when the records are behind a checkpoint
        site.daemon.start(ready=False)
        assert UNACCOUNTED in site.daemon.reason()
        assert not signs(site.office, "issuer", STOPPED)
        assert signs(site.office, "issuer", KEY)
        assert '"audit_problem"' in site.daemon.log.read_text()
        assert site.daemon.stop() == 0
        site.daemon.log.write_text("")
    report = verified(site.audit, site.origin, whole=False)
    appended = tuple(f"record {seq}: " for seq in (number, number + 1))
    assert any(text.startswith(appended) for text in report["problems"]), report["problems"]


def test_a_snapshot_of_other_standings_is_not_begun_with(site: Site) -> None:
    """The daemon would begin with it as soon as a checkpoint covers it."""
    approvals = ApprovalFold(checking=False)
    standings, ledger = StandingFold(approvals), Ledger()

    def snapshot() -> Mapping[str, Value]:
        said: Any = standings.snapshot()["standings"]
        return {"standings": {**said, "flags": [["facility", "clinic", 1]]}}

    listeners = [Listener(fold.apply, fold.KINDS, fold.snapshot) for fold in (ledger, approvals)]
    listeners.append(Listener(standings.apply, standings.KINDS, snapshot))
    with site.log(listeners=listeners, segment_bytes=1) as log:
        log.append(RecordKind.WORKER, {"token": "t", "cause": "died"})
    assert len(list_segments(site.audit)) == 2
    ended = site.daemon.refused()
    assert ended.code == 1
    assert "does not hold the standings of the records before it" in ended.errors

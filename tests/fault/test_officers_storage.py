"""Operations while the database is locked by somebody else, or the audit log takes nothing."""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from signer.client import Operation, SignerClientError, sign_operation
from tests.daemon import RECORDS, Daemon, until
from tests.fault.daemon import OTHERS, Load
from tests.fault.test_officers_faults import (
    KEY,
    approved,
    enrolment,
    nothing_failed,
    registry_equals_token,
    verified,
    with_policy,
)
from tests.integration.officers import Office


@pytest.fixture
def daemon(daemon: Daemon) -> Daemon:
    return with_policy(daemon)


@contextmanager
def locked(daemon: Daemon) -> Iterator[None]:
    """Another program writes to the registry, and does not come to an end."""
    connection = sqlite3.connect(daemon.folder / "registry.sqlite", isolation_level=None)
    with closing(connection):
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        finally:
            connection.execute("ROLLBACK")


def test_operations_wait_for_a_locked_database_and_signing_goes_on(daemon: Daemon) -> None:
    daemon.start()
    before = registry_equals_token(daemon)
    office = Office(daemon.dev)
    proposed = office.propose("create-key", key=KEY, algorithm="ES256", activate=True)
    answers: list[Operation] = []
    approving = threading.Thread(target=lambda: answers.append(office.approve(proposed.id)))
    with Load(daemon, callers=1, items=20) as load:
        with locked(daemon):
            approving.start()
            load.more(3)
            assert not answers
        approving.join(30)
        assert office.ended(proposed.id).state == "DONE"
        load.more()
    nothing_failed(load)
    after = registry_equals_token(daemon)
    assert after.keys() - before.keys() == {f"{KEY}/versions/1"}


@pytest.mark.torture
def test_operations_are_refused_while_a_database_stays_locked(daemon: Daemon) -> None:
    daemon.start()
    before = registry_equals_token(daemon)
    office = Office(daemon.dev)
    content = office.prepare("create-key", key=KEY, algorithm="ES256", activate=True)
    waiting = office.propose("create-key", key=f"{KEY}-2", algorithm="ES256", activate=True)
    enrolling = approved(office, "enrol", enrolment(daemon, 150))
    until(lambda: office.get(enrolling).done, "keys are made")
    with Load(daemon, callers=1, items=20) as load:
        with locked(daemon):
            for call in (
                lambda: office.approve(waiting.id),
                lambda: propose(office, content),
                lambda: suspend(office),
            ):
                with pytest.raises(SignerClientError) as refused:
                    call()
                assert refused.value.reason == "REGISTRY_UNAVAILABLE"
                assert refused.value.retry_after
        load.more()
        told = office.get(waiting.id)
        assert (told.state, len(told.signatures)) == ("PROPOSED", 1)
        until(lambda: office.get(enrolling).state in ("FAILED", "DONE"), "it ends", 90)
        if office.get(enrolling).state == "FAILED":
            with office.client("officer-a") as client:
                client.operations.retry(enrolling)
        assert office.ended(enrolling, 180).state == "DONE"
    nothing_failed(load)
    assert len(registry_equals_token(daemon)) == len(before) + 150
    assert daemon.sign(key=OTHERS) == {"ok": 3}


def propose(office: Office, content: bytes) -> None:
    with office.client("officer-a") as client:
        client.operations.propose(content, sign_operation(content, office.keys["officer-a"]))


def suspend(office: Office) -> None:
    with office.client("officer-a") as client:
        client.operations.suspend_facility("01-002", "test")


def test_nothing_is_executed_that_the_log_does_not_take(daemon: Daemon, tmp_path: Path) -> None:
    faults = tmp_path / "disk"
    faults.mkdir()
    serving = Path(__file__).with_name("serve_with_faults.py")
    daemon.program = [str(serving), str(faults), "0.25"]
    daemon.start()
    before = registry_equals_token(daemon)
    office = Office(daemon.dev)
    proposed = office.propose("create-key", key=KEY, algorithm="ES256", activate=True)
    late = office.prepare("create-key", key=f"{KEY}-2", algorithm="ES256", activate=True)
    (faults / "failed").touch()
    with pytest.raises(SignerClientError) as refused:
        office.approve(proposed.id)
    assert "audit log" in refused.value.message
    with pytest.raises(SignerClientError):
        propose(office, late)
    until(daemon.reason, "it says so")
    assert daemon.stop() == 0  # whatever was to be executed has had its end
    assert registry_equals_token(daemon) == before

    (faults / "failed").unlink()
    daemon.start()
    assert office.versions(KEY) == {}
    told = office.ended(proposed.id)
    assert told.state == "FAILED"
    assert "the audit log accepts no records" in told.note
    with office.client("officer-b") as client:
        client.operations.retry(proposed.id)
    assert office.ended(proposed.id).state == "DONE"
    with office.client("officer-b") as client:
        open_ones = list(client.operations.list("PROPOSED"))
    for each in open_ones:  # kept, though its proposer was told otherwise: it must be on record
        office.approve(each.id)
        assert office.ended(each.id).state == "DONE"
    after = registry_equals_token(daemon)
    assert f"{KEY}/versions/1" in after
    assert len(after) == len(before) + 1 + len(open_ones)
    assert daemon.sign(key=RECORDS) == {"ok": 3}
    verified(daemon)

"""Operations on an appliance that is killed, or whose HSM is full or dies over a key."""

from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from signer.client import SignerClientError
from signer.config.models import load_config
from signer.config.policy_documents import read_policy
from signer.hsm.front.admin import open_admin
from signer.keys.registry import Registry
from tests.daemon import Daemon, until
from tests.fault.daemon import Load
from tests.fault.shim import Action, Shim
from tests.integration.officers import Office, csv_of

KEY = "facilities/01-001/keys/new"

KILLED = """
import os, signal, sys, pathlib
from signer import daemon
from signer.officers.records import OperationRecords
from signer.keys.writing import Writing
from signer.officers.kinds import enrolment
from signer.officers import execution
from signer.officers.kinds import create_key as making
from signer.officers.store import OperationState

# Ends the daemon at the point that the file names, or at its n-th passage of it.
order = pathlib.Path(sys.argv[1])
making.BATCH = 5
passed = {}

def at(point):
    wanted = order.read_text() if order.exists() else ""
    if wanted.rpartition(" ")[0] == point:
        passed[wanted] = passed.get(wanted, 0) + 1
        if wanted == f"{point} {passed[wanted]}":
            order.unlink()
            os.kill(os.getpid(), signal.SIGKILL)

def around(owner, name, before, after):
    inner = getattr(owner, name)
    def outer(*arguments, **options):
        at(before)
        result = inner(*arguments, **options)
        at(after)
        return result
    setattr(owner, name, outer)

around(OperationRecords, "execution_begun", "before the intent", "after the intent")
around(making, "make_version", "before the key", "after the key")
around(enrolment, "make_version", "before the key", "after the key")
around(execution.Work, "save", "before a part", "after a part")
around(Writing, "add_versions", "before the rows", "after the rows")
around(execution.Executor, "_finish", "before the end", "after the end")
around(OperationRecords, "execution_ended", "before the outcome", "after the outcome")
sys.exit(daemon.run(pathlib.Path(sys.argv[2])))
"""


def with_policy(daemon: Daemon) -> Daemon:
    """A daemon whose policy officers decide: the one in the files is in force."""
    config = load_config(daemon.folder / "signer.yaml")
    with Registry.open(config.registry) as registry, registry.writing() as write:
        write.put_policy(read_policy(config.policy).text)
    return daemon


@pytest.fixture
def daemon(daemon: Daemon) -> Daemon:
    return with_policy(daemon)


@pytest.fixture
def killer(daemon: Daemon, tmp_path: Path) -> Path:
    """The file that says where the daemon ends; it has not started."""
    order = tmp_path / "order"
    daemon.program = ["-c", KILLED, str(order)]
    return order


@pytest.fixture
def faults(daemon: Daemon, shim_module: Path, shim: Shim) -> Shim:
    """Rules for the module between the workers and the HSM; the daemon has not started."""
    daemon.configure(token={"module": str(shim_module), "environment": shim.environment})
    return shim


def approved(office: Office, kind: str, attachment: bytes = b"", **arguments: Any) -> str:
    """An operation that has its signatures; whoever dies over it."""
    proposed = office.propose(kind, attachment, **arguments)
    try:
        office.approve(proposed.id)
    except SignerClientError as error:
        assert error.code == "UNAVAILABLE"
    return proposed.id


def enrolment(daemon: Daemon, count: int) -> bytes:
    issuer = daemon.dev["clients"]["issuer"]["principal"]
    return csv_of([f"e-{n:04}" for n in range(count)], issuer)


def registry_equals_token(daemon: Daemon) -> dict[str, bytes]:
    """Every key of the registry is on the token once, and none beside them; the ids by name."""
    config = load_config(daemon.folder / "signer.yaml")
    [token] = config.tokens
    with Registry.open(config.registry) as registry, registry.reading() as connection:
        rows = connection.exec_driver_sql(
            "SELECT facility, key, number, cka_id FROM key_versions JOIN keys"
            " ON keys.id = key_versions.key_id WHERE state != 'DESTROYED'"
        ).all()
    registered = {f"facilities/{r[0]}/keys/{r[1]}/versions/{r[2]}": bytes(r[3]) for r in rows}
    with open_admin(token, config.state) as admin:
        there = admin.inventory()
    on_token = {each.label: each.cka_id for each in there}
    assert len(on_token) == len(there), "two keys of one label"
    assert {cka_id.hex() for cka_id in on_token.values()} == {
        cka_id.hex() for cka_id in registered.values()
    }
    return registered


def executions(daemon: Daemon, operation: str) -> Counter[str]:
    """The records of an operation in the log, by their kind."""
    with daemon.client("auditor") as client:
        kinds = ["proposal", "approval", "execution", "executed"]
        return Counter(
            each.kind
            for each in client.list_records(kinds=kinds)
            if operation.encode() in each.head
        )


def nothing_failed(load: Load) -> None:
    assert +load.ends == {"ok": load.ends["ok"]}
    assert load.calls == {"ok": load.calls["ok"]}


def killed(daemon: Daemon, killer: Path, point: str) -> None:
    assert daemon.process is not None
    daemon.process.wait(30)
    assert not killer.exists(), f"it never came to {point}"
    daemon.start()


POINTS = [
    "before the intent 1",
    "after the intent 1",
    "after the key 1",
    "after the rows 1",
    "after the end 1",
    "after the outcome 1",
]


def test_a_key_is_made_once_wherever_the_daemon_is_killed(daemon: Daemon, killer: Path) -> None:
    daemon.start()
    before = registry_equals_token(daemon)
    office = Office(daemon.dev)
    made = {}
    for number, point in enumerate(POINTS):
        key = f"{KEY}-{number}"
        killer.write_text(point)
        operation = approved(office, "create-key", key=key, algorithm="ES256", activate=True)
        killed(daemon, killer, point)
        told = office.ended(operation)
        assert told.state == "DONE", (point, told.note)
        [version] = office.versions(key).values()
        assert told.result is not None
        assert told.result["jwk_thumbprint"] == version.jwk_thumbprint, point
        until(lambda: executions(daemon, operation)["executed"], "its end is on record")
        made[version.name] = bytes.fromhex(told.result["cka_id"])
        with daemon.client() as client:
            assert client.sign_batch(key, "JWS", [b"{}"])[0].error is None
    assert registry_equals_token(daemon) == before | made
    verified(daemon)


@pytest.mark.parametrize(
    "point",
    [
        "after the key 3",
        pytest.param("after the rows 2", marks=pytest.mark.torture),
        pytest.param("after a part 3", marks=pytest.mark.torture),
        "before the end 1",
        pytest.param("after the end 1", marks=pytest.mark.torture),
    ],
)
def test_an_enrolment_is_completed_wherever_the_daemon_is_killed(
    daemon: Daemon, killer: Path, point: str
) -> None:
    daemon.start()
    before = registry_equals_token(daemon)
    office = Office(daemon.dev)
    killer.write_text(point)
    operation = approved(office, "enrol", enrolment(daemon, 18))
    killed(daemon, killer, point)
    told = office.ended(operation)
    assert (told.state, told.done, told.total) == ("DONE", 18, 18), told.note
    after = registry_equals_token(daemon)
    assert after.keys() - before.keys() == {
        f"facilities/e-{n:04}/keys/records/versions/1" for n in range(18)
    }
    with daemon.client() as client:
        for number in range(18):
            [item] = client.sign_batch(f"facilities/e-{number:04}/keys/records", "JWS", [b"{}"])
            assert item.error is None
    verified(daemon)


def verified(daemon: Daemon) -> None:
    folder = str(daemon.folder / "audit")
    until(lambda: not daemon.run("audit", "verify").code, f"the log in {folder} is in order")


# --- the HSM --------------------------------------------------------------------------------


def test_a_full_hsm_ends_an_enrolment_that_goes_on_when_there_is_room(
    daemon: Daemon, faults: Shim
) -> None:
    daemon.start()
    before = registry_equals_token(daemon)
    office = Office(daemon.dev)
    faults.on("C_GenerateKeyPair", delay=0.01)
    with Load(daemon, callers=1, items=20) as load:
        operation = approved(office, "enrol", enrolment(daemon, 160))
        until(lambda: office.get(operation).done >= 50, "some are made")
        faults.clear()
        faults.on("C_GenerateKeyPair", code=0x31)  # CKR_DEVICE_MEMORY
        told = office.ended(operation)
        load.more()
    nothing_failed(load)
    assert told.state == "FAILED"
    assert 50 <= told.done < 160
    assert told.total == 160
    assert f"{told.done} of 160 keys were created" in told.note
    assert "it is full; destroy unused keys or give it more room" in told.note
    assert "retry" in told.note
    made = registry_equals_token(daemon)
    assert len(made) == len(before) + told.done, "what was made is in the registry, and no more"
    with daemon.client() as client, pytest.raises(SignerClientError) as refused:
        client.sign_batch("facilities/e-0000/keys/records", "JWS", [b"{}"])
    assert refused.value.reason == "POLICY_DENIED", "its policy is not in force"

    faults.clear()
    with office.client("officer-a") as client:
        client.operations.retry(operation)
    told = office.ended(operation)
    assert (told.state, told.done) == ("DONE", 160), told.note
    after = registry_equals_token(daemon)
    assert len(after) == len(before) + 160
    assert made.items() <= after.items(), "what was made is found, not made again"
    assert executions(daemon, operation) == {
        "proposal": 1,
        "approval": 1,
        "execution": 2,
        "executed": 2,
    }
    verified(daemon)


def test_an_admin_worker_that_dies_over_a_key_leaves_one_that_is_found(
    daemon: Daemon, faults: Shim
) -> None:
    daemon.start()
    before = registry_equals_token(daemon)
    office = Office(daemon.dev)
    faults.on("C_GenerateKeyPair", after=True, action=Action.SEGFAULT)
    operation = approved(office, "create-key", key=KEY, algorithm="ES256", activate=True)
    told = office.ended(operation)
    assert told.state == "FAILED"
    assert "died" in told.note
    assert daemon.sign() == {"ok": 3}
    faults.clear()
    with office.client("officer-b") as client:
        client.operations.retry(operation)
    assert office.ended(operation).state == "DONE"
    after = registry_equals_token(daemon)
    assert after.keys() - before.keys() == {f"{KEY}/versions/1"}


def sleeps(worker: psutil.Process) -> bool:
    """Whether a worker is within the shim's pause; others wait for their socket."""
    return "nanosleep" in Path(f"/proc/{worker.pid}/wchan").read_text()


def test_an_admin_worker_of_a_killed_daemon_makes_no_second_key(
    daemon: Daemon, faults: Shim
) -> None:
    """It is still at work in the HSM when the next daemon completes the operation."""
    daemon.start()
    before = registry_equals_token(daemon)
    faults.on("C_GenerateKeyPair", delay=2.0)
    office = Office(daemon.dev)
    operation = approved(office, "create-key", key=KEY, algorithm="ES256", activate=True)
    until(lambda: executions(daemon, operation)["execution"], "it has begun")
    until(lambda: any(map(sleeps, daemon.workers())), "the HSM is at work on the key")
    [stray] = filter(sleeps, daemon.workers())
    stray.suspend()
    assert daemon.process is not None
    daemon.process.kill()
    daemon.process.wait()
    faults.clear()
    daemon.start()
    until(lambda: executions(daemon, operation)["execution"] == 2, "it is begun again")
    with suppress(AssertionError):  # it must not be: the other one holds what it needs
        until(lambda: office.get(operation).state == "DONE", "it is made again", 4)
    stray.resume()
    _, left = psutil.wait_procs([stray], timeout=30)
    assert not left
    assert office.ended(operation).state == "DONE"
    after = registry_equals_token(daemon)
    assert after.keys() - before.keys() == {f"{KEY}/versions/1"}
    assert daemon.sign() == {"ok": 3}

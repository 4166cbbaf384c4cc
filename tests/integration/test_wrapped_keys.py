"""Private keys that no token holds: made, enrolled, stopped and changed by hand, on SoftHSM."""

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import load_der_public_key

from signer.client import SignerClientError
from signer.config.models import load_config
from signer.daemon.accounts import UNACCOUNTED
from signer.hsm.front.admin import open_admin
from signer.keys import schema
from signer.keys.registry import Registry
from signer.model import KeyName, KeyVersion
from signer.officers.kinds.wrapping_keys import BATCH
from signer.tools.doctor import examine
from signer.tools.doctor.finding import Level
from tests.appliances import TwoTokensWrapped, WrappedKeys
from tests.daemon import RECORDS, Daemon, correct, until, verified
from tests.integration.officers import Office, csv_of

OTHERS = "facilities/01-002/keys/records"
ISSUER = "spiffe://dev.signer.example/issuer"
WRAPPED = schema.wrapped_keys


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    appliance = WrappedKeys(tmp_path / "dev")
    appliance.init()
    made = Daemon(appliance.dir / "signer.yaml")
    made.start()
    yield made
    assert made.stop() == 0


@contextmanager
def registry_of(daemon: Daemon) -> Iterator[Registry]:
    with Registry.open(load_config(daemon.config).registry) as registry:
        yield registry


def version_of(registry: Registry, key: str, number: int = 1) -> KeyVersion:
    found = registry.snapshot().version(KeyName.parse(key), number)
    assert found is not None
    return found


def objects(daemon: Daemon) -> int:
    return len(list((daemon.folder / "token").glob("*/*.object")))


def signs(office: Office, key: str) -> bool:
    """Whether a key signs; its public key must then verify the signature."""
    with office.client("issuer") as client:
        try:
            [item] = client.sign_batch(key, "MESSAGE", [b"m"], timeout=20)
        except SignerClientError:
            return False
        if item.ok:
            public = load_der_public_key(client.get_key_version(item.key_version).public_key)
            assert isinstance(public, EllipticCurvePublicKey)
            assert correct(public, b"m", item.signature)
    return item.ok


def test_facilities_are_enrolled_and_the_token_does_not_grow(daemon: Daemon) -> None:
    office = Office(daemon.dev)
    before = objects(daemon)
    names = [f"n-{number:02}" for number in range(12)]
    proposed = office.propose("enrol", csv_of(names, ISSUER))
    shown = office.get(proposed.id).difference
    assert any("stored wrapped by wrapping key development" in line for line in shown)
    office.approve(proposed.id)
    assert office.ended(proposed.id).state == "DONE"
    keys = [f"facilities/{name}/keys/records" for name in names]
    assert all(signs(office, key) for key in keys)
    assert objects(daemon) == before, "no key is an object of the token"
    assert daemon.reason() == ""
    assert daemon.stop() == 0
    daemon.start()
    assert all(signs(office, key) for key in keys)
    assert daemon.reason() == ""
    office.log_in_order()


def test_every_token_with_the_wrapping_key_signs(tmp_path: Path) -> None:
    appliance = TwoTokensWrapped(tmp_path / "dev")
    appliance.init()
    made = Daemon(appliance.dir / "signer.yaml")
    made.start()
    try:
        busy = "signer_worker_busy_seconds_total"
        tokens = ("signer-dev", "signer-dev-2")
        before = [made.metric(busy, token=token) for token in tokens]
        assert made.sign(600) == {"ok": 600}
        after = [made.metric(busy, token=token) for token in tokens]
        assert all(now > then for now, then in zip(after, before, strict=True))
    finally:
        assert made.stop() == 0


def test_what_wraps_a_key_is_shown(daemon: Daemon) -> None:
    """By the API, by doctor, and by the comparison once the token does not hold it any more."""
    office = Office(daemon.dev)
    with office.client("auditor") as client:
        versions = list(client.list_key_versions())
        [made] = client.list_wrapping_keys()
        by = {version.wrapping and version.wrapping.wrapping_key for version in versions}
        assert by == {None, made.id}
        wrapped = [version for version in versions if version.wrapping]
        assert (made.tokens, made.newest_on) == (("signer-dev",), ("signer-dev",))
        assert made.key_versions == len(wrapped)
        assert client.get_key(RECORDS).primary == client.get_key_version(f"{RECORDS}/versions/1")
    with office.client("issuer") as client:
        assert client.get_key_version(f"{RECORDS}/versions/1").wrapping is None
    [seen] = [each for each in examine(daemon.config, time.time()) if each.check == "wrapped keys"]
    assert seen.level is Level.OK, seen
    assert daemon.metric("signer_token_differences", token="signer-dev") == 0

    assert daemon.stop() == 0
    config = load_config(daemon.config)
    with open_admin(config.tokens[0], config.state) as admin:
        admin.destroy_wrapping_key(made.id)
    daemon.start()
    until(lambda: daemon.metric("signer_token_differences", token="signer-dev"), "it is missed")
    with office.client("operator") as client:
        [line] = client.status().differences
    assert line.startswith(f"token signer-dev does not hold the wrapping key {made.id}, so that")
    assert daemon.sign(2) == {"HSM_UNAVAILABLE": 2}


def test_a_key_is_rotated_and_its_old_version_erased(daemon: Daemon) -> None:
    office = Office(daemon.dev)
    office.do("rotate", RECORDS.encode(), activate_at=0, overlap_seconds=0)
    assert signs(office, RECORDS)
    old = f"{RECORDS}/versions/1"
    until(lambda: office.versions(RECORDS)[1].state == "DEACTIVATED", "the overlap has ended")
    office.do("schedule-destruction", version=old, at=0)
    told = office.propose("destroy", version=old)
    assert any("erased from the registry" in line for line in office.get(told.id).difference)
    office.approve(told.id)
    assert office.ended(told.id).state == "DONE"
    with registry_of(daemon) as registry:
        first, second = version_of(registry, RECORDS), version_of(registry, RECORDS, 2)
        assert (first.wrapped, str(first.state)) == (None, "DESTROYED")
        assert second.wrapped is not None
    assert daemon.reason() == ""
    assert signs(office, RECORDS)
    office.log_in_order()


def test_what_is_stopped_does_not_sign_and_signs_again_when_resumed(daemon: Daemon) -> None:
    office = Office(daemon.dev)
    assert daemon.sign(4) == {"ok": 4}
    with office.client("officer-a") as client:
        client.operations.suspend_key(RECORDS, "seen forged")
    assert not signs(office, RECORDS)
    assert daemon.sign(4, OTHERS) == {"ok": 4}
    office.do("resume", target=RECORDS)
    assert daemon.sign(4) == {"ok": 4}
    with office.client("officer-a") as client:
        client.operations.mark_compromised(RECORDS, "seen forged")
    assert not signs(office, RECORDS)


def flipped(stored: dict[str, Any]) -> None:
    stored["blob"] = bytes([stored["blob"][0] ^ 1]) + stored["blob"][1:]


def flipped_and_hashed(stored: dict[str, Any]) -> None:
    flipped(stored)
    stored["sha256"] = hashlib.sha256(stored["blob"]).digest()


def by_another(stored: dict[str, Any]) -> None:
    stored["wrapping_key"] = "another"


def as_another(stored: dict[str, Any]) -> None:
    stored["mechanism"] = "AES_KEY_WRAP_KWP"


def not_a_mechanism(stored: dict[str, Any]) -> None:
    stored["mechanism"] = "AES_CBC"


def too_long(stored: dict[str, Any]) -> None:
    stored["blob"] = bytes(9000)


def foreign(stored: dict[str, Any], other: dict[str, Any]) -> None:
    stored.update(blob=other["blob"], sha256=other["sha256"])


def swapped(stored: dict[str, Any], other: dict[str, Any]) -> None:
    mine = {name: stored[name] for name in ("blob", "sha256")}
    foreign(stored, other)
    other.update(mine)


Edit = Callable[..., None]
ONE: list[Edit] = [flipped, flipped_and_hashed, by_another, as_another, not_a_mechanism, too_long]
TWO: list[Edit] = [foreign, swapped]


def change(registry: Registry, edit: Edit, keys: list[str]) -> None:
    """Edits the rows of the keys' wrapped keys, as somebody with SQL does."""
    with registry.writing() as write:
        connection = write.connection
        ids = []
        for key in keys:
            cka_id = version_of(registry, key).cka_id
            query = sa.select(schema.key_versions.c.id)
            ids.append(
                connection.execute(query.where(schema.key_versions.c.cka_id == cka_id)).scalar_one()
            )
        rows = [
            dict(
                connection.execute(sa.select(WRAPPED).where(WRAPPED.c.version_id == one))
                .one()
                ._mapping
            )
            for one in ids
        ]
        edit(*rows)
        for one, row in zip(ids, rows, strict=True):
            connection.execute(sa.update(WRAPPED).where(WRAPPED.c.version_id == one).values(**row))


def test_a_wrapped_key_that_was_changed_in_the_registry_never_signs(daemon: Daemon) -> None:
    office = Office(daemon.dev)
    with registry_of(daemon) as registry, registry.reading() as connection:
        kept = connection.execute(sa.select(WRAPPED)).all()
    for edit in (*ONE, *TWO):
        keys = [RECORDS, OTHERS] if edit in TWO else [RECORDS]
        stopped = keys if edit is swapped else [RECORDS]
        assert daemon.sign(2) == {"ok": 2}, "it is unwrapped, and in the cache of a worker"
        with registry_of(daemon) as registry:
            change(registry, edit, keys)
        until(lambda: UNACCOUNTED in daemon.get("/readyz")[1], f"{edit.__name__} is shown")
        assert [signs(office, key) for key in stopped] == [False] * len(stopped), edit.__name__
        assert signs(office, "facilities/strict/keys/records")
        with registry_of(daemon) as registry, registry.writing() as write:
            write.connection.execute(sa.delete(WRAPPED))
            for row in kept:
                values = {**row._mapping, "revision": write.revision}
                write.connection.execute(sa.insert(WRAPPED).values(values))
        until(lambda: daemon.get("/readyz")[0] == 200, "the rows are put back")
    assert daemon.sign(2) == {"ok": 2}
    origin = daemon.settings["audit"].get("origin", "signer/audit")
    report = verified(daemon.folder / "audit", origin, whole=False)
    assert report["problems"], "the log says what was not served"


BY_HAND = {
    "elsewhere": "INSERT INTO wrapping_keys SELECT id, 'elsewhere', created, false, revision + 1"
    " FROM wrapping_keys",
    "invented": "INSERT INTO wrapping_keys SELECT 'invented', token, created + 1, false, revision"
    " FROM wrapping_keys",
    "destroyed": "UPDATE wrapping_keys SET destroyed = true",
    "later": "UPDATE wrapping_keys SET created = created + 1",
    "gone": "DELETE FROM wrapping_keys",
}


def test_a_row_of_a_wrapping_key_that_was_changed_is_not_used_and_is_shown(daemon: Daemon) -> None:
    office = Office(daemon.dev)
    table = schema.wrapping_keys
    with registry_of(daemon) as registry, registry.reading() as connection:
        kept = [dict(row._mapping) for row in connection.execute(sa.select(table))]
    for name, statement in BY_HAND.items():
        adds = statement.startswith("INSERT")
        with registry_of(daemon) as registry, registry.writing() as write:
            write.connection.exec_driver_sql(statement)
        until(lambda: UNACCOUNTED in daemon.get("/readyz")[1], f"{name} is shown")
        assert signs(office, RECORDS) is adds, name
        if adds:
            key = f"{RECORDS}-9"
            assert b"invented" not in office.prepare("create-key", key=key, algorithm="ES256")
        with registry_of(daemon) as registry, registry.writing() as write:
            write.connection.execute(sa.delete(table))
            for row in kept:
                values = {**row, "revision": write.revision}
                write.connection.execute(sa.insert(table).values(values))
        until(lambda: daemon.get("/readyz")[0] == 200, "the rows are put back")
        assert signs(office, RECORDS), name
    origin = daemon.settings["audit"].get("origin", "signer/audit")
    problems = verified(daemon.folder / "audit", origin, whole=False)["problems"]
    for said in ("on token elsewhere", "wrapping key invented", "no operation has destroyed it"):
        assert any(said in problem for problem in problems), said


def test_what_a_wrapping_key_has_wrapped_is_wrapped_anew_also_by_a_daemon_that_is_killed(
    daemon: Daemon,
) -> None:
    office = Office(daemon.dev)
    names = [f"n-{number:02}" for number in range(2 * BATCH)]
    office.do("enrol", csv_of(names, ISSUER))
    keys = [f"facilities/{name}/keys/records" for name in (names[0], names[-1])]
    before = objects(daemon)
    second = office.do("create-wrapping-key").id
    assert objects(daemon) == before + 1
    proposed = office.propose("rewrap", from_key="development")
    office.approve(proposed.id)
    until(lambda: office.get(proposed.id).done >= BATCH, "a part is done")
    assert all(signs(office, key) for key in keys), "the old ones sign, and the new ones"
    assert daemon.process is not None
    daemon.process.kill()
    daemon.process.wait()
    daemon.start()
    told = office.ended(proposed.id)
    assert told.state == "DONE", told.note
    with registry_of(daemon) as registry:
        wrapped = {v.wrapped.wrapping_key for v in registry.snapshot() if v.wrapped is not None}
    assert wrapped == {second}
    office.do("destroy-wrapping-key", wrapping_key="development")
    assert objects(daemon) == before
    assert all(signs(office, key) for key in (*keys, RECORDS))
    assert daemon.reason() == ""
    office.log_in_order()

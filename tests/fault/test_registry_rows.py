"""Rows that nobody can read, in the registry of a real appliance while it runs.

An officer stops a key beside each of them: the stop holds within seconds, or the appliance is
not ready and says why. What the row is about does not sign. Once the row is as it was, the
appliance serves again.
"""

import json
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

import pytest
import sqlalchemy as sa
import yaml

from signer.client import SignerClientError
from tests.daemon import Daemon, until
from tests.integration.officers import Office
from tests.integration.place import KEY, Place
from tests.torture import long

SECOND = "facilities/clinic/keys/second"
OF_KEY = "key_id = (SELECT id FROM keys WHERE key = 'records')"

FIRST = "(SELECT min(id) FROM operations WHERE kind = 'create-key')"
MADE = f"id = {FIRST}"
SIGNED = f"officer LIKE '%officer-b' AND operation = {FIRST}"
IN_FORCE = "sha256 = (SELECT policy FROM revision)"


class Broken(NamedTuple):
    """A value that no program writes: the column of a row, and SQL for the value.

    ``said`` is a part of the reason on /readyz; empty where the row is not in use. ``postgres``:
    PostgreSQL has such a value in a column of this type, too.
    """

    table: str
    column: str
    where: str
    value: str
    said: str
    postgres: bool = False


ROWS = (
    Broken("key_versions", "activate_at", OF_KEY, "9e999", "activate_at of key_versions"),
    Broken("key_versions", "sign_until", OF_KEY, "-1e300", "sign_until of key_versions", True),
    Broken("key_versions", "state", OF_KEY, "'RUNNING'", "state of key_versions", True),
    Broken("key_versions", "certificate", OF_KEY, "10000000000", "certificate of key_versions"),
    Broken("key_versions", "revision", OF_KEY, "-5", "revision of key_versions", True),
    Broken("keys", "algorithm", "key = 'records'", "'none'", "algorithm of keys", True),
    Broken("keys", "facility", "key = 'records'", "CAST(x'fffe' AS TEXT)", "facility of keys"),
    Broken("placements", "state", "true", "'THERE'", "state of placements", True),
    Broken("placements", "cka_id", "true", "7", "cka_id of placements"),
    Broken(
        "officers", "certificate", "principal LIKE '%officer-b'", "-1", "certificate of officers"
    ),
    Broken("suspensions", "since", "true", "'now'", "since of suspensions"),
    Broken("suspensions", "scope", "true", "'planet'", "scope of suspensions", True),
    Broken("revision", "value", "true", "9223372036854775807", "value of revision", True),
    Broken("revision", "officers_since", "true", "-1", "officers_since of revision", True),
    Broken("operations", "result", MADE, "'[]'", "", True),
    Broken("operations", "ended_revision", MADE, "'soon'", "ended_revision of operations"),
    Broken("signatures", "at", SIGNED, "'soon'", ""),
    Broken("documents", "content", IN_FORCE, "7", ""),
    Broken("acts", "at", "target LIKE 'facility%'", "9e999", ""),
)


class Site:
    """One appliance with two keys, and its registry by SQL."""

    def __init__(self, place: Place, daemon: Daemon, url: str) -> None:
        self.place, self.daemon, self.office = place, daemon, Office(place.dev)
        self.engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
        self.postgres = self.engine.dialect.name == "postgresql"

    def run(self, statement: str, **values: object) -> None:
        with self.engine.connect() as connection:
            connection.execute(sa.text(statement), values)
            connection.execute(sa.text("UPDATE revision SET value = value + 1 WHERE value < 99999"))

    def one(self, statement: str) -> object:
        with self.engine.connect() as connection:
            return connection.execute(sa.text(statement)).scalars().first()

    def ready(self) -> bool:
        return self.daemon.get("/readyz")[0] == 200

    def says(self, text: str) -> bool:
        code, body = self.daemon.get("/readyz")
        return code == 503 and text in body

    def signs(self, key: str) -> bool:
        with self.office.client("issuer") as client:
            try:
                return client.sign_batch(key, "JWS", [b"{}"], timeout=10)[0].ok
            except SignerClientError:
                return False

    def stopped(self) -> bool:
        """Whether the second key is stopped, or the appliance says that it is not ready."""
        return not self.signs(SECOND) or not self.ready()


@pytest.fixture(scope="module", params=["sqlite", *long("postgresql")])
def site(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    place = Place(tmp_path_factory.mktemp(request.param))
    policy = yaml.safe_load(place.policy)
    policy["facilities"]["ward"] = policy["facilities"]["clinic"]
    place.put_policy(json.dumps(policy))
    url = f"sqlite:///{place.dir / 'registry.sqlite'}"
    if request.param == "postgresql":
        url = request.getfixturevalue("postgres").database()
        settings = yaml.safe_load(place.config.read_text())
        place.config.write_text(yaml.safe_dump(settings | {"registry": url}))
    done = place.init("officer-a", "officer-b")
    assert done.code == 0, done.err
    daemon = Daemon(place.config)
    daemon.start()
    made = Site(place, daemon, url)
    for key in (KEY, SECOND):
        made.office.do("create-key", key=key, algorithm="ES256", activate=True)
    made.run(  # one that was removed: it only is to be read
        "INSERT INTO placements (version_id, token, cka_id, state, revision) VALUES"
        f" ((SELECT id FROM key_versions WHERE {OF_KEY}), 'other', :cka_id, 'REMOVED', 1)",
        cka_id=b"copy",
    )
    with made.office.client("officer-a") as client:
        client.operations.suspend_facility("ward", "seen forged")
    yield made
    made.engine.dispose()
    assert daemon.stop() == 0


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.table}.{row.column}")
def test_a_stop_holds_beside_a_row_that_cannot_be_read(site: Site, row: Broken) -> None:
    if site.postgres and not row.postgres:
        pytest.skip("PostgreSQL has no such value in a column of this type")
    until(site.ready, "it serves")
    assert site.signs(KEY)
    assert site.signs(SECOND)
    before = site.one(f"SELECT {row.column} FROM {row.table} WHERE {row.where}")
    site.run(f"UPDATE {row.table} SET {row.column} = {row.value} WHERE {row.where}")
    try:
        with site.office.client("officer-a") as client, suppress(SignerClientError):
            client.operations.suspend_key(SECOND, "seen forged")
        until(site.stopped, "the stop holds, or the appliance is not ready", seconds=3)
        if row.said:
            until(lambda: site.says(row.said), "readiness names the row")
        if row.where == OF_KEY or row.table in ("keys", "placements", "revision"):
            assert not site.signs(KEY)
    finally:
        where = row.where if row.table != "keys" else "key = 'records'"
        site.run(f"UPDATE {row.table} SET {row.column} = :before WHERE {where}", before=before)
    until(site.ready, "the row is as it was")
    assert site.signs(KEY)
    if not site.signs(SECOND):
        site.office.do("resume", target=SECOND)
    assert site.signs(SECOND)

"""Somebody writes into the registry what no program writes: officers' stops hold nevertheless.

Every column of every table, with values that SQLite takes whatever the column was declared with.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import sqlalchemy as sa

from signer.errors import CallError, OperatorError
from signer.events import Bug, RegistryUnreadable, Unaccounted
from signer.keys import schema
from signer.keys.columns import MOST
from signer.keys.rows import MOST_WRITES
from signer.model import KeyState, Scope, parse_key_or_version
from tests.stand_ins import Recorder
from tests.torture import long
from tests.unit.officers.opstage import CLINIC, Stage, empty_registry
from tests.unit.officers.people import C

OTHER = "facilities/02-001/keys/records"
STORED = "facilities/03-001/keys/records"  # its private key is wrapped in the registry
BROKEN: dict[str, object] = {
    "text": "x\0y",
    "no-text": sa.text("CAST(x'fffe' AS TEXT)"),
    "bytes": b"\xff",
    "negative": -1,
    "huge": (1 << 63) - 1,
    "the highest that a writer reads": 2 * MOST,
    "the highest that is served": MOST,
    "infinite": 9e999,
}
IDS = [
    (table, "id") for table in ("keys", "key_versions", "placements", "revision")
]  # SQLite's own, too
COLUMNS = [
    (table.name, column.name) for table in schema.metadata.sorted_tables for column in table.c
]


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return empty_registry(tmp_path_factory.mktemp("template") / "empty.sqlite")


class Site:
    """A stage and its registry by SQL. ``begin`` puts back what a stop by hand may have changed."""

    def __init__(self, folder: Path, template: Path) -> None:
        """Makes two keys, suspensions, and operations in several states."""
        self.stage = stage = Stage(folder / "stage", template)
        stage.key(CLINIC)
        stage.key(OTHER)
        stage.add_token("other").keys = dict(stage.token.keys)
        stage.done("add-placement", version=f"{CLINIC}/versions/1", token="other")
        stage.done("create-wrapping-key", token="soft")
        stage.key(STORED, token="soft")
        stage.emergency.suspend(C, Scope.FACILITY, "moh", "seen forged")
        more = f"{OTHER}-2"
        stage.propose("create-key", key=more, algorithm="ES256", activate=True, token="soft")
        # Another program, which checks nothing.
        path = str(stage.registry._engine.url.database)
        self._connection = sqlite3.connect(path, isolation_level=None)
        self.sql = self._connection.execute
        self._rows = sqlite3.connect(":memory:")
        self._connection.backup(self._rows)
        self._records = list(stage.log.records)
        self._keys = {label: dict(token.keys) for label, token in stage.tokens.items()}
        self.sql("PRAGMA foreign_keys = OFF")
        self.sql("PRAGMA ignore_check_constraints = ON")

    def begin(self) -> None:
        """Begins anew with the rows, the keys and the log that were made."""
        self._rows.backup(self._connection)
        for label, keys in self._keys.items():
            self.stage.tokens[label].keys = dict(keys)
        self.stage.seen = Recorder()
        self.stage.start_with(self._records)

    def close(self) -> None:
        self._rows.close()
        self._connection.close()
        self.stage.close()

    def look(self) -> None:
        """What the daemon does again and again."""
        self.stage.serving.follow()
        self.stage.serving.compare()

    def signs(self, key: str) -> bool:
        """Whether the daemon would sign with a key now."""
        name, _ = parse_key_or_version(key)
        snapshot, now = self.stage.snapshot, self.stage.clock.now()
        stopped = snapshot.suspended.reason(name.facility)
        return snapshot.keys.primary(name, now) is not None and not stopped


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, template: Path) -> Iterator[Site]:
    site = Site(tmp_path_factory.mktemp("site"), template)
    yield site
    site.close()


@pytest.fixture
def site(made: Site) -> Site:
    made.begin()
    return made


@pytest.mark.parametrize("every", [3, *long(1)])
@pytest.mark.parametrize(("table", "column"), COLUMNS, ids=[".".join(each) for each in COLUMNS])
def test_a_stop_holds_whatever_a_row_holds_or_readiness_says_why(
    site: Site, table: str, column: str, every: int
) -> None:
    broken = 0
    values = list(enumerate(BROKEN.values()))
    for number, value in values[COLUMNS.index((table, column)) % every :: every]:
        stage = site.stage
        (row,) = site.sql(f"SELECT max(rowid) FROM {table}").fetchone()
        (before,) = site.sql(f"SELECT {column} FROM {table} WHERE rowid = {row}").fetchone()
        quoted, bound = (value.text, ()) if isinstance(value, sa.TextClause) else ("?", (value,))
        with suppress(sqlite3.Error):  # that the database refuses
            site.sql(f"UPDATE {table} SET {column} = {quoted} WHERE rowid = {row}", bound)
            broken += 1
        if number % 2 and table != "revision":  # otherwise nobody says that something changed
            site.sql("UPDATE revision SET value = value + 1")
        site.look()
        try:
            stage.emergency.suspend_key(C, CLINIC, "seen forged")
        except (CallError, OperatorError):
            assert stage.serving.reason
        else:
            assert not site.signs(CLINIC)
        if stage.serving.reason:
            assert any(stage.seen.of(kind) for kind in (Unaccounted, RegistryUnreadable))
        assert stage.seen.of(Bug) == []
        ids = "id" if (table, column) in IDS else "rowid"
        (now,) = site.sql(f"SELECT max(rowid) FROM {table}").fetchone() if ids == "id" else (row,)
        site.sql(f"UPDATE {table} SET {column} = ? WHERE rowid = {now}", (before,))
        site.look()
        assert not stage.serving.error
        if stage.serving.reason or stage.version(CLINIC).state is not KeyState.SUSPENDED:
            site.begin()
        else:
            stage.done("resume", target=CLINIC)
            assert site.signs(CLINIC)
    assert broken


FAR = (1 << 60, MOST - 1, MOST)


@pytest.mark.parametrize("far", [99, MOST_WRITES >> 1, *FAR])
@pytest.mark.parametrize("writes", [0, 2])
def test_a_version_with_a_far_revision_is_stopped_and_resumed(
    site: Site, far: int, writes: int
) -> None:
    """Also after others have written: no row uses up the numbers of later changes."""
    stage = site.stage
    site.sql(f"UPDATE key_versions SET revision = {far} WHERE id = 1")
    for _ in range(writes):
        with stage.registry.writing():
            pass
    for look in (site.look, stage.start, site.look) if writes else (stage.start, site.look):
        look()
        if far in FAR:
            assert not site.signs(CLINIC)
            assert stage.serving.reason
    stage.emergency.suspend_key(C, CLINIC, "seen forged")
    assert not site.signs(CLINIC)
    stage.done("resume", target=CLINIC)
    assert site.signs(CLINIC)
    assert stage.serving.reason == ""
    stage.start()
    assert site.signs(CLINIC)


@pytest.mark.parametrize("far", FAR)
def test_a_far_revision_of_the_registry_is_not_followed(site: Site, far: int) -> None:
    """Nor is what has it: once the rows are put back, all is as before."""
    stage = site.stage
    known = stage.registry.revision()
    [before] = site.sql("SELECT revision FROM key_versions WHERE id = 1").fetchone()
    site.sql(f"UPDATE revision SET value = {far}")
    site.sql(f"UPDATE key_versions SET revision = {far} WHERE id = 1")
    site.look()
    assert not site.signs(CLINIC)
    assert not site.signs(OTHER)
    assert "value of revision" in stage.serving.reason
    with pytest.raises(OperatorError, match="value of revision"):
        stage.start()
    site.sql(f"UPDATE revision SET value = {known}")
    site.sql(f"UPDATE key_versions SET revision = {before} WHERE id = 1")
    stage.start()
    site.look()
    assert site.signs(CLINIC)
    assert stage.serving.reason == ""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from signer.algorithms import Algorithm
from signer.errors import OperatorError
from signer.key_index import KeyIndex
from signer.keys import schema
from signer.keys.registry import Registry
from signer.model import AUDIT_KEY, KeyName, KeyState
from tests.stand_ins import key_version
from tests.unit.keys.made import make


def revisions() -> list[Any]:
    """Every change of the schema, the first one first."""
    config = Config()
    config.set_main_option("script_location", "signer.keys:migrations")
    config.set_main_option("path_separator", "os")
    return [*reversed(list(ScriptDirectory.from_config(config).walk_revisions()))]


REMEDY = "run `signer registry migrate --config FILE` once"

FIRST_RELEASE = """
insert into keys (facility, key, algorithm) values ('01-001', 'records', 'ES256');
insert into keys (facility, key, algorithm) values ('moh', 'dcc', 'EdDSA');
insert into keys (facility, key, algorithm) values ('_audit', 'checkpoint', 'ES256');
insert into key_versions
  (key_id, number, state, token, cka_id, spki, certificate, kid, thumbprint, created,
   activate_at, sign_until)
  select id, 1, 'ACTIVE', 't', {a1}, {a2}, null, {a3}, 'one', 1.5, 2.25, null
  from keys where facility = '01-001';
insert into key_versions
  (key_id, number, state, token, cka_id, spki, certificate, kid, thumbprint, created,
   activate_at, sign_until)
  select id, 3, 'SUSPENDED', 't', {b1}, {b2}, {b3}, {b4}, 'two', 1767225600.125, null, 9.5
  from keys where facility = 'moh';
insert into key_versions
  (key_id, number, state, token, cka_id, spki, certificate, kid, thumbprint, created,
   activate_at, sign_until)
  select id, 1, 'ACTIVE', 't', {c1}, {c2}, null, {c3}, 'three', 1.0, 1.0, null
  from keys where facility = '_audit';
update revision set value = 3;
"""

BYTES = {
    name: bytes.fromhex(text)
    for name, text in {
        "a1": "00a1ff",
        "a2": "30a2",
        "a3": "a300",
        "b1": "b1",
        "b2": "b2",
        "b3": "30b3",
        "b4": "b4",
        "c1": "c1",
        "c2": "c2",
        "c3": "c3",
    }.items()
}

AUDIT = key_version(
    key=AUDIT_KEY,
    cka_id=BYTES["c1"],
    spki=BYTES["c2"],
    kid=BYTES["c3"],
    thumbprint="three",
    created=1.0,
    activate_at=1.0,
)
ONE = replace(
    AUDIT,
    key=KeyName("01-001", "records"),
    cka_id=BYTES["a1"],
    spki=BYTES["a2"],
    kid=BYTES["a3"],
    thumbprint="one",
    created=1.5,
    activate_at=2.25,
)
TWO = replace(
    AUDIT,
    key=KeyName("moh", "dcc"),
    number=3,
    algorithm=Algorithm.EDDSA,
    state=KeyState.SUSPENDED,
    cka_id=BYTES["b1"],
    spki=BYTES["b2"],
    certificate=BYTES["b3"],
    kid=BYTES["b4"],
    thumbprint="two",
    created=1767225600.125,
    activate_at=None,
    sign_until=9.5,
)


@pytest.fixture
def engine(url: str) -> Iterator[sa.Engine]:
    engine = sa.create_engine(url)
    yield engine
    engine.dispose()


def alembic(connection: sa.Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", "signer.keys:migrations")
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


@pytest.fixture
def first_release(engine: sa.Engine) -> None:
    """A registry as the first release left it, with its keys."""
    literal = "'\\x{}'" if engine.dialect.name == "postgresql" else "x'{}'"
    script = FIRST_RELEASE.format(
        **{name: literal.format(value.hex()) for name, value in BYTES.items()}
    )
    with engine.begin() as connection:
        command.upgrade(alembic(connection), "0001")
        for statement in script.split(";\n")[:-1]:
            connection.exec_driver_sql(statement)


def schema_of(engine: sa.Engine) -> str | None:
    with engine.connect() as connection:
        return MigrationContext.configure(connection).get_current_revision()


@pytest.mark.usefixtures("first_release")
def test_what_the_first_release_left_is_there_after_the_migration(
    url: str, engine: sa.Engine
) -> None:
    with Registry.open(url, migrate=True) as registry:
        state = registry.state()
        assert state.keys == KeyIndex([ONE, TWO], 3)
        assert (state.officers, state.suspensions, state.policy) == ({}, (), None)
        assert registry.versions(AUDIT_KEY) == [AUDIT]
        # What comes now is found, also by who has seen what came before.
        registry.add_version(make("new"))
        expected = KeyIndex([ONE, TWO, make("new")], 4)
        assert registry.state(since=state.keys).keys == registry.snapshot() == expected
    with engine.connect() as connection:
        columns = sa.select(schema.key_versions.c.thumbprint, schema.key_versions.c.revision)
        revisions = {row.thumbprint: row.revision for row in connection.execute(columns)}
    assert revisions == {"one": 0, "two": 0, "three": 0, make("new").thumbprint: 4}
    Registry.open(url).close()


@pytest.mark.usefixtures("first_release")
def test_without_being_told_nothing_is_migrated(url: str, engine: sa.Engine) -> None:
    with pytest.raises(OperatorError, match="schema is 0001, this program needs") as refused:
        Registry.open(url)
    assert REMEDY in str(refused.value)
    assert schema_of(engine) == "0001"


@pytest.mark.parametrize("migrated", [False, True])
def test_migrations_build_what_the_schema_describes(
    request: pytest.FixtureRequest, url: str, engine: sa.Engine, migrated: bool
) -> None:
    if migrated:
        request.getfixturevalue("first_release")
    Registry.open(url, create=not migrated, migrate=migrated).close()
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), schema.metadata) == []


@pytest.mark.usefixtures("first_release")
def test_every_migration_can_be_taken_back(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        config = alembic(connection)
        before = sa.inspect(connection).get_table_names()
        command.upgrade(config, "head")
        command.downgrade(config, "0001")
        assert sa.inspect(connection).get_table_names() == before
        thumbprints = connection.exec_driver_sql("select thumbprint from key_versions").scalars()
        assert set(thumbprints) == {"one", "two", "three"}


def test_a_schema_of_a_later_program_is_refused(url: str, engine: sa.Engine) -> None:
    Registry.open(url, create=True).close()
    with engine.begin() as connection:
        connection.exec_driver_sql("update alembic_version set version_num = '9999'")
        head = ScriptDirectory.from_config(alembic(connection)).get_current_head()
    for migrate in (False, True):
        with pytest.raises(OperatorError, match="written by a newer version of signer") as refused:
            Registry.open(url, migrate=migrate)
        assert f"(its schema is 9999, this one has {head})" in str(refused.value)
        assert "restore the backup" in str(refused.value)
    assert schema_of(engine) == "9999"


def test_who_runs_while_a_later_program_migrates_reads_on_and_writes_nothing(
    url: str, engine: sa.Engine
) -> None:
    with Registry.open(url, create=True) as registry:
        registry.add_version(make("old"))
        before = registry.state()
        with engine.begin() as connection:  # what a migration does that only adds
            connection.exec_driver_sql("alter table key_versions add column colour varchar(9)")
            connection.exec_driver_sql("create table ceremonies (id integer primary key)")
            connection.exec_driver_sql("update alembic_version set version_num = '9999'")
        with pytest.raises(OperatorError, match="brought to schema 9999 by a newer version"):
            registry.add_version(make("new"))
        assert registry.state() == before
        assert registry.revision() == before.keys.revision


@pytest.mark.parametrize("after", [script.revision for script in revisions()[1:]])
def test_a_migration_only_adds(engine: sa.Engine, after: str) -> None:
    """So a program of the version before goes on reading until it is restarted."""
    names = [script.revision for script in revisions()]
    with engine.begin() as connection:
        config = alembic(connection)
        command.upgrade(config, names[names.index(after) - 1])
        before = columns(connection)
        command.upgrade(config, after)
        there = columns(connection)
    assert before.keys() <= there.keys()
    for table, known in before.items():
        assert known.items() <= there[table].items()
        # Whoever does not know a new column writes rows without it.
        assert {name for name, free in there[table].items() if not free} <= set(known)


def columns(connection: sa.Connection) -> dict[str, dict[str, bool]]:
    """The columns of each table, and whether a row may be written without them."""
    inspector = sa.inspect(connection)
    return {
        table: {
            each["name"]: each["nullable"] or each["default"] is not None
            for each in inspector.get_columns(table)
        }
        for table in inspector.get_table_names()
    }

import threading
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from signer.errors import OperatorError
from signer.keys import schema
from signer.keys.index import KeyIndex
from signer.keys.registry import Registry
from signer.model import Algorithm, KeyName, KeyState, KeyVersion


def make(facility: str = "01-001", number: int = 1) -> KeyVersion:
    unique = f"{facility}/{number}"
    return KeyVersion(
        key=KeyName(facility, "records"),
        number=number,
        algorithm=Algorithm.ES256,
        state=KeyState.ACTIVE,
        token="t",
        cka_id=unique.encode(),
        spki=b"\x00spki\xff",
        certificate=None,
        kid=b"12345678",
        thumbprint=unique,
        created=1.5,
        activate_at=2.25,
        sign_until=None,
    )


def test_migrations_build_what_the_schema_describes(url: str) -> None:
    Registry.open(url, create=True).close()
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), schema.metadata) == []
    engine.dispose()


def test_a_snapshot_gives_back_what_was_added(registry: Registry) -> None:
    versions = [
        make(),
        replace(make(number=2), certificate=b"der", sign_until=9.0, state=KeyState.SUSPENDED),
        replace(make("moh"), activate_at=None, state=KeyState.PRE_ACTIVE),
    ]
    for version in versions:
        registry.add_version(version)
    assert registry.snapshot() == KeyIndex(versions, 3)
    assert registry.versions(KeyName("01-001", "records")) == versions[:2]
    assert registry.versions(KeyName("01-001", "other")) == []


def test_it_is_there_after_opening_again(url: str) -> None:
    with Registry.open(url, create=True) as registry:
        registry.add_version(make())
    with Registry.open(url) as registry:
        assert registry.snapshot() == KeyIndex([make()], 1)


def test_every_write_counts_the_revision_up(registry: Registry) -> None:
    assert registry.revision() == 0
    registry.add_version(make())
    assert registry.revision() == 1
    registry.import_certificate(make().key, 1, b"der", b"kid")
    assert registry.revision() == 2


@pytest.mark.parametrize(
    "second",
    [
        make(),
        replace(make("other"), cka_id=make().cka_id),
        replace(make("other"), thumbprint=make().thumbprint),
        replace(make(number=2), algorithm=Algorithm.ES384),
        replace(make("other"), number=0),
    ],
    ids=["number", "cka_id", "public-key", "algorithm", "number-0"],
)
def test_what_contradicts_the_registry_is_refused(registry: Registry, second: KeyVersion) -> None:
    registry.add_version(make())
    with pytest.raises(OperatorError, match=f"{second.name} is not added"):
        registry.add_version(second)
    assert registry.snapshot() == KeyIndex([make()], 1)


def test_two_tokens_may_use_one_cka_id(registry: Registry) -> None:
    registry.add_version(make())
    registry.add_version(replace(make("other"), cka_id=make().cka_id, token="u"))
    assert len(registry.snapshot()) == 2


def test_a_certificate_changes_certificate_and_kid_only(registry: Registry) -> None:
    registry.add_version(make())
    registry.add_version(make(number=2))
    registry.import_certificate(make().key, 1, b"der", b"kid")
    changed = replace(make(), certificate=b"der", kid=b"kid")
    assert registry.snapshot() == KeyIndex([changed, make(number=2)], 3)


@pytest.mark.parametrize(("facility", "number"), [("01-001", 2), ("absent", 1)])
def test_a_certificate_for_no_version_is_refused(
    registry: Registry, facility: str, number: int
) -> None:
    registry.add_version(make())
    with pytest.raises(OperatorError, match=f"no version {number}"):
        registry.import_certificate(KeyName(facility, "records"), number, b"der", b"kid")
    assert registry.revision() == 1


def test_writers_in_several_threads_lose_nothing(registry: Registry) -> None:
    def add(facility: str) -> None:
        for number in range(1, 11):
            registry.add_version(make(facility, number))

    threads = [threading.Thread(target=add, args=(name,)) for name in ("a", "b", "c", "d")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    index = registry.snapshot()
    assert (len(index), index.revision) == (40, 40)


def test_the_daemon_does_not_make_a_registry(url: str, tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match="no registry at"):
        Registry.open(url)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_file_is_no_registry(url: str, tmp_path: Path) -> None:
    (tmp_path / "registry.sqlite").touch()
    with pytest.raises(OperatorError, match="empty"):
        Registry.open(url, migrate=True)


def set_schema(url: str, name: str) -> None:
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.execute(sa.text("update alembic_version set version_num = :n"), {"n": name})
    engine.dispose()


def test_a_schema_of_a_later_program_is_refused(url: str) -> None:
    Registry.open(url, create=True).close()
    set_schema(url, "9999")
    for migrate in (False, True):
        with pytest.raises(OperatorError, match="9999 is newer"):
            Registry.open(url, migrate=migrate)


def test_a_file_that_is_no_database_is_refused(url: str, tmp_path: Path) -> None:
    (tmp_path / "registry.sqlite").write_bytes(b"not a database, certainly not" * 100)
    with pytest.raises(OperatorError, match="cannot open the registry"):
        Registry.open(url)


@pytest.mark.parametrize("url", ["nonsense", "nosuchdatabase://x/y"])
def test_a_url_of_no_database_is_refused_without_quoting_it(url: str) -> None:
    with pytest.raises(OperatorError, match="expected sqlite:///FILE") as refused:
        Registry.open(url)
    assert url not in str(refused.value)


def test_foreign_keys_are_enforced_and_readers_do_not_block(registry: Registry) -> None:
    with registry._engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar_one() == 1
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar_one() == "wal"

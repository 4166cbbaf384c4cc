import traceback
from dataclasses import fields, replace
from pathlib import Path

import pytest

from signer.algorithms import Algorithm
from signer.errors import OperatorError
from signer.key_index import KeyIndex
from signer.keys.database import RegistryError
from signer.keys.registry import Registry
from signer.keys.schema import key_versions
from signer.model import (
    AUDIT_KEY,
    KeyName,
    KeyState,
    KeyVersion,
    Placement,
    WrapMechanism,
    WrappedKey,
    WrappingKey,
)
from tests.unit.keys.made import make


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
    with pytest.raises(OperatorError, match=f"{second.name} was not added"):
        registry.add_version(second)
    assert registry.snapshot() == KeyIndex([make()], 1)


def test_two_tokens_may_use_one_cka_id(registry: Registry) -> None:
    registry.add_version(make())
    registry.add_version(replace(make("other"), cka_id=make().cka_id, token="u"))
    assert len(registry.snapshot()) == 2


def test_every_part_of_a_version_survives(registry: Registry) -> None:
    version = KeyVersion(
        key=KeyName("01-001", "records"),
        number=7,
        algorithm=Algorithm.EDDSA,  # its value is not its name
        state=KeyState.DESTROY_SCHEDULED,
        token="tôken",
        cka_id=bytes(range(256)),
        spki=b"\x00spki\xff",
        certificate=b"\x00der\xff",
        kid=b"\x00kid\xff",
        thumbprint="thumb",
        created=1767225600.123456,
        activate_at=0.1,
        sign_until=2.5e11,
        deactivate_at=2**37 + 0.5,
        destroy_at=0.75,
        came_from=KeyState.DEACTIVATED,
        other_placements=(Placement("other", b"\0\xff"),),
        request="-----BEGIN CERTIFICATE REQUEST-----\nà\n",
        wrapped=WrappedKey(
            b"\0\xff", b"\1\xff", WrapMechanism.AES_KEY_WRAP_PAD, "w", ("t", "u"), b"\2\xff"
        ),
    )
    assert None not in [getattr(version, field.name) for field in fields(version)]
    of_versions = {column.name for column in key_versions.c} - {"id", "key_id"}
    assert {field.name for field in fields(version)} == of_versions | {
        "key",
        "algorithm",
        "other_placements",
        "wrapped",
    }
    with registry.writing() as write:
        write.add_wrapping_key(WrappingKey("w", "u", 1.5))
        write.add_wrapping_key(WrappingKey("w", "t", 2.5))
        write.add_wrapping_key(WrappingKey("gone", "t", 3.5))
        write.end_wrapping_key("gone")
    registry.add_version(version)
    assert registry.versions(version.key) == [version]
    assert list(registry.snapshot()) == [version]
    assert [
        (key.id, key.token, key.created, key.destroyed) for key in registry.state().wrapping_keys
    ] == [("gone", "t", 3.5, True), ("w", "t", 2.5, False), ("w", "u", 1.5, False)]


def test_the_audit_key_is_in_no_snapshot(registry: Registry) -> None:
    audit = replace(make(), key=AUDIT_KEY)
    registry.add_version(audit)
    assert registry.snapshot() == KeyIndex((), 1)
    assert registry.versions(AUDIT_KEY) == [audit]


def test_the_daemon_does_not_make_a_registry(sqlite_url: str, tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match="no registry exists at"):
        Registry.open(sqlite_url)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_database_is_no_registry(url: str, tmp_path: Path) -> None:
    (tmp_path / "registry.sqlite").touch()
    for migrate in (False, True):
        with pytest.raises(OperatorError, match="the registry is empty"):
            Registry.open(url, migrate=migrate)


def test_a_file_that_is_no_database_is_refused(sqlite_url: str, tmp_path: Path) -> None:
    (tmp_path / "registry.sqlite").write_bytes(b"not a database, certainly not" * 100)
    with pytest.raises(RegistryError, match="cannot open the registry"):
        Registry.open(sqlite_url)


@pytest.mark.parametrize(
    "url",
    [
        "nonsense",
        "nosuchdatabase://x/y",
        "postgresql+asyncpg://signer:hidden@host/registry",
        # What is right of the password's own @ would be the host, or the database.
        "postgresql+psycopg://signer:hid@den@host/registry",
        "postgresql+psycopg://signer:hid@d/en@host/registry",
        "postgresql+psycopg://signer:hid@1:den@host/registry",
    ],
)
def test_a_url_of_no_database_is_refused_without_quoting_it(url: str) -> None:
    with pytest.raises(OperatorError, match="expected sqlite:///FILE") as refused:
        Registry.open(url)
    told = "".join(traceback.format_exception(refused.value, chain=True))
    assert url not in told
    assert "hidden" not in told
    assert "den@" not in told


def test_foreign_keys_are_enforced_and_readers_do_not_block(sqlite_url: str) -> None:
    with (
        Registry.open(sqlite_url, create=True) as registry,
        registry._engine.connect() as connection,
    ):
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar_one() == 1
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar_one() == "wal"

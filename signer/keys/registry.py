"""Which keys there are: SQLAlchemy Core over SQLite, or PostgreSQL by URL.

Every write is one transaction whose first statement counts ``revision`` up.
That statement also takes the write lock, so writers queue, and what a writer
reads afterwards nobody changes before it commits. The daemon polls
``revision()`` and takes a new ``snapshot()`` when it has moved.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import sqlalchemy as sa
from alembic import command
from alembic.config import Config as AlembicConfig
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError

from signer.errors import OperatorError
from signer.keys.index import KeyIndex
from signer.keys.schema import key_versions, keys, revision
from signer.model import AUDIT_KEY, Algorithm, KeyName, KeyState, KeyVersion

_BUSY_TIMEOUT_MS = 10_000
"""How long SQLite waits for another process's write to end."""

_MAKES_IT = "`signer keys create` makes it with the first key"

_VERSIONS = sa.select(keys.c.facility, keys.c.key, keys.c.algorithm, key_versions).join(
    keys, key_versions.c.key_id == keys.c.id
)
_REVISION = sa.select(revision.c.value)


class Registry:
    """The table of keys. Safe to use from several threads and processes."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    @classmethod
    def open(cls, url: str, *, create: bool = False, migrate: bool = False) -> Registry:
        """Opens the registry at an SQLAlchemy URL.

        Without flags the schema must be exactly ours: for the daemon. Commands
        ``migrate`` an old one, and those that fill it ``create`` an absent one.
        Raises OperatorError.
        """
        engine = _engine(url, create=create)
        try:
            with _explained("open"), engine.begin() as connection:
                _bring_up(connection, create=create, migrate=migrate)
        except OperatorError:
            engine.dispose()
            raise
        return cls(engine)

    def close(self) -> None:
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def revision(self) -> int:
        """Returns how many writes there have been. Raises OperatorError."""
        with _explained("read"), self._engine.begin() as connection:
            return int(connection.execute(_REVISION).scalar_one())

    def snapshot(self) -> KeyIndex:
        """Returns every version, with every write that its revision counts.

        The audit key is not among them: it is nobody's to name. ``versions`` has it.
        On PostgreSQL a later write may be in it already, and then ``revision()``
        has moved. Raises OperatorError.
        """
        with _explained("read"), self._engine.begin() as connection:
            number = int(connection.execute(_REVISION).scalar_one())
            rows = connection.execute(_VERSIONS.where(sa.not_(_is(AUDIT_KEY)))).all()
            return KeyIndex(map(_version, rows), number)

    def versions(self, name: KeyName) -> Sequence[KeyVersion]:
        """Returns the versions of one key, oldest first. Raises OperatorError."""
        statement = _VERSIONS.where(_is(name)).order_by(key_versions.c.number)
        with _explained("read"), self._engine.begin() as connection:
            return [_version(row) for row in connection.execute(statement)]

    def add_version(self, version: KeyVersion) -> None:
        """Adds a version, and its key with the first one.

        Raises OperatorError if the number, the CKA_ID on that token or the
        public key is there already, or if the key has another algorithm.
        """
        row = {
            column.name: getattr(version, column.name)
            for column in key_versions.c
            if column.name not in ("id", "key_id")
        }
        try:
            with _explained("write"), self._write() as connection:
                row["key_id"] = _key_id(connection, version)
                connection.execute(sa.insert(key_versions).values(row))
        except IntegrityError:
            raise OperatorError(
                f"{version.name} is not added: the registry has that version, its CKA_ID on"
                f" token {version.token}, or its public key already; `signer keys list` shows"
                " what there is"
            ) from None

    def import_certificate(
        self, name: KeyName, number: int, certificate: bytes, kid: bytes
    ) -> None:
        """Stores the certificate (DER) of a version, in the place of any other.

        The caller has checked it. Raises OperatorError if there is no such version.
        """
        statement = (
            sa.update(key_versions)
            .where(
                key_versions.c.number == number,
                key_versions.c.key_id == sa.select(keys.c.id).where(_is(name)).scalar_subquery(),
            )
            .values(certificate=certificate, kid=kid)
        )
        with _explained("write"), self._write() as connection:
            if connection.execute(statement).rowcount != 1:
                raise OperatorError(f"{name} has no version {number} in the registry")

    @contextmanager
    def _write(self) -> Iterator[sa.Connection]:
        with self._engine.begin() as connection:
            connection.execute(sa.update(revision).values(value=revision.c.value + 1))
            yield connection


def _key_id(connection: sa.Connection, version: KeyVersion) -> int:
    """Returns the row of the version's key, made if it is not there."""
    found = connection.execute(
        sa.select(keys.c.id, keys.c.algorithm).where(_is(version.key))
    ).one_or_none()
    if found is None:
        made = connection.execute(
            sa.insert(keys)
            .values(
                facility=version.key.facility,
                key=version.key.key,
                algorithm=version.algorithm,
            )
            .returning(keys.c.id)
        )
        return int(made.scalar_one())
    if found.algorithm != version.algorithm:
        raise OperatorError(
            f"{version.name} is not added: the key is for {found.algorithm},"
            f" not {version.algorithm}; give the new algorithm a key of its own"
        )
    return int(found.id)


def _is(name: KeyName) -> sa.ColumnElement[bool]:
    return sa.and_(keys.c.facility == name.facility, keys.c.key == name.key)


def _version(row: sa.Row[Any]) -> KeyVersion:
    return KeyVersion(
        key=KeyName(row.facility, row.key),
        number=row.number,
        algorithm=Algorithm(row.algorithm),
        state=KeyState(row.state),
        token=row.token,
        cka_id=bytes(row.cka_id),
        spki=bytes(row.spki),
        certificate=None if row.certificate is None else bytes(row.certificate),
        kid=bytes(row.kid),
        thumbprint=row.thumbprint,
        created=row.created,
        activate_at=row.activate_at,
        sign_until=row.sign_until,
    )


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turns what a database can raise into OperatorError, but for broken constraints."""
    try:
        yield
    except IntegrityError:
        raise
    except DBAPIError as error:
        raise OperatorError(
            f"cannot {what} the registry: {error.orig}; check `registry` in the configuration,"
            " the file's owner and the free space, or that the database server is up"
        ) from error
    except (SQLAlchemyError, ValueError) as error:
        raise OperatorError(
            f"cannot {what} the registry: it holds what this release does not understand;"
            " was it written by a newer one, or changed by hand?"
        ) from error


def _engine(url: str, *, create: bool) -> sa.Engine:
    try:
        parsed = sa.make_url(url)
        engine = sa.create_engine(parsed)
    except (SQLAlchemyError, ImportError) as error:
        # The URL may hold a password: the error does not quote it.
        raise OperatorError(
            f"`registry` is no URL of a database we can open: {type(error).__name__};"
            " expected sqlite:///FILE or postgresql+psycopg://USER@HOST/DATABASE"
        ) from None
    if parsed.get_backend_name() == "sqlite":
        path = Path(parsed.database or "")
        if not create and not path.is_file():
            raise OperatorError(f"there is no registry at {path}; {_MAKES_IT}")
        sa.event.listen(engine, "connect", _configure_sqlite)
        sa.event.listen(engine, "begin", _begin_sqlite)
    return engine


def _configure_sqlite(connection: Any, _record: object) -> None:
    # Python's own transaction control would leave reads outside of transactions.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {_BUSY_TIMEOUT_MS}")
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _begin_sqlite(connection: sa.Connection) -> None:
    connection.exec_driver_sql("BEGIN")


def _bring_up(connection: sa.Connection, *, create: bool, migrate: bool) -> None:
    """Checks the schema's version, and builds or migrates it where the flags say so."""
    config = AlembicConfig()
    config.set_main_option("script_location", "signer.keys:migrations")
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    scripts = ScriptDirectory.from_config(config)
    head = scripts.get_current_head()
    current = MigrationContext.configure(connection).get_current_revision()
    if current == head:
        return
    if current is None and not create:
        raise OperatorError(f"the registry is empty; {_MAKES_IT}")
    if current is not None:
        if current not in {script.revision for script in scripts.walk_revisions()}:
            raise OperatorError(
                f"the registry's schema {current} is newer than this program's {head}:"
                " use the version of signer that wrote it, or a later one"
            )
        if not migrate:
            raise OperatorError(
                f"the registry's schema is {current}, this program needs {head}: run"
                " `signer keys list --config FILE` once, which migrates it"
            )
    command.upgrade(config, "head")

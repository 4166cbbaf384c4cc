"""Opens the registry's database: SQLite or PostgreSQL, at the schema of this release."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError

from signer.errors import CallError, OperatorError, Reason
from signer.keys.schema import VERSION

_LOCK_WAIT_MS = 10_000  # how long a write waits for another process's write to end
_STATEMENT_MS = 15_000  # for one statement of PostgreSQL, its wait for a lock included
_IDLE_MS = 60_000  # PostgreSQL keeps the locks of an appliance that is silent in a transaction
_ANSWER_S = 20  # we wait for PostgreSQL's answer: a server that hangs does not apply its limits
_CONNECT_S = 5
_MIGRATION_LOCK = 0x7369676E6572  # our number among PostgreSQL's advisory locks
_SCHEMA = "SELECT version_num FROM alembic_version"
_MAKES_IT = "put it back from the backup, or create it with `signer init --config FILE`"


class RegistryError(OperatorError):
    """The database does not answer, or holds what this release does not understand."""

    def answer(self) -> CallError:
        text = "the registry does not answer: nothing was changed; try again"
        return CallError(Reason.REGISTRY_UNAVAILABLE, text, retry_after=5.0)


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turns errors of the database, except broken constraints, into RegistryError."""
    try:
        yield
    except IntegrityError:
        raise
    except (DBAPIError, sa.exc.TimeoutError) as error:  # the latter: all connections are in use
        reason = " ".join(str(error.orig if isinstance(error, DBAPIError) else error).split())
        raise RegistryError(
            f"cannot {what} the registry: {reason}; check `registry` in the configuration,"
            " the file's owner and the free space, or that the database server is up"
        ) from error
    except (SQLAlchemyError, ValueError) as error:
        raise RegistryError(
            f"cannot {what} the registry: it holds what this release does not understand;"
            " was it written by a newer one, or changed by hand?"
        ) from error


def connect(url: str, *, create: bool) -> sa.Engine:
    """Returns the engine for a URL; PostgreSQL is not asked for a connection yet."""
    try:
        parsed = sa.make_url(url)
        engine = _engine(parsed)
    except (SQLAlchemyError, ImportError, ValueError) as error:
        # The URL may hold a password: the error does not quote it.
        raise OperatorError(
            f"`registry` is not the URL of a database that can be opened: {type(error).__name__};"
            " expected sqlite:///FILE or postgresql+psycopg://USER@HOST/DATABASE, and in a"
            " password %40 for @, %3A for :, %2F for / and %25 for %"
        ) from None
    if engine.dialect.name == "sqlite":
        path = Path(parsed.database or "")
        if not create and not path.is_file():
            raise OperatorError(f"no registry exists at {path}; {_MAKES_IT}")
    return engine


def sqlite_file(registry: str) -> Path | None:
    """Returns the file of a registry in SQLite, None for another database."""
    if not registry.startswith("sqlite"):
        return None
    return Path(registry.partition("///")[2].partition("?")[0])


def for_reading(engine: sa.Engine) -> sa.Engine:
    """Returns the engine whose transactions see the database as it was when they began."""
    if engine.dialect.name == "postgresql":
        return engine.execution_options(isolation_level="REPEATABLE READ")
    return engine  # SQLite has no other transactions


def _engine(url: sa.URL) -> sa.Engine:
    if url.get_backend_name() == "sqlite":
        engine = sa.create_engine(url)
        sa.event.listen(engine, "connect", _configure_sqlite)
        sa.event.listen(engine, "begin", _begin_sqlite)
        return engine
    if url.get_backend_name() != "postgresql" or url.get_driver_name() != "psycopg":
        raise ValueError("another database")
    if "@" in f"{url.host}{url.database}":
        # The end of a password with a bare @ in it, which the server's error would quote.
        raise ValueError("more than one @")
    limits = {
        "lock_timeout": _LOCK_WAIT_MS,
        "statement_timeout": _STATEMENT_MS,
        "idle_in_transaction_session_timeout": _IDLE_MS,
    }
    options = "".join(f"-c {name}={value} " for name, value in limits.items())
    # Options of the URL come last and take precedence.
    arguments = {"connect_timeout": _CONNECT_S} | dict(url.query)
    arguments["options"] = f"{options}{url.query.get('options', '')}"
    engine = sa.create_engine(
        url,
        connect_args=arguments,
        # A broken connection in the pool is replaced before it is used.
        pool_pre_ping=True,
        # Writers queue at `revision` and then read what the previous one wrote. Under another
        # level, which may be a server's default, they would fail.
        isolation_level="READ COMMITTED",
    )
    sa.event.listen(engine, "connect", _limit_waits)
    return engine


def _limit_waits(connection: Any, _record: object) -> None:
    """Closes a connection whose server does not answer."""
    wait, seconds = connection.wait, _ANSWER_S

    def limited(*arguments: Any, **options: Any) -> Any:
        began = time.monotonic()
        try:
            return wait(*arguments, **{"timeout": seconds} | options)
        except Exception:
            if time.monotonic() - began >= seconds:
                # A rollback would wait just as long.
                connection.close()
            raise

    connection.wait = limited


def _configure_sqlite(connection: Any, _record: object) -> None:
    # Python's own transaction control would leave reads outside of transactions.
    connection.isolation_level = None
    connection.text_factory = _text
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {_LOCK_WAIT_MS}")
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _text(data: bytes) -> str | bytes:
    """Returns a text, and other bytes as they are: those who read them check the type."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


def _begin_sqlite(connection: sa.Connection) -> None:
    connection.exec_driver_sql("BEGIN")


def bring_up(connection: sa.Connection, *, create: bool, migrate: bool) -> None:
    """Checks the schema's version, and builds or migrates it where the flags say so."""
    if (create or migrate) and connection.dialect.name == "postgresql":
        # Of two programs at once, the second finds the schema built.
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
    current = version_of(connection)
    if current == VERSION:
        return
    if current is None and not create:
        raise OperatorError(f"the registry is empty; {_MAKES_IT}")
    if current is not None:
        if is_newer(current):
            raise OperatorError(
                f"the registry was written by a newer version of signer (its schema is {current},"
                f" this one has {VERSION}): install that version, or restore the backup from"
                " before the upgrade. Nothing was changed"
            )
        if not migrate:
            raise OperatorError(
                f"the registry's schema is {current}, this program needs {VERSION}: run"
                " `signer registry migrate --config FILE` once"
            )
    from signer.keys import migrations  # noqa: PLC0415 - see is_newer

    migrations.run(connection)


def version_of(connection: sa.Connection) -> str | None:
    """Returns the version of a database's schema, None before there is one."""
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    version: str | None = connection.exec_driver_sql(_SCHEMA).scalar()
    return version


def is_newer(schema: str) -> bool:
    """Whether a later release created this schema: all earlier ones are known."""
    # Alembic takes a third of a command's start, and only another version needs it.
    from signer.keys import migrations  # noqa: PLC0415 - see above

    return schema not in migrations.versions()


def refuse_to_write_newer(connection: sa.Connection) -> None:
    """Raises OperatorError if a later release has changed the schema under a running one.

    The running one may read on, because schemas only grow. It must not write rows that the
    later one, which knows more columns, would take for complete.
    """
    schema = connection.exec_driver_sql(_SCHEMA).scalar()
    if schema != VERSION:
        raise OperatorError(
            f"the registry was brought to schema {schema} by a newer version of signer: this one"
            " goes on signing and writes nothing to it; do it at an appliance of that version"
        )

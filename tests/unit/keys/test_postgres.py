"""What only a database on another machine can do: be away, hang, or want a password."""

import gc
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import sqlalchemy as sa

from signer.key_index import KeyIndex
from signer.keys import database
from signer.keys.database import RegistryError
from signer.keys.registry import Registry
from signer.model import KeyVersion
from tests.postgres import Postgres
from tests.unit.keys.made import make


@pytest.fixture
def url(postgres_url: str) -> str:
    return postgres_url


def setting(registry: Registry, name: str) -> object:
    with registry.reading() as connection:
        return connection.exec_driver_sql(f"show {name}").scalar_one()


OPERATIONS: dict[str, Callable[[Registry], object]] = {
    "revision": lambda registry: registry.revision(),
    "state": lambda registry: registry.state(),
    "since": lambda registry: registry.state(since=KeyIndex()),
    "versions": lambda registry: registry.versions(make().key),
    "document": lambda registry: registry.document("0" * 64),
    "add": lambda registry: registry.add_version(make()),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_while_the_database_is_away_every_call_says_so(
    postgres: Postgres, registry: Registry, name: str
) -> None:
    operation = OPERATIONS[name]
    registry.revision()  # there is a connection in the pool, which dies
    with postgres.away():
        for _ in range(2):
            with pytest.raises(RegistryError, match=r"the registry: .*database server is up"):
                operation(registry)
    operation(registry)


@pytest.mark.parametrize("name", OPERATIONS)
def test_nobody_notices_a_restart_between_two_calls(
    postgres: Postgres, registry: Registry, name: str
) -> None:
    registry.revision()
    with postgres.away():
        pass
    OPERATIONS[name](registry)
    assert registry.revision() == int(name == "add")


def test_it_cannot_be_opened_while_the_database_is_away(postgres: Postgres, url: str) -> None:
    with postgres.away(), pytest.raises(RegistryError, match="cannot open the registry"):
        Registry.open(url)


@pytest.mark.parametrize("more", [[make("other")], []], ids=["statement", "commit"])
def test_a_connection_lost_in_a_transaction_writes_nothing(
    postgres: Postgres, registry: Registry, url: str, more: list[KeyVersion]
) -> None:
    def lose() -> None:
        with registry.writing() as write:
            write.add_versions([make()])
            postgres.disconnect(url)
            if more:
                write.add_versions(more)

    with pytest.raises(RegistryError, match="cannot write the registry"):
        lose()
    assert registry.snapshot() == KeyIndex((), 0)


def test_a_database_that_hangs_does_not_hang_us(
    postgres: Postgres, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "_ANSWER_S", 1)
    monkeypatch.setattr(database, "_CONNECT_S", 2)
    begun, hung, closed = threading.Event(), threading.Event(), []

    def write(registry: Registry) -> None:
        with registry.writing() as write:
            begun.set()
            connection = write.connection.connection.dbapi_connection
            assert hung.wait(60)
            try:
                write.connection.execute(sa.text("select 1"))
            finally:
                # Nobody waits for it again, as a rollback would.
                assert connection is not None
                closed.append(connection.closed)

    with ThreadPoolExecutor(2) as aside, Registry.open(url, create=True) as registry:
        registry.revision()  # there is a connection in the pool, which will not answer
        writer = aside.submit(write, registry)
        assert begun.wait(60)
        with postgres.frozen():
            hung.set()
            reader = aside.submit(registry.revision)
            for call in (writer, reader):
                assert isinstance(call.exception(timeout=60), RegistryError)
        assert closed == [True]
        del writer, reader, call
        gc.collect()  # else the errors keep connections open, whose login the server awaits
        registry.add_version(make("after"))
        assert registry.snapshot() == KeyIndex([make("after")], 1)


def test_the_server_keeps_limits_too(registry: Registry, url: str) -> None:
    names = ("lock_timeout", "statement_timeout", "idle_in_transaction_session_timeout")
    assert [setting(registry, name) for name in names] == ["10s", "15s", "1min"]
    own = sa.make_url(url).update_query_dict({"options": "-c statement_timeout=7s"})
    with Registry.open(own.render_as_string(hide_password=False)) as other:
        assert [setting(other, name) for name in names] == ["10s", "7s", "1min"]


def test_a_statement_that_takes_too_long_is_ended(registry: Registry, url: str) -> None:
    def sleep(registry: Registry) -> None:
        with registry.reading() as connection:
            connection.exec_driver_sql("select pg_sleep(60)")

    own = sa.make_url(url).update_query_dict({"options": "-c statement_timeout=50ms"})
    with Registry.open(own.render_as_string(hide_password=False), create=True) as hasty:
        with pytest.raises(RegistryError, match=r"cannot read the registry: .*statement timeout"):
            sleep(hasty)
        assert hasty.revision() == registry.revision() == 0


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_the_servers_own_isolation_does_not_matter(url: str, level: str) -> None:
    own = sa.make_url(url).update_query_dict(
        {"options": f"-c default_transaction_isolation={level.replace(' ', chr(92) + ' ')}"}
    )
    with Registry.open(own.render_as_string(hide_password=False), create=True) as registry:
        assert setting(registry, "default_transaction_isolation") == level
        assert setting(registry, "transaction_isolation") == "repeatable read"
        with registry.writing() as write:
            used = write.connection.exec_driver_sql("show transaction_isolation").scalar_one()
        assert used == "read committed"


def wrong(url: sa.URL, change: str) -> sa.URL:
    """The URL with one mistake in it, and the password ``hidden``."""
    url = url.set(password="hidden")
    match change:
        case "password":
            return url
        case "user":
            return url.set(username="nobody")
        case "folder":
            return url.update_query_dict({"host": "/nonexistent"})
        case "option":
            return url.update_query_dict({"nosuchoption": "1"})
        case "port":
            return url.set(port=70_000)
        case _:
            return url.set(host="127.0.0.1", port=1).difference_update_query(["host"])


@pytest.mark.parametrize("change", ["password", "user", "folder", "option", "port", "address"])
def test_no_error_quotes_the_password(url: str, change: str) -> None:
    mistaken = wrong(sa.make_url(url), change).render_as_string(hide_password=False)
    assert "hidden" in mistaken
    with pytest.raises(RegistryError, match="cannot open the registry") as refused:
        Registry.open(mistaken)
    assert "hidden" not in "".join(traceback.format_exception(refused.value, chain=True))
    assert "\n" not in str(refused.value)


def test_two_appliances_make_one_registry(url: str) -> None:
    with ThreadPoolExecutor(4) as threads:
        made = list(threads.map(lambda _: Registry.open(url, create=True), range(4)))
    for number, registry in enumerate(made, 1):
        with registry:
            registry.add_version(make(number=number))
    with Registry.open(url) as registry:
        assert registry.snapshot() == KeyIndex([make(number=n) for n in (1, 2, 3, 4)], 4)


def test_what_it_cannot_hold_is_refused_in_our_words(registry: Registry) -> None:
    for request in ("nul \0", "lone \ud800"):
        with pytest.raises(RegistryError, match="the registry: "):
            registry.add_version(replace(make(), request=request))
    assert registry.revision() == 0

"""The registry: keys, officers, policies and operations in a database, by SQLAlchemy Core.

Every write is one transaction (``writing``) whose first statement increments ``revision``.
That statement takes the write lock: writers queue, and nobody changes what a writer reads
before it commits. The daemon polls ``head()`` and reads the changes (``state``) when the
revision has changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Self

import sqlalchemy as sa

from signer.algorithms import Algorithm
from signer.keys.database import (
    bring_up,
    connect,
    explained,
    for_reading,
    refuse_to_write_newer,
)
from signer.keys.index import KeyIndex
from signer.keys.schema import documents, key_versions, keys, officers, revision, suspensions
from signer.keys.writing import Writing
from signer.model import AUDIT_KEY, KeyName, KeyState, KeyVersion, Scope, Suspension

_VERSIONS = sa.select(keys.c.facility, keys.c.key, keys.c.algorithm, key_versions).join(
    keys, key_versions.c.key_id == keys.c.id
)
# Built once: to build a statement takes SQLAlchemy longer than SQLite to answer it.
_REVISION = sa.select(revision)
_OFFICERS = sa.select(officers)
_SUSPENSIONS = sa.select(suspensions)


class RegistryState(NamedTuple):
    """Everything that decides who may sign what, at one revision.

    ``officers`` has their certificates (DER) by principal; ``policy`` is the SHA-256
    of the one in force, None before the first. ``policy_since`` and ``officers_since`` are the
    revisions that put them in force: a policy that is put back has another revision.
    """

    keys: KeyIndex
    officers: Mapping[str, bytes]
    suspensions: tuple[Suspension, ...]
    policy: str | None
    policy_since: int = 0
    officers_since: int = 0


class RegistryHead(NamedTuple):
    """The number of writes so far, and the SHA-256 of the policy in force."""

    revision: int
    policy: str | None


class Registry:
    """The database of one or more appliances. Safe to use from several threads and processes."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._reader = for_reading(engine)

    @classmethod
    def open(cls, url: str, *, create: bool = False, migrate: bool = False) -> Registry:
        """Opens the registry at an SQLAlchemy URL.

        Without flags, as in the daemon, the schema must be that of this release. With
        ``migrate`` an old schema is migrated, with ``create`` an absent one is built.
        Raises OperatorError.
        """
        engine = connect(url, create=create)
        try:
            with explained("open"), engine.begin() as connection:
                bring_up(connection, create=create, migrate=migrate)
        except BaseException:
            engine.dispose()
            raise
        return cls(engine)

    def close(self) -> None:
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """A transaction for reading at one revision. Raises OperatorError."""
        with explained("read"), self._reader.begin() as connection:
            yield connection

    @contextmanager
    def writing(self, *, counts: bool = True) -> Iterator[Writing]:
        """A transaction for writing. Raises OperatorError.

        Without ``counts`` the revision stays, and daemons see the changes with the next write
        that counts; writers queue nevertheless.
        """
        with explained("write"), self._engine.begin() as connection:
            writing = Writing.begin(connection, counts=counts)
            refuse_to_write_newer(connection)
            yield writing

    def revision(self) -> int:
        """Returns the number of writes so far. Raises OperatorError."""
        return self.head().revision

    def head(self) -> RegistryHead:
        """Returns the revision and the policy in force. Raises OperatorError."""
        with self.reading() as connection:
            row = connection.execute(_REVISION).one()
            return RegistryHead(int(row.value), row.policy)

    def state(self, since: KeyIndex | None = None) -> RegistryState:
        """Returns the state at the newest revision. Raises OperatorError.

        Versions that have not changed are taken from ``since``, an earlier index. The audit
        key is not among the versions: no request can name it.
        """
        with self.reading() as connection:
            now = connection.execute(_REVISION).one()
            # A registry that was restored from a backup is another one: read all of it.
            known = KeyIndex() if since is None or now.value < since.revision else since
            if known.revision:
                rows = connection.execute(_NEW, {"since": known.revision}).all()
            else:
                rows = connection.execute(_ALL).all()
            return RegistryState(
                keys=known.updated(map(_version, rows), int(now.value)),
                officers=_officers(connection),
                suspensions=_suspensions(connection),
                policy=now.policy,
                policy_since=int(now.policy_since),
                officers_since=int(now.officers_since),
            )

    def officers(self) -> Mapping[str, bytes]:
        """Returns the officers' certificates (DER) by principal. Raises OperatorError."""
        with self.reading() as connection:
            return _officers(connection)

    def suspensions(self) -> tuple[Suspension, ...]:
        """Returns the suspensions of facilities, groups and everything. Raises OperatorError."""
        with self.reading() as connection:
            return _suspensions(connection)

    def snapshot(self) -> KeyIndex:
        """Returns every version; see ``state``. Raises OperatorError."""
        return self.state().keys

    def versions(self, name: KeyName) -> Sequence[KeyVersion]:
        """Returns the versions of one key, oldest first. Raises OperatorError."""
        statement = _VERSIONS.where(_is(name)).order_by(key_versions.c.number)
        with self.reading() as connection:
            return [_version(row) for row in connection.execute(statement)]

    def document(self, sha256: str) -> bytes | None:
        """Returns the document with a SHA-256, None without one. Raises OperatorError."""
        statement = sa.select(documents.c.content).where(documents.c.sha256 == sha256)
        with self.reading() as connection:
            content = connection.execute(statement).scalar_one_or_none()
            return None if content is None else bytes(content)

    def add_version(self, version: KeyVersion) -> None:
        """Adds one version in a transaction of its own; see ``Writing.add_versions``."""
        with self.writing() as write:
            write.add_versions([version])


def _officers(connection: sa.Connection) -> dict[str, bytes]:
    rows = connection.execute(_OFFICERS)
    return {row.principal: bytes(row.certificate) for row in rows}


def _suspensions(connection: sa.Connection) -> tuple[Suspension, ...]:
    rows = connection.execute(_SUSPENSIONS)
    # Sorted here: the order of text differs between databases.
    return tuple(
        sorted(
            Suspension(Scope(row.scope), row.name, row.since, row.officer, row.reason)
            for row in rows
        )
    )


def _is(name: KeyName) -> sa.ColumnElement[bool]:
    return sa.and_(keys.c.facility == name.facility, keys.c.key == name.key)


_ALL = _VERSIONS.where(sa.not_(_is(AUDIT_KEY)))
_NEW = _ALL.where(key_versions.c.revision > sa.bindparam("since"))


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
        deactivate_at=row.deactivate_at,
        destroy_at=row.destroy_at,
        came_from=None if row.came_from is None else KeyState(row.came_from),
        request=row.request,
        revision=int(row.revision),
    )

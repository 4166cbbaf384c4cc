"""The registry: keys, officers, policies and operations in a database, by SQLAlchemy Core.

Every write is one transaction (``writing``) whose first statement increments ``revision``.
That statement takes the write lock: writers queue, and no other writer changes what one reads
before it commits. The daemon polls ``head()`` and reads the changes (``state``) when the
revision has changed.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple, Self

import sqlalchemy as sa

from signer.errors import OperatorError
from signer.key_index import KeyIndex
from signer.keys.columns import MOST, named_rows, raw
from signer.keys.database import bring_up, connect, explained, for_reading, refuse_to_write_newer
from signer.keys.rows import (
    UnreadableError,
    UnreadableRow,
    read_acts,
    read_document,
    read_head,
    read_officers,
    read_suspensions,
    read_versions,
    read_wrapping_keys,
)
from signer.keys.schema import (
    acts,
    documents,
    key_versions,
    keys,
    officers,
    placements,
    revision,
    suspensions,
    wrapped_keys,
    wrapping_keys,
)
from signer.keys.writing import Writing
from signer.model import AUDIT_KEY, Act, KeyName, KeyVersion, Suspension, WrappingKey

_OF_KEY = [column for column in raw(keys) if column.name != "id"]
_VERSIONS = (
    sa.select(*_OF_KEY, *raw(key_versions))
    .select_from(key_versions)
    .join(keys, key_versions.c.key_id == keys.c.id)
)
# Built once: to build a statement takes SQLAlchemy longer than SQLite to answer it.
_REVISION = sa.select(*raw(revision))
_OFFICERS = sa.select(*raw(officers))
_SUSPENSIONS = sa.select(*raw(suspensions))


class RegistryState(NamedTuple):
    """Everything that decides who may sign what, at one revision.

    ``officers`` has certificates (DER) by principal; ``policy`` is the SHA-256 of the one in
    force, None before the first. ``policy_since`` and ``officers_since`` are the revisions that
    put them in force: a policy that is put back has another revision. ``deployment`` is the id
    of the appliances that share the registry. ``wrapping_keys`` has one for each token that holds
    it. ``unreadable`` are the rows that cannot be read, and are in none of the others.
    """

    keys: KeyIndex
    officers: Mapping[str, bytes]
    suspensions: tuple[Suspension, ...]
    policy: str | None
    policy_since: int = 0
    officers_since: int = 0
    deployment: str = ""
    unreadable: tuple[UnreadableRow, ...] = ()
    wrapping_keys: tuple[WrappingKey, ...] = ()


class RegistryHead(NamedTuple):
    """The number of writes so far, and the SHA-256 of the policy in force."""

    revision: int
    policy: str | None


class RegistryPage(NamedTuple):
    """Some versions by the order of their rows; ``last`` continues, None after the last one.

    ``unreadable`` are those of the rows that cannot be read.
    """

    versions: Sequence[KeyVersion]
    last: int | None
    unreadable: Sequence[UnreadableRow] = ()


class Registry:
    """The database of one or more appliances. Safe to use from several threads and processes."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._reader = for_reading(engine)

    @classmethod
    def open(cls, url: str, *, create: bool = False, migrate: bool = False) -> "Registry":
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
    def writing(self, *, counts: bool = True) -> "Iterator[Writing]":
        """A transaction for writing. Raises OperatorError.

        Without ``counts`` the revision stays, and daemons see the changes with the next write
        that counts; writers queue nevertheless.
        """
        with explained("write"), self._engine.begin() as connection:
            writing = Writing(connection, counts=counts)
            refuse_to_write_newer(connection)
            yield writing

    def raise_revision(self, least: int) -> None:
        """Takes the revision to ``least`` if it is lower. Raises OperatorError.

        A registry that was put back from a backup counts on from what logs know of it: a later
        change has a later revision. What no count reaches is not taken.
        """
        if least <= MOST >> 1 and self.revision() < least:
            with self.writing(counts=False) as write:
                lower = sa.update(revision).where(revision.c.value < least)
                write.connection.execute(lower.values(value=least))

    def revision(self) -> int:
        """Returns the revision, which grows with each write. Raises OperatorError."""
        return self.head().revision

    def head(self) -> RegistryHead:
        """Returns the revision and the policy in force.

        Raises UnreadableError if somebody has written something else there, and OperatorError.
        """
        with self.reading() as connection:
            head = read_head(connection.execute(_REVISION))
            return RegistryHead(head.value, head.policy)

    def state(self, since: KeyIndex | None = None) -> RegistryState:
        """Returns the state at the newest revision. Raises as ``head``.

        Versions that have not changed are taken from ``since``, an earlier index. The audit
        key is not among the versions: no request can name it.
        """
        with self.reading() as connection:
            return _state(connection, since)

    def state_and_page(
        self, since: KeyIndex, after: int, limit: int
    ) -> tuple[RegistryState, RegistryPage]:
        """Returns the state, and the versions of the next rows, both at one revision.

        The state reads of these rows only those with a revision after ``since``, the page reads
        all: so it finds changes that did not raise the revision, a part at a time. Raises as
        ``state``.
        """
        with self.reading() as connection:
            return _state(connection, since), _page(connection, after, limit)

    def acts(self, since: int) -> tuple[Sequence[tuple[int, Act]], Sequence[UnreadableRow]]:
        """Returns the acts after a revision, each with its own, and what cannot be read.

        Raises OperatorError.
        """
        with self.reading() as connection:
            return read_acts(connection.execute(_ACTS, {"since": since}))

    def officers(self) -> Mapping[str, bytes]:
        """Returns the officers' certificates (DER) by principal. Raises OperatorError."""
        with self.reading() as connection:
            return read_officers(connection.execute(_OFFICERS))[0]

    def suspensions(self) -> tuple[Suspension, ...]:
        """Returns the suspensions of facilities, groups and everything. Raises OperatorError."""
        with self.reading() as connection:
            return read_suspensions(connection.execute(_SUSPENSIONS))[0]

    def snapshot(self) -> KeyIndex:
        """Returns every version; see ``state``. Raises OperatorError."""
        return self.state().keys

    def versions(self, name: KeyName) -> Sequence[KeyVersion]:
        """Returns the versions of one key, oldest first, without those that cannot be read.

        Raises OperatorError, also if none can be read.
        """
        statement = _VERSIONS.where(_is(name)).order_by(key_versions.c.number)
        of_key = sa.select(key_versions.c.id).join(keys).where(_is(name))
        with self.reading() as connection:
            placed = connection.execute(_PLACED.where(placements.c.version_id.in_(of_key)))
            wrapped = connection.execute(_WRAPPED.where(wrapped_keys.c.version_id.in_(of_key)))
            wrapping, _ = read_wrapping_keys(connection.execute(_WRAPPING))
            versions, bad = read_versions(connection.execute(statement), placed, wrapped, wrapping)
        if bad and not versions:
            raise UnreadableError(f"{bad[0].text}; it signs nothing. Put it back from the backup")
        return versions

    def document(self, sha256: str) -> bytes | None:
        """Returns the document with a SHA-256, None without one. Raises OperatorError."""
        statement = sa.select(*raw(documents)).where(documents.c.sha256 == sha256)
        with self.reading() as connection:
            content = read_document(connection.execute(statement), sha256)
        if content is not None and hashlib.sha256(content).hexdigest() != sha256:
            raise OperatorError(
                f"the registry has another text under {sha256}: it was changed by hand;"
                " put the row of `documents` back from the backup"
            )
        return content

    def add_version(self, version: KeyVersion) -> None:
        """Adds one version in a transaction of its own; see ``Writing.add_versions``."""
        with self.writing() as write:
            write.add_versions([version])


def _state(connection: sa.Connection, since: KeyIndex | None) -> RegistryState:
    now = read_head(connection.execute(_REVISION))
    # A registry that was restored from a backup is another one: read all of it. So too
    # where rows cannot be read: a version without a row of its own is not served.
    wrapping, bad_wrapping = read_wrapping_keys(connection.execute(_WRAPPING))
    anew = since is None or now.value < since.revision or not since.complete
    # On which tokens wrapped keys are depends on their wrapping keys.
    anew = anew or any(key.revision > since.revision for key in wrapping if since)
    known = KeyIndex() if since is None or anew else since
    bad: Sequence[UnreadableRow] = ()
    if known.revision:
        since_then = {"since": known.revision}
        new, placed, wrapped = (
            named_rows(connection.execute(statement, since_then))
            for statement in (_NEW, _NEW_PLACED, _NEW_WRAPPED)
        )
        versions, bad = read_versions(new, placed, wrapped, wrapping)
    if bad or not known.revision:
        known = KeyIndex()
        rows, placed, wrapped = (
            named_rows(connection.execute(statement)) for statement in (_ALL, _PLACED, _WRAPPED)
        )
        versions, bad = read_versions(rows, placed, wrapped, wrapping)
    certificates, bad_officers = read_officers(connection.execute(_OFFICERS))
    flags, bad_flags = read_suspensions(connection.execute(_SUSPENSIONS))
    return RegistryState(
        keys=known.updated(versions, now.value, complete=not bad),
        officers=certificates,
        suspensions=flags,
        policy=now.policy,
        policy_since=now.policy_since,
        officers_since=now.officers_since,
        deployment=now.deployment,
        unreadable=(*bad, *bad_officers, *bad_flags, *bad_wrapping),
        wrapping_keys=wrapping,
    )


def _page(connection: sa.Connection, after: int, limit: int) -> RegistryPage:
    rows = named_rows(connection.execute(_PAGE, {"after": after, "most": limit}))
    last = rows[-1].id if len(rows) == limit else None
    end = rows[-1].id if rows else after
    part = {"after": after, "end": end}
    placed = connection.execute(_PAGE_PLACED, part)
    wrapped = connection.execute(_PAGE_WRAPPED, part)
    wrapping, _ = read_wrapping_keys(connection.execute(_WRAPPING))
    versions, bad = read_versions(rows, placed, wrapped, wrapping)
    return RegistryPage(versions, last, bad)


def _is(name: KeyName) -> sa.ColumnElement[bool]:
    return sa.and_(keys.c.facility == name.facility, keys.c.key == name.key)


_ALL = _VERSIONS.where(sa.not_(_is(AUDIT_KEY)))
_PLACED = sa.select(*raw(placements))
_WRAPPED = sa.select(*raw(wrapped_keys))
_WRAPPING = sa.select(*raw(wrapping_keys))
_IS_NEW = sa.or_(
    key_versions.c.revision > sa.bindparam("since"),
    *(
        key_versions.c.id.in_(
            sa.select(table.c.version_id).where(table.c.revision > sa.bindparam("since"))
        )
        for table in (placements, wrapped_keys)
    ),
)
_NEW = _ALL.where(_IS_NEW)
_NEW_PLACED = _PLACED.where(
    placements.c.version_id.in_(sa.select(key_versions.c.id).where(_IS_NEW))
)
_NEW_WRAPPED = _WRAPPED.where(
    wrapped_keys.c.version_id.in_(sa.select(key_versions.c.id).where(_IS_NEW))
)
_PAGE_WRAPPED = _WRAPPED.where(
    wrapped_keys.c.version_id > sa.bindparam("after"),
    wrapped_keys.c.version_id <= sa.bindparam("end"),
)
_PAGE_PLACED = _PLACED.where(
    placements.c.version_id > sa.bindparam("after"), placements.c.version_id <= sa.bindparam("end")
)
_PAGE = (
    _ALL.where(key_versions.c.id > sa.bindparam("after"))
    .order_by(key_versions.c.id)
    .limit(sa.bindparam("most"))
)
_ACTS = (
    sa.select(*raw(acts)).where(acts.c.revision > sa.bindparam("since")).order_by(acts.c.revision)
)

"""The registry: keys, officers, policies and operations in a database, by SQLAlchemy Core.

Every write is one transaction (``writing``) whose first statement increments ``revision``.
That statement takes the write lock: writers queue, and no other writer changes what one reads
before it commits. The daemon polls ``head()`` and reads the changes (``state``) when the
revision has changed.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple, Self

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from signer.errors import OperatorError
from signer.keys.database import bring_up, connect, explained, for_reading, refuse_to_write_newer
from signer.keys.rows import (
    MOST,
    UnreadableError,
    UnreadableRow,
    raw,
    read_acts,
    read_document,
    read_head,
    read_officers,
    read_suspensions,
    read_versions,
    read_wrapping_keys,
)
from signer.keys.schema import (
    PLACED,
    REMOVED,
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
from signer.model import (
    AUDIT_KEY,
    Act,
    KeyIndex,
    KeyName,
    KeyState,
    KeyVersion,
    Placement,
    Scope,
    Suspension,
    WrappedKey,
    WrappingKey,
)

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
                new = connection.execute(_NEW, since_then)
                placed = connection.execute(_NEW_PLACED, since_then)
                wrapped = connection.execute(_NEW_WRAPPED, since_then)
                versions, bad = read_versions(new, placed, wrapped, wrapping)
            if bad or not known.revision:
                known = KeyIndex()
                placed, wrapped = connection.execute(_PLACED), connection.execute(_WRAPPED)
                versions, bad = read_versions(connection.execute(_ALL), placed, wrapped, wrapping)
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

    def page(self, after: int, limit: int) -> RegistryPage:
        """Returns the versions of the next rows, whatever their revision. Raises OperatorError.

        This finds changes that did not raise the revision, a part at a time.
        """
        with self.reading() as connection:
            rows = connection.execute(_PAGE, {"after": after, "most": limit}).all()
            last = rows[-1].id if len(rows) == limit else None
            end = rows[-1].id if rows else after
            part = {"after": after, "end": end}
            placed = connection.execute(_PAGE_PLACED, part)
            wrapped = connection.execute(_PAGE_WRAPPED, part)
            wrapping, _ = read_wrapping_keys(connection.execute(_WRAPPING))
            versions, bad = read_versions(rows, placed, wrapped, wrapping)
            return RegistryPage(versions, last, bad)

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


# The columns of a version that can change.
_MUTABLE = (
    "state",
    "certificate",
    "kid",
    "activate_at",
    "sign_until",
    "deactivate_at",
    "destroy_at",
    "came_from",
    "request",
)


_LOCK = sa.update(revision).values(value=revision.c.value)
# No row of a version takes the revision to its end: what somebody puts there is set back instead.
_NEWEST = sa.select(sa.cast(sa.func.max(key_versions.c.revision), sa.BigInteger)).where(
    key_versions.c.revision.between(0, MOST >> 1)
)


class _PlacementTakenError(OperatorError):
    def __init__(self, version: KeyVersion, placement: Placement) -> None:
        token, cka_id = placement.token, placement.cka_id.hex()
        super().__init__(
            f"{version.name} was not placed on token {token}: the registry has it there already, or"
            f" another version with the CKA_ID {cka_id}; see `signer keys show`"
        )


class ChangedMeanwhileError(OperatorError):
    """A row is no longer as it was read: another writer has changed it."""


class Change(NamedTuple):
    """A version as it was read, and as it will be written."""

    before: KeyVersion
    after: KeyVersion


class Writing:
    """One transaction at one new revision. Every method raises OperatorError."""

    def __init__(self, connection: sa.Connection, *, counts: bool) -> None:
        """Takes the write lock, so that writers queue, and a new revision.

        Without ``counts`` the rows get the number of the next revision: daemons read them with
        that one, which is then one more, so that a change of such a row has a later revision.
        """
        connection.execute(_LOCK)
        number = read_head(connection.execute(_REVISION), most=2 * MOST).value
        if counts:
            newest = connection.execute(_NEWEST).scalar_one()
            number = max(number, newest or 0) + 1
            connection.execute(sa.update(revision).values(value=number))
        self.connection, self.revision = connection, number + int(not counts)

    def add_versions(self, versions: Iterable[KeyVersion]) -> None:
        """Adds versions, each with its key if it is the first one.

        Refuses all of them if a number, a CKA_ID on its token or a public key exists already,
        or if a key has another algorithm.
        """
        # A savepoint: after an error PostgreSQL aborts the transaction, and its commit would
        # then silently be a rollback.
        with self.connection.begin_nested():
            for version in versions:
                self._add(version)
                for placement in version.other_placements:
                    self.place(version, placement)

    def change(self, changes: Sequence[Change]) -> None:
        """Changes versions; refuses all changes if one version is no longer as it was read."""
        with self.connection.begin_nested():
            for before, after in changes:
                self._change(before, after)

    def add_wrapping_key(self, key: WrappingKey) -> None:
        """Adds a wrapping key on one token; refuses one that is there already."""
        row = {**key._asdict(), "revision": self.revision}
        try:
            with self.connection.begin_nested():
                self.connection.execute(sa.insert(wrapping_keys).values(row))
        except IntegrityError:
            raise OperatorError(
                f"the registry has the wrapping key {key.id} on token {key.token} already"
            ) from None

    def end_wrapping_key(self, identity: str) -> None:
        """Ends the use of a wrapping key on all of its tokens; refuses it while it wraps a key."""
        of_key = wrapped_keys.c.wrapping_key == identity
        if self.connection.execute(sa.select(wrapped_keys.c.version_id).where(of_key)).first():
            raise OperatorError(f"a key is wrapped by {identity}: wrap it anew by rewrap first")
        statement = sa.update(wrapping_keys).where(wrapping_keys.c.id == identity)
        self.connection.execute(statement.values(destroyed=True, revision=self.revision))

    def _check_wraps(self, key: WrappedKey) -> None:
        """Raises OperatorError if a wrapping key is not in use any more."""
        in_use = sa.select(wrapping_keys.c.id).where(
            wrapping_keys.c.id == key.wrapping_key, wrapping_keys.c.destroyed.is_(False)
        )
        if not self.connection.execute(in_use).first():
            raise OperatorError(f"the wrapping key {key.wrapping_key} is not in use any more")

    def wrap_anew(self, version: KeyVersion, key: WrappedKey) -> None:
        """Replaces the wrapped key of a version; refuses it if it is not as it was read."""
        self._check_wraps(key)
        before = version.wrapped
        statement = (
            sa.update(wrapped_keys)
            .where(
                wrapped_keys.c.version_id == self._row_id(version),
                wrapped_keys.c.sha256 == (b"" if before is None else before.sha256),
            )
            .values(_wrapped_row(key, self.revision))
        )
        if self.connection.execute(statement).rowcount != 1:
            raise ChangedMeanwhileError(f"the wrapped key of {version.name} has changed meanwhile")

    def place(self, version: KeyVersion, placement: Placement) -> None:
        """Adds a placement of a version; refuses it if that token or that CKA_ID is taken."""
        taken = sa.select(key_versions.c.id).where(_at(key_versions, placement))
        try:
            with self.connection.begin_nested():
                if placement.token == version.token or self.connection.execute(taken).first():
                    raise _PlacementTakenError(version, placement)
                row = {"token": placement.token, "state": PLACED, "revision": self.revision}
                row |= {"cka_id": placement.cka_id, "version_id": self._row_id(version)}
                removed = sa.delete(placements).where(
                    placements.c.version_id == row["version_id"],
                    placements.c.token == placement.token,
                    placements.c.state == REMOVED,
                )
                self.connection.execute(removed)
                self.connection.execute(sa.insert(placements).values(row))
        except IntegrityError:
            raise _PlacementTakenError(version, placement) from None

    def remove_placement(self, version: KeyVersion, placement: Placement) -> None:
        """Removes a placement of a version; refuses it if it is not there any more."""
        statement = (
            sa.update(placements)
            .where(
                placements.c.version_id == self._row_id(version),
                placements.c.state == PLACED,
                _at(placements, placement),
            )
            .values(state=REMOVED, revision=self.revision)
        )
        if self.connection.execute(statement).rowcount != 1:
            raise ChangedMeanwhileError(f"{version.name} is no longer on token {placement.token}")

    def _row_id(self, version: KeyVersion) -> int:
        where = _at(key_versions, Placement(version.token, version.cka_id))
        found = self.connection.execute(sa.select(key_versions.c.id).where(where)).first()
        if found is None:
            raise ChangedMeanwhileError(f"{version.name} is no longer in the registry")
        return int(found.id)

    def set_officers(self, certificates: Mapping[str, bytes], since: int | None = None) -> None:
        """Replaces all officers.

        With ``since`` it is refused unless that revision put the present officers in force.
        """
        self._refuse_if_later(revision.c.officers_since, since, "the officers were changed")
        self.connection.execute(sa.delete(officers))
        for who, der in sorted(certificates.items()):
            self.connection.execute(sa.insert(officers).values(principal=who, certificate=der))
        self.connection.execute(sa.update(revision).values(officers_since=self.revision))

    def suspend(self, suspension: Suspension) -> None:
        """Sets a suspension; setting it again renews it, so that no earlier approval lifts it."""
        where = _flag(suspension.scope, suspension.name)
        self.connection.execute(sa.delete(suspensions).where(where))
        self.connection.execute(sa.insert(suspensions).values(suspension._asdict()))

    def act(self, act: Act) -> None:
        """Adds the act of one officer, which this transaction carries out."""
        self.connection.execute(sa.insert(acts).values(revision=self.revision, **act._asdict()))

    def lift(self, suspension: Suspension) -> None:
        """Removes a suspension, unless it has been renewed since."""
        where = sa.and_(
            _flag(suspension.scope, suspension.name), suspensions.c.since == suspension.since
        )
        if not self.connection.execute(sa.delete(suspensions).where(where)).rowcount:
            raise ChangedMeanwhileError(
                f"{suspension} was suspended again, or is no longer suspended"
            )

    def expect_officers(self, since: int) -> None:
        """Refuses the transaction unless that revision put the present officers in force."""
        self._refuse_if_later(revision.c.officers_since, since, "the officers were changed")

    def _refuse_if_later(self, column: sa.Column[int], since: int | None, what: str) -> None:
        present = self.connection.execute(sa.select(column)).scalar_one()
        if since is not None and present != since:
            raise ChangedMeanwhileError(f"{what} meanwhile")

    def store(self, content: bytes) -> str:
        """Stores a document under its SHA-256 and returns that, in hex."""
        sha256 = hashlib.sha256(content).hexdigest()
        known = sa.select(documents.c.sha256).where(documents.c.sha256 == sha256)
        if not self.connection.execute(known).first():
            self.connection.execute(sa.insert(documents).values(sha256=sha256, content=content))
        return sha256

    def put_policy(self, text: bytes, since: int | None = None) -> None:
        """Puts a policy in force by its text.

        With ``since`` it is refused unless that revision put the present policy in force.
        """
        self._refuse_if_later(revision.c.policy_since, since, "another policy was put in force")
        self.connection.execute(
            sa.update(revision).values(policy=self.store(text), policy_since=self.revision)
        )

    def _add(self, version: KeyVersion) -> None:
        row = {
            column.name: getattr(version, column.name)
            for column in key_versions.c
            if column.name not in ("id", "key_id", "revision")
        }
        row |= {"key_id": self._key_id(version), "revision": self.revision}
        if version.wrapped is not None:
            self._check_wraps(version.wrapped)
        try:
            made = self.connection.execute(
                sa.insert(key_versions).values(row).returning(key_versions.c.id)
            )
            if version.wrapped is not None:
                stored = _wrapped_row(version.wrapped, self.revision)
                stored["version_id"] = int(made.scalar_one())
                self.connection.execute(sa.insert(wrapped_keys).values(stored))
        except IntegrityError:
            raise OperatorError(
                f"{version.name} was not added: the registry has that version, its CKA_ID on"
                f" token {version.token}, or its public key already; see `signer keys list`"
            ) from None

    def _change(self, before: KeyVersion, after: KeyVersion) -> None:
        statement = (
            sa.update(key_versions)
            .where(
                key_versions.c.token == before.token,
                key_versions.c.cka_id == before.cka_id,
                *(
                    key_versions.c[name].is_not_distinct_from(getattr(before, name))
                    for name in _MUTABLE
                ),
            )
            .values({name: getattr(after, name) for name in _MUTABLE} | {"revision": self.revision})
        )
        if self.connection.execute(statement).rowcount != 1:
            raise ChangedMeanwhileError(
                f"{before.name} has changed meanwhile, or no longer exists: look at it again,"
                " then repeat"
            )
        if before.wrapped is not None and after.state is KeyState.DESTROYED:
            of_version = wrapped_keys.c.version_id == self._row_id(before)
            self.connection.execute(sa.delete(wrapped_keys).where(of_version))

    def _key_id(self, version: KeyVersion) -> int:
        """Returns the id of the key's row, which is added if it is missing."""
        key = self.connection.execute(
            sa.select(keys.c.id, keys.c.algorithm).where(
                keys.c.facility == version.key.facility, keys.c.key == version.key.key
            )
        ).one_or_none()
        if key is None:
            made = self.connection.execute(
                sa.insert(keys)
                .values(
                    facility=version.key.facility, key=version.key.key, algorithm=version.algorithm
                )
                .returning(keys.c.id)
            )
            return int(made.scalar_one())
        if key.algorithm != version.algorithm:
            raise OperatorError(
                f"{version.name} was not added: the key is for {key.algorithm},"
                f" not {version.algorithm}; give the new algorithm a key of its own"
            )
        return int(key.id)


def _wrapped_row(key: WrappedKey, number: int) -> dict[str, object]:
    """Returns the row of ``wrapped_keys`` without its version, at a revision."""
    values = {name: value for name, value in key._asdict().items() if name != "tokens"}
    return {**values, "revision": number}


def _at(table: sa.Table, placement: Placement) -> sa.ColumnElement[bool]:
    return sa.and_(table.c.token == placement.token, table.c.cka_id == placement.cka_id)


def _flag(scope: Scope, name: str) -> sa.ColumnElement[bool]:
    return sa.and_(suspensions.c.scope == scope, suspensions.c.name == name)

"""Writing to the registry: one transaction at one new revision."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from signer.errors import OperatorError
from signer.keys.columns import MOST, raw
from signer.keys.rows import MOST_WRITES, read_head
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
    Act,
    KeyState,
    KeyVersion,
    Placement,
    Scope,
    Suspension,
    WrappedKey,
    WrappingKey,
)

_REVISION = sa.select(*raw(revision))


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


# Built once: an enrolment executes them for each key, and to build one takes as long.
_KEY = sa.select(keys.c.id, keys.c.algorithm).where(
    keys.c.facility == sa.bindparam("facility"), keys.c.key == sa.bindparam("key")
)
_ADD_KEY = sa.insert(keys).returning(keys.c.id)
_ADD_VERSION = sa.insert(key_versions).returning(key_versions.c.id)
_ADD_WRAPPED = sa.insert(wrapped_keys)
_WRAPPING_IN_USE = sa.select(wrapping_keys.c.id).where(
    wrapping_keys.c.id == sa.bindparam("identity"), wrapping_keys.c.destroyed.is_(False)
)
_CHANGE = (
    sa.update(key_versions)
    .where(
        key_versions.c.token == sa.bindparam("at_token"),
        key_versions.c.cka_id == sa.bindparam("at_id"),
        *(
            key_versions.c[name].is_not_distinct_from(sa.bindparam(f"was_{name}"))
            for name in _MUTABLE
        ),
    )
    .values({name: sa.bindparam(f"new_{name}") for name in (*_MUTABLE, "revision")})
)
_LOCK = sa.update(revision).values(value=revision.c.value)
# No row of a version takes the revision far: what somebody puts there is set back instead.
_NEWEST = sa.select(sa.cast(sa.func.max(key_versions.c.revision), sa.BigInteger)).where(
    key_versions.c.revision.between(0, sa.bindparam("most"))
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
            newest = connection.execute(_NEWEST, {"most": number + MOST_WRITES}).scalar_one()
            number = max(number, newest or 0) + 1
            connection.execute(sa.update(revision).values(value=number))
        self.connection, self.revision = connection, number + int(not counts)

    def add_versions(self, versions: Iterable[KeyVersion]) -> None:
        """Adds versions, each with its key if it is the first one.

        Refuses all of them if a number, a CKA_ID on its token or a public key exists already,
        or if a key has another algorithm.
        """
        added = list(versions)
        # A savepoint: after an error PostgreSQL aborts the transaction, and its commit would
        # then silently be a rollback.
        with self.connection.begin_nested():
            for identity in {v.wrapped.wrapping_key for v in added if v.wrapped is not None}:
                self._check_wraps(identity)
            for version in added:
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

    def _check_wraps(self, identity: str) -> None:
        """Raises OperatorError if a wrapping key is not in use any more."""
        if not self.connection.execute(_WRAPPING_IN_USE, {"identity": identity}).first():
            raise OperatorError(f"the wrapping key {identity} is not in use any more")

    def wrap_anew(self, version: KeyVersion, key: WrappedKey) -> None:
        """Replaces the wrapped key of a version; refuses it if it is not as it was read."""
        self._check_wraps(key.wrapping_key)
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
        try:
            made = self.connection.execute(_ADD_VERSION, row)
            if version.wrapped is not None:
                stored = _wrapped_row(version.wrapped, self.revision)
                stored["version_id"] = int(made.scalar_one())
                self.connection.execute(_ADD_WRAPPED, stored)
        except IntegrityError:
            raise OperatorError(
                f"{version.name} was not added: the registry has that version, its CKA_ID on"
                f" token {version.token}, or its public key already; see `signer keys list`"
            ) from None

    def _change(self, before: KeyVersion, after: KeyVersion) -> None:
        values = {"at_token": before.token, "at_id": before.cka_id, "new_revision": self.revision}
        for name in _MUTABLE:
            values[f"was_{name}"], values[f"new_{name}"] = (
                getattr(before, name),
                getattr(after, name),
            )
        if self.connection.execute(_CHANGE, values).rowcount != 1:
            raise ChangedMeanwhileError(
                f"{before.name} has changed meanwhile, or no longer exists: look at it again,"
                " then repeat"
            )
        if before.wrapped is not None and after.state is KeyState.DESTROYED:
            of_version = wrapped_keys.c.version_id == self._row_id(before)
            self.connection.execute(sa.delete(wrapped_keys).where(of_version))

    def _key_id(self, version: KeyVersion) -> int:
        """Returns the id of the key's row, which is added if it is missing."""
        name = {"facility": version.key.facility, "key": version.key.key}
        key = self.connection.execute(_KEY, name).one_or_none()
        if key is None:
            made = self.connection.execute(_ADD_KEY, {**name, "algorithm": version.algorithm})
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

"""One transaction that writes to the registry."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Self

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from signer.errors import OperatorError
from signer.keys.schema import documents, key_versions, keys, officers, revision, suspensions
from signer.model import KeyVersion, Scope, Suspension

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
"""The columns of a version that can change."""


class ChangedMeanwhileError(OperatorError):
    """A row is no longer as it was read: another writer has changed it."""


class Change(NamedTuple):
    """A version as it was read, and as it will be written."""

    before: KeyVersion
    after: KeyVersion


class Writing:
    """One transaction at one new revision. Every method raises OperatorError."""

    def __init__(self, connection: sa.Connection, number: int) -> None:
        self.connection = connection
        self.revision = number

    @classmethod
    def begin(cls, connection: sa.Connection, *, counts: bool) -> Self:
        """Takes the write lock, so that writers queue, and a new revision.

        Without ``counts`` the rows get the number of the next revision: daemons read them with
        that one.
        """
        step = int(counts)
        connection.execute(sa.update(revision).values(value=revision.c.value + step))
        number = connection.execute(sa.select(revision.c.value)).scalar_one()
        return cls(connection, int(number) + 1 - step)

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

    def change(self, changes: Sequence[Change]) -> None:
        """Changes versions; refuses all changes if one version is no longer as it was read."""
        with self.connection.begin_nested():
            for before, after in changes:
                self._change(before, after)

    def set_officers(self, certificates: Mapping[str, bytes], since: int | None = None) -> None:
        """Replaces all officers.

        With ``since`` it is refused unless that revision put the present officers in force.
        """
        self._refuse_if_later(revision.c.officers_since, since, "the officers were changed")
        self.connection.execute(sa.delete(officers))
        rows: list[dict[str, Any]] = [
            {"principal": who, "certificate": der} for who, der in sorted(certificates.items())
        ]
        if rows:
            self.connection.execute(sa.insert(officers), rows)
        self.connection.execute(sa.update(revision).values(officers_since=self.revision))

    def suspend(self, suspension: Suspension) -> None:
        """Sets a suspension; setting it again renews it, so that no earlier approval lifts it."""
        where = _flag(suspension.scope, suspension.name)
        self.connection.execute(sa.delete(suspensions).where(where))
        self.connection.execute(sa.insert(suspensions).values(suspension._asdict()))

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
            self.connection.execute(sa.insert(key_versions).values(row))
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
                    facility=version.key.facility,
                    key=version.key.key,
                    algorithm=version.algorithm,
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


def _flag(scope: Scope, name: str) -> sa.ColumnElement[bool]:
    return sa.and_(suspensions.c.scope == scope, suspensions.c.name == name)

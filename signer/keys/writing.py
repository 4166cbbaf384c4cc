"""What one transaction writes to the registry."""

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
"""What changes in the life of a version. All else is as it was made."""


class ChangedMeanwhileError(OperatorError):
    """A version is no longer as it was read."""


class Change(NamedTuple):
    """A version as it was read, and as it is to be."""

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

        Without ``counts`` what is written bears the number of the next revision: whoever
        follows reads it with that one.
        """
        step = int(counts)
        connection.execute(sa.update(revision).values(value=revision.c.value + step))
        number = connection.execute(sa.select(revision.c.value)).scalar_one()
        return cls(connection, int(number) + 1 - step)

    def add_versions(self, versions: Iterable[KeyVersion]) -> None:
        """Adds versions, each with its key if it is the first one.

        Refuses all of them if a number, a CKA_ID on its token or a public key is
        there already, or if a key has another algorithm.
        """
        # Within a savepoint: after an error PostgreSQL would drop all of the transaction,
        # and say nothing when it is committed.
        with self.connection.begin_nested():
            for version in versions:
                self._add(version)

    def change(self, changes: Sequence[Change]) -> None:
        """Writes versions anew; refuses all of them if one is no longer as it was read."""
        with self.connection.begin_nested():
            for before, after in changes:
                self._change(before, after)

    def set_officers(self, certificates: Mapping[str, bytes], since: int | None = None) -> None:
        """Puts these officers in the place of all others.

        With ``since`` those must be in force who were put there by that revision.
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
        """Sets a flag; who sets it again renews it, so that nothing approved before lifts it."""
        where = _flag(suspension.scope, suspension.name)
        self.connection.execute(sa.delete(suspensions).where(where))
        self.connection.execute(sa.insert(suspensions).values(suspension._asdict()))

    def lift(self, suspension: Suspension) -> None:
        """Takes a flag away, as it was set then."""
        where = sa.and_(
            _flag(suspension.scope, suspension.name), suspensions.c.since == suspension.since
        )
        if not self.connection.execute(sa.delete(suspensions).where(where)).rowcount:
            raise ChangedMeanwhileError(f"{suspension} was suspended anew, or is not any more")

    def expect_officers(self, since: int) -> None:
        """Refuses all of it where other officers are in force than those of a revision."""
        self._refuse_if_later(revision.c.officers_since, since, "the officers were changed")

    def _refuse_if_later(self, column: sa.Column[int], since: int | None, what: str) -> None:
        found = self.connection.execute(sa.select(column)).scalar_one()
        if since is not None and found != since:
            raise ChangedMeanwhileError(f"{what} meanwhile")

    def store(self, content: bytes) -> str:
        """Keeps a document under its SHA-256, in hex, and returns that."""
        sha256 = hashlib.sha256(content).hexdigest()
        known = sa.select(documents.c.sha256).where(documents.c.sha256 == sha256)
        if not self.connection.execute(known).first():
            self.connection.execute(sa.insert(documents).values(sha256=sha256, content=content))
        return sha256

    def put_policy(self, text: bytes, since: int | None = None) -> None:
        """Puts a policy in force by its text.

        With ``since`` it takes the place of the one that this revision put there.
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
                f"{version.name} is not added: the registry has that version, its CKA_ID on"
                f" token {version.token}, or its public key already; `signer keys list` shows"
                " what there is"
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
                f"{before.name} was changed by somebody else meanwhile, or is gone:"
                " look at it again, then repeat"
            )

    def _key_id(self, version: KeyVersion) -> int:
        """Returns the row of the version's key, made if it is not there."""
        found = self.connection.execute(
            sa.select(keys.c.id, keys.c.algorithm).where(
                keys.c.facility == version.key.facility, keys.c.key == version.key.key
            )
        ).one_or_none()
        if found is None:
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
        if found.algorithm != version.algorithm:
            raise OperatorError(
                f"{version.name} is not added: the key is for {found.algorithm},"
                f" not {version.algorithm}; give the new algorithm a key of its own"
            )
        return int(found.id)


def _flag(scope: Scope, name: str) -> sa.ColumnElement[bool]:
    return sa.and_(suspensions.c.scope == scope, suspensions.c.name == name)

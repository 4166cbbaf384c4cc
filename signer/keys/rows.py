"""Reads rows of the registry, in which somebody may have written anything by hand.

A row that cannot be read, see ``signer.keys.columns``, is an ``UnreadableRow``, which says what the
row is about; the other rows are read nevertheless.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple, TypeVar

import sqlalchemy as sa

from signer.algorithms import Algorithm
from signer.errors import OperatorError
from signer.keys.columns import (
    MOST,
    BadValueError,
    Row,
    identifier,
    moment,
    octets,
    one_of,
    optional,
    text,
    truth,
    whole,
)
from signer.keys.schema import (
    PLACED,
    REMOVED,
    acts,
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
    KeyName,
    KeyState,
    KeyVersion,
    Placement,
    Scope,
    Suspension,
    WrapMechanism,
    WrappedKey,
    WrappingKey,
    version_name,
)

MAX_BLOB = 8192  # bytes of a wrapped key, which goes to workers in frames
MAX_PROOF = 512  # bytes of a signature: that of an RSA key of 4096 bits
SHA256_BYTES = 32
_MAX_NUMBER = 999_999_999  # of a version: its name has at most nine digits
MOST_WRITES = 1 << 32
"""How far the revision goes on between two looks: further on it was written by hand, and is not
followed. Otherwise the last numbers could be used up, and with them every later change."""

T = TypeVar("T")


class UnreadableRow(NamedTuple):
    """A row that cannot be read.

    ``where`` names table and column, and ``about`` what the row is about, as far as that can be
    read: a version or a suspension. ``stops_all``: what it may have stopped is not known.
    """

    where: str
    about: str = ""
    version: tuple[KeyName, int] | None = None
    flag: tuple[Scope, str] | None = None
    stops_all: bool = False

    @property
    def text(self) -> str:
        """Says for the log and for operators what cannot be read."""
        head = f"{self.about}: " if self.about else ""
        return f"{head}a row of the registry cannot be read: {self.where}"


class UnreadableError(OperatorError):
    """Without this row nothing of the registry can be followed."""


# --- rows --------------------------------------------------------------------------------------


class Head(NamedTuple):
    """The one row of ``revision``, see ``keys.schema``."""

    value: int
    policy: str | None
    policy_since: int
    officers_since: int
    deployment: str


def read_head(rows: Iterable[Row], most: int = MOST) -> Head:
    """Reads the one row of ``revision``, up to this one. Raises UnreadableError."""
    remedy = "put the row back from the backup"
    found = list(rows)
    if len(found) != 1:
        raise UnreadableError(f"revision has {len(found)} rows, expected 1: {remedy}")
    try:
        return Head(
            whole(found[0], "value", most),
            optional(_short, found[0], "policy"),
            whole(found[0], "policy_since"),
            whole(found[0], "officers_since"),
            optional(_short, found[0], "deployment") or "",
        )
    except BadValueError as error:
        raise UnreadableError(f"{_where(error, revision)}: {remedy}") from None


def _short(row: Row, column: str) -> str:
    return text(row, column, 64)


def _proof(row: Row, column: str) -> bytes:
    return octets(row, column, MAX_PROOF)


def read_versions(
    rows: Iterable[Row],
    placed: Iterable[Row],
    wrapped: Iterable[Row],
    wrapping: Iterable[WrappingKey],
) -> tuple[list[KeyVersion], list[UnreadableRow]]:
    """Reads rows of ``key_versions`` with their keys, of ``placements`` and ``wrapped_keys``.

    A placement or a wrapped key that cannot be read stops its version. Those of versions that are
    not among the rows are left out. ``wrapping`` are the wrapping keys.
    """
    versions: dict[tuple[KeyName, int], KeyVersion] = {}
    others, bad_others, bad = _placements(placed)
    stored, bad_stored, bad_wrapped = _wrapped(wrapped, wrapping)
    unreadable = {**bad_others, **bad_stored}
    bad += bad_wrapped
    for row in rows:
        try:
            placements = tuple(sorted(others.get(row.id, ())))
            version = _version(row, placements, stored.get(row.id))
        except BadValueError as error:
            where = _where(error, keys if error.column in keys.c else key_versions)
            bad.append(_bad_version(row, where))
            continue
        if row.id in unreadable:
            bad.append(_bad_version(row, unreadable[row.id]))
            continue
        name = version.key, version.number
        if name in versions:
            bad.append(UnreadableRow("two rows of key_versions have its name", version.name, name))
        versions[name] = version
    for each in bad:
        if each.version is not None:
            versions.pop(each.version, None)
    return list(versions.values()), bad


def _placements(
    rows: Iterable[Row],
) -> tuple[Mapping[int, list[Placement]], Mapping[int, str], list[UnreadableRow]]:
    """Reads rows of ``placements``, by the id of the version's row.

    Returns the placements, where a row cannot be read, and the rows of which the version cannot.
    """
    found: defaultdict[int, list[Placement]] = defaultdict(list)
    unreadable: dict[int, str] = {}
    bad: list[UnreadableRow] = []
    for row in rows:
        version: int | None = None
        try:
            version = whole(row, "version_id")
            placement = Placement(text(row, "token", 32), octets(row, "cka_id"))
            whole(row, "revision")
            in_use = _in_use(row)
        except BadValueError as error:
            if version is None:
                bad.append(UnreadableRow(_where(error, placements)))
            else:
                unreadable[version] = _where(error, placements)
        else:
            if in_use:
                found[version].append(placement)
    return found, unreadable, bad


def _wrapped(
    rows: Iterable[Row], wrapping: Iterable[WrappingKey]
) -> tuple[Mapping[int, WrappedKey], Mapping[int, str], list[UnreadableRow]]:
    """Reads rows of ``wrapped_keys``, as ``_placements`` does those of its table."""
    tokens: defaultdict[str, list[str]] = defaultdict(list)
    for one in wrapping:
        if not one.destroyed:
            tokens[one.id].append(one.token)
    on = {identity: tuple(sorted(labels)) for identity, labels in tokens.items()}
    found: dict[int, WrappedKey] = {}
    unreadable: dict[int, str] = {}
    bad: list[UnreadableRow] = []
    for row in rows:
        version: int | None = None
        try:
            version = whole(row, "version_id")
            wrapping_key = text(row, "wrapping_key", 36)
            whole(row, "revision")
            key = WrappedKey(
                octets(row, "blob", MAX_BLOB),
                octets(row, "sha256", SHA256_BYTES),
                one_of(row, "mechanism", WrapMechanism),
                wrapping_key,
                on.get(wrapping_key, ()),
                optional(_proof, row, "proof") or b"",
            )
        except BadValueError as error:
            if version is None:
                bad.append(UnreadableRow(_where(error, wrapped_keys)))
            else:
                unreadable[version] = _where(error, wrapped_keys)
            continue
        if version in found:
            unreadable[version] = "two rows of wrapped_keys are of one version"
        found[version] = key
    return found, unreadable, bad


def read_wrapping_keys(rows: Iterable[Row]) -> tuple[tuple[WrappingKey, ...], list[UnreadableRow]]:
    """Reads rows of ``wrapping_keys``, by id and token."""

    def read(row: Row) -> WrappingKey:
        return WrappingKey(
            text(row, "id", 36),
            text(row, "token", 32),
            moment(row, "created"),
            truth(row, "destroyed"),
            whole(row, "revision"),
        )

    found, bad = _read_all(rows, wrapping_keys, read)
    return tuple(sorted(found)), bad


def _in_use(row: Row) -> bool:
    state = text(row, "state", 16)
    if state not in (PLACED, REMOVED):
        raise BadValueError("state", f"{PLACED} or {REMOVED}")
    return state == PLACED


def _bad_version(row: Row, where: str) -> UnreadableRow:
    try:
        name, number = _key_name(row), _number(row)
    except BadValueError:
        return UnreadableRow(where)
    return UnreadableRow(where, version_name(name, number), (name, number))


def _key_name(row: Row) -> KeyName:
    if (row.facility, row.key) == (AUDIT_KEY.facility, AUDIT_KEY.key):
        return AUDIT_KEY
    return KeyName(identifier(row, "facility"), identifier(row, "key"))


def _number(row: Row) -> int:
    number = whole(row, "number", _MAX_NUMBER)
    if not number:
        raise BadValueError("number", "a number from 1")
    return number


def _version(
    row: Row, other_placements: tuple[Placement, ...], wrapped: WrappedKey | None
) -> KeyVersion:
    came_from = None if row.came_from is None else one_of(row, "came_from", KeyState)
    return KeyVersion(
        key=_key_name(row),
        number=_number(row),
        algorithm=one_of(row, "algorithm", Algorithm),
        state=one_of(row, "state", KeyState),
        token=text(row, "token", 32),
        cka_id=octets(row, "cka_id"),
        spki=octets(row, "spki"),
        certificate=optional(octets, row, "certificate"),
        kid=octets(row, "kid"),
        thumbprint=text(row, "thumbprint", 43),
        created=moment(row, "created"),
        activate_at=optional(moment, row, "activate_at"),
        sign_until=optional(moment, row, "sign_until"),
        deactivate_at=optional(moment, row, "deactivate_at"),
        destroy_at=optional(moment, row, "destroy_at"),
        came_from=came_from,
        request=optional(text, row, "request"),
        revision=whole(row, "revision"),
        other_placements=other_placements,
        wrapped=wrapped,
    )


def read_officers(rows: Iterable[Row]) -> tuple[dict[str, bytes], list[UnreadableRow]]:
    """Reads rows of ``officers``: certificates by principal."""

    def read(row: Row) -> tuple[str, bytes]:
        return text(row, "principal", 2048), octets(row, "certificate")

    found, bad = _read_all(rows, officers, read)
    return dict(found), bad


def read_suspensions(rows: Iterable[Row]) -> tuple[tuple[Suspension, ...], list[UnreadableRow]]:
    """Reads rows of ``suspensions``; one that cannot be read stops what it is about."""
    found: list[Suspension] = []
    bad: list[UnreadableRow] = []
    for row in rows:
        about: tuple[Scope, str] | None = None
        try:
            about = one_of(row, "scope", Scope), text(row, "name", 63)
            found.append(
                Suspension(
                    *about, moment(row, "since"), text(row, "officer", 2048), text(row, "reason")
                )
            )
        except BadValueError as error:
            what = "" if about is None else f"the suspension of {' '.join(about)}".rstrip()
            where = _where(error, suspensions)
            bad.append(UnreadableRow(where, what, flag=about, stops_all=about is None))
    # Sorted here: the order of text differs between databases.
    return tuple(sorted(found)), bad


def read_acts(rows: Iterable[Row]) -> tuple[list[tuple[int, Act]], list[UnreadableRow]]:
    """Reads rows of ``acts``, each with its revision."""

    def read(row: Row) -> tuple[int, Act]:
        act = Act(
            text(row, "id", 36),
            text(row, "act", 16),
            text(row, "target", 200),
            text(row, "officer", 2048),
            text(row, "reason"),
            moment(row, "at"),
        )
        return whole(row, "revision"), act

    return _read_all(rows, acts, read)


def read_document(rows: Iterable[Row], sha256: str) -> bytes | None:
    """Reads the content of a document, None without a row. Raises OperatorError."""
    for row in rows:
        if isinstance(row.content, bytes | memoryview):
            return bytes(row.content)
        raise OperatorError(
            f"the text {sha256} cannot be read: content of documents is not bytes;"
            " put the row back from the backup"
        )
    return None


def _read_all(
    rows: Iterable[Row], table: sa.Table, read: Callable[[Row], T]
) -> tuple[list[T], list[UnreadableRow]]:
    found: list[T] = []
    bad: list[UnreadableRow] = []
    for row in rows:
        try:
            found.append(read(row))
        except BadValueError as error:
            bad.append(UnreadableRow(_where(error, table)))
    return found, bad


def _where(error: BadValueError, table: sa.Table) -> str:
    return f"{error.column} of {table.name} is not {error.expected}"


def texts_of(unreadable: Iterable[UnreadableRow]) -> Iterator[str]:
    """Yields what cannot be read, each once, as everybody may read it: no names of keys."""
    yield from dict.fromkeys(each.where for each in unreadable)

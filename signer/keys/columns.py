"""Reads single values of the registry's rows, in which somebody may have written anything.

Every value is checked: its type, its range, its length. No text quotes a value. Statements select
``raw`` columns: the library's own conversions trust the types that the columns were declared with,
and SQLite does not enforce them.
"""

import enum
import math
from collections import namedtuple
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, TypeVar

import sqlalchemy as sa

from signer.model import IDENTIFIER

LATEST = 253_402_300_799  # the end of the year 9999, in seconds since the epoch
MOST = 1 << 61
"""The highest revision that is served. A writer goes further, so that no number which somebody
puts there makes officers' stops fail: what they write is then a reason to stop everything."""
MAX_OCTETS = 1 << 16  # of a certificate, a public key or an id
MAX_TEXT = 1 << 20  # characters of a column without a declared length

T = TypeVar("T")
E = TypeVar("E", bound=enum.StrEnum)
Row = Any
"""A row of the registry, with its columns as attributes."""


class BadValueError(ValueError):
    """A value that cannot be read: its column, and what was expected."""

    def __init__(self, column: str, expected: str) -> None:
        super().__init__(f"{column} is not {expected}")
        self.column, self.expected = column, expected


def raw(*tables: sa.Table) -> list[sa.ColumnElement[Any]]:
    """Returns the columns of tables for a statement; their values come as the database has them."""
    return [
        sa.type_coerce(column, sa.types.NullType()).label(column.name)
        for table in tables
        for column in table.c
    ]


def named_rows(result: sa.CursorResult[Any]) -> Sequence[Row]:
    """Returns the rows of a statement as named tuples, of which a value is read much faster.

    Of thousands of keys each has twenty values.
    """
    make = _named(tuple(result.keys()))._make
    return [make(row) for row in result.all()]


@cache
def _named(columns: tuple[str, ...]) -> Any:
    return namedtuple("NamedRow", columns)  # noqa: PYI024 - the names are those of a statement


@cache
def _members(values: type[E]) -> Mapping[str, E]:
    return {str(member): member for member in values}


def whole(row: Row, column: str, most: int = MOST) -> int:
    """Returns a number from 0. Raises BadValueError, as all of these functions."""
    value = getattr(row, column)
    if type(value) is not int or not 0 <= value <= most:
        raise BadValueError(column, f"a whole number from 0 to {most}")
    return value


def moment(row: Row, column: str) -> float:
    """Returns a time in seconds since the epoch."""
    value = getattr(row, column)
    number = type(value) is float or type(value) is int
    if not number or not math.isfinite(value) or not 0 <= value <= LATEST:
        raise BadValueError(column, "a time")
    return float(value)


def text(row: Row, column: str, most: int = MAX_TEXT) -> str:
    """Returns a text of at most ``most`` characters."""
    value = getattr(row, column)
    if type(value) is not str or len(value) > most or "\0" in value:
        raise BadValueError(column, f"a text of at most {most} characters")
    return value


def octets(row: Row, column: str, most: int = MAX_OCTETS) -> bytes:
    """Returns at most ``most`` bytes."""
    value = getattr(row, column)
    if not isinstance(value, bytes | memoryview) or len(value) > most:
        raise BadValueError(column, f"at most {most} bytes")
    return bytes(value)


def truth(row: Row, column: str) -> bool:
    """Returns a truth value, which SQLite stores as 0 or 1."""
    value = getattr(row, column)
    if value not in (0, 1) or not isinstance(value, int):
        raise BadValueError(column, "true or false")
    return bool(value)


def one_of(row: Row, column: str, values: type[E]) -> E:
    """Returns a member of an enumeration."""
    value = getattr(row, column)
    member: E | None = _members(values).get(value) if type(value) is str else None
    if member is None:
        raise BadValueError(column, f"a {values.__name__}")
    return member


def optional(read: Callable[[Row, str], T], row: Row, column: str) -> T | None:
    """Returns what ``read`` returns, None for NULL."""
    return None if getattr(row, column) is None else read(row, column)


def identifier(row: Row, column: str) -> str:
    """Returns the id of a facility or a key."""
    value = text(row, column, 63)
    if not IDENTIFIER.fullmatch(value):
        raise BadValueError(column, "an id")
    return value

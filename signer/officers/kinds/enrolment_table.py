"""The CSV of an enrolment: what its lines may say, and everything that is wrong in it. Pure."""

import csv
import io
import re
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from typing import NamedTuple

from signer.algorithms import Algorithm
from signer.errors import OperatorError
from signer.keys.lifecycle import NewKey, check_bits
from signer.model import IDENTIFIER, KeyName
from signer.officers.kinds.operation_context import OperationError
from signer.policy import values
from signer.text import count

# The columns of the CSV; spaces separate `clients`, `group` and `bits` may be empty.
COLUMNS = ("facility", "group", "profile", "clients", "key", "algorithm", "bits")
# Columns that a CSV may have besides: they narrow the profile. Empty: as in the profile.
NARROWING = ("quotas", "hours")
MAX_ROWS = 50_000


class EnrolmentRow(NamedTuple):
    """One line: a facility and one of its keys."""

    line: int
    facility: str
    group: str
    profile: str
    clients: tuple[str, ...]
    quotas: tuple[str, ...]
    hours: str
    new: NewKey

    @property
    def of_facility(self) -> tuple[object, ...]:
        """What all lines of a facility must have in common."""
        return self.group, self.profile, self.clients, self.quotas, self.hours


class WrongRow(NamedTuple):
    """A line that cannot be used, with what the policy may find wrong in it besides."""

    line: int
    facility: str
    group: str
    profile: str
    clients: tuple[str, ...]


class Mistake(NamedTuple):
    """What is wrong in a line of the CSV."""

    line: int
    text: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.text}"


@lru_cache(maxsize=1)
def read_rows(content: bytes) -> tuple[EnrolmentRow, ...]:
    """Reads a CSV; raises OperationError with everything that is wrong in it.

    The last one is kept: an enrolment is written and judged in hundreds of parts, and to read
    15,000 lines takes longer than to create the keys of a part.
    """
    rows, _, mistakes = read_table(content)
    if mistakes:
        raise OperationError(*map(str, mistakes))
    return tuple(rows)


def read_table(content: bytes) -> tuple[list[EnrolmentRow], list[WrongRow], list[Mistake]]:
    """Reads a CSV, with commas, semicolons or tabs.

    Returns the lines that can be used, the others that have all cells, and all mistakes. Raises
    OperationError if it has no lines or not the columns.
    """
    if content.startswith((BOM_UTF16_LE, BOM_UTF16_BE)) or b"\0" in content:
        raise OperationError("attachment: is in UTF-16: save it as CSV in UTF-8")
    try:
        text = content.decode("utf-8-sig")
        head = text.partition("\n")[0]
        delimiter = max(",;\t", key=head.count)
        table = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        lines = [(table.line_num, line) for line in table if any(map(str.strip, line))]
    except (UnicodeDecodeError, csv.Error) as error:
        raise OperationError(f"attachment: is not a CSV in UTF-8: {error}") from None
    columns = [cell.strip() for cell in lines[0][1]] if lines else []
    known = {*COLUMNS, *NARROWING}
    if not {*COLUMNS} <= {*columns} <= known or len({*columns}) < len(columns):
        missing, odd = [c for c in COLUMNS if c not in columns], sorted({*columns} - known)
        raise OperationError(
            f"attachment: the first line must be {','.join(COLUMNS)}, and may have"
            f" {' and '.join(NARROWING)} besides"
            + (f"; missing: {', '.join(missing)}" if missing else "")
            + (f"; not known: {', '.join(cell[:40] for cell in odd[:10])}" if odd else "")
        )
    if not 1 < len(lines) <= MAX_ROWS + 1:
        raise OperationError(
            f"attachment: has {count(len(lines) - 1, 'row')}, expected 1 to {MAX_ROWS}"
        )
    rows: list[EnrolmentRow] = []
    wrong: list[WrongRow] = []
    mistakes: list[Mistake] = []
    for number, cells in lines[1:]:
        if len(cells) != len(columns):
            text = f"has {count(len(cells), 'cell')}, expected {len(columns)}"
            mistakes.append(Mistake(number, text))
            continue
        row = _row(number, dict(zip(columns, map(str.strip, cells), strict=True)), mistakes)
        if isinstance(row, WrongRow):
            wrong.append(row)
        else:
            rows.append(row)
    return rows, wrong, sorted([*mistakes, *_conflicts(rows)])


def _row(number: int, cells: Mapping[str, str], mistakes: list[Mistake]) -> EnrolmentRow | WrongRow:
    """Reads the cells of a line; adds the mistakes in them."""
    known = len(mistakes)

    def check(read: Callable[[], object]) -> None:
        try:
            read()
        except (ValueError, OperatorError) as error:
            mistakes.append(Mistake(number, str(error)))

    facility, key, bits = cells["facility"], cells["key"], cells["bits"]
    for name in ("facility", "key"):
        check(partial(_identifier, name, cells[name]))
    check(partial(_algorithm, cells["algorithm"]))
    check(partial(_bits, bits))
    clients = tuple(cells["clients"].split())
    check(partial(_clients, clients))
    quotas = tuple(filter(None, map(str.strip, re.split("[,;]", cells.get("quotas", "")))))
    check(lambda: values.quotas(list(quotas)))
    hours = cells.get("hours", "")
    if hours:
        check(partial(_hours, hours))
    of_facility = facility, cells["group"], cells["profile"], clients
    wrong = WrongRow(number, *of_facility)
    if cells["algorithm"] not in list(Algorithm) or not _is_number(bits):
        return wrong
    new = NewKey(KeyName(facility, key), Algorithm(cells["algorithm"]), int(bits or 0))
    check(partial(check_bits, new))
    if len(mistakes) > known:
        return wrong
    return EnrolmentRow(number, *of_facility, quotas, hours, new)


def _identifier(name: str, text: str) -> None:
    if not IDENTIFIER.fullmatch(text):
        raise ValueError(f"{name} must have 1 to 63 characters of a-z, 0-9, '.', '_' and '-'")


def _algorithm(text: str) -> None:
    if text not in list(Algorithm):
        raise ValueError(f"algorithm must be one of {', '.join(Algorithm)}")


def _is_number(bits: str) -> bool:
    return not bits or (bits.isascii() and bits.isdigit() and len(bits) <= 5)


def _bits(text: str) -> None:
    if not _is_number(text):
        raise ValueError("bits is not a number")


def _clients(clients: Sequence[str]) -> None:
    if not clients:
        raise ValueError("clients is empty: nobody could use the key")
    values.principals(list(clients))


def _hours(text: str) -> None:
    try:
        values.opening_hours(text)
    except ValueError as error:
        raise ValueError(
            f"hours {text[:100]}: {error}; write for instance"
            " mon-fri 07:00-17:30; sat 07:00-12:00 Asia/Ho_Chi_Minh"
        ) from None


def _conflicts(rows: Sequence[EnrolmentRow]) -> Iterator[Mistake]:
    """Yields the lines that name a key twice, or a facility with other columns."""
    names = Counter(row.new.name for row in rows)
    first: dict[str, EnrolmentRow] = {}
    for row in rows:
        if names[row.new.name] > 1:
            yield Mistake(row.line, f"{row.new.name} is in the file twice")
        same = first.setdefault(row.facility, row)
        if same.of_facility != row.of_facility:
            yield Mistake(
                row.line,
                f"facility {row.facility} has another group, profile, clients, quotas or hours"
                f" than in line {same.line}",
            )

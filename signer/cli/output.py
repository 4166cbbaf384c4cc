"""How commands print what they return: for people, or as JSON with ``--json``."""

import functools
import json
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import click

from signer.cli.options import AS_JSON, json_option
from signer.errors import ConfigError, OperatorError
from signer.text import plain, plain_lines

T = TypeVar("T")


def output(
    as_value: Callable[[T], Any],
    show: Callable[[T], None],
    *,
    ok: Callable[[T], bool] = lambda _: True,
) -> Callable[[Callable[..., T]], Callable[..., None]]:
    """Adds ``--json`` to a command that returns what it found or did, and prints that.

    With ``--json`` it prints ``as_value`` of it, else it calls ``show`` with it. The exit
    code is 1 if it is not ``ok``.
    """

    def decorate(command: Callable[..., T]) -> Callable[..., None]:
        @json_option
        @functools.wraps(command)
        def wrapped(*, as_json: bool, **options: Any) -> None:
            result = command(**options)
            if as_json:
                print_json(as_value(result))
            else:
                show(result)
            if not ok(result):
                sys.exit(1)

        return wrapped

    return decorate


def refusal_value(error: OperatorError | ConfigError) -> dict[str, object]:
    """Returns what a program reads of a refusal: the text, and the reason and fields if known."""
    value: dict[str, object] = {"message": str(error)}
    # Of a SignerClientError, whose module takes time to import.
    call = vars(error.__cause__) if error.__cause__ else {}
    value |= {name: call[name] for name in ("code", "reason", "metadata") if name in call}
    found = error.problems if isinstance(error, ConfigError) else call.get("violations", ())
    return {**value, "problems": [{"path": p.field, "problem": p.description} for p in found]}


def say(text: object = "", *, err: bool = False, newline: bool = True) -> None:
    """Prints lines of text on stdout or stderr, without characters that control a terminal.

    A text from elsewhere may contain line breaks, too: ``plain`` keeps it in its line.
    """
    click.echo(plain_lines(str(text)), err=err, nl=newline)


def put(content: bytes) -> None:
    """Writes exactly these bytes on stdout, for a file or a program; a terminal gets text."""
    if sys.stdout.isatty():
        say(content.decode(errors="replace"), newline=False)
    else:
        click.echo(content, nl=False)


def print_text(text: str, indent: str = "") -> None:
    """Prints sentences in lines of 80 columns; ``indent`` begins the lines after the first."""
    say(textwrap.fill(plain(text), 80, subsequent_indent=indent, break_on_hyphens=False))


def print_json(value: Any, *, indent: int | None = 2, **options: Any) -> None:
    """Prints one JSON value on stdout, in one line without ``indent``; ``options`` as json has.

    A program that has got an answer gets no JSON of a refusal after it.
    """
    say(json.dumps(value, indent=indent, **options))
    if (ctx := click.get_current_context(silent=True)) is not None:
        ctx.meta[AS_JSON] = False


def print_table(columns: Sequence[str], rows: Iterable[Iterable[object]]) -> None:
    """Prints rows under the names of their columns: ruled on a terminal, ASCII elsewhere.

    No cell controls the terminal, wherever its text comes from. A list is a cell of several
    lines. A terminal folds long cells. Elsewhere, where a table is wider than 80 columns, or than
    COLUMNS says, each row is a paragraph instead: its first line can be searched for.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    terminal = sys.stdout.isatty()
    cells = [[_cell(cell) for cell in row] for row in rows]
    table = Table(box=box.SIMPLE if terminal else box.ASCII)
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=not terminal)
    for row in cells:
        table.add_row(*map(Text, row))
    console = Console()
    if not terminal and _width(columns, cells) > console.width:
        for row in cells:
            _print_paragraph(columns, row, console.width)
    else:
        console.print(table)


def _width(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> int:
    """Returns how wide a table in ASCII is: each cell has a rule and two blanks."""
    from rich.cells import cell_len

    widths = [
        max(cell_len(line) for cell in column for line in cell.split("\n"))
        for column in zip(columns, *cells, strict=True)
    ]
    return sum(widths) + 3 * len(widths) + 1


def _print_paragraph(columns: Sequence[str], row: Sequence[str], width: int) -> None:
    """Prints a row: as many cells as fit into its first line, then one a line with its column."""
    head = ""
    rest = list(zip(columns, row, strict=True))
    while rest and len(head) + len(rest[0][1]) + 2 <= width and "\n" not in rest[0][1]:
        cell = rest.pop(0)[1]
        head += f"  {cell}" if head and cell else cell
    say(head)
    for column, cell in rest:
        for line in filter(None, cell.split("\n")):
            print_text(f"  {column}: {line}" if column else f"  {line}", "    ")


def _cell(value: object) -> str:
    return "\n".join(plain(str(line)) for line in (value if isinstance(value, list) else [value]))


def print_values(values: Mapping[str, Any], as_json: bool = False) -> None:
    """Prints values under their names on stdout, one a line or as one JSON object."""
    if as_json:
        print_json(values)
        return
    width = max(map(len, values), default=0)
    for name, value in values.items():
        if value is not None:
            text = json.dumps(value) if isinstance(value, dict | list) else value
            say(f"{name:<{width}}  {plain(str(text))}")


@contextmanager
def explained(path: Path, verb: str) -> Iterator[None]:
    """Turns an OSError into an OperatorError: ``path`` cannot be read, written or made."""
    try:
        yield
    except OSError as error:
        raise OperatorError(f"{path} cannot be {verb}: {error.strerror}") from error


def write_file(path: Path, content: bytes) -> None:
    """Writes a file; raises OperatorError."""
    with explained(path, "written"):
        path.write_bytes(content)


@contextmanager
def new_folder(path: Path | None) -> Iterator[None]:
    """Creates the folder of what a command writes if it does not exist, and says so.

    If the command fails before it has written anything, the folder goes again. Its parent must
    exist: a mistyped path does not become a tree of new folders. Raises OperatorError. None: the
    command writes into no folder.
    """
    if path is None or path.is_dir():
        yield
        return
    with explained(path, "made"):
        path.mkdir()
    try:
        yield
    except BaseException:
        with suppress(OSError):
            path.rmdir()  # only if it is empty
        raise
    finally:
        if path.is_dir():
            say(f"{path} is a new folder", err=True)

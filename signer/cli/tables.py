"""Tables for eyes: ruled on a terminal, plain ASCII elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

PIPED_COLUMNS = 10_000


def print_table(columns: Sequence[str], rows: Iterable[Iterable[object]]) -> None:
    """Prints rows under the names of their columns on stdout."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    terminal = sys.stdout.isatty()
    table = Table(box=box.SIMPLE if terminal else box.ASCII)
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=not terminal)
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    Console(width=None if terminal else PIPED_COLUMNS).print(table)

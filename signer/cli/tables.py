"""Tables and values for eyes: ruled on a terminal, plain ASCII elsewhere."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click

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


def print_values(values: Mapping[str, Any], as_json: bool = False) -> None:
    """Prints values under their names on stdout, one a line or as one JSON object."""
    if as_json:
        click.echo(json.dumps(values, indent=2))
        return
    width = max(map(len, values), default=0)
    for name, value in values.items():
        if value is not None:
            text = json.dumps(value) if isinstance(value, dict | list) else value
            click.echo(f"{name:<{width}}  {text}")

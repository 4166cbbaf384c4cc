"""Progress of a command, on stderr: a bar on a terminal, lines or nothing elsewhere."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from signer.cli.output import say
from signer.text import plain


class Advance(Protocol):
    """Shows that ``done`` of ``total`` are done; None: the total is not known."""

    def __call__(self, done: int, total: int | None, doing: str = ..., /) -> None:
        """``doing`` replaces the label of the bar."""


@contextmanager
def progress(
    doing: str, *, line: Callable[[int, int | None, str], str] | None = None, hidden: bool = False
) -> Iterator[Advance]:
    """Yields the function that shows progress under the label ``doing``.

    Where stderr is not a terminal, each new text of ``line`` is printed; "" prints nothing.
    ``hidden`` hides the bar: what the command prints is on the same terminal.
    """
    if not sys.stderr.isatty() or hidden:
        last = ""

        def print_line(done: int, total: int | None, label: str = doing, /) -> None:
            nonlocal last
            text = line(done, total, label) if line is not None else ""
            if text and text != last:
                say(text, err=True)
                last = text

        yield print_line
        return
    from rich import progress as rich
    from rich.console import Console

    columns = (
        rich.TextColumn("{task.description}", markup=False),
        rich.BarColumn(),
        rich.MofNCompleteColumn(),
        rich.TimeElapsedColumn(),
        "eta",
        rich.TimeRemainingColumn(),
    )
    with rich.Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(doing, total=None)

        def show(done: int, total: int | None, label: str = doing, /) -> None:
            bars.update(task, completed=done, total=total, description=plain(label))

        yield show

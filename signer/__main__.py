"""The program ``signer``; ``python -m signer`` is the same."""

import atexit
import gc
import sys
import warnings
from typing import NoReturn

from signer.cli import main as commands


def main() -> NoReturn:
    """Runs the command line."""
    if not sys.warnoptions:
        # Warnings of libraries are for developers, who ask for them by -W; a daemon logs them.
        warnings.showwarning = _unsaid
    # Imported modules are not garbage: collecting among them again and again, and once more
    # at the end, takes a third of a short command's time.
    gc.set_threshold(50_000)  # new objects; Python's default is 700
    atexit.register(gc.freeze)
    commands.main()


def _unsaid(*_: object, **__: object) -> None:
    """Shows no warning."""


if __name__ == "__main__":
    main()

"""The program ``signer``, as a process of its own; ``python -m signer`` is the same."""

from __future__ import annotations

import atexit
import gc
from typing import NoReturn

from signer.cli import main as commands

_GARBAGE = 50_000
"""How many objects more than before have Python look for garbage among them, 700 by default."""


def main() -> NoReturn:
    """Runs the command line."""
    # What a command imports is no garbage: to look through it again and again, and once more
    # at the end, takes a third of a short command's time.
    gc.set_threshold(_GARBAGE)
    atexit.register(gc.freeze)
    commands.main()


if __name__ == "__main__":
    main()

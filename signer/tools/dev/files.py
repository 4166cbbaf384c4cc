"""Files that appear whole or not at all, with their mode from the first byte on."""

from __future__ import annotations

import os
from pathlib import Path

SECRET = 0o600
PUBLIC = 0o644


def write(path: Path, content: str | bytes, mode: int = PUBLIC) -> None:
    """Writes a file in the place of what is there."""
    data = content.encode() if isinstance(content, str) else content
    draft = path.with_name(f".{path.name}.draft")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
    draft.replace(path)


def write_once(path: Path, content: str | bytes, mode: int = PUBLIC) -> None:
    """Writes a file unless it is there."""
    if not path.exists():
        write(path, content, mode)

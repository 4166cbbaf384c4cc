"""Reads ``signer.yaml``."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from signer.config.models import Config
from signer.config.strict_yaml import MAX_CONFIG_BYTES, document_of, read_bounded, refuse, together
from signer.errors import Violation
from signer.strict import problems_of


def load_config(path: Path) -> Config:
    """Reads the daemon's configuration; raises ConfigError with all that is wrong.

    Relative paths and SQLite files count from the folder of the file.
    """
    unread: list[Violation] = []
    document = document_of(read_bounded(path, MAX_CONFIG_BYTES), path, unread)
    try:
        config = Config.model_validate(document, context={"directory": path.absolute().parent})
    except ValidationError as error:
        refuse(path, together(unread, problems_of(error, "")))
    if unread:
        refuse(path, unread)
    return config

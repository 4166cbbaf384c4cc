"""The strict base of everything that is read from YAML or JSON, and its error texts."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, ValidationError

from signer.errors import Violation


class StrictModel(BaseModel):
    """Exact types, no unknown names, never changed once read."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


def dotted(path: str, parts: Sequence[str | int]) -> str:
    """Returns a dotted path: ``open`` and 0 below ``hours`` give ``hours.open[0]``."""
    for part in parts:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path


def problems_of(error: ValidationError, path: str) -> list[Violation]:
    """Returns one problem for each error in a part of a document; ``path`` is that of the part."""
    return [
        Violation(
            dotted(path, [part for part in details["loc"] if part != "[key]"]),
            _WORDS.get(details["type"]) or details["msg"].removeprefix("Value error, "),
        )
        for details in error.errors(include_url=False)
    ]


_WORDS = {
    "extra_forbidden": "is not known here; check the spelling",
    "missing": "is missing",
    "string_type": "should be text: put it in quotes",
    "model_type": "should be a mapping of names to values",
    "dict_type": "should be a mapping of names to values",
    "list_type": "should be a list",
    "bool_type": "should be true or false",
    "int_type": "should be a whole number, without quotes",
}

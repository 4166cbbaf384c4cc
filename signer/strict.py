"""The strict base of everything that is read from YAML or JSON, and its error texts."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from signer.errors import Violation
from signer.text import IS_MISSING, IS_NOT_TEXT, IS_UNKNOWN, dotted


class StrictModel(BaseModel):
    """Exact types, no unknown names, never changed once read."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


def problems_of(error: ValidationError, path: str) -> list[Violation]:
    """Returns one problem for each error in a part of a document; ``path`` is that of the part."""
    return [
        Violation(
            dotted(path, [part for part in details["loc"] if part != "[key]"]), _problem(details)
        )
        for details in error.errors(include_url=False)
    ]


def _problem(details: Mapping[str, Any]) -> str:
    words, message = _WORDS.get(details["type"]), str(details["msg"])
    if words is None:
        return message.removeprefix("Value error, ").removeprefix("Input ")
    return words.format(**details.get("ctx", {}))


_WORDS = {
    "extra_forbidden": IS_UNKNOWN,
    "missing": IS_MISSING,
    "string_type": IS_NOT_TEXT,
    "model_type": "should be a mapping of names to values",
    "dict_type": "should be a mapping of names to values",
    "list_type": "should be a list",
    "bool_type": "should be true or false",
    "int_type": "should be a whole number, without quotes",
    "float_type": "should be a number, without quotes",
    "greater_than": "should be more than {gt}",
    "greater_than_equal": "should be at least {ge}",
    "less_than_equal": "should be at most {le}",
}

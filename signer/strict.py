"""The strict base of everything that is read from YAML or JSON, and its error texts."""

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
            dotted(path, [part for part in details["loc"] if part != "[key]"]),
            _WORDS.get(details["type"]) or details["msg"].removeprefix("Value error, "),
        )
        for details in error.errors(include_url=False)
    ]


_WORDS = {
    "extra_forbidden": IS_UNKNOWN,
    "missing": IS_MISSING,
    "string_type": IS_NOT_TEXT,
    "model_type": "should be a mapping of names to values",
    "dict_type": "should be a mapping of names to values",
    "list_type": "should be a list",
    "bool_type": "should be true or false",
    "int_type": "should be a whole number, without quotes",
}

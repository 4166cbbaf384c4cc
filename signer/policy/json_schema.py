"""JSON schemas of payloads: which ones are accepted, and what of a payload breaks one.

Officers write schemas, callers write payloads. A schema is bounded, so that no payload takes long:
references lead to the schema itself and not in a circle, and it has no regular expressions.
Faults name members and keywords of the schema, never a value of the payload.
"""

import re
from collections.abc import Iterator, Mapping
from datetime import date, datetime
from functools import partial
from typing import Any

import jsonschema
import referencing

from signer.format_terms import ContentSchema, PayloadFault

_DRAFT = "https://json-schema.org/draft/2020-12/schema"
MOST_PARTS = 400
"""Schemas inside a schema, those that references lead to counted each time; 50 values of an
enum count as one. With so many a payload may still have 50 values."""
MOST_LEVELS = 32
"""Mappings and lists of a schema inside each other."""
MOST_DEPTH = 100
"""Schemas inside each other, through references too."""
MOST_VALUES = 512
"""Values of a payload, those inside of others counted too."""
MOST_STEPS = 20_000
"""Values of a payload times parts of the schema: each may be compared with each."""

_NAMED = frozenset({"properties", "$defs", "definitions"})  # mappings of names to schemas
_LISTED = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
_ONE = frozenset({"items", "additionalProperties", "not", "if", "then", "else"})
_VALUES = frozenset(
    {
        *("type", "enum", "const", "required", "format", "dependentRequired"),
        *("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"),
        *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    }
)
_NOTES = frozenset(
    {
        *("$schema", "$id", "$comment", "title", "description", "default", "examples"),
        *("deprecated", "readOnly", "writeOnly"),
    }
)
_KNOWN = _NAMED | _LISTED | _ONE | _VALUES | _NOTES | {"$ref"}


_REFERENCE = re.compile(r"#/(\$defs|definitions)/([A-Za-z0-9._-]+)")


class BadSchema(ValueError):
    """A JSON schema that is not accepted; it says what in it is wrong, and where."""


def read_schema(name: str, schema: object) -> ContentSchema:
    """Returns a schema that payloads can be compared with. Raises BadSchema."""
    if not isinstance(schema, dict):
        raise BadSchema("should be a mapping: a JSON schema")
    if schema.get("$schema", _DRAFT) != _DRAFT:
        raise BadSchema(f"has another $schema: it should be {_DRAFT}, or be left out")
    _check_levels(schema, MOST_LEVELS)
    kind: Any = jsonschema.Draft202012Validator
    try:
        kind.check_schema(schema)
    except jsonschema.SchemaError as error:
        place = ".".join(map(str, error.absolute_path)) or "it"
        raise BadSchema(f"is not a JSON schema: {place} breaks {error.validator}") from None
    names: set[str] = set()
    parts = 0
    for part in _parts(schema, schema, (), ()):
        parts += 1 + len(part.get("enum", ())) // 50  # which are compared quickly
        if parts > MOST_PARTS:
            raise BadSchema(f"has more than {MOST_PARTS} schemas inside each other")
        names |= part.get("properties", {}).keys()
    checker = kind(schema, format_checker=_FORMATS, registry=referencing.Registry())
    most = min(MOST_VALUES, MOST_STEPS // parts)
    return ContentSchema(name, partial(_fault, checker, frozenset(names), most))


def _check_levels(value: object, left: int) -> None:
    """Raises BadSchema for what is too deep, and for names that are not text."""
    if not left:
        raise BadSchema(f"has more than {MOST_LEVELS} levels")
    if isinstance(value, dict):
        if wrong := [name for name in value if not isinstance(name, str)]:
            raise BadSchema(f"has the name {wrong[0]}, which is not text: write it in quotes")
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            _check_levels(each, left - 1)


def _parts(
    schema: Any, whole: Mapping[str, Any], place: tuple[str, ...], within: tuple[str, ...]
) -> Iterator[Mapping[str, Any]]:
    """Yields a valid schema and all inside of it; ``within`` are the references that lead here."""
    if isinstance(schema, bool):
        return
    where = f"{'.'.join(place)} " if place else ""
    if len(place) > MOST_DEPTH:
        raise BadSchema(f"has more than {MOST_DEPTH} levels, those of references counted too")
    for keyword in sorted(schema.keys() - _KNOWN):
        raise BadSchema(f"{where}has {keyword}, which is not checked here: leave it out")
    if place and "$id" in schema:
        raise BadSchema(f"{where}has $id: only the whole schema may have one")
    yield schema
    for name, each in _inner(schema):
        yield from _parts(each, whole, (*place, name), within)
    if "$ref" in schema:
        reference = str(schema["$ref"])
        if reference in within:
            raise BadSchema(f"{where}refers to {reference}, which it is in")
        target = _target(reference, whole, where)
        yield from _parts(target, whole, (*place, "$ref"), (*within, reference))


def _inner(schema: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yields the schemas directly inside of one, with where they are."""
    for keyword, value in schema.items():
        if keyword in _NAMED:
            yield from ((f"{keyword}.{name}", each) for name, each in value.items())
        elif keyword in _LISTED:
            yield from ((f"{keyword}.{index}", each) for index, each in enumerate(value))
        elif keyword in _ONE:
            yield keyword, value


def _target(reference: str, whole: Mapping[str, Any], where: str) -> Any:
    """Returns what a reference leads to: a schema of $defs or definitions; raises BadSchema."""
    found = _REFERENCE.fullmatch(reference)
    if found is None:
        raise BadSchema(
            f"{where}refers to {reference}: references should be #/$defs/NAME or #/definitions/NAME"
        )
    target = whole.get(found[1], {}).get(found[2])
    if target is None:
        raise BadSchema(f"{where}refers to {reference}, which the schema does not have")
    return target


def _count(value: object) -> int:
    """Returns how many values a document has, itself and those inside of it."""
    if isinstance(value, dict):
        return 1 + sum(map(_count, value.values()))
    return 1 + sum(map(_count, value)) if isinstance(value, list) else 1


def _fault(checker: Any, names: frozenset[str], most: int, document: object) -> PayloadFault | None:
    """Returns the first thing in which a document breaks the schema."""
    if (values := _count(document)) > most:
        return PayloadFault("", f"has {values} values, and with this schema it may have {most}")
    try:
        error = next(checker.iter_errors(document), None)
    except (ArithmeticError, LookupError, RecursionError, TypeError, ValueError):
        return PayloadFault("", "cannot be compared with the schema")
    if error is None:
        return None
    path = [str(p) if isinstance(p, int) or p in names else "*" for p in error.absolute_path]
    if error.validator == "required":
        absent = [name for name in error.validator_value if name not in error.instance]
        return PayloadFault(".".join([*path, *absent[:1]]), "is missing")
    if error.validator == "type":
        kinds = error.validator_value
        listed = kinds if isinstance(kinds, str) else " or ".join(kinds)
        return PayloadFault(".".join(path), f"should be of the type {listed}")
    # Where a schema is false there is no keyword.
    keyword = error.validator or "false"
    return PayloadFault(".".join(path), f'breaks "{keyword}" of the schema')


_DATE = re.compile(r"\d{4}-\d\d-\d\d")
_TIME = re.compile(  # no 24:00, which RFC 3339 does not have and newer versions of Python read
    r"\d{4}-\d\d-\d\dT(?:[01]\d|2[0-3]):\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:\d\d)"
)


def _is_date(value: object) -> bool:
    """Whether a text is a day of the calendar; other values are not checked."""
    return not isinstance(value, str) or bool(_DATE.fullmatch(value) and date.fromisoformat(value))


def _is_time(value: object) -> bool:
    """Whether a text is a time with an offset; other values are not checked."""
    if not isinstance(value, str):
        return True
    return bool(_TIME.fullmatch(value) and datetime.fromisoformat(value))


_FORMATS = jsonschema.FormatChecker(formats=())
_FORMATS.checkers = {"date": (_is_date, ValueError), "date-time": (_is_time, ValueError)}

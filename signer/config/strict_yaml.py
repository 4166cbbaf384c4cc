"""Reads the plain subset of YAML that is accepted into plain values.

Mappings, lists, texts, true and false, decimal numbers; no anchors, aliases, tags,
merge keys or empty values, and no key twice. What YAML 1.1 would silently read as
something else (20:00 is 1200 to it, and NO is false) is refused with the advice to
put it in quotes.
"""

import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

import yaml

from signer.errors import ConfigError, Violation
from signer.text import dotted

MAX_CONFIG_BYTES = 1 << 20
MAX_PROBLEMS = 50  # reported at once
MAX_DEPTH = 16  # of mappings and lists inside each other

_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]{0,17})")
_DECIMAL = re.compile(r"-?(?:0|[1-9][0-9]{0,17})\.[0-9]{1,18}")
_SEXAGESIMAL = re.compile(r"[-+]?[0-9]+(:[0-9]+)+")  # YAML 1.1 reads 20:00 as 1200
_TEXT_TAGS = frozenset({"tag:yaml.org,2002:str", "tag:yaml.org,2002:timestamp"})
_ABSENT = object()  # in place of a refused or missing value

_RESOLVER = yaml.resolver.Resolver()
_Loader: type[yaml.SafeLoader | yaml.CSafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def refuse(path: Path, problems: list[Violation]) -> NoReturn:
    reported = problems[:MAX_PROBLEMS]
    if len(problems) > MAX_PROBLEMS:
        reported.append(Violation("", f"and {len(problems) - MAX_PROBLEMS} more"))
    raise ConfigError(str(path), reported)


def together(unread: list[Violation], problems: list[Violation]) -> list[Violation]:
    """Joins problems, without those that only follow from a value that could not be read."""
    fields = {problem.field for problem in unread}
    return unread + [problem for problem in problems if problem.field not in fields]


def read_bounded(path: Path, limit: int) -> bytes:
    """Reads a file of at most ``limit`` bytes; raises ConfigError."""
    try:
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        refuse(path, [Violation("", f"cannot be read: {error.strerror}")])
    if len(content) > limit:
        refuse(path, [Violation("", f"is too large: at most {limit} bytes are allowed here")])
    return content


def document_of(content: bytes, file: Path, problems: list[Violation]) -> dict[str, object]:
    """Returns the mapping that a YAML text must be; adds mistakes to ``problems``."""
    try:
        document = _Reader(content.decode(), file, problems).document()
    except UnicodeDecodeError as error:
        text = f"is not UTF-8: look at byte {error.start}"
    except yaml.MarkedYAMLError as error:
        text = f"{error.problem or error.context}{_line(error.problem_mark)}"
    except yaml.YAMLError as error:
        text = str(error).splitlines()[0]
    else:
        if isinstance(document, dict):
            return document
        text = "should be a mapping of names to values"
    refuse(file, [*problems, Violation("", f"{file.name}: {text}")])


def _line(mark: Any) -> str:  # a position in the text, of either YAML parser, or None
    return f" (line {mark.line + 1})" if mark else ""


@lru_cache(maxsize=256)
def _tag(text: str) -> str:
    """Returns what YAML takes a text without quotes for; most texts come again and again."""
    resolve: Callable[..., str] = _RESOLVER.resolve
    return resolve(yaml.ScalarNode, text, (True, False))


class _Reader:
    """Builds plain values from the events of YAML, and reports refused ones with their lines."""

    def __init__(self, text: str, file: Path, problems: list[Violation]) -> None:
        self._next: Callable[[], Any] = _Loader(text).get_event
        self._file = file
        self._problems = problems
        self._path: list[str | int] = []

    def document(self) -> object:
        """Returns the value of the one document; raises YAMLError if the syntax is wrong."""
        self._next()  # the stream begins
        if isinstance(self._next(), yaml.StreamEndEvent):
            return _ABSENT
        value = self._value(self._next())
        self._next()  # the document ends
        event = self._next()
        if not isinstance(event, yaml.StreamEndEvent):
            self._wrong(event, "a second document begins here: write one document per file")
        return value

    def _value(self, event: yaml.Event) -> object:
        if type(event) is yaml.ScalarEvent and event.anchor is None and event.tag is None:
            return self._scalar(event)  # nearly all, and of 15,000 facilities
        if getattr(event, "anchor", None) is not None:
            self._wrong(event, "anchors and aliases are not allowed: write the value out")
        if isinstance(event, yaml.AliasEvent):
            return _ABSENT
        if getattr(event, "tag", None) is not None:
            self._wrong(event, "tags are not allowed: remove it")
        if isinstance(event, yaml.ScalarEvent):
            return self._scalar(event)
        if len(self._path) >= MAX_DEPTH:
            self._stop(event, f"lists and mappings are nested deeper than {MAX_DEPTH} levels")
        return self._list() if isinstance(event, yaml.SequenceStartEvent) else self._mapping()

    def _list(self) -> list[object]:
        values: list[object] = []
        while not isinstance(event := self._next(), yaml.SequenceEndEvent):
            self._path.append(len(values))
            value = self._value(event)
            self._path.pop()
            if value is not _ABSENT:
                values.append(value)
        return values

    def _mapping(self) -> dict[str, object]:
        values: dict[str, object] = {}
        seen: set[str] = set()
        while not isinstance(event := self._next(), yaml.MappingEndEvent):
            if not isinstance(event, yaml.ScalarEvent):
                self._stop(event, "a name should be text")
            name = event.value
            self._path.append(name)
            if not isinstance(self._value(event), str):
                self._wrong(event, "YAML does not read this name as text: put it in quotes")
            if name in seen:
                self._wrong(event, "is twice in this mapping")
            seen.add(name)
            value = self._value(self._next())
            self._path.pop()
            if value is not _ABSENT:
                values[name] = value
        return values

    def _scalar(self, event: yaml.ScalarEvent) -> object:
        text: str = event.value
        if not event.implicit[0]:  # in quotes
            return text
        if text in ("true", "false"):
            return text == "true"
        if _INTEGER.fullmatch(text):
            return int(text)
        if _DECIMAL.fullmatch(text):
            return float(text)
        if text in ("", "~", "null"):
            self._wrong(event, "has no value: write one, or omit the name")
            return _ABSENT
        if _tag(text) not in _TEXT_TAGS or _SEXAGESIMAL.fullmatch(text):
            self._wrong(event, f"not every YAML reader takes {text} as text: put it in quotes")
        return text

    def _wrong(self, event: yaml.Event, text: str) -> None:
        description = f"{self._file.name}: {text}{_line(event.start_mark)}"
        self._problems.append(Violation(dotted("", self._path), description))

    def _stop(self, event: yaml.Event, text: str) -> NoReturn:
        self._wrong(event, text)
        refuse(self._file, self._problems)

"""Reads configuration, client files and policies from YAML, strictly.

The YAML that is accepted is a plain subset: mappings, lists, texts, true and
false, decimal numbers; no anchors, aliases, tags, merge keys or empty values,
and no key twice. What YAML 1.1 would silently read as something else (20:00 is
1200 to it, and NO is false) is refused with the advice to put it in quotes.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, NoReturn, Protocol, TypeVar

import yaml
from pydantic import Field, PlainValidator, ValidationError, ValidationInfo, field_validator

from signer.errors import ConfigError, Violation
from signer.policy.compile import compile_policy
from signer.policy.document import Part, dotted, problems_of
from signer.policy.rules import Policy

P = TypeVar("P", bound=Part)

MAX_CONFIG_BYTES = 1 << 20
MAX_POLICY_BYTES = 64 << 20  # all files together
MAX_PROBLEMS = 50  # told at once
MAX_DEPTH = 16  # of mappings and lists in each other

_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]{0,17})")
_DECIMAL = re.compile(r"-?(?:0|[1-9][0-9]{0,17})\.[0-9]{1,18}")
_ADDRESS = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+):(0|[1-9][0-9]{0,4})")
_SQLITE = re.compile(r"(sqlite(?:\+pysqlite)?:///)([^?]+)(\?.*)?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SEXAGESIMAL = re.compile(r"[-+]?[0-9]+(:[0-9]+)+")  # 20:00 is 1200 to YAML 1.1, to some 06:00 too
_TEXT_TAGS = frozenset({"tag:yaml.org,2002:str", "tag:yaml.org,2002:timestamp"})
_ABSENT = object()  # stands for a value that was refused, or is none

_Loader: type[yaml.SafeLoader | yaml.CSafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Address(NamedTuple):
    """A host (a name, IPv4, or IPv6 in brackets) and a port; port 0: a free one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def _address(value: object) -> Address:
    match = _ADDRESS.fullmatch(value) if isinstance(value, str) else None
    if not match or int(match[2]) > 65_535:
        raise ValueError("should be host:port, as in 127.0.0.1:7443")
    return Address(match[1], int(match[2]))


def _path(value: object, info: ValidationInfo) -> Path:
    value = str(value) if isinstance(value, Path) else value  # a default
    if not isinstance(value, str) or not value:
        raise ValueError("should be a path")
    if not info.context:
        raise ValueError("has no folder to count from")
    directory: Path = info.context["directory"]
    return directory / value


def _registry(value: object, info: ValidationInfo) -> str:
    if isinstance(value, str) and re.match(r"postgresql(\+[a-z0-9]+)?://.", value):
        return value
    match = _SQLITE.fullmatch(value) if isinstance(value, str) else None
    if not match or match[2] == ":memory:":
        raise ValueError("should be sqlite:///FILE or postgresql+psycopg://USER@HOST/NAME")
    return f"{match[1]}{_path(match[2], info)}{match[3] or ''}"


def _environment(value: object, info: ValidationInfo) -> dict[str, str]:
    if not isinstance(value, dict):
        raise ValueError("should be a mapping of names to texts")  # noqa: TRY004  for pydantic
    for name, text in value.items():
        if not _VARIABLE.fullmatch(name) or not isinstance(text, str):
            raise ValueError(f"{name} should be a variable's name and its value in quotes")
    return {
        name: str(_path(text, info)) if text.startswith("./") else text
        for name, text in value.items()
    }


Reachable = Annotated[Address, PlainValidator(_address)]
File = Annotated[Path, PlainValidator(_path)]


class TlsConfig(Part):
    """The server's certificate chain and key, and who may issue client certificates (PEM)."""

    certificate: File
    key: File
    client_ca: File


class TokenConfig(Part):
    """One token. A value of ``environment`` that begins with ``./`` is a path as well."""

    label: str = Field(min_length=1, max_length=32)  # PKCS#11 v2.40, CK_TOKEN_INFO
    serial: str | None = Field(None, min_length=1, max_length=16)
    module: File
    pin_file: File
    workers: int = Field(ge=1, le=64)
    session_copies: bool = False
    environment: Annotated[Mapping[str, str], PlainValidator(_environment)] = Field(
        default_factory=dict
    )
    hang_seconds: float = Field(10.0, gt=0, le=600)


class LimitsConfig(Part):
    """Bounds of the server; bytes, items and seconds as the names say."""

    message_bytes: int = Field(4 << 20, ge=64 << 10, le=64 << 20)
    calls: int = Field(32, ge=1, le=1024)
    calls_per_client: int = Field(16, ge=1, le=1024)
    streams_per_connection: int = Field(100, ge=1, le=10_000)
    queued_items: int = Field(200_000, ge=1, le=10_000_000)
    connection_age_seconds: int = Field(3600, ge=1)
    drain_seconds: int = Field(20, ge=0, le=3600)


class AuditConfig(Part):
    """The audit log: where it lies, what it calls itself, where its checkpoints are shipped."""

    directory: File = Field(default=Path("audit"), validate_default=True)
    origin: str = Field("signer/audit", pattern=r"^[!-*,-~]{1,200}$")  # C2SP: no space, no plus
    mirror: File | None = None
    segment_bytes: int = Field(64 << 20, ge=1 << 20, le=1 << 30)
    low_disk_bytes: int = Field(256 << 20, ge=1 << 20)
    ballast_bytes: int = Field(64 << 20, ge=1 << 20)


class Config(Part):
    """The daemon's configuration; every path is absolute.

    ``client`` is the client file for commands that talk to this daemon.
    """

    listen: Reachable
    metrics: Reachable
    tls: TlsConfig
    registry: Annotated[str, PlainValidator(_registry)]
    policy: File
    state: File
    tokens: tuple[TokenConfig, ...] = Field(strict=False)
    audit: AuditConfig = Field(default={}, validate_default=True)
    limits: LimitsConfig = LimitsConfig()
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    reflection: bool = False
    client: File | None = None

    @field_validator("tokens")
    @classmethod
    def _distinct(cls, tokens: tuple[TokenConfig, ...]) -> tuple[TokenConfig, ...]:
        if not tokens:
            raise ValueError("should list at least one token")
        labels = [token.label for token in tokens]
        for label in labels:
            if labels.count(label) > 1:
                raise ValueError(f"two tokens {label}: keys name their token by its label")
        return tokens


class ClientConfig(Part):
    """Where a client finds a daemon, and with which certificate (PEM files)."""

    address: Reachable
    server_name: str | None = Field(None, min_length=1)
    ca: File
    certificate: File
    key: File


def load_config(path: Path) -> Config:
    """Reads the daemon's configuration; raises ConfigError with all that is wrong.

    Relative paths and SQLite files count from the folder of the file.
    """
    return _load(Config, path)


def load_client(path: Path) -> ClientConfig:
    """Reads a client file; raises ConfigError. Relative paths count from its folder."""
    return _load(ClientConfig, path)


def load_policy(path: Path) -> Policy:
    """Reads a policy; see ``read_policy``."""
    return read_policy(path).policy


class PolicyText(NamedTuple):
    """A policy and the bytes that its ``sha256`` is taken over."""

    policy: Policy
    text: bytes


def read_policy(path: Path) -> PolicyText:
    """Reads a policy: one file, or the ``*.yaml`` of a directory in the order of their names.

    Files are merged section by section; nothing may stand in two of them. The
    policy's text is made of each file in that order: the length of its
    name and the name, the length of its bytes and the bytes, each written as
    the netstring ``LENGTH:BYTES,``. Raises ConfigError with all that is wrong.
    """
    read: list[Violation] = []
    text: list[bytes] = []
    merged: dict[str, object] = {}
    origins: dict[str, str] = {}
    budget = MAX_POLICY_BYTES
    for file in _policy_files(path):
        content = _read(file, budget)
        budget -= len(content)
        text += [b"%d:%b," % (len(part), part) for part in (file.name.encode(), content)]
        _merge(merged, _document(content, file, read), file.name, origins, read)
    found: list[Violation] = []
    whole = b"".join(text)
    policy = compile_policy(merged, hashlib.sha256(whole).hexdigest(), found)
    if read or found:
        _refuse(path, _together(read, found))
    return PolicyText(policy, whole)


def _load(kind: type[P], path: Path) -> P:
    read: list[Violation] = []
    document = _document(_read(path, MAX_CONFIG_BYTES), path, read)
    try:
        loaded = kind.model_validate(document, context={"directory": path.absolute().parent})
    except ValidationError as error:
        _refuse(path, _together(read, problems_of(error, "")))
    if read:
        _refuse(path, read)
    return loaded


def _together(read: list[Violation], found: list[Violation]) -> list[Violation]:
    """Leaves out what is only the consequence of a value that could not be read."""
    unread = {problem.field for problem in read}
    return read + [problem for problem in found if problem.field not in unread]


def _policy_files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    visible = sorted(file for file in path.iterdir() if not file.name.startswith("."))
    strays = [file for file in visible if file.suffix == ".yml"]
    if strays:
        _refuse(path, [Violation("", f"{file.name} should be named *.yaml") for file in strays])
    files = [file for file in visible if file.suffix == ".yaml"]
    if not files:
        _refuse(path, [Violation("", "holds no *.yaml: put the policy there")])
    return files


def _read(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        _refuse(path, [Violation("", f"cannot be read: {error.strerror}")])
    if len(content) > limit:
        _refuse(path, [Violation("", f"is larger than allowed: {limit} bytes are left for it")])
    return content


def _merge(
    merged: dict[str, object],
    document: Mapping[str, object],
    file: str,
    origins: dict[str, str],
    problems: list[Violation],
) -> None:
    """Adds the sections of one file. Lists are put together, mappings name by name."""
    for section, content in document.items():
        there = merged.setdefault(section, type(content)())
        if isinstance(there, list) and isinstance(content, list):
            there.extend(content)
        elif isinstance(there, dict) and isinstance(content, dict):
            for name, part in content.items():
                path = f"{section}.{name}"
                if path in origins:
                    problems.append(Violation(path, f"stands in {origins[path]} and in {file}"))
                origins[path] = file
                there[name] = part
        else:
            merged[section] = content


def _refuse(path: Path, problems: list[Violation]) -> NoReturn:
    told = problems[:MAX_PROBLEMS]
    if len(problems) > MAX_PROBLEMS:
        told.append(Violation("", f"and {len(problems) - MAX_PROBLEMS} more"))
    raise ConfigError(str(path), told)


def _document(content: bytes, file: Path, problems: list[Violation]) -> dict[str, object]:
    """Returns the one mapping that a YAML text must be; adds what is wrong with it."""
    try:
        document = _Reader(content.decode(), file, problems).document()
    except UnicodeDecodeError as error:
        text = f"is not UTF-8: look at byte {error.start}"
    except yaml.MarkedYAMLError as error:
        text = f"{error.problem or error.context}{_place(error.problem_mark)}"
    except yaml.YAMLError as error:
        text = str(error).splitlines()[0]
    else:
        if isinstance(document, dict):
            return document
        text = "should be a mapping of names to values"
    _refuse(file, [*problems, Violation("", f"{file.name}: {text}")])


class _Mark(Protocol):
    """A place in the text, of either YAML parser."""

    @property
    def line(self) -> int:
        """Counted from 0."""


def _place(mark: _Mark | None) -> str:
    return f" (line {mark.line + 1})" if mark else ""


class _Reader:
    """Builds plain values out of YAML's events and tells what it refuses, with its place."""

    def __init__(self, text: str, file: Path, problems: list[Violation]) -> None:
        self._events: Iterator[yaml.Event] = yaml.parse(text, Loader=_Loader)
        self._tag: Callable[..., str] = yaml.resolver.Resolver().resolve
        self._file = file
        self._problems = problems
        self._path: list[str | int] = []

    def document(self) -> object:
        """Returns the value of the one document; raises YAMLError where none can be read."""
        next(self._events)  # the stream begins
        if isinstance(next(self._events), yaml.StreamEndEvent):
            return _ABSENT
        value = self._value(next(self._events))
        next(self._events)  # the document ends
        event = next(self._events)
        if not isinstance(event, yaml.StreamEndEvent):
            self._wrong(event, "a second document begins here: one file, one document")
        return value

    def _value(self, event: yaml.Event) -> object:
        if getattr(event, "anchor", None) is not None:
            self._wrong(event, "anchors and aliases are not used here: write the value out")
        if isinstance(event, yaml.AliasEvent):
            return _ABSENT
        if getattr(event, "tag", None) is not None:
            self._wrong(event, "tags are not used here: leave it out")
        if isinstance(event, yaml.ScalarEvent):
            return self._scalar(event)
        if len(self._path) >= MAX_DEPTH:
            self._stop(event, "lists and mappings stand too deep in each other")
        return self._list() if isinstance(event, yaml.SequenceStartEvent) else self._mapping()

    def _list(self) -> list[object]:
        values: list[object] = []
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            self._path.append(len(values))
            value = self._value(event)
            self._path.pop()
            if value is not _ABSENT:
                values.append(value)
        return values

    def _mapping(self) -> dict[str, object]:
        values: dict[str, object] = {}
        seen: set[str] = set()
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            if not isinstance(event, yaml.ScalarEvent):
                self._stop(event, "a name should be a text")
            name = event.value
            self._path.append(name)
            if not isinstance(self._value(event), str):
                self._wrong(event, "this name is no text to YAML: put it in quotes")
            if name in seen:
                self._wrong(event, "stands twice in one mapping")
            seen.add(name)
            value = self._value(next(self._events))
            self._path.pop()
            if value is not _ABSENT:
                values[name] = value
        return values

    def _scalar(self, event: yaml.ScalarEvent) -> object:
        text: str = event.value
        if not event.implicit[0]:  # it stands in quotes
            return text
        if text in ("true", "false"):
            return text == "true"
        if _INTEGER.fullmatch(text):
            return int(text)
        if _DECIMAL.fullmatch(text):
            return float(text)
        if text in ("", "~", "null"):
            self._wrong(event, "has no value: write one, or leave the name out")
            return _ABSENT
        tag = self._tag(yaml.ScalarNode, text, (True, False))
        if tag not in _TEXT_TAGS or _SEXAGESIMAL.fullmatch(text):
            self._wrong(event, f"{text} is no text to every YAML reader: put it in quotes")
        return text

    def _wrong(self, event: yaml.Event, text: str) -> None:
        told = f"{self._file.name}: {text}{_place(event.start_mark)}"
        self._problems.append(Violation(dotted("", self._path), told))

    def _stop(self, event: yaml.Event, text: str) -> NoReturn:
        self._wrong(event, text)
        _refuse(self._file, self._problems)

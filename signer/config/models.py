"""Reads ``signer.yaml`` into frozen models, every path absolute."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PlainValidator, ValidationError, ValidationInfo, field_validator

from signer.config.client_file import Address, read_address, read_path
from signer.config.document_kinds import Kind, refuse_others
from signer.config.strict_yaml import MAX_CONFIG_BYTES, document_of, read_bounded, refuse, together
from signer.errors import OperatorError, Violation
from signer.model import LARGEST_MESSAGE, MESSAGE_BYTES, KeyName, is_principal
from signer.strict import StrictModel, problems_of

_SQLITE = re.compile(r"(sqlite(?:\+pysqlite)?:///)([^?]+)(\?.*)?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def _path(value: object, info: ValidationInfo) -> Path:
    if not info.context:
        raise ValueError("has no folder to count from")
    value = str(value) if isinstance(value, Path) else value  # a default
    return read_path(value, info.context["directory"])


def _registry(value: object, info: ValidationInfo) -> str:
    if isinstance(value, str) and re.match(r"postgresql(\+[a-z0-9]+)?://.", value):
        return value
    match = _SQLITE.fullmatch(value) if isinstance(value, str) else None
    if not match or match[2] == ":memory:":
        raise ValueError("should be sqlite:///FILE or postgresql+psycopg://USER@HOST/NAME")
    return f"{match[1]}{_path(match[2], info)}{match[3] or ''}"


def _environment(value: object, info: ValidationInfo) -> dict[str, str]:
    if not isinstance(value, dict):
        raise ValueError("should be a mapping of names to texts")
    for name, text in value.items():
        if not _VARIABLE.fullmatch(name) or not isinstance(text, str):
            raise ValueError(f"{name} should be a variable's name and its value in quotes")
    return {
        name: str(_path(text, info)) if text.startswith("./") else text
        for name, text in value.items()
    }


def _principal(value: object) -> str:
    if not isinstance(value, str) or not is_principal(value):
        raise ValueError("should be a principal, as in spiffe://example.org/time-stamps")
    return value


def _key(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("should be facilities/{facility}/keys/{key}")
    return str(KeyName.parse(value))


KINDS = (
    "add-placement",
    "activate",
    "clock",
    "create-key",
    "create-wrapping-key",
    "deactivate",
    "destroy",
    "destroy-wrapping-key",
    "enrol",
    "import-certificate",
    "new-version",
    "officers",
    "place-wrapping-key",
    "policy",
    "remove-placement",
    "restore",
    "resume",
    "rewrap",
    "rotate",
    "schedule-destruction",
)
"""Every kind of operation under dual control."""


def _kinds(value: object) -> dict[str, int]:
    if not isinstance(value, dict):
        raise ValueError("should be a mapping of kinds to numbers")
    for kind, officers in value.items():
        if kind not in KINDS:
            raise ValueError(f"{kind} is not a kind of operation; choose from {', '.join(KINDS)}")
        if type(officers) is not int or not 2 <= officers <= 20:
            raise ValueError(f"{kind} needs 2 to 20 officers")
    return dict(value)


LEVELS = ("debug", "info", "warning", "error")
"""Log levels: one logs its own lines and those of the levels after it."""

Reachable = Annotated[Address, PlainValidator(read_address)]
File = Annotated[Path, PlainValidator(_path)]


class TlsConfig(StrictModel):
    """The certificate chain and key of the server, and the issuers of client certificates."""

    certificate: File
    key: File
    client_ca: File


class TokenConfig(StrictModel):
    """One token. A value of ``environment`` that begins with ``./`` is a path as well.

    The last three are how long one call of the module may take, in seconds: while a worker
    opens the token, while it signs, and while it carries out an administrative order.
    """

    label: str = Field(min_length=1, max_length=32)  # PKCS#11 v2.40, CK_TOKEN_INFO
    serial: str | None = Field(None, min_length=1, max_length=16)
    module: File
    pin_file: File
    workers: int = Field(ge=1, le=64)
    session_copies: bool = False
    key_lookup: Literal["search", "index"] = "search"
    environment: Annotated[Mapping[str, str], PlainValidator(_environment)] = Field(
        default_factory=dict
    )
    start_seconds: float = Field(60.0, gt=0, le=3600)
    hang_seconds: float = Field(10.0, gt=0, le=600)
    order_seconds: float = Field(120.0, gt=0, le=3600)


CLOSE_SECONDS = 50
"""Upper bound of a stop after the drain: 30 s for a database that hangs, then the last calls,
the last checkpoint of the log, workers and traces, each with its own limit."""


class LimitsConfig(StrictModel):
    """Limits of the server, in the units that the names say."""

    message_bytes: int = Field(MESSAGE_BYTES, ge=64 << 10, le=LARGEST_MESSAGE)
    calls: int = Field(1024, ge=1, le=65_536)
    calls_per_client: int = Field(256, ge=1, le=65_536)
    bytes_in_flight: int = Field(64 << 20, ge=64 << 10, le=4 << 30)
    bytes_in_flight_per_client: int = Field(16 << 20, ge=64 << 10, le=4 << 30)
    streams_per_client: int = Field(64, ge=1, le=10_000)
    stream_idle_seconds: float = Field(600.0, ge=1, le=24 * 3600)
    connections: int = Field(1024, ge=1, le=100_000)
    streams_per_connection: int = Field(256, ge=1, le=10_000)
    queued_items: int = Field(200_000, ge=1, le=10_000_000)
    connection_age_seconds: int = Field(3600, ge=1)
    drain_notice_seconds: float = Field(1.0, ge=0, le=60)
    drain_seconds: int = Field(30, ge=0, le=3600)

    @property
    def stop_seconds(self) -> float:
        """The most seconds that a stop by SIGTERM takes; a service manager must wait longer."""
        return self.drain_notice_seconds + self.drain_seconds + CLOSE_SECONDS


class AuditConfig(StrictModel):
    """The audit log: its directory, its name, and where its checkpoints are copied."""

    directory: File = Field(default=Path("audit"), validate_default=True)
    origin: str = Field("signer/audit", pattern=r"^[!-*,-~]{1,200}$")  # C2SP: no space, no plus
    mirror: File | None = None
    segment_bytes: int = Field(64 << 20, ge=1 << 20, le=1 << 30)
    low_disk_bytes: int = Field(256 << 20, ge=1 << 20)
    ballast_bytes: int = Field(64 << 20, ge=1 << 20)


class OperationsConfig(StrictModel):
    """Dual control: how many officers must sign an operation, including the proposer.

    ``officers`` applies to every kind that is not in ``kinds``.
    """

    officers: int = Field(2, ge=2, le=20)
    kinds: Annotated[Mapping[str, int], PlainValidator(_kinds)] = Field(default_factory=dict)
    expire_hours: int = Field(24, ge=1, le=24 * 30)

    def needed(self, kind: str) -> int:
        """Returns how many officers must sign an operation of a kind."""
        return self.kinds.get(kind, self.officers)

    def all_needed(self) -> dict[str, int]:
        """Returns the same for every kind."""
        return {kind: self.needed(kind) for kind in KINDS}


class ClockConfig(StrictModel):
    """How many days the machine may be off or asleep before its clock is in doubt."""

    absence_days: float = Field(30.0, gt=0, le=3650)

    @property
    def absence(self) -> float:
        """The same in seconds."""
        return self.absence_days * 24 * 3600


class TimestampsConfig(StrictModel):
    """The time-stamp port: where it is, whose calls they are, and the key that stamps."""

    listen: Reachable
    principal: Annotated[str, PlainValidator(_principal)]
    key: Annotated[str, PlainValidator(_key)]


class TracingConfig(StrictModel):
    """Where spans are sent (OTLP over HTTP), and the share of calls that begin a trace here.

    A call that continues its caller's trace follows the caller's decision. ``ca``: the issuer
    of the collector's certificate, if it is not a public one.
    """

    endpoint: str = Field(pattern=r"^https?://[A-Za-z0-9.:\[\]_-]+(/[A-Za-z0-9._/-]*)?$")
    sample: float = Field(0.01, ge=0, le=1)
    ca: File | None = None


class Config(StrictModel):
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
    operations: OperationsConfig = OperationsConfig()
    limits: LimitsConfig = LimitsConfig()
    clock: ClockConfig = ClockConfig()
    timestamps: TimestampsConfig | None = None
    tracing: TracingConfig | None = None
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    reflection: bool = False
    client: File | None = None

    def changed(self, other: "Config") -> tuple[str, ...]:
        """Returns the settings that differ in ``other`` and that a reload cannot change."""
        return tuple(
            name
            for name in Config.model_fields
            if name not in {"log_level", "client"} and getattr(self, name) != getattr(other, name)
        )

    def token(self, label: str) -> TokenConfig:
        """Returns the token of a label, or the only one; raises OperatorError."""
        tokens = {token.label: token for token in self.tokens}
        if not label and len(tokens) == 1:
            [label] = tokens
        if label not in tokens:
            raise OperatorError(
                f"name one of the configured tokens with --token: {', '.join(tokens)}"
            )
        return tokens[label]

    @field_validator("tokens")
    @classmethod
    def _distinct(cls, tokens: tuple[TokenConfig, ...]) -> tuple[TokenConfig, ...]:
        if not tokens:
            raise ValueError("should list at least one token")
        labels = [token.label for token in tokens]
        for label in labels:
            if labels.count(label) > 1:
                text = f"two tokens have the label {label}, by which keys name their token"
                raise ValueError(text)
        return tokens


def load_config(path: Path) -> Config:
    """Reads the daemon's configuration; raises ConfigError with all that is wrong.

    Relative paths and SQLite files count from the folder of the file.
    """
    unread: list[Violation] = []
    document = document_of(read_bounded(path, MAX_CONFIG_BYTES), path, unread)
    refuse_others(document, path, Kind.DAEMON)
    try:
        config = Config.model_validate(document, context={"directory": path.absolute().parent})
    except ValidationError as error:
        refuse(path, together(unread, problems_of(error, "")))
    if unread:
        refuse(path, unread)
    return config

"""Reads configuration, client files and policies from YAML, strictly.

``models`` has their shape, ``reader`` the YAML that is accepted (the only place that
imports yaml), ``policies`` the files of a policy and the one text that they make.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from signer.config.models import (
    LEVELS,
    Address,
    AuditConfig,
    ClientConfig,
    Config,
    LimitsConfig,
    OperationsConfig,
    TlsConfig,
    TokenConfig,
    TracingConfig,
)
from signer.config.policy_documents import (
    PolicyFile,
    PolicyText,
    load_policy,
    policy_files,
    policy_sha256,
    policy_text,
    read_bounded,
    read_policy,
    read_policy_text,
    together,
    write_policy_files,
)
from signer.config.reader import document_of, refuse
from signer.errors import Violation
from signer.strict import StrictModel, problems_of

__all__ = [
    "LEVELS",
    "Address",
    "AuditConfig",
    "ClientConfig",
    "Config",
    "LimitsConfig",
    "OperationsConfig",
    "PolicyFile",
    "PolicyText",
    "TlsConfig",
    "TokenConfig",
    "TracingConfig",
    "load_client",
    "load_config",
    "load_policy",
    "policy_files",
    "policy_sha256",
    "policy_text",
    "read_policy",
    "read_policy_text",
    "write_policy_files",
]

P = TypeVar("P", bound=StrictModel)

MAX_CONFIG_BYTES = 1 << 20


def load_config(path: Path) -> Config:
    """Reads the daemon's configuration; raises ConfigError with all that is wrong.

    Relative paths and SQLite files count from the folder of the file.
    """
    return _load(Config, path)


def load_client(path: Path) -> ClientConfig:
    """Reads a client file; raises ConfigError. Relative paths count from its folder."""
    return _load(ClientConfig, path)


def _load(kind: type[P], path: Path) -> P:
    read: list[Violation] = []
    document = document_of(read_bounded(path, MAX_CONFIG_BYTES), path, read)
    try:
        loaded = kind.model_validate(document, context={"directory": path.absolute().parent})
    except ValidationError as error:
        refuse(path, together(read, problems_of(error, "")))
    if read:
        refuse(path, read)
    return loaded

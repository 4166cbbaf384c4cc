"""Reads client files: where an appliance is, and with which certificate to call it."""

import re
from pathlib import Path
from typing import NamedTuple

from signer.config.document_kinds import Kind, refuse_others
from signer.config.strict_yaml import MAX_CONFIG_BYTES, document_of, read_bounded, refuse, together
from signer.errors import Violation
from signer.text import IS_MISSING, IS_NOT_TEXT, IS_UNKNOWN

_ADDRESS = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+):(0|[1-9][0-9]{0,4})")


class Address(NamedTuple):
    """A host (a name, IPv4, or IPv6 in brackets) and a port; port 0: a free one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def read_address(value: object) -> Address:
    """Reads ``host:port``; raises ValueError."""
    match = _ADDRESS.fullmatch(value) if isinstance(value, str) else None
    if not match or int(match[2]) > 65_535:
        raise ValueError("should be host:port, as in 127.0.0.1:7443")
    return Address(match[1], int(match[2]))


def read_path(value: object, directory: Path) -> Path:
    """Reads a path, which counts from ``directory``; raises ValueError."""
    if not isinstance(value, str) or not value:
        raise ValueError("should be a path")
    return directory / value


class ClientFile(NamedTuple):
    """A client file; the paths are absolute and name PEM files."""

    address: Address
    ca: Path
    certificate: Path
    key: Path
    server_name: str | None = None


def load_client(path: Path) -> ClientFile:
    """Reads a client file; raises ConfigError with all that is wrong.

    Relative paths count from the folder of the file.
    """
    unread: list[Violation] = []
    document = document_of(read_bounded(path, MAX_CONFIG_BYTES), path, unread)
    refuse_others(document, path, Kind.CLIENT)
    values, problems = dict[str, object](), list[Violation]()
    for name in ClientFile._fields:
        try:
            if name in document:
                values[name] = _read(name, document[name], path.absolute().parent)
            elif name not in ClientFile._field_defaults:
                problems.append(Violation(name, IS_MISSING))
        except ValueError as error:
            problems.append(Violation(name, str(error)))
    problems += [Violation(name, IS_UNKNOWN) for name in document if name not in ClientFile._fields]
    if unread or problems:
        refuse(path, together(unread, problems))
    return ClientFile(**values)  # type: ignore[arg-type] # read by their names


def _read(name: str, value: object, directory: Path) -> object:
    """Reads one member; raises ValueError."""
    if name == "address":
        return read_address(value)
    if name != "server_name":
        return read_path(value, directory)
    if not isinstance(value, str):
        raise ValueError(IS_NOT_TEXT)
    if not value:
        raise ValueError("should have at least 1 character")
    return value

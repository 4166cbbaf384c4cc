"""Policies as files and as one text, whose SHA-256 identifies the policy."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from signer.config.strict_yaml import document_of, read_bounded, refuse, together
from signer.errors import Violation
from signer.files import replace_file
from signer.policy.compile import compile_policy
from signer.policy.rules import Policy

MAX_POLICY_BYTES = 64 << 20  # all files together
_FILE_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}\.yaml")
_NAMING = "should be named with letters, digits, '.', '_' and '-', and end with .yaml"


class PolicyFile(NamedTuple):
    """One file of a policy."""

    name: str
    content: bytes


class PolicyText(NamedTuple):
    """A policy and the bytes whose SHA-256 is its ``sha256``."""

    policy: Policy
    text: bytes


def load_policy(path: Path) -> Policy:
    """Reads a policy; see ``read_policy``."""
    return read_policy(path).policy


def read_policy(path: Path) -> PolicyText:
    """Reads a policy: one file, or the ``*.yaml`` of a directory in the order of their names.

    Files are merged section by section; no name may be in two of them. Raises ConfigError
    with all mistakes.
    """
    return _policy_of(_read_files(path), path)


def policy_sha256(path: Path) -> str:
    """Returns the SHA-256 of the policy in files, without parsing it."""
    return hashlib.sha256(policy_text(_read_files(path))).hexdigest()


def read_policy_text(text: bytes, source: str = "the policy in force") -> PolicyText:
    """Reads a policy from its text; raises ConfigError, or ValueError for another text."""
    return _policy_of(policy_files(text), Path(source))


def policy_text(files: Sequence[PolicyFile]) -> bytes:
    """Returns the one text of a policy.

    For each file, in the order of their names, it has the name and the content, each as
    the netstring ``LENGTH:BYTES,``.
    """
    parts = [part for file in files for part in (file.name.encode(), file.content)]
    return b"".join(b"%d:%b," % (len(part), part) for part in parts)


def policy_files(text: bytes) -> list[PolicyFile]:
    """Returns the files in a policy's text; raises ValueError.

    The names are those of files beside each other, in their order, each once: they are written
    into the folder of the policy.
    """
    parts: list[bytes] = []
    while text:
        length, colon, rest = text.partition(b":")
        if not colon or len(length) > 9 or not length.isdigit():
            raise ValueError("this is not the text of a policy")
        size = int(length)
        if rest[size : size + 1] != b",":
            raise ValueError("this is not the text of a policy")
        parts.append(rest[:size])
        text = rest[size + 1 :]
    names, contents = [part.decode() for part in parts[::2]], parts[1::2]
    for name in names:
        if not _FILE_NAME.fullmatch(name):
            raise ValueError(f"its file {name[:200]!r} {_NAMING}")
    if names != sorted(set(names)):
        raise ValueError("its files are not in the order of their names, each once")
    return [PolicyFile(name, content) for name, content in zip(names, contents, strict=True)]


def write_policy_files(path: Path, text: bytes) -> None:
    """Makes the file or directory at ``path`` contain exactly a policy's files.

    Each file is replaced as a whole; other ``*.yaml`` files are removed. Raises OSError.
    """
    files = policy_files(text)
    if not path.is_dir():
        [only] = files
        replace_file(path, only.content)
        return
    for file in files:
        target = path / file.name
        if not target.is_file() or target.read_bytes() != file.content:
            replace_file(target, file.content)
    kept = {file.name for file in files}
    for other in _policy_files(path):
        if other.name not in kept:
            other.unlink()


def _read_files(path: Path) -> list[PolicyFile]:
    files = []
    budget = MAX_POLICY_BYTES
    for file in _policy_files(path):
        content = read_bounded(file, budget)
        budget -= len(content)
        files.append(PolicyFile(file.name, content))
    return files


def _policy_of(files: Sequence[PolicyFile], source: Path) -> PolicyText:
    unread: list[Violation] = []
    merged: dict[str, object] = {}
    origins: dict[str, str] = {}
    for file in files:
        _merge(
            merged, document_of(file.content, Path(file.name), unread), file.name, origins, unread
        )
    problems: list[Violation] = []
    whole = policy_text(files)
    policy = compile_policy(merged, hashlib.sha256(whole).hexdigest(), problems)
    if unread or problems:
        refuse(source, together(unread, problems))
    return PolicyText(policy, whole)


def _policy_files(path: Path) -> list[Path]:
    if not path.is_dir():
        if not _FILE_NAME.fullmatch(path.name):
            refuse(path, [Violation("", _NAMING)])
        return [path]
    visible = sorted(file for file in path.iterdir() if not file.name.startswith("."))
    strays = [file for file in visible if file.suffix == ".yml"]
    if strays:
        refuse(path, [Violation("", f"{file.name} should be named *.yaml") for file in strays])
    files = [file for file in visible if file.suffix == ".yaml"]
    if odd := [file for file in files if not _FILE_NAME.fullmatch(file.name)]:
        refuse(path, [Violation("", f"{file.name!r} {_NAMING}") for file in odd])
    if not files:
        refuse(path, [Violation("", "contains no *.yaml file: put the policy existing")])
    return files


def _merge(
    merged: dict[str, object],
    document: Mapping[str, object],
    file: str,
    origins: dict[str, str],
    problems: list[Violation],
) -> None:
    """Adds the sections of one file: lists are joined, mappings merged name by name."""
    for section, content in document.items():
        existing = merged.setdefault(section, type(content)())
        if isinstance(existing, list) and isinstance(content, list):
            existing.extend(content)
        elif isinstance(existing, dict) and isinstance(content, dict):
            for name, part in content.items():
                path = f"{section}.{name}"
                if path in origins:
                    problems.append(Violation(path, f"is in {origins[path]} and in {file}"))
                origins[path] = file
                existing[name] = part
        else:
            merged[section] = content

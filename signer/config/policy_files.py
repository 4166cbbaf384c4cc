"""The files of a policy, and the one text whose SHA-256 identifies the policy.

Nothing here knows what a policy says: officers send and receive these files as they are.
"""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from signer.config.strict_yaml import read_bounded, refuse
from signer.errors import Violation
from signer.files import replace_file

MAX_POLICY_BYTES = 64 << 20  # all files together
_FILE_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}\.yaml")
_NAMING = "should be named with letters, digits, '.', '_' and '-', and end with .yaml"


class PolicyFile(NamedTuple):
    """One file of a policy."""

    name: str
    content: bytes


def read_files(*paths: Path) -> list[PolicyFile]:
    """Reads the files of a policy, in the order of their names: one folder's, or those named.

    Raises ConfigError.
    """
    files: list[PolicyFile] = []
    budget = MAX_POLICY_BYTES
    for file in sorted((file for path in paths for file in _files_of(path)), key=lambda f: f.name):
        if files and files[-1].name == file.name:
            refuse(file, [Violation("", f"two files have the name {file.name}: rename one")])
        content = read_bounded(file, budget)
        budget -= len(content)
        files.append(PolicyFile(file.name, content))
    return files


def policy_sha256(path: Path) -> str:
    """Returns the SHA-256 of the policy in files, without parsing it."""
    return hashlib.sha256(policy_text(read_files(path))).hexdigest()


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

    Each file is replaced as a whole; other ``*.yaml`` files are removed. Raises OSError, and
    ValueError if one file cannot hold the policy.
    """
    files = policy_files(text)
    if not path.is_dir():
        if [file.name for file in files] != [path.name]:
            names = ", ".join(file.name for file in files)
            raise ValueError(f"{path} is one file, but the policy has the files {names}")
        replace_file(path, files[0].content)
        return
    for file in files:
        target = path / file.name
        if not target.is_file() or target.read_bytes() != file.content:
            replace_file(target, file.content)
    kept = {file.name for file in files}
    for other in _files_of(path):
        if other.name not in kept:
            other.unlink()


def _files_of(path: Path) -> list[Path]:
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
        refuse(path, [Violation("", "contains no *.yaml file: put the policy there")])
    return files

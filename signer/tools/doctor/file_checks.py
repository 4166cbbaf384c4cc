"""The files that a configuration names: there, readable, and private where they must be."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from signer.config.models import Config, TokenConfig
from signer.errors import Violation
from signer.files import daemon_user, is_private, private_mode
from signer.tools.doctor.finding import Finding, ok, warning, wrong

CREDENTIALS = Path("/run/credentials")
"""Where systemd puts the secrets of a service for as long as it runs."""


class Problem(NamedTuple):
    """What is wrong with a file, and what to do about it."""

    seen: str
    remedy: str


def file_problems(config: Config) -> Iterator[Violation]:
    """Yields what is wrong with the files that a configuration names; reads none of them."""
    for field, path in _files(config).items():
        yield from _told(field, file_problem(path))
    daemon = daemon_user(config.state)
    for field, path in _secrets(config).items():
        yield from _told(field, secret_problem(path, daemon))
    yield from _told("state", folder_problem(_existing(config.state)))
    if (database := sqlite_file(config.registry)) is not None:
        yield from _told("registry", folder_problem(database.parent))


def examine_files(config: Config) -> Iterator[Finding]:
    """Judges the same files one by one; those whose content is judged later only if wrong."""
    for field, path in _files(config).items():
        if problem := file_problem(path):
            yield wrong(field, *problem)
    daemon = daemon_user(config.state)
    for field, path in _secrets(config).items():
        if not path.exists() and path.is_relative_to(CREDENTIALS):
            seen = f"{path} is there only while the service runs: systemd hands it over"
            yield warning(field, seen, "look again when it runs, as its user")
        elif problem := secret_problem(path, daemon):
            yield wrong(field, *problem)
        else:
            yield judge_owner(field, path, path.stat().st_uid, daemon)
    if problem := folder_problem(_existing(config.state)):
        yield wrong("state", *problem)
    elif not config.state.exists():
        yield ok("state", f"{config.state} is not there yet: the first start makes it")
    else:
        yield judge_state(config.state, config.state.stat().st_mode, daemon, os.geteuid())


def judge_owner(check: str, path: Path, owner: int, daemon: int) -> Finding:
    """Judges whose file it is that nobody else may read."""
    if owner in (0, daemon):
        return ok(check, f"{path} is private")
    return warning(
        check,
        f"{path} belongs to user {owner}, who can change it",
        f"give it to the user of the daemon, or to root: chown {daemon} {path}",
    )


def judge_state(folder: Path, mode: int, daemon: int, user: int) -> Finding:
    """Judges the folder of latches and locks; ``user`` looks at it, ``daemon`` owns it."""
    if mode & 0o022:
        return wrong(
            "state",
            f"{folder} can be written by others, who can have a rejected PIN tried again",
            f"chmod 700 {folder}",
        )
    if daemon != user:
        return warning(
            "state",
            f"{folder} belongs to user {daemon}, and user {user} looks at it",
            "run this as the user of the daemon: what root may, that user may not",
        )
    return ok("state", f"{folder} can be written")


def sqlite_file(registry: str) -> Path | None:
    """Returns the file of a registry in SQLite, None of another one."""
    if not registry.startswith("sqlite"):
        return None
    return Path(registry.partition("///")[2].partition("?")[0])


def file_problem(file: Path) -> Problem | None:
    """Returns why a file cannot be read."""
    if not file.is_file():
        return Problem(f"{file} is no file", "put it there, or correct the path")
    if not os.access(file, os.R_OK):
        return Problem(f"{file} cannot be read by this user", "change its owner or its mode")
    return None


def secret_problem(file: Path, daemon: int) -> Problem | None:
    """Returns why a file cannot be read, or who else can; ``daemon`` is the user it is for."""
    if problem := file_problem(file):
        return problem
    if not is_private(found := file.stat(), daemon):
        mode = stat.S_IMODE(found.st_mode)
        right = private_mode(found.st_uid, daemon)
        return Problem(f"{file} is open to others (mode {mode:04o})", f"chmod {right:o} {file}")
    return None


def folder_problem(folder: Path) -> Problem | None:
    """Returns why a folder cannot be written to."""
    if not folder.is_dir():
        return Problem(f"{folder} is no folder", "make it with mkdir")
    if not os.access(folder, os.W_OK | os.X_OK):
        return Problem(f"{folder} cannot be written by this user", "change its owner or mode")
    return None


def _existing(state: Path) -> Path:
    """The folder that the daemon must be able to write: it makes its own in there."""
    return state if state.exists() else state.parent


def _files(config: Config) -> dict[str, Path]:
    files = {"tls.certificate": config.tls.certificate, "tls.client_ca": config.tls.client_ca}
    files |= {f"tokens[{index}].module": token.module for index, token in _tokens(config)}
    return files | ({"client": config.client} if config.client is not None else {})


def _secrets(config: Config) -> dict[str, Path]:
    files = {"tls.key": config.tls.key}
    return files | {f"tokens[{index}].pin_file": token.pin_file for index, token in _tokens(config)}


def _tokens(config: Config) -> Iterator[tuple[int, TokenConfig]]:
    return enumerate(config.tokens)


def _told(field: str, problem: Problem | None) -> Iterator[Violation]:
    if problem is not None:
        yield Violation(field, f"{problem.seen}: {problem.remedy}")

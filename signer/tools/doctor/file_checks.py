"""The files that a configuration names: they exist, are readable, and secrets are private."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from signer.config.models import Config
from signer.errors import Violation
from signer.files import daemon_user, is_private, private_mode
from signer.keys.database import sqlite_file
from signer.tools.doctor.finding import Finding, ok, warning, wrong

CREDENTIALS = Path("/run/credentials")  # of services, by systemd while they run


class Problem(NamedTuple):
    """What is wrong with a file, and what to do."""

    seen: str
    remedy: str


def file_problems(config: Config) -> list[Violation]:
    """Returns what is wrong with the files that a configuration names; reads none of them."""
    problems = _problems(config)
    if (database := sqlite_file(config.registry)) is not None:
        problems["registry"] = folder_problem(database.parent)
    return [
        Violation(field, f"{problem.seen}: {problem.remedy}")
        for field, problem in problems.items()
        if problem is not None
    ]


def examine_files(config: Config) -> Iterator[Finding]:
    """Judges the same files; of those whose content is judged later, only problems."""
    problems, daemon = _problems(config), daemon_user(config.state)
    for field in _files(config):
        if problem := problems[field]:
            yield wrong(field, *problem)
    for field, path in _secrets(config).items():
        if not path.exists() and path.is_relative_to(CREDENTIALS):
            seen = f"{path} exists only while the service runs: systemd provides it"
            yield warning(field, seen, "run this again while the service runs, as its user")
        elif problem := problems[field]:
            yield wrong(field, *problem)
        else:
            yield judge_owner(field, path, path.stat().st_uid, daemon)
    if problem := problems["state"]:
        yield wrong("state", *problem)
    elif not config.state.exists():
        yield ok("state", f"{config.state} does not exist yet: the first start creates it")
    else:
        yield judge_state(config.state, config.state.stat().st_mode, daemon, os.geteuid())


def judge_owner(check: str, path: Path, owner: int, daemon: int) -> Finding:
    """Judges who owns a file of a secret."""
    if owner in (0, daemon):
        return ok(check, f"{path} is private")
    return warning(
        check,
        f"{path} belongs to user {owner}, who can change it",
        f"make the daemon's user or root its owner: chown {daemon} {path}",
    )


def judge_state(folder: Path, mode: int, daemon: int, user: int) -> Finding:
    """Judges the folder of latches and locks; ``daemon`` owns it, ``user`` examines it."""
    if mode & 0o022:
        return wrong(
            "state",
            f"{folder} is writable by other users, who could allow a rejected PIN again",
            f"chmod 700 {folder}",
        )
    if daemon != user:
        return warning(
            "state",
            f"{folder} belongs to user {daemon}, and user {user} examines it",
            "run this as the user of the daemon: root may do more than that user",
        )
    return ok("state", f"{folder} can be written")


def file_problem(file: Path) -> Problem | None:
    """Returns why a file cannot be read."""
    if not file.is_file():
        return Problem(f"{file} is not a file", "create it, or correct the path")
    if not os.access(file, os.R_OK):
        return Problem(f"{file} cannot be read by this user", "change its owner or its mode")
    return None


def secret_problem(file: Path, daemon: int) -> Problem | None:
    """Returns why ``daemon`` cannot read a file, or that other users can."""
    if problem := file_problem(file):
        return problem
    if not is_private(found := file.stat(), daemon):
        mode = stat.S_IMODE(found.st_mode)
        right = private_mode(found.st_uid, daemon)
        return Problem(
            f"{file} is accessible to other users (mode {mode:04o})", f"chmod {right:o} {file}"
        )
    return None


def folder_problem(folder: Path) -> Problem | None:
    """Returns why a folder cannot be written to."""
    if not folder.is_dir():
        return Problem(f"{folder} is not a folder", "create it with mkdir")
    if not os.access(folder, os.W_OK | os.X_OK):
        return Problem(f"{folder} cannot be written by this user", "change its owner or mode")
    return None


def _problems(config: Config) -> dict[str, Problem | None]:
    daemon = daemon_user(config.state)
    # The daemon creates its own folder of state in the one above, if there is none.
    state = config.state if config.state.exists() else config.state.parent
    return {
        **{field: file_problem(path) for field, path in _files(config).items()},
        **{field: secret_problem(path, daemon) for field, path in _secrets(config).items()},
        "state": folder_problem(state),
    }


def _files(config: Config) -> dict[str, Path]:
    files = {"tls.certificate": config.tls.certificate, "tls.client_ca": config.tls.client_ca}
    files |= {f"tokens[{index}].module": each.module for index, each in enumerate(config.tokens)}
    return files | ({"client": config.client} if config.client is not None else {})


def _secrets(config: Config) -> dict[str, Path]:
    pins = {f"tokens[{index}].pin_file": t.pin_file for index, t in enumerate(config.tokens)}
    return {"tls.key": config.tls.key, **pins}

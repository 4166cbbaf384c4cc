"""Files that are replaced as a whole, and the permissions of files that contain secrets."""

import os
from pathlib import Path

SECRET, PUBLIC = 0o600, 0o644
_OTHERS = 0o077


def create_file(path: Path, mode: int) -> int:
    """Creates a file and returns its descriptor, for writing; never opens what is there.

    Raises OSError, also if there is a link of this name, wherever it leads.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(path, flags, mode)


def open_lock(path: Path, mode: int = SECRET) -> int:
    """Opens a file to lock, created if it is not there; raises OSError, also for a link."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, mode)


def replace_file(
    path: Path, content: str | bytes, mode: int = PUBLIC, *, durable: bool = False
) -> None:
    """Writes a file beside ``path`` and renames it: readers see the old content or the new.

    No link is followed: one at ``path`` is replaced, one at the place of the draft removed. The
    file has its ``mode`` before it has content. A ``durable`` one is on disk on return,
    its name excepted. Raises OSError.
    """
    data = content.encode() if isinstance(content, str) else content
    draft = path.with_name(f".{path.name}.draft")
    try:
        descriptor = create_file(draft, mode)
    except FileExistsError:
        draft.unlink()
        descriptor = create_file(draft, mode)
    try:
        while data:
            data = data[os.write(descriptor, data) :]
        if durable:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
    draft.replace(path)


def is_private(file: os.stat_result, user: int) -> bool:
    """Returns whether only the owner of a file may access it; ``user`` reads it.

    The group of a file that root owns may read it: systemd and Kubernetes give a secret to a
    service that does not run as root by an ACL (shown as rights of the group) or by fsGroup.
    """
    return not file.st_mode & _OTHERS & ~private_mode(file.st_uid, user)


def private_mode(owner: int, user: int) -> int:
    """Returns the mode of a secret that ``owner`` owns and only ``user`` reads."""
    return 0o640 if owner == 0 and user != 0 else 0o600


def daemon_user(state: Path) -> int:
    """Returns the daemon's uid: the owner of ``state``, or our own before the first start."""
    return state.stat().st_uid if state.is_dir() else os.geteuid()

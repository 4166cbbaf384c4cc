"""When the file of a secret is kept from others well enough."""

from __future__ import annotations

import os
from pathlib import Path

_OTHERS = 0o077


def is_private(file: os.stat_result, user: int) -> bool:
    """Returns whether nobody but its owner may touch a file; ``user`` is who reads it.

    Of a file of root's, its group may read: so systemd and Kubernetes hand a secret to a
    service that is not root, by an ACL (which shows as rights of the group) or by fsGroup.
    """
    return not file.st_mode & _OTHERS & ~private_mode(file.st_uid, user)


def private_mode(owner: int, user: int) -> int:
    """Returns the mode to give a secret: to its reader alone, who may not be its owner."""
    return 0o640 if owner == 0 and user != 0 else 0o600


def daemon_user(state: Path) -> int:
    """Returns whose daemon it is: its own folder tells; before the first start, whoever asks."""
    return state.stat().st_uid if state.is_dir() else os.geteuid()

"""When the file of a secret is kept from others well enough."""

from __future__ import annotations

import os

_OTHERS = 0o077
_OTHERS_THAN_GROUP = 0o037


def is_private(file: os.stat_result) -> bool:
    """Returns whether nobody but its owner may touch a file.

    Of a file of root's, its group may read: so systemd and Kubernetes hand a secret to a
    service that is not root, by an ACL (which shows as rights of the group) or by fsGroup.
    """
    handed_over = file.st_uid == 0 and os.geteuid() != 0
    return not file.st_mode & (_OTHERS_THAN_GROUP if handed_over else _OTHERS)

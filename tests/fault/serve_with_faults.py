"""``signer serve`` on a disk that does what files in a folder say.

Arguments: the folder, seconds between two looks of the daemon at itself, the
configuration. While the folder has ``slow``, syncs of the audit log wait; with
``failed`` they fail; with ``full`` the disk has no room.
"""

from __future__ import annotations

import errno
import sys
import time
from pathlib import Path

from signer import daemon
from signer.audit.disk import Disk

FAULTS = Path(sys.argv[1])
sync, free_bytes = Disk.sync, Disk.free_bytes


def faulty_sync(disk: Disk, descriptor: int) -> None:
    while (FAULTS / "slow").exists():
        (FAULTS / "waiting").touch()
        time.sleep(0.005)
    if (FAULTS / "failed").exists():
        raise OSError(errno.EIO, "EIO")
    sync(disk, descriptor)


def faulty_free_bytes(disk: Disk, path: Path) -> int:
    return 0 if (FAULTS / "full").exists() else free_bytes(disk, path)


Disk.sync = faulty_sync  # type: ignore[method-assign]
Disk.free_bytes = faulty_free_bytes  # type: ignore[method-assign]
daemon.TICK_SECONDS = float(sys.argv[2])
sys.exit(daemon.run(Path(sys.argv[3])))

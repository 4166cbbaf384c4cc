"""Programs for Node, with packages of others, that call the appliance or verify what it signs."""

import fcntl
import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

_SOURCES = Path(__file__).parent / "node"
_BUILD = _SOURCES.parents[2] / "build" / "node-client"


def prepare() -> Path:
    """Returns their folder; installs the packages once for each lock file.

    Of tests that run at the same time one installs them, and the others wait.
    """
    _BUILD.mkdir(parents=True, exist_ok=True)
    pinned = (_SOURCES / "package-lock.json").read_bytes()
    stamp, wanted = _BUILD / "installed.sha256", hashlib.sha256(pinned).hexdigest()
    with _BUILD.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for file in _SOURCES.iterdir():
            here = _BUILD / file.name
            # What another test may be reading just now is left as it is.
            if not here.exists() or here.read_bytes() != file.read_bytes():
                shutil.copy(file, here)
        if not stamp.exists() or stamp.read_text() != wanted:
            command = ["npm", "ci", "--ignore-scripts", "--silent"]
            subprocess.run(command, cwd=_BUILD, stdin=subprocess.DEVNULL, check=True)
            stamp.write_text(wanted)
    return _BUILD


if __name__ == "__main__":  # for those who read docs/formats.md
    sys.stdout.write(f"{prepare()}\n")

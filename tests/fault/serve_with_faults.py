"""``signer serve`` on a machine that does what files in a folder say.

Arguments: the folder, seconds of the daemon's tick, the
configuration. While the folder has ``slow``, syncs of the audit log wait; with
``failed`` they fail, with ``quick`` they take no time; with ``full`` the disk has no room,
with ``free`` so many bytes as it says. ``clock`` has the machine's clock jump by so many
seconds, also before it starts; ``memory`` has the process hold so many bytes more, each once:
the file goes with it; ``compare`` has token and registry compared, once. With ``large`` a
snapshot of the log does not fit into a record, with ``deaf`` nobody takes the daemon's lines.
"""

import errno
import sys
import threading
import time
from pathlib import Path

from signer import daemon
from signer.audit.format.record import Value
from signer.audit.read.ledger import Ledger
from signer.audit.write.disk import Disk
from signer.clock import FlooredClock
from signer.daemon import running
from signer.daemon.inventory import Inventory
from signer.observe.lines import write_to_stderr
from signer.observe.reports import Reports

FAULTS = Path(sys.argv[1])
sync, free_bytes, usage = Disk.sync, Disk.free_bytes, Ledger.snapshot
compare = Inventory.compare


def faulty_sync(disk: Disk, descriptor: int) -> None:
    while (FAULTS / "slow").exists():
        (FAULTS / "waiting").touch()
        time.sleep(0.005)
    if (FAULTS / "failed").exists():
        raise OSError(errno.EIO, "EIO")
    if not (FAULTS / "quick").exists():
        sync(disk, descriptor)


def faulty_free_bytes(disk: Disk, path: Path) -> int:
    if (FAULTS / "full").exists():
        return 0
    free = FAULTS / "free"
    return int(free.read_text()) if free.exists() else free_bytes(disk, path)


def ordered(name: str) -> int:
    """The number of an order that comes once; 0 while there is none."""
    order = FAULTS / name
    if not order.exists():
        return 0
    number = int(order.read_text())
    order.unlink()
    return number


def jump(seconds: int) -> None:
    """As the appliance reads the clock: gRPC's own deadlines would need another kernel."""
    machine = FlooredClock.machine
    setattr(FlooredClock, "machine", lambda clock: machine(clock) + seconds)  # noqa: B010


def obey() -> None:
    """What happens to a machine whether or not the daemon asks for anything."""
    held = []
    while True:
        time.sleep(0.05)
        if seconds := ordered("clock"):
            jump(seconds)
        if size := ordered("memory"):
            held.append(b"m" * size)


def ordered_compare(inventory: Inventory) -> None:
    """As usual once a token serves, and when that is ordered."""
    if ordered("compare"):
        inventory._due = dict.fromkeys(inventory._due, 0.0)
    compare(inventory)


def large_snapshot(ledger: Ledger) -> dict[str, Value]:
    """With ``large`` more than a record holds."""
    more: dict[str, Value] = {"more": bytes(9 << 20)} if (FAULTS / "large").exists() else {}
    return {**usage(ledger), **more}


def faulty_write(data: bytes) -> None:
    if (FAULTS / "deaf").exists():
        raise OSError(errno.EPIPE, "EPIPE")
    write_to_stderr(data)


setattr(Ledger, "snapshot", large_snapshot)  # noqa: B010
(Reports.__init__.__kwdefaults__ or {})["write"] = faulty_write
setattr(Disk, "sync", faulty_sync)  # noqa: B010
setattr(Inventory, "compare", ordered_compare)  # noqa: B010
setattr(Disk, "free_bytes", faulty_free_bytes)  # noqa: B010
running.TICK_SECONDS = float(sys.argv[2])
jump(ordered("clock"))
threading.Thread(target=obey, daemon=True).start()
sys.exit(daemon.run(Path(sys.argv[3])))

"""The machine and the process: clock, ports, limits, and whether the daemon runs."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import resource
import socket
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import NamedTuple

from signer.clock import BEHIND_SECONDS
from signer.config.client_file import Address
from signer.config.models import Config
from signer.tools.doctor.finding import Finding, ok, warning, wrong

FILES = 4096
"""Open files that a busy daemon should be allowed: every connection is one."""
HTTP_SECONDS = 5.0
_TIME_ERROR = 5  # linux/timex.h: the kernel's clock is not synchronised
_UNLIMITED = "unlimited"


class Limits(NamedTuple):
    """Limits of a process: open files, bytes of a core dump, bytes of locked memory."""

    files: float
    core: float
    locked: float


# --- whether it runs ---------------------------------------------------------------------------


def running_daemon(audit: Path) -> int | None:
    """Returns the process that has the audit log open, 0 for one unknown, None for none.

    The kernel's table is read and the lock never tried: a daemon that starts in that
    moment would be refused.
    """
    try:
        inode = (audit / "lock").stat().st_ino
        locks = Path("/proc/locks").read_text()
    except OSError:
        return None
    found = re.search(rf"(?m)^\d+: FLOCK +\S+ +WRITE +(-?\d+) +\S+:{inode} ", locks)
    return max(0, int(found[1])) if found else None


def examine_daemon(daemon: int | None, metrics: Address) -> Finding:
    """Judges whether the daemon is ready, as it says itself."""
    if daemon is None:
        return ok("daemon", "it does not run")
    try:
        with closing(
            HTTPConnection(metrics.host.strip("[]"), metrics.port, timeout=HTTP_SECONDS)
        ) as asked:
            asked.request("GET", "/readyz")
            answer = asked.getresponse()
            return judge_daemon(daemon, answer.status, answer.read(65_536).decode())
    except (OSError, HTTPException, UnicodeDecodeError) as error:
        return judge_daemon(daemon, 0, str(error))


def judge_daemon(pid: int, status: int, text: str) -> Finding:
    """Judges what ``/readyz`` has said; status 0 and why where it said nothing."""
    running = f"it runs (process {pid or 'unknown'})"
    if status == 200:  # HTTP's OK
        return ok("daemon", f"{running} and is ready")
    if not status:
        return wrong("daemon", f"{running}; /readyz: {text}", "look at its log; it may be starting")
    reasons = "; ".join(text.split("\n")).strip("; ")
    return wrong(
        "daemon", f"{running} and is not ready: {reasons}", "README, In trouble: NOT_SERVING"
    )


# --- clock -------------------------------------------------------------------------------------


def judge_clock(now: float, last_record: float | None, synchronised: bool | None) -> Finding:
    """Judges the clock by the log's last record and by what the kernel says of it."""
    if last_record is not None and last_record - now > BEHIND_SECONDS:
        return wrong(
            "clock",
            f"it is {last_record - now:.0f} s behind the last record of the audit log",
            "set it right: until then times and quotas stand still",
        )
    if synchronised is None:
        return warning("clock", "the kernel does not say whether it is synchronised", _SYNC)
    if not synchronised:
        return warning("clock", "it is synchronised with no other clock", _SYNC)
    return ok("clock", "it is synchronised")


_SYNC = "run a time service, as chrony: times of signatures and approvals are this clock's"


def synchronised() -> bool | None:
    """Whether something keeps the machine's clock in time, as the kernel has it."""
    timex = ctypes.create_string_buffer(256)  # struct timex, all zero: only asks
    try:
        state = ctypes.CDLL(None).adjtimex(timex)
    except (AttributeError, OSError):
        return None
    return None if state < 0 else state != _TIME_ERROR


# --- ports -------------------------------------------------------------------------------------


def examine_ports(config: Config, daemon: int | None) -> Iterator[Finding]:
    """Judges both ports: free, or the running daemon's."""
    for check, address in (("listen", config.listen), ("metrics", config.metrics)):
        yield judge_port(check, address, try_to_bind(address), daemon)


def judge_port(check: str, address: Address, failure: int, daemon: int | None) -> Finding:
    """Judges a port by the error of binding it, 0 for none."""
    if not failure:
        return ok(check, f"{address} is free")
    if failure == errno.EADDRINUSE and daemon is not None:
        return ok(check, f"{address} is in use: the daemon runs")
    if failure == errno.EADDRINUSE:
        return wrong(
            check,
            f"{address} is in use by another program",
            f"stop that (`ss -ltnp` names it), or change `{check}`",
        )
    return wrong(
        check,
        f"{address} cannot be listened on: {os.strerror(failure)}",
        f"change `{check}`: an address of this machine, a port above 1023",
    )


def try_to_bind(address: Address) -> int:
    """Binds a port for a moment; returns the error, 0 for none.

    It does not listen: a daemon that starts in this moment can bind it all the same.
    """
    host = address.host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            # Connections of a daemon that has just ended do not keep another from starting.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, address.port))
    except socket.gaierror:
        return errno.EADDRNOTAVAIL
    except OSError as error:
        return error.errno or errno.EADDRNOTAVAIL
    return 0


# --- limits ------------------------------------------------------------------------------------


def examine_limits(daemon: int | None) -> Iterator[Finding]:
    """Judges the limits of the running daemon, or of this process in its place."""
    limits = limits_of(daemon) if daemon else None
    whose = "the daemon"
    if limits is None:
        limits, whose = own_limits(), "this shell; a service has its own"
    yield judge_files(limits, whose)
    yield judge_core(limits, whose)
    yield judge_memory(limits, whose, swaps())


def judge_files(limits: Limits, whose: str) -> Finding:
    seen = f"{limits.files:.0f} open files ({whose})"
    if limits.files < FILES:
        return warning("open files", seen, f"every connection is one: LimitNOFILE={FILES} or more")
    return ok("open files", seen)


def judge_core(limits: Limits, whose: str) -> Finding:
    if limits.core:
        return warning(
            "core dumps",
            f"a crash may write the memory to disk ({whose})",
            "LimitCORE=0: payloads are in it; workers forbid it by themselves",
        )
    return ok("core dumps", f"none ({whose})")


def judge_memory(limits: Limits, whose: str, swap: bool) -> Finding:
    locked = "all of it" if limits.locked == float("inf") else f"{limits.locked / 1024:.0f} KiB"
    seen = f"may be locked: {locked} ({whose})"
    if swap:
        return warning(
            "memory",
            f"{seen}; there is swap, to which the PIN in a worker's memory may be written",
            "turn swap off or encrypt it; a module that locks its memory needs LimitMEMLOCK",
        )
    return ok("memory", f"{seen}; there is no swap")


def own_limits() -> Limits:
    kinds = (resource.RLIMIT_NOFILE, resource.RLIMIT_CORE, resource.RLIMIT_MEMLOCK)
    soft = [resource.getrlimit(kind)[0] for kind in kinds]
    return Limits(*(float("inf") if n == resource.RLIM_INFINITY else float(n) for n in soft))


def limits_of(pid: int) -> Limits | None:
    """Returns the limits of another process, None where it may not be asked."""
    try:
        text = Path(f"/proc/{pid}/limits").read_text()
    except OSError:
        return None
    found = dict(re.findall(r"(?m)^(Max [a-z ]+?) {2,}(\d+|unlimited) ", text))
    names = ("Max open files", "Max core file size", "Max locked memory")
    return Limits(*(_number(found.get(name, "0")) for name in names))


def _number(text: str) -> float:
    return float("inf") if text == _UNLIMITED else float(text)


def swaps() -> bool:
    """Whether memory may be written to a disk."""
    try:
        return len(Path("/proc/swaps").read_text().splitlines()) > 1
    except OSError:
        return False

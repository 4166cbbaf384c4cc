"""The machine and the process: clock, ports, limits, and whether the daemon is running."""

import ctypes
import errno
import math
import os
import re
import resource
import socket
from collections.abc import Iterable, Iterator
from contextlib import closing
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import NamedTuple

from prometheus_client.parser import text_string_to_metric_families

from signer.clock import JUMP_SECONDS
from signer.config.client_file import Address
from signer.config.models import Config
from signer.policy.lifetime import NEARLY
from signer.tools.doctor.finding import Finding, ok, warning, wrong

LIFETIME_GAUGE = "signer_key_lifetime_used_ratio"
MOST_METRICS = 8 << 20  # bytes of /metrics that are read
FILES = 4096  # open files that a busy daemon needs: every connection is one
_TIME_ERROR = 5  # linux/timex.h: the kernel's clock is not synchronised
_SHELL = "this shell; a service has its own"
_LIMITS = (resource.RLIMIT_NOFILE, resource.RLIMIT_CORE, resource.RLIMIT_MEMLOCK)


class Limits(NamedTuple):
    """Limits of a process: open files, bytes of a core dump, bytes of locked memory."""

    files: float
    core: float
    locked: float


# --- whether it runs ---------------------------------------------------------------------------


def running_daemon(audit: Path) -> int | None:
    """Returns the process id that has the audit log open, 0 if unknown, None if there is none.

    This reads the kernel's table of locks. Trying the lock could make a daemon that starts at
    that moment refuse to start.
    """
    try:
        inode = (audit / "lock").stat().st_ino
        locks = Path("/proc/locks").read_text()
    except OSError:
        return None
    found = re.search(rf"(?m)^\d+: FLOCK +\S+ +WRITE +(-?\d+) +\S+:{inode} ", locks)
    return max(0, int(found[1])) if found else None


def examine_daemon(daemon: int | None, metrics: Address) -> Finding:
    """Judges whether the daemon is ready, by its own ``/readyz``."""
    if daemon is None:
        return ok("daemon", "it is not running")
    try:
        host = metrics.host.strip("[]")
        with closing(HTTPConnection(host, metrics.port, timeout=5)) as asked:
            asked.request("GET", "/readyz")
            answer = asked.getresponse()
            return judge_daemon(daemon, answer.status, answer.read(65_536).decode())
    except (OSError, HTTPException, UnicodeDecodeError) as error:
        return judge_daemon(daemon, 0, str(error))


def judge_daemon(pid: int, status: int, text: str) -> Finding:
    """Judges an answer of ``/readyz``; without an answer, status is 0 and ``text`` says why."""
    running = f"it is running (process {pid or 'unknown'})"
    if status == 200:  # HTTP's OK
        return ok("daemon", f"{running} and is ready")
    if not status:
        return wrong("daemon", f"{running}; /readyz: {text}", "read its log; it may be starting")
    reasons = "; ".join(text.split("\n")).strip("; ")
    return wrong(
        "daemon",
        f"{running} and is not ready: {reasons}",
        "see docs/runbook.md, section NOT_SERVING",
    )


def examine_lifetimes(daemon: int | None, metrics: Address) -> Iterator[Finding]:
    """Judges by its own ``/metrics`` what a running daemon's keys have left of their lifetime."""
    if daemon is None:
        return
    try:
        with closing(HTTPConnection(metrics.host.strip("[]"), metrics.port, timeout=5)) as asked:
            asked.request("GET", "/metrics")
            text = asked.getresponse().read(MOST_METRICS).decode()
        yield from judge_lifetimes(_lifetimes_in(text))
    except (OSError, HTTPException, ValueError):
        return  # what /readyz says is judged already


def _lifetimes_in(text: str) -> Iterator[tuple[str, float]]:
    """Yields group and used part of the gauge of lifetimes; raises ValueError."""
    for family in text_string_to_metric_families(text):
        for sample in family.samples if family.name == LIFETIME_GAUGE else ():
            yield sample.labels.get("group", ""), sample.value


def judge_lifetimes(shares: Iterable[tuple[str, float]]) -> Iterator[Finding]:
    """Judges the largest used part of a key's lifetime in each group; without any, says nothing."""
    worst = max(shares, key=lambda each: each[1], default=None)
    if worst is None:
        return
    group, share = worst
    whose = f"group {group}" if group else "a facility without group"
    seen = f"a key of {whose} has used {int(share * 100)} % of its lifetime"
    if share < NEARLY:
        yield ok("key lifetimes", seen)
    else:
        remedy = "officers rotate it: `signer keys plan` names it (docs/officers.md)"
        yield warning("key lifetimes", seen, remedy)


# --- clock -------------------------------------------------------------------------------------


def judge_clock(now: float, last_record: float | None, synchronised: bool | None) -> Finding:
    """Judges the clock by the time of the log's last record and by the kernel's own state."""
    if last_record is not None and last_record - now > JUMP_SECONDS:
        return wrong(
            "clock",
            f"it is {last_record - now:.0f} s behind the last record of the audit log",
            "correct the clock, or have officers confirm it: until then nothing is signed",
        )
    if synchronised is None:
        return warning("clock", "the kernel does not report whether it is synchronised", _SYNC)
    if not synchronised:
        return warning("clock", "no time service synchronises it", _SYNC)
    return ok("clock", "it is synchronised")


_SYNC = (
    "run a time service such as chrony: signatures and approvals take their time from this clock"
)


def synchronised() -> bool | None:
    """Returns whether a time service keeps the clock right, None if that is unknown."""
    timex = ctypes.create_string_buffer(256)  # struct timex, all zero: reads only
    try:
        state = ctypes.CDLL(None).adjtimex(timex)
    except (AttributeError, OSError):
        return None
    return None if state < 0 else state != _TIME_ERROR


# --- ports -------------------------------------------------------------------------------------


def examine_ports(config: Config, daemon: int | None) -> Iterator[Finding]:
    """Judges whether both ports are free or used by the running daemon."""
    for check, address in (("listen", config.listen), ("metrics", config.metrics)):
        yield judge_port(check, address, try_to_bind(address), daemon)


def judge_port(check: str, address: Address, failure: int, daemon: int | None) -> Finding:
    """Judges a port by the error of binding it, 0 for none."""
    if not failure:
        return ok(check, f"{address} is free")
    if failure == errno.EADDRINUSE and daemon is not None:
        return ok(check, f"{address} is in use by the running daemon")
    if failure == errno.EADDRINUSE:
        return wrong(
            check,
            f"{address} is in use by another program",
            f"stop that program (`ss -ltnp` names it), or change `{check}`",
        )
    return wrong(
        check,
        f"{address} cannot be listened on: {os.strerror(failure)}",
        f"change `{check}`: an address of this machine, a port above 1023",
    )


def try_to_bind(address: Address) -> int:
    """Binds a port and releases it; returns the error number, 0 for none.

    It does not listen, so a daemon that starts at this moment can bind the port too.
    """
    host = address.host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            # As the daemon does: connections of one that has just ended do not block the port.
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
    try:
        limits, whose = limits_of(daemon or 0), "the daemon" if daemon else _SHELL
    except OSError:
        limits, whose = limits_of(0), _SHELL
    yield judge_files(limits, whose)
    yield judge_core(limits, whose)
    yield judge_memory(limits, whose, swaps())


def judge_files(limits: Limits, whose: str) -> Finding:
    seen = f"{limits.files:.0f} open files ({whose})"
    if limits.files < FILES:
        return warning(
            "open files", seen, f"every connection needs one: set LimitNOFILE={FILES} or more"
        )
    return ok("open files", seen)


def judge_core(limits: Limits, whose: str) -> Finding:
    if limits.core:
        return warning(
            "core dumps",
            f"a crash may write memory to disk ({whose})",
            "set LimitCORE=0: the memory contains payloads; workers disable core dumps themselves",
        )
    return ok("core dumps", f"none ({whose})")


def judge_memory(limits: Limits, whose: str, swap: bool) -> Finding:
    locked = "all of it" if limits.locked == math.inf else f"{limits.locked / 1024:.0f} KiB"
    seen = f"memory that may be locked: {locked} ({whose})"
    if swap:
        return warning(
            "memory",
            f"{seen}; there is swap, to which the PIN in a worker's memory may be written",
            "turn swap off or encrypt it; a module that locks its memory needs LimitMEMLOCK",
        )
    return ok("memory", f"{seen}; without swap")


def limits_of(pid: int) -> Limits:
    """Returns the limits of a process, 0 for our own. Raises OSError."""
    soft = [resource.prlimit(pid, kind)[0] for kind in _LIMITS]
    return Limits(*(math.inf if n == resource.RLIM_INFINITY else float(n) for n in soft))


def swaps() -> bool:
    """Returns whether the machine has swap space."""
    try:
        return len(Path("/proc/swaps").read_text().splitlines()) > 1
    except OSError:
        return False

"""What the process may take of its machine: open files and connections, heaps of the C library."""

import ctypes
import resource

from signer.errors import OperatorError

KEPT = 256
"""Descriptors beside those of clients: the audit log, the registry, workers, probes."""
_M_ARENA_MAX = -8  # malloc.h of glibc


def room_for(connections: int) -> int:
    """Raises the process's soft limit of open files as far as these connections need.

    Returns how many connections may be open under the hard limit. Raises OperatorError if there
    is room for none.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + KEPT
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return connections
    files = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if files <= KEPT:
        raise OperatorError(
            f"the process may have {files} files open, which is too few: set LimitNOFILE "
            f"(ulimit -n) to {wanted}, for {KEPT} of its own and {connections} connections"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, files), hard))
    return files - KEPT


def share_heap() -> None:
    """Makes all threads that start from now on allocate from the same heap of glibc.

    By default each thread may get one of its own, which keeps what was freed in it: the same
    messages of 4 MiB, received by one of gRPC's threads after another, were held several times.
    Another C library has no such setting, and needs none.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)

"""How many files and connections the process may have open."""

import resource

from signer.errors import OperatorError

KEPT = 256
"""Descriptors beside those of clients: the audit log, the registry, workers, probes."""


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

"""The process's stderr, apart from what libraries in C write to it.

gRPC's core, for instance, writes a line of its own to descriptor 2 for each failed TLS handshake.
Strangers could fill the log with them, and a stderr that nobody reads would stop gRPC's threads.
"""

import os
import sys
from contextlib import suppress

_STANDARD = 2
_real = _STANDARD


def descriptor() -> int:
    """Returns the descriptor of the stderr with which the process was started."""
    return _real


def separate() -> int:
    """Leaves descriptor 2 to libraries; returns where what they write there can be read.

    They never wait: what there is no room for is lost. Python's ``sys.stderr`` stays what it was.
    Raises OSError.
    """
    global _real  # noqa: PLW0603 - a process has one stderr
    _real = os.dup(_STANDARD)
    sys.stderr = sys.__stderr__ = os.fdopen(os.dup(_real), "w", buffering=1)  # type: ignore[misc]
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    os.dup2(writing, _STANDARD)
    os.close(writing)
    return reading


def join() -> None:
    """Ends the separation: who reads what libraries write comes to its end."""
    global _real  # noqa: PLW0603 - as above
    if _real != _STANDARD:
        with suppress(OSError):
            sys.stderr.flush()
        os.dup2(_real, _STANDARD)
        os.close(_real)
        _real = _STANDARD

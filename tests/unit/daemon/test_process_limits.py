"""The soft limit of open files is raised, and connections are bounded by the hard one."""

import resource
import subprocess
import sys

import pytest

from signer.daemon.process_limits import KEPT, room_for
from signer.errors import OperatorError

NONE = resource.RLIM_INFINITY


@pytest.mark.parametrize(
    ("soft", "hard", "room", "raised"),
    [
        (NONE, NONE, 1000, None),
        (1000 + KEPT, 9999, 1000, None),
        (KEPT, 9999, 1000, 1000 + KEPT),
        (KEPT, NONE, 1000, 1000 + KEPT),
        (KEPT, 1000, 1000 - KEPT, 1000),
        (KEPT + 1, KEPT + 1, 1, KEPT + 1),
    ],
)
def test_room(
    monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, room: int, raised: int | None
) -> None:
    limits = [(soft, hard)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, new: limits.append(new))
    assert room_for(1000) == room
    assert limits[1:] == ([] if raised is None else [(raised, hard)])


def test_without_room_for_one_connection_the_start_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64, KEPT))
    with pytest.raises(OperatorError, match="set LimitNOFILE"):
        room_for(1000)


HEAPS = """
import ctypes, os, sys, threading
from signer.daemon.process_limits import share_heap
if sys.argv[1] == "shared":
    share_heap()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
threads = [threading.Thread(target=libc.malloc, args=(1000,)) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
libc.fdopen.restype = ctypes.c_void_p
out = ctypes.c_void_p(libc.fdopen(1, b"w"))
libc.malloc_info(0, out)
libc.fflush(out)
"""


def test_all_threads_share_one_heap() -> None:
    def heaps(how: str) -> int:
        ran = subprocess.run([sys.executable, "-c", HEAPS, how], capture_output=True, check=True)
        return ran.stdout.count(b"<heap nr=")

    assert heaps("shared") == 1
    assert heaps("their own") > 1

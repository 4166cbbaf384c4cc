"""Steers shim.c: rules for the calls of all processes that have it loaded, and their counts.

shim = Shim(tmp_path / "shim")
token.environment = shim.environment
shim.on("C_Sign", times=1, code=0x30)
"""

import ctypes
import mmap
import os
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from typing import Any

from signer.tools.dev import softhsm

ALWAYS = 2**63
ANY = 2**64 - 1
RULES, ID_MAX, JOURNAL = 64, 64, 1024

SOURCE = Path(__file__).with_suffix(".c")
FUNCTIONS = re.findall(r"\tX\((C_\w+)", SOURCE.read_text())


class Action(IntEnum):
    """What a rule does besides its delay and code; ``enum action`` of shim.c says it in full."""

    NOTHING = 0
    HANG = 1
    ABORT = 2
    SEGFAULT = 3
    FLIP = 4
    FILL = 5
    RESIZE = 6
    OTHER_DATA = 7
    WRONG_KEY = 8
    TOKEN_FLAGS = 9
    RAW_POINTS = 10


_U64 = ctypes.c_uint64


class _Rule(ctypes.Structure):
    _fields_ = (
        *((name, _U64) for name in ("active", "function", "pid", "session", "mechanism")),
        *((name, _U64) for name in ("skip", "times", "after", "delay_us", "code")),
        *((name, _U64) for name in ("action", "value", "id_length", "other_length")),
        ("id", ctypes.c_ubyte * ID_MAX),
        ("other", ctypes.c_ubyte * ID_MAX),
        ("seen", _U64),
        ("acted", _U64),
    )


class _Change(ctypes.Structure):
    _fields_ = tuple((name, _U64) for name in ("number", "pid", "id"))


class _Control(ctypes.Structure):
    _fields_ = (
        *((name, _U64) for name in ("latency_us", "rules_used", "own_us")),
        ("calls", _U64 * len(FUNCTIONS)),
        ("rules", _Rule * RULES),
        ("changes", _U64),
        ("bell", ctypes.c_uint32),
        ("journal", _Change * JOURNAL),
    )


class Rule:
    """A rule that has been given, until the next ``Shim.clear``."""

    def __init__(self, rule: Any) -> None:
        self._rule = rule

    @property
    def acted(self) -> int:
        """On how many calls it has acted, or begun to."""
        return int(self._rule.acted)

    @property
    def spent(self) -> bool:
        """Whether it acts no more."""
        return self.acted >= int(self._rule.times)

    def remove(self) -> None:
        """Ends it; calls that it holds go on."""
        self._rule.active = 0


class Shim:
    """The control file of one shim, which it makes; ``environment`` is for the token's workers."""

    def __init__(self, path: Path, *, index: bool = False, module: Path | None = None) -> None:
        """``module`` is what it forwards to, SoftHSM by default."""
        self.environment = {
            "SHIM_MODULE": str(module or softhsm.find_module()),
            "SHIM_CONTROL": str(path),
            **({"SHIM_INDEX": "1"} if index else {}),
        }
        size = ctypes.sizeof(_Control)
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.ftruncate(file, size)
            # Lives as long as the structure in it: it cannot be closed before.
            self._control = _Control.from_buffer(mmap.mmap(file, size))
        finally:
            os.close(file)

    @property
    def latency(self) -> float:
        """Seconds that every call takes longer."""
        return float(self._control.latency_us) / 1e6

    @latency.setter
    def latency(self, seconds: float) -> None:
        self._control.latency_us = round(seconds * 1e6)

    @property
    def own_seconds(self) -> float:
        """How long callers have waited for the index, which a network HSM does not have."""
        return float(self._control.own_us) / 1e6

    # --- rules -----------------------------------------------------------------------------

    def on(
        self,
        function: str,
        *,
        skip: int = 0,
        times: int = ALWAYS,
        key: bytes = b"",
        mechanism: int = ANY,
        session: int = 0,
        pid: int = 0,
        after: bool = False,
        delay: float = 0.0,
        code: int = 0,
        action: Action = Action.NOTHING,
        value: int = 0,
        other: bytes = b"",
    ) -> Rule:
        """Gives a rule: the head of shim.c says what it does. ``delay`` is in seconds."""
        used = self._control.rules_used
        assert used < RULES, "too many rules: clear() removes them"
        rule = self._control.rules[used]
        ctypes.memset(ctypes.addressof(rule), 0, ctypes.sizeof(rule))
        rule.function = FUNCTIONS.index(function)
        rule.skip, rule.times, rule.after = skip, times, after
        rule.mechanism, rule.session, rule.pid = mechanism, session, pid
        rule.delay_us, rule.code = round(delay * 1e6), code
        rule.action, rule.value = action, value
        for name, cka_id in (("id", key), ("other", other)):
            setattr(rule, f"{name}_length", len(cka_id))
            setattr(rule, name, (ctypes.c_ubyte * ID_MAX)(*cka_id))
        self._control.rules_used = used + 1
        rule.active = 1
        return Rule(rule)

    def clear(self) -> None:
        """Removes all rules; calls that they hold go on."""
        for rule in self._control.rules:
            rule.active = 0
        self._control.rules_used = 0

    # --- counts ----------------------------------------------------------------------------

    @property
    def calls(self) -> Counter[str]:
        """Calls of all processes so far, by function."""
        counts = zip(FUNCTIONS, self._control.calls, strict=True)
        return Counter({name: count for name, count in counts if count})

    @contextmanager
    def counting(self) -> Iterator[Counter[str]]:
        """Yields a counter that has the calls of the block when it ends."""
        counted: Counter[str] = Counter()
        before = self.calls
        yield counted
        counted.update(self.calls - before)


def compiled(folder: Path) -> Path:
    """The shim of ``make shim``, or one in ``folder`` if that is older than its source."""
    built = SOURCE.parents[2] / "build" / "shim.so"
    if built.exists() and built.stat().st_mtime >= SOURCE.stat().st_mtime:
        return built
    made = folder / "shim.so"
    compiler = ["cc", "-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run([*compiler, "-o", str(made), str(SOURCE), "-ldl", "-lpthread"], check=True)
    return made

"""Refused calls, added up until they are recorded: bounded for each caller and in all."""

import threading
from dataclasses import dataclass
from hashlib import sha256

from signer.audit.format.record import Value
from signer.events import CallDenied

MAX_CALLERS = 100
"""Callers between two records; calls of further ones are only counted, by reason."""
MAX_ROWS_OF_ONE = 20
"""Different refusals of one caller; further ones are only counted, by caller and reason."""
MAX_NAME = 256
"""Characters of a caller's name; of a longer one the record has the beginning and a hash."""

_Refusal = tuple[str, str, str]  # key, reason, method


@dataclass(slots=True)
class _Row:
    """How often one caller was refused so, and the role and address of the last time."""

    calls: int = 0
    role: str = ""
    peer: str = ""


class Denials:
    """Counts refused calls, from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rows: dict[str, dict[_Refusal, _Row]] = {}

    def add(self, event: CallDenied) -> None:
        """Counts a call."""
        caller, refusal = _bounded(event.caller), (event.key, event.reason, event.method)
        alone = "", event.reason, ""
        with self._lock:
            if caller not in self._rows and len(self._rows) >= MAX_CALLERS:
                caller, refusal = "", alone
            rows = self._rows.setdefault(caller, {})
            if refusal not in rows and len(rows) >= MAX_ROWS_OF_ONE:
                refusal = alone
            row = rows.setdefault(refusal, _Row())
            row.calls += 1
            if caller:
                row.role, row.peer = event.role, event.peer

    def take(self) -> list[Value]:
        """Returns the rows since the last time.

        A row is a list: caller, key, reason, number of calls, method, role, address. What is not
        known, or not kept, is empty.
        """
        with self._lock:
            taken, self._rows = self._rows, {}
        return [
            [caller, key, reason, row.calls, method, row.role, row.peer]
            for caller, rows in taken.items()
            for (key, reason, method), row in rows.items()
        ]


def _bounded(name: str) -> str:
    if len(name) <= MAX_NAME:
        return name
    return f"{name[: MAX_NAME - 80]}...sha256:{sha256(name.encode()).hexdigest()}"

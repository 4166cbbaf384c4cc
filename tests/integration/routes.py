"""Traces which product files a request and an operation enter, in a real daemon and its worker."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import IO, NamedTuple

import signer
from signer.tools.dev.appliance import DevAppliance
from tests.appliances import Appliance
from tests.integration.officers import Office

TRACER = Path(__file__).parent / "tracer" / "sitecustomize.py"
PRODUCT = Path(signer.__file__).parent
RECORDS = "facilities/01-001/keys/records"
NOTICE_SECONDS = 0.5
"""More than the tracer takes to see that it is switched."""
OTHERS = (
    *(
        "MainThread",
        "registry",
        "stops",
        "checkpoints",
        "inventory",
        "metrics",
        "log-lines",
        "watchdog",
    ),
    *("sweep", "tracer"),
)
"""Beginnings of the names of the front's threads that work beside every request."""
OPERATIONS, LOG_WRITER = "operation", "audit-log"
"""Threads that are not on the route of a request, and not on that of an operation."""
BEHIND_THE_LOG = ("audit/format/", "audit/read/", "audit/write/")
BEHIND_THE_HSM = ("hsm/",)
BEHIND_THE_REPORTS = ("observe/",)
DOORS = (
    *("audit/write/log.py", "hsm/front/admin.py", "hsm/front/service.py"),
    "observe/reports.py",
)
"""Where an operation's route ends: what is behind them belongs to the log and to the HSM.

Both routes end at the reports.
"""


class Routes(NamedTuple):
    """Files below signer/ that were entered."""

    request: AbstractSet[str]
    operation: AbstractSet[str]


class _Traced(Appliance):
    """An appliance whose processes note what they enter."""

    def __init__(self, folder: Path) -> None:
        self._tracer = folder / "tracer"
        self._tracer.mkdir(parents=True)
        shutil.copy(TRACER, self._tracer)
        # This tree behind the tracer: another one may be what is installed.
        path = os.pathsep.join([str(self._tracer), str(PRODUCT.parent)])
        super().__init__(folder / "dev", (), {"PYTHONPATH": path})

    def _launch(self, command: list[str], log: IO[str]) -> subprocess.Popen[str]:
        """Starts a new interpreter: a fork of one that has started loads no tracer."""
        return DevAppliance._launch(self, command, log)

    def files(self, work: Callable[[], object], *without: str) -> set[str]:
        """The files entered during ``work``, by threads not named in OTHERS or ``without``."""
        switch = self._tracer / "on"
        switch.touch()
        time.sleep(NOTICE_SECONDS)
        work()
        switch.unlink()
        time.sleep(NOTICE_SECONDS)
        found: set[str] = set()
        for path in self._tracer.glob("*.json"):
            threads: dict[str, list[str]] = json.loads(path.read_text())
            worker = any(file.endswith("hsm/worker/__main__.py") for file in threads["MainThread"])
            for name, files in threads.items():
                if worker or not name.startswith((*OTHERS, *without)):
                    found |= {str(Path(file).relative_to(PRODUCT)) for file in files}
            path.unlink()
        return found


def trace(folder: Path) -> Routes:
    """Starts an appliance in ``folder`` and traces one request and one operation."""
    appliance = _Traced(folder)
    appliance.init()
    appliance.set_workers(1)
    appliance.start()
    try:
        with appliance.client() as client:
            client.sign_batch(RECORDS, "JWS", [b"{}"])  # the key's first signature is checked
            payloads = [b'{"a":1}', b'{"b":2}', b"not JSON"]
            request = appliance.files(
                lambda: client.sign_batch(RECORDS, "JWS", payloads), OPERATIONS
            )
        office = Office(appliance.dev)
        key = "facilities/01-001/keys/traced"
        entered = appliance.files(
            lambda: office.do("create-key", key=key, algorithm="ES256", activate=True), LOG_WRITER
        )
    finally:
        appliance.stop()
    behind = BEHIND_THE_LOG + BEHIND_THE_HSM + BEHIND_THE_REPORTS
    return Routes(_until(BEHIND_THE_REPORTS, request), _until(behind, entered))


def _until(behind: tuple[str, ...], entered: AbstractSet[str]) -> set[str]:
    return {file for file in entered if file in DOORS or not file.startswith(behind)}

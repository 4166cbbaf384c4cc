"""Makes a fixture: the state of an appliance, as the ``signer`` that is imported leaves it.

    PYTHONPATH=TREE python tests/upgrade/make.py WORK OUT

TREE is the tree of the version whose state it is to be, WORK a new folder for the appliance.
It has signed, was restarted, and its log has a second segment that begins with a snapshot;
where the version knows operations, officers have made a key. See README.md.
"""

import json
import shutil
import sqlite3
import sys
import tarfile
from contextlib import closing
from pathlib import Path
from typing import Any

from signer.audit.format.record import RecordKind
from signer.audit.read.ledger import Ledger
from signer.audit.write.log import Listener
from signer.audit.write.recovery import open_audit_log
from signer.clock import SystemClock
from signer.officers.offline_check import ApprovalFold
from signer.officers.standing_fold import StandingFold
from signer.tools.dev.appliance import DevAppliance

KEYS = ("facilities/01-001/keys/records", "facilities/01-001/keys/records-ed25519")


def sign(made: DevAppliance, word: str) -> list[dict[str, str]]:
    with made.client() as client:
        return [
            {"key": key, "payload": payload, "output": item.signature.decode()}
            for key in KEYS
            for payload in [json.dumps({"said": word})]
            for item in client.sign(key, "JWS", [payload.encode()])
        ]


def operate(made: DevAppliance) -> None:
    """Has officers make a key, where they can."""
    sys.path.append(str(Path(__file__).parents[2]))
    try:
        from tests.integration import officers  # noqa: PLC0415 - older versions lack what it needs
    except ImportError:
        return
    key = "facilities/01-001/keys/made-by-officers"
    officers.Office(made.dev).do("create-key", key=key, algorithm="ES256", activate=True)


def begin_segment(made: DevAppliance) -> None:
    """Has the log go on in a second segment, which begins with a snapshot."""
    approvals = ApprovalFold(checking=False)
    log = open_audit_log(
        made.dir / "audit",
        origin="signer/audit",
        clock=SystemClock(),
        segment_bytes=1,
        low_disk_bytes=1,
        ballast_bytes=0,
        listeners=[
            Listener(fold.apply, fold.KINDS, fold.snapshot)
            for fold in (Ledger(), approvals, StandingFold(approvals))
        ],
    )
    log.append(RecordKind.WORKER, {"token": "signer-dev", "cause": "died"})
    log.close()


def keep(made: Path, out: Path, signed: list[dict[str, str]]) -> None:
    out.mkdir(parents=True)
    for name in ("signer.yaml", "pin"):
        shutil.copy(made / name, out / name)
    for name in ("policy", "state"):
        shutil.copytree(made / name, out / name, ignore=shutil.ignore_patterns("*.lock"))
    ignored = shutil.ignore_patterns("lock", "ballast", "*.index")
    shutil.copytree(made / "audit", out / "audit", ignore=ignored)
    with closing(sqlite3.connect(made / "registry.sqlite")) as registry, registry:
        (out / "registry.sql").write_text("\n".join(registry.iterdump()) + "\n")
    with tarfile.open(out / "token.tar.gz", "w:gz") as archive:
        archive.add(made / "token", "token", filter=_nobodys)
    (out / "signed.json").write_text(json.dumps(signed, indent=2) + "\n")


def _nobodys(entry: tarfile.TarInfo) -> Any:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return None if entry.name.endswith(".lock") else entry


def main() -> None:
    work, out = Path(sys.argv[1]), Path(sys.argv[2])
    made = DevAppliance(work)
    with made:
        signed = sign(made, "before")
        operate(made)
    begin_segment(made)
    with made:
        signed += sign(made, "after")
    keep(work, out, signed)


if __name__ == "__main__":
    main()

"""Makes a fixture: an audit log, as the ``signer`` that is imported writes it.

    PYTHONPATH=TREE python tests/upgrade/make_log.py OUT

TREE is the tree of the version whose log it is to be. Two segments, the second begins with a
snapshot; batches of one and of twenty items, some of which failed before the HSM and some in
it; the last intent has no outcome. Beside the log: the audit key's checkpoint of all of it, a
proof of an item that was signed and of one that failed, and what the ledger says.
"""

import json
import sys
from hashlib import sha256
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from signer.audit.format import checkpoint as notes
from signer.audit.format.checkpoint import Checkpoint, NoteVerifier
from signer.audit.format.record import Column, RecordKind, Value
from signer.audit.format.segments import list_segments
from signer.audit.read.ledger import Ledger
from signer.audit.read.reader import Reader
from signer.audit.read.search import Match, prove_item
from signer.audit.write.log import AuditLog, Listener
from signer.audit.write.recovery import open_audit_log
from signer.clock import FlooredClock

ORIGIN = "test.example/log"
BEGAN = 1_790_000_000
ITEMS = 20
INVALID, LOST = 3, 7
"""An item of a batch that is no JSON, and an input of the HSM that it did not sign."""


class Clock(FlooredClock):
    """A second later at each look."""

    def __init__(self) -> None:
        super().__init__()
        self.time = float(BEGAN)

    def now(self) -> float:
        self.time += 1.0
        return self.time


def digest(batch: int, item: int) -> bytes:
    return sha256(f"{batch}/{item}".encode()).digest()


def intend(log: AuditLog, batch: int, items: int) -> int:
    failed: dict[str, Value] = {}
    if items > 1:
        failed[str(INVALID)] = "PAYLOAD_INVALID: payload is not JSON"
    good = items - len(failed)
    fields: dict[str, Value] = {
        "principal": "spiffe://x/issuer",
        "request_id": f"6a9b7d3e-0000-4000-8000-{batch:012d}",
        "call_id": f"call-{batch}",
        "payload_hash": sha256(bytes([batch])).digest(),
        "key_version": "facilities/01-001/keys/records/versions/1",
        "kid": b"kid",
        "format": "JWS",
        "rule": "facilities.01-001",
        "policy": sha256(b"policy").digest(),
        "facility": "01-001",
        "group": "01",
        "now": BEGAN + batch,
        "hcert": None,
        "asked": items,
        "failed": failed,
    }
    column = Column(32, b"".join(digest(batch, item) for item in range(good)))
    return log.append(RecordKind.INTENT, fields, column)


def conclude(log: AuditLog, intent: int, batch: int, items: int) -> int:
    failures: dict[str, Value] = {}
    signatures = [2 * digest(batch, item) for item in range(items)]
    if items > 1:
        failures[str(LOST)] = "HSM_UNAVAILABLE: two workers died over this item"
        signatures[LOST] = bytes(64)
    fields: dict[str, Value] = {"intent": intent, "attempts": 1, "failures": failures}
    return log.append(RecordKind.OUTCOME, fields, Column(64, b"".join(signatures)))


def main() -> None:
    out = Path(sys.argv[1])
    folder, ledger = out / "audit", Ledger()
    log = open_audit_log(
        folder,
        origin=ORIGIN,
        clock=Clock(),
        segment_bytes=3000,
        low_disk_bytes=1,
        ballast_bytes=0,
        listeners=[Listener(ledger.apply, Ledger.KINDS, ledger.snapshot)],
    )
    log.append(RecordKind.START, {"version": "1"})
    batches: list[list[int]] = []
    for batch, items in enumerate((ITEMS, 1, ITEMS)):
        intent = intend(log, batch, items)
        batches.append([intent, conclude(log, intent, batch, items - (items > 1))])
    left = intend(log, len(batches), ITEMS)
    checkpoint = Checkpoint(ORIGIN, *log.tree_head())
    log.close()
    (folder / "lock").unlink()

    key = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    note = notes.sign(checkpoint, NoteVerifier.from_spki(ORIGIN, spki), key.sign)
    reader = Reader(list_segments(folder))
    for name, item in (("signed", 18), ("failed", LOST)):
        proof = prove_item(reader, Match(batches[0][0], item, batches[0][1]), checkpoint, note)
        (out / f"{name}.json").write_text(proof + "\n")
    for index in folder.glob("*.index"):
        index.unlink()
    (out / "checkpoint").write_text(note)
    facts = {
        "spki": spki.hex(),
        "batches": batches,
        "left": left,
        "totals": ledger.totals(),
        "windows": ledger.windows(),
    }
    (out / "facts.json").write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()

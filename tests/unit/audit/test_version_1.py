"""A log of version 1 is read, verified, proven from, and continued in segments of version 2.

The log was written by an earlier signer (tests/upgrade/README.md) or is written here by hand.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from signer.audit.format import checkpoint as notes
from signer.audit.format import proof
from signer.audit.format.batch_records import reasons
from signer.audit.format.checkpoint import Checkpoint, NoteVerifier
from signer.audit.format.parse import parse
from signer.audit.format.record import FIRST_CHAIN, Column, Record, RecordKind, Value, frame
from signer.audit.format.segments import Header, list_segments, open_segment
from signer.audit.read.ledger import Ledger
from signer.audit.read.reader import Reader
from signer.audit.read.search import Match, find_items, prove_item
from signer.audit.read.verify import Report, verify_log, verify_part
from signer.audit.write.log import AuditLog, Listener
from tests.stand_ins import small_log
from tests.upgrade.make_log import BEGAN, INVALID, ITEMS, LOST, ORIGIN, digest

WRITTEN = Path(__file__).parents[2] / "upgrade" / "log-1"
FACTS: dict[str, Any] = json.loads((WRITTEN / "facts.json").read_text())
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
SPKI = bytes.fromhex(FACTS["spki"])
VERIFIER = NoteVerifier.from_spki(ORIGIN, SPKI)
NOTE = (WRITTEN / "checkpoint").read_text()
CHECKPOINT = VERIFIER.parse(NOTE)
LEFT: int = FACTS["left"]
INTENT, OUTCOME = FACTS["batches"][0]
KIND = RecordKind


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    copied = tmp_path / "audit"
    shutil.copytree(WRITTEN / "audit", copied)
    return copied


def versions(folder: Path) -> dict[int, int]:
    """The version of each segment, by the number of its first record."""
    found = {}
    for segment in list_segments(folder):
        with open_segment(segment) as (header, _):
            found[segment.first] = header.version
    return found


def opened(folder: Path, checkpoints: Sequence[Checkpoint] = ()) -> tuple[AuditLog, Ledger]:
    ledger = Ledger()
    listener = Listener(ledger.apply, Ledger.KINDS, ledger.snapshot)
    log = small_log(folder, origin=ORIGIN, checkpoints=checkpoints, listeners=[listener])
    return log, ledger


def reader(folder: Path) -> Reader:
    return Reader(list_segments(folder))


def records(folder: Path) -> list[Record]:
    return list(reader(folder).records(0, reader(folder).size))


def whole(folder: Path) -> Report:
    report = verify_log(folder, ORIGIN, [])
    assert report.problems == ()
    return report


def batch(folder: Path, log: AuditLog) -> tuple[int, int]:
    """Records a batch as today's signer does: the first of its payloads is no JSON."""
    digests = Column(32, b"".join(digest(9, item) for item in range(ITEMS)))
    fields = dict(reader(folder).record(LEFT).fields)
    fields |= {"request_id": "", "asked": ITEMS + 1, "failed": {"PAYLOAD_INVALID": b"\x01"}}
    intent = log.append(KIND.INTENT, fields, digests)
    signatures = Column(64, b"".join(2 * digest(9, item) for item in range(ITEMS)))
    outcome: dict[str, Value] = {"intent": intent, "attempts": 1, "failures": {}}
    return intent, log.append(KIND.OUTCOME, outcome, signatures)


# --- as it was written -------------------------------------------------------------------------


def test_it_is_verified(folder: Path) -> None:
    report = verify_log(folder, ORIGIN, [CHECKPOINT])
    assert report.problems == ()
    assert versions(folder) == {0: 1, 4: 1, 9: 1}
    assert (report.records, report.items, report.open_intents) == (10, 58, 1)
    assert report.covered == CHECKPOINT.size
    assert verify_part(list_segments(folder)[1:2], ORIGIN, [CHECKPOINT]).whole


def test_its_records_are_read_and_have_the_same_bytes(folder: Path) -> None:
    for segment in list_segments(folder):
        with open_segment(segment) as (header, frames):
            made, _ = header.frame()
            assert segment.path.read_bytes().startswith(made)
            for written in frames:
                assert parse(written.body).body() == written.body
    intent, outcome = reader(folder).record(INTENT), reader(folder).record(OUTCOME)
    assert intent.column is not None
    assert intent.column.leaf_items == 1
    assert reasons(intent.fields, "failed") == {INVALID: "PAYLOAD_INVALID: payload is not JSON"}
    lost = "HSM_UNAVAILABLE: two workers died over this item"
    assert reasons(outcome.fields, "failures") == {LOST: lost}


def test_its_quotas_are_those_that_were_charged(folder: Path) -> None:
    ledger = Ledger()
    for each in records(folder):
        ledger.apply(each)
    windows = {int(length): tuple(row) for length, row in FACTS["windows"]["01-001"].items()}
    assert ledger.totals() == FACTS["totals"] == {"01-001": {"records": 3 * (ITEMS - 1) + 1}}
    assert ledger.windows() == {"01-001": windows}


@pytest.mark.parametrize(("name", "item"), [("signed", 18), ("failed", LOST)])
def test_its_proofs_are_verified_and_made_again(folder: Path, name: str, item: int) -> None:
    kept = (WRITTEN / f"{name}.json").read_text()
    proven = proof.verify(kept, SPKI, ORIGIN)
    assert (proven.index, proven.digest) == (item, digest(0, item))
    assert proven.failure == (
        "HSM_UNAVAILABLE: two workers died over this item" if name == "failed" else None
    )
    again = prove_item(reader(folder), Match(INTENT, item, OUTCOME), CHECKPOINT, NOTE)
    assert again + "\n" == kept


# --- continued ---------------------------------------------------------------------------------


def test_it_is_continued_by_a_segment_of_version_2(folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.glob("*.log")}
    log, ledger = opened(folder, [CHECKPOINT])
    intent, outcome = batch(folder, log)
    log.close()

    # What the start says of the last intent is in the open segment, as an earlier signer
    # would have said it; then the new segment begins with a snapshot.
    kinds = [record.kind for record in records(folder)[9:]]
    assert kinds == [KIND.SNAPSHOT, KIND.INDETERMINATE, KIND.SNAPSHOT, KIND.INTENT, KIND.OUTCOME]
    assert versions(folder) == {0: 1, 4: 1, 9: 1, 11: 2}
    for name, data in before.items():
        assert (folder / name).read_bytes().startswith(data)
    report = verify_log(folder, ORIGIN, [CHECKPOINT])
    assert (report.problems, report.open_intents) == ((), 0)
    # The first counts its items that were asked for, not those that could be signed.
    assert ledger.totals() == {"01-001": {"records": 3 * (ITEMS - 1) + 1 + ITEMS + 1}}

    log, again = opened(folder, [CHECKPOINT])
    size, root = log.tree_head()
    log.close()
    assert versions(folder) == {0: 1, 4: 1, 9: 1, 11: 2}
    assert again.totals() == ledger.totals()
    for batch_of, match in ((0, Match(INTENT, 18, OUTCOME)), (9, Match(intent, 18, outcome))):
        wanted = digest(batch_of, 18)
        assert list(find_items(records(folder), frozenset({wanted}))) == [match]
        newest = Checkpoint(ORIGIN, size, root)
        note = notes.sign(newest, VERIFIER, KEY.sign)
        proven = proof.verify(prove_item(reader(folder), match, newest, note), SPKI, ORIGIN)
        assert (proven.digest, proven.signature) == (wanted, 2 * wanted)


def test_a_tail_that_was_torn_is_recorded_before_the_new_segment(folder: Path) -> None:
    with list_segments(folder)[-1].path.open("ab") as file:
        file.write(b"torn")
    log, _ = opened(folder)
    log.append(KIND.START, {})
    log.close()

    kinds = [record.kind for record in records(folder)[9:]]
    firsts = [KIND.RECOVERY, KIND.SNAPSHOT, KIND.INDETERMINATE]
    assert kinds == [KIND.SNAPSHOT, *firsts, KIND.START]
    assert list(versions(folder).values()) == [1, 1, 1, 2]
    assert whole(folder).recovered == (10,)


# --- written by hand ---------------------------------------------------------------------------


def write(folder: Path, segments: Sequence[Sequence[Record]], version: int = 1) -> None:
    """Writes segments, some of them without a record."""
    folder.mkdir()
    first, chain = 0, FIRST_CHAIN
    for number, held in enumerate(segments):
        data, chain = Header(ORIGIN, first, chain, version).frame()
        for each in held:
            framed, chain = frame(chain, each.body())
            data += framed
        (folder / f"{first:016d}.log").write_bytes(data)
        first += len(held)
        assert held or number == len(segments) - 1


def marks(*seqs: int) -> list[Record]:
    return [Record(seq, BEGAN * 1_000_000, KIND.WORKER, {}) for seq in seqs]


@pytest.mark.parametrize(
    ("segments", "after"),
    [
        ([[0, 1]], {0: 1, 2: 2}),
        ([[0, 1], [2]], {0: 1, 2: 1, 3: 2}),
        ([[0, 1], []], {0: 1, 2: 2}),
        ([[]], {0: 2}),
    ],
)
def test_nothing_of_version_2_is_written_into_a_segment_of_version_1(
    tmp_path: Path, segments: list[list[int]], after: dict[int, int]
) -> None:
    folder = tmp_path / "audit"
    write(folder, [marks(*seqs) for seqs in segments])
    for _ in range(2):
        log, _ = opened(folder)
        log.append(KIND.WORKER, {})
        log.close()
        assert versions(folder) == after
    first = max(after)
    assert records(folder)[first].kind is KIND.SNAPSHOT
    assert whole(folder).kinds == {KIND.WORKER: first + 2}


@pytest.mark.parametrize(("version", "leaf_items"), [(1, 16), (2, 1)])
def test_a_column_of_another_version_than_its_segment_is_refused(
    tmp_path: Path, version: int, leaf_items: int
) -> None:
    column = Column(32, bytes(64), leaf_items)
    write(tmp_path / "audit", [[Record(0, 0, KIND.INTENT, {}, column)]], version)
    [problem] = verify_log(tmp_path / "audit", ORIGIN, []).problems
    assert "the column is not one of the segment's version" in problem

"""Changes to the log's files by somebody with all rights on the machine: every one is found.

The auditor has the public key and one checkpoint that was shipped in time. A
change to the files is anything that leaves them with other bytes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import NamedTuple
from uuid import uuid4

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st

from signer.audit.format.checkpoint import Checkpoint
from signer.audit.format.merkle import root
from signer.audit.format.record import Column, RecordKind, Value, frame
from signer.audit.format.segments import Header, list_segments, open_segment
from signer.audit.read.reader import Reader
from signer.audit.read.verify import verify_log
from signer.audit.write.log import AuditLog, Listener
from signer.audit.write.recovery import AuditRefused
from signer.clock import SystemClock
from signer.officers.approval import Proposal
from signer.officers.change_check import ChangeFold
from signer.officers.offline_check import ApprovalFold
from tests.stand_ins import small_log

ORIGIN = "signer.example/log"
DAY = 24 * 3600


def approved() -> dict[RecordKind, dict[str, Value]]:
    """What two officers leave in a log that propose, approve and execute one operation."""
    now, number = int(SystemClock().now()), str(uuid4())
    keys = {name: Ed25519PrivateKey.generate() for name in ("officer-a", "officer-b")}
    first, second = (f"spiffe://signer.example/{name}" for name in keys)
    officers: list[Value] = []
    for name, key in keys.items():
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        begins, ends = (datetime.fromtimestamp(now + d * DAY, UTC) for d in (-1, 100))
        builder = x509.CertificateBuilder(subject, subject, key.public_key(), 1, begins, ends)
        der = builder.sign(key, None).public_bytes(Encoding.DER)
        officers.append([f"spiffe://signer.example/{name}", der])

    def whole(number: str, kind: str, details: dict[str, object]) -> dict[str, Value]:
        proposal = Proposal(ORIGIN, number, kind, first, now, now + 7 * DAY, 2, details)
        content = proposal.canonical()
        signed = (
            (who, key.sign(content))
            for who, key in zip((first, second), keys.values(), strict=True)
        )
        signatures: list[Value] = [[who, data, now * 1_000_000] for who, data in signed]
        return {"operation": number, "content": content, "signatures": signatures}

    made = whole(number, "create-key", {"key": "facilities/01-001/keys/records"})
    times: dict[str, Value] = {"wrong_from": 0, "right_until": 0}
    clock = whole(str(uuid4()), "clock", {"ahead": 0, **times})
    content = made["content"]
    one, two = (key.sign(bytes(content)) for key in keys.values())  # type: ignore[arg-type]
    return {
        RecordKind.OFFICERS: {"officers": officers, "development": False, "policy": bytes(32)},
        RecordKind.PROPOSAL: {
            "operation": number,
            "officer": first,
            "content": content,
            "signature": one,
        },
        RecordKind.APPROVAL: {"operation": number, "officer": second, "signature": two},
        RecordKind.REJECTION: {
            "operation": str(uuid4()),
            "officer": second,
            "reason": "not asked for",
        },
        RecordKind.EXECUTION: made,
        RecordKind.EXECUTED: {"operation": number, "state": "DONE", "note": ""},
        RecordKind.ACT: {
            "act": "suspend",
            "target": "facilities/01-001",
            "officer": first,
            "reason": "a theft",
            "changed": {},
        },
        RecordKind.CLOCK: clock | times,
    }


OTHER_KINDS: dict[RecordKind, dict[str, Value]] = {
    RecordKind.START: {"version": "1.0", "pid": 17},
    RecordKind.DENIALS: {
        "principal": "spiffe://signer.example/b",
        "reason": "POLICY_DENIED",
        "times": 9,
    },
    RecordKind.POLICY: {"policy": bytes(range(32))},
    RecordKind.TOKEN: {"token": "signer", "event": "removed"},
    RecordKind.WORKER: {"token": "signer", "cause": "hung"},
    RecordKind.KEYS: {
        "operation": "rotate",
        "proposed_by": "spiffe://signer.example/officer-a",
        "approved_by": ["spiffe://signer.example/officer-b"],
    },
    RecordKind.STOP: {"reason": "SIGTERM"},
}


@dataclass(frozen=True)
class Evidence:
    """A log with records of every kind in several segments, and a checkpoint of all of it.

    ``donors`` are segments whose records a forger could take: its own, and those of
    another log of the same name.
    """

    folder: Path
    files: dict[str, bytes]
    donors: list[bytes]
    checkpoint: Checkpoint

    def restore(self) -> None:
        for segment in list_segments(self.folder):
            segment.path.unlink()
        for name, data in self.files.items():
            (self.folder / name).write_bytes(data)

    def problems(self) -> tuple[str, ...]:
        return verify_log(self.folder, ORIGIN, [self.checkpoint], folds=[ChangeFold]).problems


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    folders = [tmp_path_factory.mktemp("tampering") / "audit" for _ in range(2)]
    checkpoint, _ = (
        make_log(folder, Random(seed)) for seed, folder in enumerate(folders)
    )  # only fills columns
    files, others = (
        {segment.path.name: segment.path.read_bytes() for segment in list_segments(folder)}
        for folder in folders
    )
    assert len(files) > 5
    assert files.keys() & others.keys() > {min(files)}  # segments at the same places, too
    donors = [*files.values(), *others.values()]
    return Evidence(folders[0], files, donors, checkpoint)


def make_log(folder: Path, random: Random) -> Checkpoint:
    log = open_log(folder)
    for kind, fields in (OTHER_KINDS | approved()).items():
        log.append(kind, fields)
        sign(log, random)
    log.append(RecordKind.INTENT, {"principal": "spiffe://signer.example/a"}, Column(32, bytes(64)))
    log.close()
    # A crash in between: INDETERMINATE and RECOVERY are in the log, too.
    with list_segments(folder)[-1].path.open("ab") as file:
        file.write(b"torn")
    log = open_log(folder)
    for _ in range(8):
        sign(log, random)
    log.close()
    # And an override, of the tail of a checkpoint that was never made.
    size, root = log.tree_head()
    log = open_log(folder, Checkpoint(ORIGIN, size + 5, root), override=True)
    sign(log, random)
    log.close()
    checkpoint = Checkpoint(ORIGIN, *log.tree_head())
    report = verify_log(folder, ORIGIN, [checkpoint], folds=[ChangeFold])
    assert report.problems == ()
    assert {*report.kinds, RecordKind.SNAPSHOT} == set(RecordKind)
    return checkpoint


def open_log(
    folder: Path, checkpoint: Checkpoint | None = None, *, override: bool = False
) -> AuditLog:
    control = ApprovalFold(checking=False)
    return small_log(
        folder,
        origin=ORIGIN,
        segment_bytes=2000,
        checkpoints=[checkpoint] if checkpoint else [],
        override=override,
        listeners=[
            Listener(control.apply, snapshot=control.snapshot),
            Listener(lambda _: None, snapshot=lambda: {"used": {"01-001": 7}}),
        ],
    )


def sign(log: AuditLog, random: Random) -> None:
    fields: dict[str, Value] = {
        "principal": "spiffe://signer.example/a",
        "key_version": "facilities/01-001/keys/records/versions/1",
        "request_id": str(random.getrandbits(64)),
        "now": 1_700_000_000,
    }
    intent = log.append(RecordKind.INTENT, fields, Column(32, random.randbytes(96)))
    outcome: dict[str, Value] = {"intent": intent, "attempts": 1, "failures": {}}
    log.append(RecordKind.OUTCOME, outcome, Column(64, random.randbytes(192)))


# Ways to change one segment's bytes.


class Victim(NamedTuple):
    """A segment's bytes, where its frames lie (the header's first), and what to put in."""

    data: bytes
    spans: list[tuple[int, int]]
    donor: bytes


Change = Callable[[Random, Victim], bytes]


def flip_bit(random: Random, victim: Victim) -> bytes:
    data, place = victim.data, random.randrange(len(victim.data))
    return data[:place] + bytes([data[place] ^ 1 << random.randrange(8)]) + data[place + 1 :]


def replace_bytes(random: Random, victim: Victim) -> bytes:
    data, start = victim.data, random.randrange(len(victim.data))
    length = len(data[start : start + random.randint(1, 64)])
    return data[:start] + random.randbytes(length) + data[start + length :]


def delete_bytes(random: Random, victim: Victim) -> bytes:
    data, start = victim.data, random.randrange(len(victim.data))
    return data[:start] + data[start + random.randint(1, 200) :]


def insert_bytes(random: Random, victim: Victim) -> bytes:
    data, start = victim.data, random.randrange(len(victim.data) + 1)
    return data[:start] + random.randbytes(random.randint(1, 64)) + data[start:]


def truncate(random: Random, victim: Victim) -> bytes:
    return victim.data[: random.randrange(len(victim.data))]


def truncate_at_a_frame(random: Random, victim: Victim) -> bytes:
    start, _ = random.choice(victim.spans)
    return victim.data[:start]


def delete_frame(random: Random, victim: Victim) -> bytes:
    start, end = random.choice(victim.spans)
    return victim.data[:start] + victim.data[end:]


def swap_frames(random: Random, victim: Victim) -> bytes:
    spans = list(victim.spans)
    one, other = random.randrange(len(spans)), random.randrange(len(spans))
    spans[one], spans[other] = spans[other], spans[one]
    return b"".join(victim.data[start:end] for start, end in spans)


def splice_frame(random: Random, victim: Victim) -> bytes:
    """Puts a frame of the donor before, behind or over one of the victim's."""
    start, end = random.choice(spans_of(victim.donor))
    at, until = random.choice(victim.spans)
    return victim.data[:at] + victim.donor[start:end] + victim.data[random.choice([at, until]) :]


def splice_tail(random: Random, victim: Victim) -> bytes:
    """Goes on with the donor's records from somewhere on."""
    at, _ = random.choice(victim.spans)
    start, _ = random.choice(spans_of(victim.donor))
    return victim.data[:at] + victim.donor[start:]


def replace_segment(random: Random, victim: Victim) -> bytes:  # noqa: ARG001
    return victim.donor


def rewrite_and_chain_anew(random: Random, victim: Victim) -> bytes:
    """Changes a byte of one record's body and mends every hash behind it in this segment."""
    data, number = victim.data, random.randrange(len(victim.spans))
    start, end = victim.spans[number]
    body = bytearray(data[start + 4 : end - 32])
    body[random.randrange(len(body))] ^= 1 << random.randrange(8)
    bodies = [
        bytes(body),
        *(data[begin + 4 : stop - 32] for begin, stop in victim.spans[number + 1 :]),
    ]
    made, chain = data[:start], data[start - 32 : start] if start else bodies[0][19:51]
    for one in bodies:
        framed, chain = frame(chain, one)
        made += framed
    return made


CHANGES: list[Change] = [
    flip_bit,
    replace_bytes,
    delete_bytes,
    insert_bytes,
    truncate,
    truncate_at_a_frame,
    delete_frame,
    swap_frames,
    splice_frame,
    splice_tail,
    replace_segment,
    rewrite_and_chain_anew,
]


def spans_of(data: bytes) -> list[tuple[int, int]]:
    spans, start = [], 0
    while start < len(data):
        end = start + 4 + int.from_bytes(data[start : start + 4], "big") + 32
        spans.append((start, end))
        start = end
    return spans


def check_change(evidence: Evidence, change: Change, seed: int) -> None:
    random = Random(seed)  # only chooses places
    name = random.choice(sorted(evidence.files))
    data = changed = evidence.files[name]
    while changed == data:  # a frame put in its own place is no change
        changed = change(random, Victim(data, spans_of(data), random.choice(evidence.donors)))
    path = evidence.folder / name
    path.write_bytes(changed)
    try:
        assert evidence.problems() != ()
    finally:
        path.write_bytes(data)


changes = given(st.sampled_from(CHANGES), st.integers(0, 1 << 64))


@changes
@settings(max_examples=100, deadline=None)
def test_every_change_is_found(evidence: Evidence, change: Change, seed: int) -> None:
    check_change(evidence, change, seed)


@pytest.mark.torture
@changes
@settings(max_examples=20_000, deadline=None)
def test_every_one_of_20000_changes_is_found(evidence: Evidence, change: Change, seed: int) -> None:
    check_change(evidence, change, seed)


@pytest.mark.parametrize("kind", RecordKind)
def test_a_change_to_a_record_of_any_kind_is_found(evidence: Evidence, kind: RecordKind) -> None:
    """One bit in the middle of the first record of the kind."""
    for segment in list_segments(evidence.folder):
        with open_segment(segment) as (_, frames):
            spans = [(one.offset, one.end) for one in frames if kind.encode() in one.body]
        if spans:
            break
    start, end = spans[0]
    data = bytearray(evidence.files[segment.path.name])
    data[(start + end) // 2] ^= 1
    segment.path.write_bytes(data)
    try:
        [problem, *_] = evidence.problems()
        assert segment.path.name in problem
    finally:
        evidence.restore()


# Whole files


def test_a_deleted_segment_is_found(evidence: Evidence) -> None:
    for name in evidence.files:
        (evidence.folder / name).unlink()
        assert evidence.problems() != ()
        evidence.restore()


def test_two_swapped_segments_are_found(evidence: Evidence) -> None:
    first, second, *_ = sorted(evidence.files)
    (evidence.folder / first).write_bytes(evidence.files[second])
    (evidence.folder / second).write_bytes(evidence.files[first])
    assert evidence.problems() != ()
    evidence.restore()


def test_a_segment_under_another_name_is_found(evidence: Evidence) -> None:
    *_, last = sorted(evidence.files)
    (evidence.folder / last).rename(evidence.folder / "0000000000009999.log")
    assert evidence.problems() != ()
    evidence.restore()


def test_a_truncation_of_whole_records_is_found_by_the_checkpoint_only(evidence: Evidence) -> None:
    """Without a checkpoint a shorter log is a log; with it there is no doubt."""
    *_, last = sorted(evidence.files)
    data = evidence.files[last]
    (evidence.folder / last).write_bytes(data[: spans_of(data)[-1][0]])
    assert verify_log(evidence.folder, ORIGIN, []).problems == ()
    [problem] = evidence.problems()
    assert f"a checkpoint covers {evidence.checkpoint.size}" in problem
    with pytest.raises(AuditRefused, match="not whole"):
        open_log(evidence.folder, evidence.checkpoint)
    evidence.restore()


def test_a_log_that_was_written_anew_is_found_by_the_checkpoint(tmp_path: Path) -> None:
    """Another approver, and every hash behind him mended: only the signed root tells."""
    folder = tmp_path / "audit"
    log = open_log(folder)
    for kind, fields in OTHER_KINDS.items():
        log.append(kind, fields)
    log.close()
    checkpoint = Checkpoint(ORIGIN, *log.tree_head())
    [segment] = list_segments(folder)
    with open_segment(segment) as (_, frames):
        bodies = [one.body for one in frames]
    made, chain = Header(ORIGIN, 0, bytes(32)).frame()
    for body in bodies:
        framed, chain = frame(chain, body.replace(b"officer-b", b"officer-a"))
        made += framed
    assert len(made) == segment.path.stat().st_size
    segment.path.write_bytes(made)
    assert verify_log(folder, ORIGIN, []).problems == ()
    [problem] = verify_log(folder, ORIGIN, [checkpoint]).problems
    assert "another root" in problem


def test_flips_in_the_records_behind_the_checkpoint_are_found(evidence: Evidence) -> None:
    """The chain alone covers what no checkpoint covers yet."""
    early = Checkpoint(ORIGIN, 10, root(Reader(list_segments(evidence.folder)).leaf_hashes(0, 10)))
    name = max(evidence.files)
    data = evidence.files[name]
    for place in range(0, len(data), 5):
        (evidence.folder / name).write_bytes(
            data[:place] + bytes([data[place] ^ 0x20]) + data[place + 1 :]
        )
        assert verify_log(evidence.folder, ORIGIN, [early]).problems != ()
    evidence.restore()

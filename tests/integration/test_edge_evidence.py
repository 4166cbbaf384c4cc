"""EvidenceService over the wire: what an auditor learns, and can prove without believing it."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from signer.audit.format import merkle
from signer.audit.format.checkpoint import Checkpoint, NoteVerifier
from signer.audit.format.parse import parse_head
from signer.audit.format.record import Column, Record, RecordKind
from signer.audit.format.segments import list_segments
from signer.audit.read.reader import Reader
from signer.cli.audit.log_files import spki_of
from signer.cli.main import main
from signer.client import DeniedError, InvalidRequestError, SignerClient
from signer.v1 import evidence_pb2
from tests.integration import edge
from tests.torture import long

ORIGIN = "signer/audit"
METHODS = {
    "GetCheckpoint": evidence_pb2.GetCheckpointRequest(),
    "ListRecords": evidence_pb2.ListRecordsRequest(),
    "GetInclusionProof": evidence_pb2.GetInclusionProofRequest(size=1),
    "GetConsistencyProof": evidence_pb2.GetConsistencyProofRequest(size=1),
}


class Auditor:
    """An auditor's connection, and the public key that was handed over when the log began."""

    def __init__(self, made: Any, client: SignerClient) -> None:
        self.made = made
        self.client = client
        self.verifier = NoteVerifier.from_spki(
            ORIGIN, spki_of(made.dir / "audit" / "audit.pub.pem")
        )

    def checkpoint(self) -> Checkpoint:
        return self.verifier.parse(self.client.get_checkpoint())

    def checkpoint_of(self, size: int) -> Checkpoint:
        """A checkpoint of at least so many records."""
        edge.until(lambda: self.checkpoint().size >= size, "a checkpoint covers all")
        return self.checkpoint()

    def records(self) -> list[Record]:
        """What the files say."""
        reader = Reader(list_segments(self.made.dir / "audit"))
        return list(reader.records(reader.first, reader.size))

    def grown(self, before: Checkpoint, after: Checkpoint) -> bool:
        """Whether the daemon proves that one log begins with the other."""
        proof = self.client.consistency_proof(before.size, after.size)
        return merkle.verify_consistency(before.size, after.size, before.root, after.root, proof)

    def holds(self, checkpoint: Checkpoint, seq: int, leaf: bytes) -> bool:
        """Whether the daemon proves that a record is in the log."""
        proof = self.client.inclusion_proof(seq, checkpoint.size)
        return merkle.verify_inclusion(leaf, seq, checkpoint.size, proof, checkpoint.root)


@pytest.fixture(scope="module")
def stubs(appliance: Any) -> Iterator[edge.Stubs]:
    with edge.connect(appliance.dev, "auditor") as connected:
        yield connected


@pytest.fixture(scope="module")
def auditor(appliance: Any, issuer: edge.Stubs) -> Iterator[Auditor]:
    """An auditor of a log with a few records of every length."""
    for count in (1, 3, 4096, 4096, 4096, 4096, 7):
        issuer.sign([b"{}"] * count)
    with appliance.client("auditor") as client:
        yield Auditor(appliance, client)


def page(stubs: edge.Stubs, **fields: Any) -> Any:
    request = evidence_pb2.ListRecordsRequest(**fields)
    return stubs.evidence.ListRecords(request, timeout=edge.SECONDS)


# --- who may -----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_only_auditors_see_the_log(appliance: Any, auditor: Auditor, method: str) -> None:
    auditor.checkpoint()
    with edge.connect(appliance.dev, "auditor") as stubs:
        assert getattr(stubs.evidence, method)(METHODS[method], timeout=edge.SECONDS)
    expected = dict.fromkeys(("issuer", "officer-a", "officer-b", "operator"), "POLICY_DENIED")
    for name, reason in {**expected, "stranger": "PEER_UNKNOWN"}.items():
        with edge.connect(appliance.dev, name) as stubs:
            call = getattr(stubs.evidence, method)
            refusal = edge.refused(lambda: call(METHODS[method], timeout=edge.SECONDS))
            assert refusal.reason == reason, name


# --- records -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_pages_hold_every_record_once_in_order(
    auditor: Auditor, stubs: edge.Stubs, size: int
) -> None:
    known, found, token = auditor.records(), list[Any](), ""
    while True:
        answer = page(stubs, page_size=size, page_token=token)
        assert 1 <= len(answer.records) <= size
        assert answer.ByteSize() <= 1 << 20 or len(answer.records) == 1
        found += answer.records
        token = answer.next_page_token
        if not token:
            break
    assert len(found) >= len(known)
    for shown, record in zip(found, known, strict=False):
        assert shown.head == record.head()
        assert shown.items == (record.column.data if record.column else b"")
        assert shown.omitted_bytes == 0
        assert (shown.seq, shown.kind) == (record.seq, record.kind)
        assert shown.record_time.ToMicroseconds() == record.time_us


def test_a_page_of_long_records_ends_early(auditor: Auditor, stubs: edge.Stubs) -> None:
    assert len(auditor.records()) < 1000
    first = page(stubs, page_size=1000)
    assert first.next_page_token
    assert first.ByteSize() > 1 << 19


def test_what_is_shown_is_what_the_checkpoint_signs(auditor: Auditor) -> None:
    newest = auditor.checkpoint_of(len(auditor.records()))
    frontier = merkle.Frontier()
    for shown in auditor.client.list_records():
        head = parse_head(shown.head)
        assert (shown.seq, shown.kind) == (head.seq, head.kind) == (frontier.size, shown.kind)
        assert round(shown.time.timestamp() * 1_000_000) == head.time_us
        assert shown.leaf_hash == merkle.leaf_hash(shown.head)
        if head.shape:
            column = Column(head.shape.width, shown.items)
            assert (column.count, column.root()) == (head.shape.count, head.shape.root)
        frontier.append(shown.leaf_hash)
        if frontier.size == newest.size:
            assert frontier.root() == newest.root
    assert frontier.size >= newest.size


def test_a_start_a_kind_and_no_items(auditor: Auditor) -> None:
    known = auditor.records()
    intents = [record for record in known if record.kind is RecordKind.INTENT][1:]
    shown = auditor.client.list_records(
        intents[0].seq, kinds=iter([RecordKind.INTENT, RecordKind.STOP]), omit_items=True
    )
    for one, record in zip(shown, intents, strict=False):
        assert (one.seq, one.head, one.items) == (record.seq, record.head(), b"")
        assert record.column is not None
        assert one.omitted_bytes == len(record.column.data)


def test_who_has_read_all_can_wait_for_more(auditor: Auditor, issuer: edge.Stubs) -> None:
    seen = [shown.seq for shown in auditor.client.list_records()]
    after = seen[-1] + 1
    issuer.sign()
    more = [shown.seq for shown in auditor.client.list_records(after)]
    assert more[:2] == [after, after + 1]


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("page_size", {"page_size": -1}),
        ("page_size", {"page_size": 1001}),
        ("start", {"start": -1}),
        ("start", {"start": 1 << 62}),
        ("page_token", {"page_token": "x"}),
        ("page_token", {"page_token": "-1"}),
        ("page_token", {"page_token": "٣"}),
        ("page_token", {"page_token": "9" * 18}),
        ("page_token", {"page_token": "9" * 5000}),
        ("kinds", {"kinds": ["intent", "nonsense"]}),
    ],
)
def test_bad_fields_of_a_list(stubs: edge.Stubs, field: str, fields: dict[str, Any]) -> None:
    refusal = edge.refused(lambda: page(stubs, **fields), "FIELD_INVALID")
    assert refusal.fields == (field,)


# --- proofs ------------------------------------------------------------------------------------


steps = pytest.mark.parametrize("step", [5, *long(1)])


@steps
def test_every_record_is_proven_in_a_log_that_grows(
    auditor: Auditor, issuer: edge.Stubs, step: int
) -> None:
    leaves = {shown.seq: shown.leaf_hash for shown in auditor.client.list_records()}
    for seq, leaf in list(leaves.items())[::step]:
        newest = auditor.checkpoint_of(seq + 1)
        assert auditor.holds(newest, seq, leaf)
        assert not auditor.holds(newest, seq, merkle.leaf_hash(b"another"))
        if seq % 5 == 0:
            issuer.sign()


@steps
def test_every_size_is_proven(auditor: Auditor, step: int) -> None:
    leaves = [record.leaf_hash() for record in auditor.records()]
    for size in range(1, len(leaves) + 1, step):
        seq = size * 7 % size
        tree = Checkpoint(ORIGIN, size, merkle.root(leaves[:size]))
        assert auditor.holds(tree, seq, leaves[seq])
        older = Checkpoint(ORIGIN, seq + 1, merkle.root(leaves[: seq + 1]))
        assert auditor.grown(older, tree)


def test_checkpoints_of_a_log_that_grows_are_consistent(
    auditor: Auditor, issuer: edge.Stubs
) -> None:
    seen = [auditor.checkpoint()]
    for count in (1, 100, 4096):
        issuer.sign([b"{}"] * count)
        seen.append(auditor.checkpoint_of(len(auditor.records())))
    for number, after in enumerate(seen):
        for before in seen[: number + 1]:
            assert auditor.grown(before, after)
            bent = Checkpoint(ORIGIN, before.size, merkle.leaf_hash(before.root))
            assert not auditor.grown(bent, after)


@pytest.mark.parametrize(
    ("method", "field", "fields"),
    [
        ("GetInclusionProof", "size", {"seq": 0, "size": 0}),
        ("GetInclusionProof", "size", {"seq": 0, "size": 1 << 60}),
        ("GetInclusionProof", "seq", {"seq": 3, "size": 3}),
        ("GetInclusionProof", "seq", {"seq": -1, "size": 3}),
        ("GetConsistencyProof", "size", {"old_size": 0, "size": -3}),
        ("GetConsistencyProof", "size", {"old_size": 0, "size": 1 << 60}),
        ("GetConsistencyProof", "old_size", {"old_size": 4, "size": 3}),
    ],
)
def test_bad_fields_of_a_proof(
    stubs: edge.Stubs, method: str, field: str, fields: dict[str, int]
) -> None:
    request = getattr(evidence_pb2, f"{method}Request")(**fields)
    call = getattr(stubs.evidence, method)
    refusal = edge.refused(lambda: call(request, timeout=edge.SECONDS), "FIELD_INVALID")
    assert refusal.fields == (field,)


# --- a life with restarts, an archive, and a rollback -------------------------------------------


def signed(made: Any, batches: int, items: int = 1) -> None:
    with edge.connect(made.dev) as issuer:
        for _ in range(batches):
            issuer.sign([b"{}"] * items)


def test_after_a_restart_and_with_segments_archived_the_log_is_still_one(
    make_appliance: Callable[..., Any], tmp_path: Path
) -> None:
    made = make_appliance(config={"audit": {"segment_bytes": 1 << 20}})
    signed(made, 8, 4096)
    with made.client("auditor") as client:
        auditor = Auditor(made, client)
        known = auditor.records()
        before = auditor.checkpoint_of(len(known))
    assert made.stop() == 0
    [first, second, *_] = list_segments(made.dir / "audit")
    made.start()
    signed(made, 3)
    with made.client("auditor") as client:
        auditor = Auditor(made, client)
        after = auditor.checkpoint_of(before.size + 6)
        assert auditor.grown(before, after)
        assert all(auditor.holds(after, each.seq, each.leaf_hash()) for each in known)
    assert made.stop() == 0
    for path in (first.path, first.index_path):
        shutil.move(path, tmp_path)
    made.start()
    signed(made, 1)
    with made.client("auditor") as client:
        auditor = Auditor(made, client)
        assert next(client.list_records()).seq == second.first
        last = auditor.checkpoint_of(after.size + 2)
        assert auditor.grown(before, last)
        here = [each for each in known if each.seq >= second.first]
        assert all(auditor.holds(last, each.seq, each.leaf_hash()) for each in here)
        with pytest.raises(InvalidRequestError, match="archive"):
            client.inclusion_proof(0, last.size)
        with pytest.raises(InvalidRequestError, match="archive"):
            next(client.list_records(1))


class Done:
    """How a command of this process ended."""

    def __init__(self, capfd: pytest.CaptureFixture[str], *words: object) -> None:
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(["audit", "checkpoint", *map(str, words)])
        self.code = ended.value.code
        self.out, self.errors = capfd.readouterr()


def test_the_command_keeps_checkpoints_and_finds_a_rollback(
    make_appliance: Callable[..., Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    made = make_appliance()
    key, last = tmp_path / "audit.pub.pem", tmp_path / "last"
    shutil.copy(made.dir / "audit" / "audit.pub.pem", key)
    asked = ("--client", made.client_file("auditor"), "--key", key)
    again = (*asked, "--previous", last, "--output", last)

    done = Done(capfd, *asked, "--output", last)
    assert (done.code, done.errors) == (0, "")
    assert "the log signer/audit has " in done.out
    signed(made, 5)
    done = Done(capfd, *again)
    assert (done.code, done.errors) == (0, "")
    assert "only grown since" in done.out
    said = json.loads(Done(capfd, *again, "--json").out)
    assert said["note"] == last.read_text()
    assert said["note"].splitlines()[:2] == [said["origin"], str(said["size"])]
    assert said["previous_size"] <= said["size"]

    # Root puts back an older state of the whole log, its checkpoints included.
    assert made.stop() == 0
    shutil.copytree(made.dir / "audit", tmp_path / "older")
    made.start()
    signed(made, 40)
    with made.client("auditor") as client:
        auditor = Auditor(made, client)
        auditor.checkpoint_of(len(auditor.records()))
    assert Done(capfd, *again).code == 0
    kept = last.read_text()
    assert made.stop() == 0
    shutil.rmtree(made.dir / "audit")
    shutil.move(tmp_path / "older", made.dir / "audit")
    made.start()
    done = Done(capfd, *again)
    assert (done.code, done.out) == (1, "")
    assert "records are missing" in done.errors
    signed(made, 60)
    with made.client("auditor") as client:
        auditor = Auditor(made, client)
        newest = auditor.checkpoint_of(len(auditor.records()))
        assert newest.size > int(kept.splitlines()[1])
    done = Done(capfd, *again)
    assert (done.code, done.out) == (1, "")
    assert "does not prove" in done.errors
    assert f"{ORIGIN}\n{newest.size}\n" in done.errors  # the other half of the evidence
    assert last.read_text() == kept


def test_the_command_believes_no_other_checkpoint(
    appliance: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    key, last = appliance.dir / "audit" / "audit.pub.pem", tmp_path / "last"
    asked = ("--client", appliance.client_file("auditor"), "--key")
    assert Done(capfd, *asked, key, "--output", last).code == 0
    note = last.read_text()
    size = note.splitlines()[1]
    other = tmp_path / "other"
    for bent in (note.replace(size, "1", 1), note[:-30], "", "\xff", note.replace("/", "-", 1)):
        other.write_bytes(bent.encode("latin-1", "replace"))
        done = Done(capfd, *asked, key, "--previous", other, "--output", last)
        assert (done.code, done.out) == (1, "")
        assert "is not a checkpoint" in done.errors
    foreign = appliance.key("01-001/records")["public_key"]
    done = Done(capfd, *asked, foreign)
    assert (done.code, done.out) == (1, "")
    assert "no signature of the audit key" in done.errors
    assert Done(capfd, *asked, key, "--origin", "another/log").code == 1
    assert last.read_text() == note


def test_the_command_is_for_auditors(appliance: Any, capfd: pytest.CaptureFixture[str]) -> None:
    key = appliance.dir / "audit" / "audit.pub.pem"
    done = Done(capfd, "--client", appliance.client_file("operator"), "--key", key)
    assert (done.code, done.out) == (1, "")
    assert "POLICY_DENIED" in done.errors
    with appliance.client("issuer") as client, pytest.raises(DeniedError):
        client.get_checkpoint()

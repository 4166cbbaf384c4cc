import json
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from signer.audit.format import checkpoint, proof
from signer.audit.format.checkpoint import Checkpoint, NoteVerifier
from signer.audit.format.record import Column, Record, RecordError, RecordKind, Value
from signer.audit.format.segments import list_segments
from signer.audit.read.reader import Reader
from signer.audit.read.search import Match, SearchError, describe, find_items, locate, prove_item
from signer.audit.write.log import Listener
from tests.stand_ins import small_log

ORIGIN = "signer.example/test"
POLICY = sha256(b"policy").digest()
BATCH = 20


def digest(batch: int, item: int) -> bytes:
    return sha256(b"digest %d %d" % (batch, item)).digest()


def signature(batch: int, item: int) -> bytes:
    return sha256(b"signature %d %d" % (batch, item)).digest() * 2


def intent_fields(batch: int) -> dict[str, Value]:
    return {
        "principal": "spiffe://signer.example/facility/01-001",
        "key_version": "facilities/01-001/keys/records/versions/1",
        "format": "JWS",
        "rule": "facilities.01-001.clients",
        "policy": POLICY,
        "request_id": f"request-{batch}",
        "facility": "01-001",
        "now": 1_767_571_200,
    }


def digests(batch: int) -> Column:
    return Column(32, b"".join(digest(batch, item) for item in range(BATCH)))


def signatures(batch: int, failed: Sequence[int] = ()) -> Column:
    items = (bytes(64) if item in failed else signature(batch, item) for item in range(BATCH))
    return Column(64, b"".join(items))


class Written:
    """A log of several segments: ``batches`` with an outcome each, the last one without."""

    def __init__(self, directory: Path, batches: int = 30) -> None:
        self.key = Ed25519PrivateKey.generate()
        self.spki = self.key.public_key().public_bytes(
            Encoding.DER, PublicFormat.SubjectPublicKeyInfo
        )
        self.verifier = NoteVerifier.from_spki(ORIGIN, self.spki)
        self.intents: list[int] = []
        self.outcomes: list[int] = []
        log = small_log(
            directory,
            origin=ORIGIN,
            segment_bytes=8000,
            listeners=[Listener(lambda _: None, snapshot=lambda: {"used": {}})],
        )
        for batch in range(batches):
            intent = log.append(RecordKind.INTENT, intent_fields(batch), digests(batch))
            fields: dict[str, Value] = {"intent": intent, "attempts": 1, "failures": {"3": "LOST"}}
            self.intents.append(intent)
            self.outcomes.append(
                log.append(RecordKind.OUTCOME, fields, signatures(batch, failed=[3]))
            )
        self.covered = Checkpoint(ORIGIN, *log.tree_head())
        self.note = checkpoint.sign(self.covered, self.verifier, self.key.sign)
        self.open_intent = log.append(RecordKind.INTENT, intent_fields(batches), digests(batches))
        log.close()
        self.directory = directory
        self.reader = Reader(list_segments(directory))

    def records(self) -> Iterator[Record]:
        return self.reader.records(0, self.reader.size)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    written = Written(tmp_path_factory.mktemp("log") / "audit")
    assert len(list_segments(written.directory)) > 2
    return written


@pytest.mark.parametrize("item", range(BATCH))
def test_finds_by_digest_and_by_signature(written: Written, item: int) -> None:
    expected = [Match(written.intents[7], item, written.outcomes[7])]
    assert list(find_items(written.records(), frozenset({digest(7, item)}))) == expected
    by_signature = frozenset({sha256(signature(7, item)).digest()})
    # Item 3 failed: its digest is in the log, a signature of it never was.
    assert list(find_items(written.records(), by_signature)) == (expected if item != 3 else [])


def test_finds_an_item_once_though_both_its_hashes_are_wanted(written: Written) -> None:
    wanted = frozenset({digest(0, 1), sha256(signature(0, 1)).digest(), digest(2, 0)})
    assert list(find_items(written.records(), wanted)) == [
        Match(written.intents[0], 1, written.outcomes[0]),
        Match(written.intents[2], 0, written.outcomes[2]),
    ]


def test_an_intent_without_outcome_is_found_without(written: Written) -> None:
    match = Match(written.open_intent, 4, None)
    assert list(find_items(written.records(), frozenset({digest(30, 4)}))) == [match]


def test_what_is_not_there_is_not_found(written: Written) -> None:
    assert list(find_items(written.records(), frozenset({sha256(b"other").digest()}))) == []
    # Half of one item and half of the next is no item.
    across = digest(0, 0)[16:] + digest(0, 1)[:16]
    assert list(find_items(written.records(), frozenset({across}))) == []


def test_indeterminate_is_no_outcome() -> None:
    records = [
        Record(0, 0, RecordKind.INTENT, intent_fields(0), digests(0)),
        Record(1, 0, RecordKind.INDETERMINATE, {"intent": 0}),
    ]
    assert list(find_items(records, frozenset({digest(0, 2)}))) == [Match(0, 2, None)]


def test_locates_by_intent_and_by_outcome(written: Written) -> None:
    match = Match(written.intents[4], 2, written.outcomes[4])
    assert locate(written.reader, written.intents[4], 2) == match
    assert locate(written.reader, written.outcomes[4], 2) == match
    assert locate(written.reader, written.open_intent, 0) == Match(written.open_intent, 0, None)


@pytest.mark.parametrize(("seq", "index"), [(0, BATCH), (0, -1), (10**9, 0)])
def test_what_is_no_item_is_refused(written: Written, seq: int, index: int) -> None:
    with pytest.raises(SearchError):
        locate(written.reader, seq, index)


@pytest.mark.parametrize("batch", [0, 13, 29])
@pytest.mark.parametrize("item", [0, 3, 4])
def test_proof_verifies_and_says_what_was_signed(written: Written, batch: int, item: int) -> None:
    match = Match(written.intents[batch], item, written.outcomes[batch])
    text = prove_item(written.reader, match, written.covered, written.note)
    proven = proof.verify(text, written.spki, ORIGIN)
    assert (proven.intent, proven.index, proven.outcome) == tuple(match)
    assert proven.digest == digest(batch, item)
    assert proven.signature == (None if item == 3 else signature(batch, item))
    assert proven.failure == ("LOST" if item == 3 else None)
    assert proven.policy == POLICY


def test_proof_shows_nothing_of_the_items_beyond_a_leaf(written: Written) -> None:
    match = Match(written.intents[5], 17, written.outcomes[5])
    text = prove_item(written.reader, match, written.covered, written.note)
    for item in range(16, BATCH):
        assert digest(5, item).hex() in text
        assert signature(5, item).hex() in text
    for item in range(16):
        assert digest(5, item).hex() not in text
        assert signature(5, item).hex() not in text


def test_no_proof_of_what_no_checkpoint_covers(written: Written) -> None:
    match = Match(written.intents[5], 1, written.outcomes[5])
    with pytest.raises(SearchError, match="newer checkpoint"):
        prove_item(
            written.reader, match, Checkpoint(ORIGIN, match.intent + 1, bytes(32)), written.note
        )
    with pytest.raises(SearchError, match="no outcome"):
        prove_item(
            written.reader, Match(written.open_intent, 0, None), written.covered, written.note
        )


def test_no_proof_without_the_segment(written: Written) -> None:
    later = Reader(list_segments(written.directory)[1:])
    match = Match(written.intents[0], 0, written.outcomes[0])
    with pytest.raises(SearchError, match="segments"):
        prove_item(later, match, written.covered, written.note)


def test_what_is_here_is_proven_though_older_segments_were_archived(written: Written) -> None:
    later = Reader(list_segments(written.directory)[2:])
    match = Match(written.intents[-1], 0, written.outcomes[-1])
    text = prove_item(later, match, written.covered, written.note)
    assert text == prove_item(written.reader, match, written.covered, written.note)
    assert proof.verify(text, written.spki, ORIGIN).digest == digest(29, 0)


def test_records_as_json(written: Written) -> None:
    records = list(written.records())
    for record in records:
        described = json.loads(json.dumps(describe(record)))
        assert described["seq"] == record.seq
        assert described["kind"] == record.kind
        assert described["time"].endswith("Z")
    intent = describe(records[written.intents[1]])
    assert intent["fields"]["policy"] == POLICY.hex()
    assert intent["fields"]["now"] == 1_767_571_200
    assert intent["items"] == [digest(1, item).hex() for item in range(BATCH)]
    assert "items" not in describe(Record(0, 0, RecordKind.START, {"version": "1"}))


def test_values_of_every_kind_as_json() -> None:
    fields: dict[str, Value] = {
        "items": [1, b"\x01", None, True, ["x"]],
        "nested": {"a": b"\xff", "b": {"c": -1}},
    }
    assert describe(Record(7, 1_767_571_200_000_001, RecordKind.START, fields)) == {
        "seq": 7,
        "time": "2026-01-05T00:00:00.000001Z",
        "kind": "start",
        "fields": {"items": [1, "01", None, True, ["x"]], "nested": {"a": "ff", "b": {"c": -1}}},
    }


def test_a_closing_record_that_closes_nothing_is_refused() -> None:
    with pytest.raises(RecordError):
        list(find_items([Record(0, 0, RecordKind.OUTCOME, {})], frozenset({bytes(32)})))

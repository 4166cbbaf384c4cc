import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from hashlib import sha256
from typing import Any

import cbor2
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from signer.audit.format import merkle
from signer.audit.format.checkpoint import Checkpoint, NoteVerifier, sign
from signer.audit.format.proof import _LEAF, MAX_PROOF, ProofError, Proven, build, verify
from signer.audit.format.record import Column, Record, RecordKind, Value, encode

ORIGIN = "audit.example.test/signer"
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
SPKI = KEY.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
FAILED = 2
DIGESTS = [sha256(bytes((n,))).digest() for n in range(5)]
SIGNATURES = [bytes(64) if n == FAILED else bytes((n + 1,)) * 64 for n in range(5)]


def an_intent(seq: int, digests: list[bytes] = DIGESTS) -> Record:
    fields: dict[str, Value] = {
        "principal": "spiffe://example.test/issuer",
        "key_version": "facilities/01-001/keys/records/versions/1",
        "format": "JWS",
        "rule": "facilities.01-001",
        "policy": bytes(range(32)),
        "request_id": "",
    }
    return Record(seq, 1_000_000 * seq, RecordKind.INTENT, fields, Column(32, b"".join(digests)))


def an_outcome(seq: int, intent: int, signatures: list[bytes] = SIGNATURES) -> Record:
    fields: dict[str, Value] = {
        "intent": intent,
        "attempts": 1,
        "failures": {"HSM_UNAVAILABLE": bytes([1 << FAILED])},
    }
    column = Column(64, b"".join(signatures))
    return Record(seq, 1_000_000 * seq + 5, RecordKind.OUTCOME, fields, column)


def a_log() -> list[Record]:
    return [
        Record(0, 0, RecordKind.START, {}),
        an_intent(1),
        an_intent(2, DIGESTS[::-1]),
        an_outcome(3, 1),
        an_outcome(4, 2),
        Record(5, 5_000_000, RecordKind.STOP, {}),
    ]


def of_version_1(log: list[Record]) -> list[Record]:
    """The same log with columns whose leaves are one item each."""
    return [
        record._replace(column=record.column and replace(record.column, leaf_items=1))
        for record in log
    ]


BOTH = pytest.mark.parametrize("log", [a_log(), of_version_1(a_log())], ids=["2", "1"])


def note_of(log: list[Record], origin: str = ORIGIN, key: Ed25519PrivateKey = KEY) -> str:
    spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    root = merkle.root([record.leaf_hash() for record in log])
    return sign(Checkpoint(origin, len(log), root), NoteVerifier.from_spki(origin, spki), key.sign)


def a_proof(
    log: list[Record],
    *,
    intent: int = 1,
    outcome: int = 3,
    index: int = 0,
    note: str | None = None,
    shown: int | None = None,
) -> str:
    """The proof of an item, which says that it is item ``shown``."""
    leaves = [record.leaf_hash() for record in log]
    proof = build(
        log[intent],
        log[outcome],
        index,
        intent_path=merkle.inclusion_proof(leaves, intent),
        outcome_path=merkle.inclusion_proof(leaves, outcome),
        checkpoint_note=note or note_of(log),
    )
    return proof if shown is None else json.dumps(json.loads(proof) | {"index": shown})


def check(proof: str) -> Proven:
    return verify(proof, SPKI, ORIGIN)


def with_fields(record: Record, **fields: Value) -> Record:
    return record._replace(fields={**record.fields, **fields})


def without(record: Record, name: str) -> Record:
    return record._replace(fields={n: v for n, v in record.fields.items() if n != name})


@BOTH
def test_a_signature_is_proven(log: list[Record]) -> None:
    root = merkle.root([record.leaf_hash() for record in log])

    assert check(a_proof(log, index=3)) == Proven(
        checkpoint=Checkpoint(ORIGIN, 6, root),
        intent=1,
        outcome=3,
        index=3,
        intent_us=1_000_000,
        outcome_us=3_000_005,
        principal="spiffe://example.test/issuer",
        key_version="facilities/01-001/keys/records/versions/1",
        format="JWS",
        rule="facilities.01-001",
        policy=bytes(range(32)),
        digest=DIGESTS[3],
        signature=SIGNATURES[3],
        failure=None,
    )


@BOTH
def test_a_failure_is_proven_with_a_column_and_without(log: list[Record]) -> None:
    log = log.copy()
    assert check(a_proof(log, index=FAILED)).failure == "HSM_UNAVAILABLE"
    assert check(a_proof(log, index=FAILED)).signature is None

    log[3] = with_fields(log[3], failures={"HSM_UNAVAILABLE": b"\x1f"})._replace(column=None)
    proven = check(a_proof(log, index=4))
    assert (proven.signature, proven.failure) == (None, "HSM_UNAVAILABLE")


def test_an_outcome_without_failures_may_leave_them_out() -> None:
    log = a_log()
    signatures = [bytes((n + 1,)) * 64 for n in range(5)]
    log[3] = without(an_outcome(3, 1, signatures), "failures")

    assert check(a_proof(log, index=FAILED)).signature == signatures[FAILED]


@pytest.mark.parametrize("version", [1, 2])
def test_every_item_of_large_batches_in_large_logs_is_proven(version: int) -> None:
    digests = [sha256(n.to_bytes(2, "big")).digest() for n in range(67)]
    signatures = [digest + digest for digest in digests]
    fillers = [Record(seq, seq, RecordKind.WORKER, {}) for seq in range(200)]
    outcome = with_fields(an_outcome(150, 77, signatures), failures={})
    log = [*fillers[:77], an_intent(77, digests), *fillers[78:150], outcome, *fillers[151:]]
    log = of_version_1(log) if version == 1 else log
    note = note_of(log)

    for index in range(67):
        proven = check(a_proof(log, intent=77, outcome=150, index=index, note=note))
        assert (proven.digest, proven.signature) == (digests[index], signatures[index])
        with pytest.raises(ProofError, match=f"not item {index + 67} of the intent"):
            check(a_proof(log, intent=77, outcome=150, index=index, note=note, shown=index + 67))


def test_the_proof_shows_the_items_of_a_leaf() -> None:
    digests = [sha256(bytes([n])).digest() for n in range(37)]
    outcome = an_outcome(1, 0, [2 * digest for digest in digests])
    log = [an_intent(0, digests), with_fields(outcome, failures={})]
    intent = json.loads(a_proof(log, intent=0, outcome=1, index=35))["intent"]

    assert intent["leaf"] == b"".join(digests[32:]).hex()
    assert [len(node) for node in intent["leaf_path"]] == [64]
    assert set(intent) == {"head", "path", "leaf", "leaf_path"}


def test_a_leaf_is_shown_in_the_way_of_its_version() -> None:
    for log, names in ((a_log(), ("item", "item_path")), (of_version_1(a_log()), _LEAF)):
        members = json.loads(a_proof(log))
        shown, path = members["intent"].keys() - {"head", "path"}
        if shown.endswith("path"):
            shown, path = path, shown
        for old, new in ((shown, names[0]), (path, names[1])):
            members["intent"][new] = members["intent"].pop(old)
        with pytest.raises(ProofError, match="not item 0 of the intent"):
            check(json.dumps(members))


@BOTH
def test_each_changed_byte_is_found(log: list[Record]) -> None:
    proof = a_proof(log).encode()
    index = proof.index(b'"index":0') + len(b'"index":')
    for position in (each for each in range(len(proof)) if each != index):
        flipped = bytearray(proof)
        flipped[position] ^= 1 << position % 8
        with pytest.raises(ProofError):
            check(flipped.decode(errors="surrogateescape"))


def test_a_leaf_proves_all_of_its_items() -> None:
    proven = check(a_proof(a_log(), index=0, shown=4))

    assert (proven.index, proven.digest, proven.signature) == (4, DIGESTS[4], SIGNATURES[4])


@BOTH
def test_each_character_in_its_other_case_and_each_missing_one_is_found(log: list[Record]) -> None:
    proof = a_proof(log)
    for position, character in enumerate(proof):
        before, after = proof[:position], proof[position + 1 :]
        with pytest.raises(ProofError):
            check(before + after)
        if character.swapcase() != character:
            with pytest.raises(ProofError):
                check(before + character.swapcase() + after)


def test_white_space_between_members_means_nothing() -> None:
    proof = a_proof(a_log())

    assert check(json.dumps(json.loads(proof), indent=2) + "\n") == check(proof)


def test_parts_that_do_not_belong_together_are_found() -> None:
    log = of_version_1(a_log())
    parts = {index: json.loads(a_proof(log, index=index)) for index in (0, 1)}

    mixed = {**parts[0], "outcome": parts[1]["outcome"]}
    with pytest.raises(ProofError, match="not item 0 of the outcome"):
        check(json.dumps(mixed))
    with pytest.raises(ProofError, match="not item 1 of the intent"):
        check(json.dumps({**parts[0], "index": 1}))
    with pytest.raises(ProofError, match="belongs to another intent"):
        check(a_proof(log, outcome=4))
    swapped = {**parts[0], "intent": parts[0]["outcome"], "outcome": parts[0]["intent"]}
    with pytest.raises(ProofError, match="another kind"):
        check(json.dumps(swapped))


@BOTH
def test_another_signature_or_digest_with_the_same_path_is_found(log: list[Record]) -> None:
    for part in ("intent", "outcome"):
        members = json.loads(a_proof(log))
        shown = "leaf" if "leaf" in members[part] else "item"
        members[part][shown] = "09" * 32 + members[part][shown][64:]
        with pytest.raises(ProofError, match=f"not item 0 of the {part}"):
            check(json.dumps(members))


def test_a_node_of_the_tree_is_no_item() -> None:
    # The last of five items is a leaf right under the root, beside a node over
    # the four others; only its hash's prefix tells a leaf from a node.
    log = of_version_1(a_log())
    members = json.loads(a_proof(log, index=4))
    column = log[1].column
    assert column is not None
    leaves = column.leaf_hashes()
    members["intent"]["item"] = (leaves[0] + leaves[1]).hex()
    members["intent"]["item_path"] = [merkle.root(leaves[2:4]).hex(), leaves[4].hex()]
    with pytest.raises(ProofError, match="not item 4 of the intent"):
        check(json.dumps(members))


def test_an_item_of_another_width_than_the_head_says_is_found() -> None:
    # An operator with the audit key, whose record nobody could parse: its head
    # tells of signatures of 64 bytes, over a tree of longer ones.
    log = a_log()
    outcome, forged = log[3], [signature * 2 for signature in SIGNATURES]
    column = Column(128, b"".join(forged))
    body, leaf = encode(
        3, 5, RecordKind.OUTCOME, outcome.fields, outcome.column, root=column.root()
    )
    leaves = [*(record.leaf_hash() for record in log[:3]), leaf]
    root = merkle.root(leaves)
    note = sign(Checkpoint(ORIGIN, 4, root), NoteVerifier.from_spki(ORIGIN, SPKI), KEY.sign)
    members = json.loads(a_proof(log))
    members["checkpoint"] = note
    members["intent"]["path"] = [node.hex() for node in merkle.inclusion_proof(leaves, 1)]
    members["outcome"] = {
        "head": cbor2.loads(body)[0].hex(),
        "path": [node.hex() for node in merkle.inclusion_proof(leaves, 3)],
        "leaf": column.leaf(0).hex(),
        "leaf_path": [],
    }
    with pytest.raises(ProofError, match="not item 0 of the outcome"):
        check(json.dumps(members))


def test_paths_hold_hashes_and_nothing_else() -> None:
    for path in ([""], ["00"], ["00" * 33]):
        with pytest.raises(ProofError, match="does not have 32 bytes"):
            check(changed_intent(leaf_path=path))


def test_checkpoints_of_other_logs_and_keys_are_refused() -> None:
    log = a_log()
    stranger = Ed25519PrivateKey.from_private_bytes(bytes(32))

    for note in (note_of(log, key=stranger), note_of(log, origin="other.example.test")):
        with pytest.raises(ProofError, match="the checkpoint is refused"):
            check(a_proof(log, note=note))
    with pytest.raises(ProofError, match="the checkpoint is refused: the audit key"):
        verify(a_proof(log), b"no key", ORIGIN)
    with pytest.raises(ProofError, match="the intent is not covered by the checkpoint"):
        check(a_proof(log, note=note_of(log[:1])))
    with pytest.raises(ProofError, match="not in the log of the checkpoint"):
        check(a_proof(log, note=note_of([*log, Record(6, 0, RecordKind.START, {})])))


Change = Callable[[list[Record]], Record]


@pytest.mark.parametrize(
    ("seq", "change"),
    [
        (1, lambda log: without(log[1], "principal")),
        (1, lambda log: without(log[1], "policy")),
        (1, lambda log: with_fields(log[1], rule=7)),
        (1, lambda log: with_fields(log[1], policy=b"short")),
        (1, lambda log: log[1]._replace(column=None)),
        (1, lambda log: log[1]._replace(column=Column(1, b"abcde"))),
        (1, lambda log: log[1]._replace(column=Column(32, bytes(64)))),
        (1, lambda log: log[1]._replace(column=Column(48, bytes(5 * 48)))),
        (1, lambda log: with_fields(log[1], format="DIGEST")._replace(column=Column(1, b"abcde"))),
        (1, lambda log: without(log[1], "format")),
        (1, lambda log: log[1]._replace(kind=RecordKind.DENIALS)),
        (3, lambda log: with_fields(log[3], intent="1")),
        (3, lambda log: with_fields(log[3], intent=True)),
        (3, lambda log: without(log[3], "intent")),
        (3, lambda log: with_fields(log[3], failures=[])),
        (3, lambda log: with_fields(log[3], failures={"0": 1})),
        (3, lambda log: with_fields(log[3], failures={"HSM_UNAVAILABLE": b"\x01"})),
        (3, lambda log: with_fields(log[3], failures={"HSM_UNAVAILABLE": b"\x04\x00"})),
        (3, lambda log: log[3]._replace(column=None)),
        (3, lambda log: log[3]._replace(column=Column(64, bytes(5 * 64)))),
        (3, lambda log: log[3]._replace(kind=RecordKind.INDETERMINATE)),
    ],
)
def test_records_that_contradict_each_other_prove_nothing(seq: int, change: Change) -> None:
    log = a_log()
    log[seq] = change(log)
    with pytest.raises(ProofError):
        check(a_proof(log))


def test_an_outcome_before_its_intent_proves_nothing() -> None:
    log = [Record(0, 0, RecordKind.START, {}), an_outcome(1, 2), an_intent(2)]
    with pytest.raises(ProofError, match="belongs to another intent"):
        check(a_proof(log, intent=2, outcome=1))


def changed(**members: object) -> str:
    return json.dumps({**json.loads(a_proof(a_log())), **members})


def changed_intent(**members: object) -> str:
    intent: Mapping[str, Any] = json.loads(a_proof(a_log()))["intent"]
    return changed(intent={**intent, **members})


@pytest.mark.parametrize(
    "proof",
    [
        "",
        "null",
        "[]",
        "{}",
        "[" * 100_000,
        "9" * 10_000,
        a_proof(a_log()) * 2,
        a_proof(a_log())[:-1] + ',"index":0}',
        " " * (MAX_PROOF + 1),
        changed(form="another"),
        changed(extra=1),
        changed(checkpoint=None),
        changed(checkpoint="\ud800\n\n— x y\n"),
        changed(index="0"),
        changed(index=False),
        changed(index=-5),
        changed(index=10**30),
        changed(intent=None),
        changed_intent(extra=1),
        changed_intent(head=7),
        changed_intent(head=""),
        changed_intent(head="zz"),
        changed_intent(leaf=None),
        changed_intent(leaf=""),
        changed_intent(path=None),
        changed_intent(path=[None]),
        changed_intent(path=["00"]),
        changed_intent(path=["00" * 32] * 3),
        changed_intent(leaf_path=["00" * 32]),
        changed_intent(item_path=[]),
    ],
)
def test_malformed_proofs_are_refused(proof: str) -> None:
    with pytest.raises(ProofError):
        check(proof)


def test_items_that_do_not_exist_cannot_be_proven() -> None:
    with pytest.raises(ProofError, match="item 5 is not in a column of 5"):
        a_proof(a_log(), index=5)

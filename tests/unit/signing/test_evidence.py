"""What the log holds of batches: for every algorithm, in time and late."""

import hashlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from signer.algorithms import PROPERTIES, Algorithm
from signer.audit.format import checkpoint as notes
from signer.audit.format import proof
from signer.audit.format.checkpoint import Checkpoint, NoteVerifier
from signer.audit.format.record import Record, RecordKind, Value
from signer.audit.format.segments import list_segments
from signer.audit.read.ledger import Ledger
from signer.audit.read.reader import Reader
from signer.audit.read.search import locate, prove_item
from signer.audit.read.verify import verify_log
from signer.audit.write.log import AuditLog, Listener
from signer.errors import CallError, Reason
from signer.hsm.front.chunks import Signed
from signer.hsm.front.pool import Admission
from signer.model import Format, KeyName, KeyState, KeyVersion
from signer.officers.change_check import ChangeFold
from signer.officers.offline_check import ApprovalFold
from signer.signing.evidence import BLOCK
from signer.signing.request import BatchRequest
from tests.stand_ins import key_version, small_log
from tests.unit.signing.stage import CLIENT, ID, ORIGIN, Stage

AUDIT_KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))
ALGORITHMS = [each for each in Algorithm if each is not Algorithm.EDDSA]
POLICY = f"""
roles: {{operator: []}}
profiles:
  all:
    formats: [MESSAGE, DIGEST]
    blind: [DIGEST]
    algorithms: [{", ".join(ALGORITHMS)}]
    max_batch_items: 9
  ed25519: {{formats: [MESSAGE], algorithms: [EdDSA], max_batch_items: 9}}
facilities:
  "a": {{profile: all, clients: ["spiffe://x/issuer"]}}
  "ed": {{profile: ed25519, clients: ["spiffe://x/issuer"]}}
"""


def spki(key: Any) -> bytes:
    encoded: bytes = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return encoded


RSA = spki(generate_private_key(65537, 2048))


def key_of(algorithm: Algorithm) -> KeyVersion:
    name = KeyName("ed" if algorithm is Algorithm.EDDSA else "a", algorithm.lower())
    state = KeyState.ACTIVE
    return key_version(key=name, algorithm=algorithm, state=state, cka_id=b"1", spki=RSA)


KEYS = [key_of(algorithm) for algorithm in Algorithm]


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    made = Stage(tmp_path, POLICY, KEYS)
    yield made
    made.close()


def request(
    algorithm: Algorithm = Algorithm.ES256,
    requested: Format = Format.MESSAGE,
    payloads: tuple[bytes, ...] = (b"m", b"n", b"o"),
    seconds: float = 30.0,
) -> BatchRequest:
    deadline = time.monotonic() + seconds
    key = key_of(algorithm).key
    return BatchRequest(CLIENT, key, None, requested, payloads, deadline, ID)


# --- proofs ------------------------------------------------------------------------------------


def proven(stage: Stage, index: int) -> proof.Proven:
    """The proof of an item of the first batch, made from the files and checked without them."""
    checkpoint = Checkpoint(ORIGIN, *stage.log.tree_head())
    note = notes.sign(checkpoint, NoteVerifier.from_spki(ORIGIN, spki(AUDIT_KEY)), AUDIT_KEY.sign)
    reader = Reader(list_segments(stage.folder))
    return proof.verify(
        prove_item(reader, locate(reader, 0, index), checkpoint, note), spki(AUDIT_KEY), ORIGIN
    )


@pytest.mark.parametrize("algorithm", Algorithm)
def test_signatures_over_messages_of_every_algorithm_are_proven(
    stage: Stage, algorithm: Algorithm
) -> None:
    batch = request(algorithm)
    result = stage.sign(batch)
    for index, payload in enumerate(batch.payloads):
        found = proven(stage, index)
        assert found.digest == hashlib.sha256(payload).digest()
        assert (found.signature, found.failure) == (result.outputs[index], None)
        assert found.key_version == result.version.name


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_signatures_over_digests_of_every_algorithm_are_proven(
    stage: Stage, algorithm: Algorithm
) -> None:
    hashed = [
        hashlib.new(PROPERTIES[algorithm].hash_name or "", each).digest() for each in (b"a", b"b")
    ]
    result = stage.sign(request(algorithm, Format.DIGEST, tuple(hashed)))
    for index, digest in enumerate(hashed):
        found = proven(stage, index)
        assert (found.digest, found.signature) == (digest, result.outputs[index])


@pytest.mark.parametrize("algorithm", Algorithm)
def test_repetitions_of_every_algorithm_give_the_same(stage: Stage, algorithm: Algorithm) -> None:
    batch = request(algorithm)
    assert stage.sign(batch) == stage.sign(batch)
    assert stage.hsm.signed == 3


def test_the_roots_of_a_batch_of_several_blocks_are_those_of_its_columns(tmp_path: Path) -> None:
    stage = Stage(tmp_path, POLICY.replace("items: 9", "items: 4096"), KEYS)
    for items in (BLOCK - 1, BLOCK + 1, 2 * BLOCK):
        payloads = tuple(n.to_bytes(2, "big") for n in range(items))
        number = stage.sign(request(payloads=payloads)._replace(request_id="")).audit_record
        assert number is not None
        for record in stage.log.records(number, 2):  # which compares the roots
            assert record.column is not None
            assert record.column.count == items
    stage.close()


# --- attempts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("attempts", [0, 1, 2])
def test_the_outcome_says_how_often_it_was_tried(stage: Stage, attempts: int) -> None:
    stage.hsm.attempts = attempts
    stage.sign(request())
    [outcome] = stage.log.records(1, 1)
    assert outcome.fields["attempts"] == attempts


# --- a slow disk -------------------------------------------------------------------------------


def test_an_intent_that_is_durable_too_late_is_closed_and_nothing_is_signed(stage: Stage) -> None:
    stage.disk.gate.clear()
    with pytest.raises(CallError) as caught:
        stage.sign(request(seconds=0.1))
    assert caught.value.reason is Reason.DEADLINE_TOO_SHORT
    assert stage.log.refusal == ""
    assert (stage.kinds, stage.hsm.signed) == ([], 0)

    # Whoever asks again under this id, while the disk still hangs, comes after the closing.
    with ThreadPoolExecutor(1) as threads:
        again = threads.submit(stage.sign, request())
        while not stage.engine._evidence._gathered:
            time.sleep(0.001)
        stage.disk.gate.set()
        first = again.result(30)
    late, signed = (
        (RecordKind.INTENT, RecordKind.INDETERMINATE),
        (RecordKind.INTENT, RecordKind.OUTCOME),
    )
    assert stage.kinds == [*late, *signed]
    assert stage.log.records(1, 1)[0].fields == {"intent": 0, "reason": "DEADLINE_TOO_SHORT"}
    assert stage.sign(request()) == first
    assert stage.hsm.signed == 3


def test_intents_that_did_not_reach_the_disk_in_time_are_not_in_the_log(stage: Stage) -> None:
    stage.disk.gate.clear()
    with ThreadPoolExecutor(5) as threads:
        first = threads.submit(stage.sign, request()._replace(request_id=""))
        assert stage.disk.waiting.wait(30)
        late = [
            threads.submit(stage.sign, request(seconds=0.05)._replace(request_id=""))
            for _ in range(4)
        ]
        for call in late:
            assert isinstance(call.exception(30), CallError)
        stage.disk.gate.set()
        assert not first.result(30).failures
    assert stage.kinds == [RecordKind.INTENT, RecordKind.OUTCOME]


def test_an_outcome_is_recorded_and_answered_however_long_it_takes(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    sign = stage.hsm.sign

    async def slow(admission: Admission) -> Signed:
        stage.disk.gate.clear()
        return await sign(admission)

    monkeypatch.setattr(stage.hsm, "sign", slow)
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(stage.sign, request(seconds=1.0))
        assert stage.disk.waiting.wait(30)
        # A repetition waits for it, up to its own deadline.
        refused = threads.submit(stage.sign, request(seconds=0.1)).exception(30)
        assert isinstance(refused, CallError)
        assert refused.reason is Reason.DEADLINE_TOO_SHORT
        time.sleep(1.0)  # beyond the first one's deadline
        assert not first.done()
        stage.disk.gate.set()
        result = first.result(30)
    assert stage.sign(request()) == result
    assert stage.hsm.signed == 3
    assert stage.kinds == [RecordKind.INTENT, RecordKind.OUTCOME]


# --- officers ----------------------------------------------------------------------------------


def opened(
    folder: Path, control: ApprovalFold, checkpoints: tuple[Checkpoint, ...] = ()
) -> AuditLog:
    return small_log(
        folder,
        origin=ORIGIN,
        segment_bytes=600,
        checkpoints=checkpoints,
        listeners=[Listener(control.apply, ApprovalFold.KINDS, control.snapshot)],
    )


def test_snapshots_hold_the_officers_and_a_start_continues_from_them(tmp_path: Path) -> None:
    before, after = ApprovalFold(checking=False), ApprovalFold(checking=False)
    log = opened(tmp_path / "audit", before)
    officers: list[Value] = [["spiffe://x/a", b"certificate"], ["spiffe://x/b", b"other"]]
    log.append(
        RecordKind.OFFICERS, {"officers": officers, "development": False, "policy": bytes(32)}
    )
    content = b"nobody signed it"
    operation: dict[str, Value] = {"operation": ID, "content": content, "signatures": []}
    log.append(RecordKind.EXECUTION, operation)
    log.append(RecordKind.EXECUTED, {"operation": ID, "state": "DONE", "note": ""})
    while len(list_segments(tmp_path / "audit")) < 3:
        log.append(RecordKind.WORKER, {"token": "t", "cause": "c"})
    known = Checkpoint(ORIGIN, *log.tree_head())
    log.close()
    # An unapproved operation is reported by the verification and does not stop a start.
    [problem] = verify_log(tmp_path / "audit", ORIGIN, [known], folds=[ChangeFold]).problems
    assert problem.startswith("record 1: ")
    log = opened(tmp_path / "audit", after, (known,))
    log.close()
    control = after.snapshot()["control"]
    assert control == before.snapshot()["control"]
    assert isinstance(control, dict)
    assert control["officers"] == officers
    assert len(control["operations"]) == 57
    newest = list_segments(tmp_path / "audit")[-1]
    [first] = Reader([newest]).records(newest.first, newest.first + 1)
    assert first.fields["control"] == control


def test_a_snapshot_from_before_there_were_officers_is_read() -> None:
    older: dict[str, Value] = {"requests": b"", "used": {}, "frontier": [bytes(32)], "open": []}
    for fold, new in ((Ledger(), Ledger()), (ApprovalFold(), ApprovalFold())):
        fold.apply(Record(1, 1, RecordKind.SNAPSHOT, older))
        assert fold.snapshot() == new.snapshot()

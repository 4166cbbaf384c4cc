"""The proof of one signature, as JSON: it is verified without the rest of the log.

Two records are about a signature: the intent (for whom, under which rule, which digest)
and the outcome (the signature, or the failure). The proof holds the head of each, the item
in its column, the path to the column's root in the head, the head's path to the
root in the checkpoint, and the checkpoint. The item is shown with the other items of its
leaf, up to 16 one after the other (``leaf`` and ``leaf_path``); in records of version 1 it is
a leaf alone (``item`` and ``item_path``). Bytes are in lower-case hex.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha384
from typing import Any

from signer.audit.format import merkle
from signer.audit.format.batch_records import IntentRecord, OutcomeRecord
from signer.audit.format.checkpoint import Checkpoint, CheckpointError, NoteVerifier
from signer.audit.format.parse import RecordHead, parse_head
from signer.audit.format.record import (
    HASH_SIZE,
    MAX_BODY,
    Column,
    Record,
    RecordError,
    RecordKind,
    Shape,
    leaf_range,
)
from signer.model import Format

FORM = "signer.v1 proof"
"""Value of ``form``, the first member of every proof."""

MAX_PROOF = 5 * MAX_BODY
"""Characters of a proof at most: two heads in hex and their paths."""

_DIGEST_SIZES = {str(Format.DIGEST): {HASH_SIZE, sha384().digest_size}}
"""The bytes of an item's digest by format: SHA-256 in all others."""

_MEMBERS = frozenset({"form", "checkpoint", "index", "intent", "outcome"})
_LEAF, _ITEM = ("leaf", "leaf_path"), ("item", "item_path")
"""The members that show the item; ``_ITEM`` if a leaf is one item, or without a column."""


class ProofError(Exception):
    """A proof that is not valid, or cannot be built; the text says why."""


@dataclass(frozen=True, slots=True)
class Proven:
    """What a proof says of item ``index`` of one batch.

    ``intent`` and ``outcome`` are the numbers of the two records, ``intent_us`` and
    ``outcome_us`` their times in microseconds since the epoch: the signature was made
    between them. ``policy`` is the SHA-256 of the policy in force. ``digest`` is the SHA-256
    of the bytes that were signed; in the format DIGEST it is the digest in the request.
    ``signature`` is raw. Exactly one of ``signature`` and ``failure`` is None.
    """

    checkpoint: Checkpoint
    intent: int
    outcome: int
    index: int
    intent_us: int
    outcome_us: int
    principal: str
    key_version: str
    format: str
    rule: str
    policy: bytes
    digest: bytes
    signature: bytes | None
    failure: str | None


_ShownRecord = tuple[RecordHead, bytes | None]
"""The part of a record that the proof shows: its head, and the item if it has a column."""


def build(
    intent: Record,
    outcome: Record,
    index: int,
    *,
    intent_path: Sequence[bytes],
    outcome_path: Sequence[bytes],
    checkpoint_note: str,
) -> str:
    """Returns the proof of item ``index``, one line of JSON.

    The paths lead from the records' leaves to the root in the checkpoint. Raises ProofError
    if a record's column has no such item. Call ``verify`` with the result before it is
    used: ``build`` does not compare the parts with each other.
    """
    proof = {
        "form": FORM,
        "checkpoint": checkpoint_note,
        "index": index,
        "intent": _show(intent, index, intent_path),
        "outcome": _show(outcome, index, outcome_path),
    }
    return json.dumps(proof, ensure_ascii=False, separators=(",", ":"))


def verify(proof: str, audit_spki: bytes, origin: str) -> Proven:
    """Verifies a proof with the audit key (SubjectPublicKeyInfo in DER) of the log ``origin``.

    Raises ProofError.
    """
    members = _object(_json(proof), _MEMBERS, "the proof")
    if members["form"] != FORM:
        raise ProofError(f"the form of the proof is not {FORM!r}")
    note, index = members["checkpoint"], members["index"]
    if type(note) is not str or type(index) is not int:
        raise ProofError("the proof's checkpoint is not text, or its index is not a number")
    try:
        checkpoint = NoteVerifier.from_spki(origin, audit_spki).parse(note)
    except CheckpointError as error:
        raise ProofError(f"the checkpoint is refused: {error}") from None
    intent = _verify_record(members["intent"], RecordKind.INTENT, index, checkpoint)
    outcome = _verify_record(members["outcome"], RecordKind.OUTCOME, index, checkpoint)
    return _conclude(checkpoint, index, intent, outcome)


def _show(record: Record, index: int, path: Sequence[bytes]) -> dict[str, object]:
    column, leaf = record.column, None
    leaf_path: list[bytes] = []
    shown, shown_path = _ITEM
    if column is not None:
        try:
            leaf = column.leaf(index)
        except IndexError as error:
            raise ProofError(f"{record.kind} {record.seq}: {error}") from None
        leaf_path = merkle.inclusion_proof(column.leaf_hashes(), index // column.leaf_items)
        shown, shown_path = _LEAF if column.leaf_items > 1 else _ITEM
    return {
        "head": record.head().hex(),
        "path": [node.hex() for node in path],
        shown: leaf if leaf is None else leaf.hex(),
        shown_path: [node.hex() for node in leaf_path],
    }


def _verify_record(
    value: object, kind: RecordKind, index: int, checkpoint: Checkpoint
) -> _ShownRecord:
    shown, shown_path = _LEAF if isinstance(value, dict) and "leaf" in value else _ITEM
    members = _object(value, frozenset({"head", "path", shown, shown_path}), f"the {kind}")
    encoded = _bytes(members["head"])
    try:
        head = parse_head(encoded)
    except RecordError as error:
        raise ProofError(f"the {kind} is refused: {error}") from None
    if head.kind is not kind:
        raise ProofError(f"the {kind} of the proof is a record of another kind")
    if head.seq >= checkpoint.size:
        raise ProofError(f"the {kind} is not covered by the checkpoint: use a newer checkpoint")
    path, leaf = _path(members["path"]), merkle.leaf_hash(encoded)
    if not merkle.verify_inclusion(leaf, head.seq, checkpoint.size, path, checkpoint.root):
        raise ProofError(f"the {kind} is not in the log of the checkpoint")
    leaf_path = _path(members[shown_path])
    if head.shape is None:
        if members[shown] is not None or leaf_path:
            raise ProofError(f"the {kind} has no items, but the proof shows one")
        return head, None
    item = None
    if (shown == "leaf") is (head.shape.leaf_items > 1):
        item = _item_of(_bytes(members[shown]), leaf_path, index, head.shape)
    if item is None:
        raise ProofError(f"the item of the proof is not item {index} of the {kind}")
    return head, item


def _item_of(leaf: bytes, path: Sequence[bytes], index: int, shape: Shape) -> bytes | None:
    """Returns the item of a column from its leaf; None unless the leaf is in the column."""
    leaf_items = shape.leaf_items
    try:
        first, stop = leaf_range(index, shape.count, leaf_items)
    except IndexError:
        return None
    if len(leaf) != (stop - first) * shape.width or not merkle.verify_inclusion(
        merkle.leaf_hash(leaf), index // leaf_items, shape.leaves, path, shape.root
    ):
        return None
    return Column(shape.width, leaf, leaf_items).item(index - first)


def _conclude(
    checkpoint: Checkpoint, index: int, intent: _ShownRecord, outcome: _ShownRecord
) -> Proven:
    """Compares the two records with each other, and returns what they say."""
    (asked, digest), (done, released) = intent, outcome
    try:
        request = IntentRecord.from_fields(asked.fields)
        answer = OutcomeRecord.from_fields(done.fields)
    except RecordError as error:
        raise ProofError(f"a record of the proof is refused: {error}") from None
    if answer.intent != asked.seq or done.seq <= asked.seq:
        raise ProofError("the outcome belongs to another intent")
    if digest is None or len(digest) not in _DIGEST_SIZES.get(request.format, {HASH_SIZE}):
        raise ProofError("the intent does not hold digests of the size that its format has")
    if asked.shape and done.shape and asked.shape.count != done.shape.count:
        raise ProofError("the outcome has another number of items than the intent")
    failure = answer.failures.get(index)
    signature = released if failure is None else None
    if failure is None and not any(signature or b""):
        raise ProofError("the outcome holds neither a signature nor a failure of the item")
    if failure is not None and any(released or b""):
        raise ProofError("the outcome holds both a signature and a failure of the item")
    return Proven(
        checkpoint=checkpoint,
        intent=asked.seq,
        outcome=done.seq,
        index=index,
        intent_us=asked.time_us,
        outcome_us=done.time_us,
        principal=request.principal,
        key_version=request.key_version,
        format=request.format,
        rule=request.rule,
        policy=request.policy,
        digest=digest,
        signature=signature,
        failure=failure,
    )


def _json(proof: str) -> object:
    if len(proof) > MAX_PROOF:
        raise ProofError(f"the proof is longer than {MAX_PROOF} characters")
    try:
        return json.loads(proof, object_pairs_hook=_members)
    except (ValueError, RecursionError):
        raise ProofError("the proof is not JSON, or has a member twice") from None


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a member occurs twice")
    return members


def _object(value: object, names: frozenset[str], what: str) -> dict[str, Any]:
    if type(value) is not dict or value.keys() != names:
        raise ProofError(f"{what} does not have exactly the members {', '.join(sorted(names))}")
    return value


def _bytes(value: object) -> bytes:
    if type(value) is not str:
        raise ProofError("a member of the proof is not bytes in hex")
    try:
        data = bytes.fromhex(value)
    except ValueError:
        data = b""
    if data.hex() != value:  # upper case, white space, or not hex
        raise ProofError("a member of the proof is not in lower-case hex")
    return data


def _path(value: object) -> list[bytes]:
    if type(value) is not list:
        raise ProofError("a path of the proof is not a list")
    path = [_bytes(node) for node in value]
    if any(len(node) != HASH_SIZE for node in path):
        raise ProofError("a hash in a path of the proof does not have 32 bytes")
    return path

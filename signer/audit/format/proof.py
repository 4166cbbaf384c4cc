"""The proof of one signature, as JSON: checked with a checkpoint and nothing else of the log.

Two records tell of a signature: the intent (for whom, under which rule, what
digest) and the outcome (the signature, or why there is none). The proof holds
the head of each, the item in its column, the item's path to the column's root
in the head, the head's path to the root in the checkpoint, and the checkpoint.
Bytes are in lower-case hex.
"""

from __future__ import annotations

import json
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha384
from typing import Any

from signer.audit.format import merkle
from signer.audit.format.checkpoint import Checkpoint, CheckpointError, Verifier, parse_note
from signer.audit.format.record import (
    HASH_SIZE,
    MAX_BODY,
    Head,
    Record,
    RecordError,
    RecordKind,
    parse_head,
)
from signer.model import Format

FORM = "signer.v1 proof"
"""First member of every proof, ``form``."""

MAX_PROOF = 5 * MAX_BODY
"""Bytes of a proof: two heads in hex and their paths."""

_MEMBERS = frozenset({"form", "checkpoint", "index", "intent", "outcome"})
_PART_MEMBERS = frozenset({"head", "path", "item", "item_path"})


class ProofError(Exception):
    """A proof that does not prove, or cannot be built; the text says where it fails."""


@dataclass(frozen=True, slots=True)
class Proven:
    """What a proof proves of item ``index`` of one batch.

    ``intent`` and ``outcome`` are the numbers of the two records, ``intent_us``
    and ``outcome_us`` their times in microseconds since the epoch: the
    signature was made between them. ``policy`` is the SHA-256 of the policy in
    force, ``digest`` the SHA-256 of the bytes signed, or in the format DIGEST the
    digest itself, ``signature`` raw. Exactly one of ``signature`` and ``failure``
    is None.
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


@dataclass(frozen=True, slots=True)
class _Part:
    """A record as far as the proof shows it; ``item`` is None where it has no column."""

    head: Head
    item: bytes | None


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

    The paths lead from the records' leaves to the root in the checkpoint.
    Raises ProofError where a record's column has no such item. ``verify`` the
    proof before handing it out: only that compares the parts with each other.
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
    """Checks a proof against the audit key (SubjectPublicKeyInfo in DER) of the log ``origin``.

    Raises ProofError.
    """
    members = _object(_json(proof), _MEMBERS, "the proof")
    if members["form"] != FORM:
        raise ProofError(f"the proof is not of the form {FORM!r}")
    note, index = members["checkpoint"], members["index"]
    if type(note) is not str or type(index) is not int:
        raise ProofError("the proof's checkpoint is not a text or its index not a number")
    try:
        checkpoint = parse_note(note, origin, Verifier.from_spki(origin, audit_spki))
    except CheckpointError as error:
        raise ProofError(f"the checkpoint is refused: {error}") from None
    intent = _verify_part(members["intent"], RecordKind.INTENT, index, checkpoint)
    outcome = _verify_part(members["outcome"], RecordKind.OUTCOME, index, checkpoint)
    return _conclude(checkpoint, index, intent, outcome)


def _show(record: Record, index: int, path: Sequence[bytes]) -> dict[str, object]:
    item, item_path = None, []
    if record.column is not None:
        try:
            item = record.column.item(index)
        except IndexError as error:
            raise ProofError(f"{record.kind} {record.seq}: {error}") from None
        item_path = merkle.inclusion_proof(record.column.leaf_hashes(), index)
    return {
        "head": record.head().hex(),
        "path": [node.hex() for node in path],
        "item": item if item is None else item.hex(),
        "item_path": [node.hex() for node in item_path],
    }


def _verify_part(value: object, kind: RecordKind, index: int, checkpoint: Checkpoint) -> _Part:
    members = _object(value, _PART_MEMBERS, f"the {kind}")
    encoded = _bytes(members["head"])
    try:
        head = parse_head(encoded)
    except RecordError as error:
        raise ProofError(f"the {kind} is refused: {error}") from None
    if head.kind is not kind:
        raise ProofError(f"the {kind} is a record of another kind")
    if head.seq >= checkpoint.size:
        raise ProofError(f"the {kind} is younger than the checkpoint: take a newer checkpoint")
    path, leaf = _path(members["path"]), merkle.leaf_hash(encoded)
    if not merkle.verify_inclusion(leaf, head.seq, checkpoint.size, path, checkpoint.root):
        raise ProofError(f"the {kind} is not in the log of the checkpoint")
    item_path = _path(members["item_path"])
    if head.shape is None:
        if members["item"] is not None or item_path:
            raise ProofError(f"the {kind} has no items, but the proof shows one")
        return _Part(head, None)
    item, shape = _bytes(members["item"]), head.shape
    leaf = merkle.leaf_hash(item)
    if len(item) != shape.width or not merkle.verify_inclusion(
        leaf, index, shape.count, item_path, shape.root
    ):
        raise ProofError(f"the item is not item {index} of the {kind}")
    return _Part(head, item)


def _conclude(checkpoint: Checkpoint, index: int, intent: _Part, outcome: _Part) -> Proven:
    """Compares the two records with each other and reads what they say."""
    asked, done = intent.head, outcome.head
    answered = done.fields.get("intent")
    if type(answered) is not int or answered != asked.seq or done.seq <= asked.seq:
        raise ProofError("the outcome is not the outcome of this intent")
    if intent.item is None or len(intent.item) not in _digest_sizes(asked):
        raise ProofError("the intent does not hold digests of the size that its format has")
    if asked.shape and done.shape and asked.shape.count != done.shape.count:
        raise ProofError("the outcome has another number of items than the intent")
    failure = _failure(done, index)
    signature = outcome.item if failure is None else None
    if failure is None and not any(signature or b""):
        raise ProofError("the outcome holds neither a signature nor a failure of the item")
    if failure is not None and any(outcome.item or b""):
        raise ProofError("the outcome holds both a signature and a failure of the item")
    return Proven(
        checkpoint=checkpoint,
        intent=asked.seq,
        outcome=done.seq,
        index=index,
        intent_us=asked.time_us,
        outcome_us=done.time_us,
        principal=_text(asked, "principal"),
        key_version=_text(asked, "key_version"),
        format=_text(asked, "format"),
        rule=_text(asked, "rule"),
        policy=_hash(asked, "policy"),
        digest=intent.item,
        signature=signature,
        failure=failure,
    )


def _digest_sizes(intent: Head) -> Container[int]:
    """Bytes of an item's digest: SHA-256, but where callers bring their own."""
    if _text(intent, "format") != Format.DIGEST:
        return {HASH_SIZE}
    return {HASH_SIZE, sha384().digest_size}


def _failure(outcome: Head, index: int) -> str | None:
    failures = outcome.fields.get("failures", {})
    if not isinstance(failures, Mapping):
        raise ProofError("the outcome's failures are not a map")
    reason = failures.get(str(index))
    if reason is not None and type(reason) is not str:
        raise ProofError("the outcome's failure is not a text")
    return reason


def _text(head: Head, name: str) -> str:
    value = head.fields.get(name)
    if type(value) is not str:
        raise ProofError(f"the {head.kind} has no {name}")
    return value


def _hash(head: Head, name: str) -> bytes:
    value = head.fields.get(name)
    if type(value) is not bytes or len(value) != HASH_SIZE:
        raise ProofError(f"the {head.kind} has no {name}")
    return value


def _json(proof: str) -> object:
    if len(proof) > MAX_PROOF:
        raise ProofError(f"the proof is longer than {MAX_PROOF} characters")
    try:
        return json.loads(proof, object_pairs_hook=_members)
    except (ValueError, RecursionError):
        raise ProofError("the proof is not JSON with each member once") from None


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a member stands twice")
    return members


def _object(value: object, names: frozenset[str], what: str) -> dict[str, Any]:
    if type(value) is not dict or value.keys() != names:
        raise ProofError(f"{what} does not have exactly the members {', '.join(sorted(names))}")
    return value


def _bytes(value: object) -> bytes:
    if type(value) is not str:
        raise ProofError("the proof has something else where bytes in hex belong")
    try:
        data = bytes.fromhex(value)
    except ValueError:
        data = b""
    if data.hex() != value:  # upper case, white space, or no hex at all
        raise ProofError("the proof has bytes that are not in lower-case hex")
    return data


def _path(value: object) -> list[bytes]:
    if type(value) is not list:
        raise ProofError("the proof has something else where a path belongs")
    path = [_bytes(node) for node in value]
    if any(len(node) != HASH_SIZE for node in path):
        raise ProofError("the proof has a path whose hashes do not have 32 bytes")
    return path

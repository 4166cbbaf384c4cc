"""Verifies a proof of the audit log with hashlib, cryptography and cbor2; none of our code.

Usage: verify_proof.py AUDIT_KEY.pem PROOF.json MESSAGE, a file with the HC1 text or
compact JWS that the proof is of. Prints what is proven as a JSON object. Ends with
status 1 where nothing is.

It follows the standards alone: RFC 9162 section 2.1.3.2 (inclusion), C2SP
signed-note and tlog-checkpoint (the note), RFC 9052 section 4.4 (what COSE signs).
"""

import base64
import hashlib
import json
import sys
import zlib
from pathlib import Path
from typing import Any

import base45
import cbor2
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key


def sha256(*parts: bytes) -> bytes:
    return hashlib.sha256(b"".join(parts)).digest()


def must(true: object, what: str) -> None:
    if not true:
        sys.exit(f"refused: {what}")


def unhex(text: str) -> bytes:
    must(text == text.lower(), "hex is not in lower case")
    return bytes.fromhex(text)


def unbase64(text: str) -> bytes:
    data = base64.b64decode(text, validate=True)
    must(base64.b64encode(data).decode() == text, "base64 is not in its one form")
    return data


def checkpoint(note: str, key: Any) -> tuple[int, bytes]:
    """Size and root of a signed note."""
    text, _, last = note.rpartition("\n\n")
    text += "\n"
    origin, size, root = text.split("\n")[:3]
    dash, name, encoded = last.removesuffix("\n").split(" ")
    signature = unbase64(encoded)
    must((dash, name) == ("—", origin), "the note is not signed in the log's name")
    spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if isinstance(key, Ed25519PublicKey):
        key_id = sha256(name.encode(), b"\n\x01", key.public_bytes_raw())[:4]
    else:
        key_id = sha256(spki)[:4]
    must(signature[:4] == key_id, "the note is signed with another key")
    scheme = () if isinstance(key, Ed25519PublicKey) else (ECDSA(hashes.SHA256()),)
    try:
        key.verify(signature[4:], text.encode(), *scheme)
    except InvalidSignature:
        sys.exit("refused: the note's signature is wrong")
    return int(size), unbase64(root)


def root_over(leaf: bytes, index: int, size: int, path: list[str]) -> bytes:
    """The root of a tree of ``size`` leaves in which ``leaf`` has this path."""
    must(0 <= index < size, "there is no such leaf")
    first, last, node = index, size - 1, sha256(b"\x00", leaf)
    for sibling in map(unhex, path):
        must(last, "the path is too long")
        if first & 1 or first == last:
            node = sha256(b"\x01", sibling, node)
            while first and not first & 1:
                first, last = first >> 1, last >> 1
        else:
            node = sha256(b"\x01", node, sibling)
        first, last = first >> 1, last >> 1
    must(last == 0, "the path is too short")
    return node


def record(part: Any, kind: str, index: int, size: int, root: bytes) -> tuple[Any, bytes]:
    """The head of a record that is in the log, and its item that is in the record."""
    encoded = unhex(part["head"])
    head = cbor2.loads(encoded)
    must(head["kind"] == kind, f"there is no {kind}")
    must(root_over(encoded, head["seq"], size, part["path"]) == root, f"no such {kind} in the log")
    # A leaf of the items' tree is several of them, one after the other. Older records do not
    # say how many: there it is one.
    count, width, each = head["count"], head["width"], head.get("leaf_items", 1)
    leaf, path = ("leaf", "leaf_path") if "leaf_items" in head else ("item", "item_path")
    items, inside = unhex(part[leaf]), index % each
    must(0 <= index < count, f"there is no such item in the {kind}")
    of_items = root_over(items, index // each, -(-count // each), part[path])
    must(of_items == head["root"], f"no such item in the {kind}")
    must(len(items) == width * min(each, count - index + inside), "an item is cut")
    return head, items[inside * width :][:width]


def failed(failures: dict[str, Any], index: int) -> bool:
    """Whether a bitmap of a reason has the item; older records have the item's index itself."""
    bitmaps = [int.from_bytes(one, "little") for one in failures.values() if type(one) is bytes]
    return str(index) in failures or any(bitmap >> index & 1 for bitmap in bitmaps)


def signed(message: str) -> tuple[bytes, bytes]:
    """What was signed of a finished message, and its signature."""
    if message.startswith("HC1:"):
        packed = zlib.decompress(base45.b45decode(message.removeprefix("HC1:")))
        protected, _, payload, signature = cbor2.loads(packed).value
        return cbor2.dumps(["Signature1", protected, b"", payload]), signature
    text, _, signature = message.rpartition(".")
    return text.encode(), base64.urlsafe_b64decode(signature + "==")


def verify(proof: Any, message: str, key: Any) -> dict[str, Any]:
    must(proof["form"] == "signer.v1 proof", "it is no proof of the audit log")
    size, root = checkpoint(proof["checkpoint"], key)
    index = proof["index"]
    intent, digest = record(proof["intent"], "intent", index, size, root)
    outcome, signature = record(proof["outcome"], "outcome", index, size, root)
    must(outcome["intent"] == intent["seq"] < outcome["seq"], "the outcome is of another intent")
    must(not failed(outcome["failures"], index), "the item was not signed")
    to_sign, made = signed(message)
    must(hashlib.sha256(to_sign).digest() == digest, "the proof is of another message")
    must(made == signature, "the proof is of another signature")
    names = ("principal", "key_version", "format", "rule")
    return {
        **{name: intent[name] for name in names},
        "policy": intent["policy"].hex(),
        "asked_us": intent["time"],
        "answered_us": outcome["time"],
        "records": size,
    }


def main() -> None:
    audit_key, proof, message = (Path(name).read_bytes() for name in sys.argv[1:])
    proven = verify(json.loads(proof), message.decode(), load_pem_public_key(audit_key))
    sys.stdout.write(json.dumps(proven) + "\n")


if __name__ == "__main__":
    main()

"""Checkpoints: the log's size and root as a signed note of C2SP (tlog-checkpoint, signed-note).

A note is a text, an empty line and signature lines ``— name base64(key id ‖ signature)``.
The name of the log's key is the log's origin. Signatures are Ed25519 (type 0x01) or ECDSA
with P-256 and SHA-256 (type 0x02, in DER).
"""

import base64
import re
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

from signer.audit.format.merkle import EMPTY_ROOT

MAX_NOTE = 1 << 16
"""Characters of a note at most, all its signatures included."""

_KEY_ID_SIZE = 4
_RAW_SIGNATURE_SIZE = 64  # r‖s of P-256 as well as R‖S of Ed25519
_SIZE = re.compile(r"0|[1-9][0-9]{0,18}")
_NAME = re.compile(r"[^\s+]{1,255}")
_FOREIGN = re.compile(r"[\x00-\x09\x0b-\x1f\ud800-\udfff]")  # control characters and surrogates
_SIGNATURE = re.compile(r"— ([^\s+]+) ([A-Za-z0-9+/]+={0,2})")


class CheckpointError(Exception):
    """A checkpoint, note or audit key is refused; the text says why."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The tree's ``size`` in records and its 32-byte ``root``, of the log named ``origin``.

    Raises CheckpointError for an origin that cannot be a key's name (empty, with white
    space or a plus sign) and for impossible sizes and roots.
    """

    origin: str
    size: int
    root: bytes

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.origin) or not self.origin.isprintable():
            raise CheckpointError(
                "the log's origin must have 1 to 255 characters, none of them white space or plus"
            )
        if not _SIZE.fullmatch(str(self.size)) or len(self.root) != len(EMPTY_ROOT):
            raise CheckpointError("a checkpoint must have a size from 0 on and a root of 32 bytes")
        if self.size == 0 and self.root != EMPTY_ROOT:
            raise CheckpointError("a checkpoint of size 0 must have the root of the empty tree")

    def text(self) -> str:
        """Returns the note's text (tlog-checkpoint, "Note text"): what the signature covers."""
        return f"{self.origin}\n{self.size}\n{_base64(self.root)}\n"


@dataclass(frozen=True, slots=True)
class NoteVerifier:
    """The log's public key; ``key_type`` and ``encoded`` as in its verifier key (vkey)."""

    name: str
    key: Ed25519PublicKey | EllipticCurvePublicKey
    key_type: int
    encoded: bytes

    @classmethod
    def from_spki(cls, name: str, spki: bytes) -> "NoteVerifier":
        """Reads a SubjectPublicKeyInfo in DER; raises CheckpointError unless Ed25519 or P-256."""
        try:
            key = load_der_public_key(spki)
        except (ValueError, UnsupportedAlgorithm):
            raise CheckpointError("the audit key is not a SubjectPublicKeyInfo in DER") from None
        if isinstance(key, Ed25519PublicKey):
            return cls(name, key, 0x01, key.public_bytes_raw())
        if isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP256R1):
            der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
            return cls(name, key, 0x02, der)
        raise CheckpointError("the audit key is neither Ed25519 nor P-256")

    @property
    def key_id(self) -> bytes:
        """The first 4 bytes of this key's signatures (signed-note, "Signature types")."""
        if self.key_type == 0x02:
            return sha256(self.encoded).digest()[:_KEY_ID_SIZE]
        hashed = self.name.encode() + b"\n" + bytes((self.key_type,)) + self.encoded
        return sha256(hashed).digest()[:_KEY_ID_SIZE]

    def to_sign(self, text: str) -> bytes:
        """Returns the bytes that the token signs: the text, or its SHA-256 for ECDSA."""
        data = text.encode()
        return data if isinstance(self.key, Ed25519PublicKey) else sha256(data).digest()

    def note_signature(self, raw: bytes) -> bytes:
        """Returns a token's signature (R‖S or r‖s, 64 bytes) in the form of notes.

        Raises CheckpointError for another length.
        """
        if len(raw) != _RAW_SIGNATURE_SIZE:
            raise CheckpointError(f"the token returned a signature of {len(raw)} bytes, not 64")
        if isinstance(self.key, Ed25519PublicKey):
            return raw
        half = _RAW_SIGNATURE_SIZE // 2
        return encode_dss_signature(int.from_bytes(raw[:half]), int.from_bytes(raw[half:]))

    def verify(self, signature: bytes, text: str) -> bool:
        """Returns whether this is the key's signature (without key id) of the text."""
        try:
            if isinstance(self.key, Ed25519PublicKey):
                self.key.verify(signature, text.encode())
            else:
                self.key.verify(signature, text.encode(), ECDSA(hashes.SHA256()))
        except InvalidSignature:
            return False
        return True

    def parse(self, note: str) -> Checkpoint:
        """Reads a signed checkpoint of the log that this key is named after.

        Extension lines and signatures of other keys are ignored. At least one of this key must
        be present, and all of this key must be valid (signed-note, "Signatures"). Raises
        CheckpointError. The text is read only after it is verified.
        """
        if len(note) > MAX_NOTE:
            raise CheckpointError(f"the note is longer than {MAX_NOTE} characters")
        # The last empty line parts the text, which ends with a newline, from the signatures.
        text, separator, signatures = note.rpartition("\n\n")
        if not separator or not signatures.endswith("\n") or _FOREIGN.search(note):
            raise CheckpointError("the note is not a text, an empty line and signature lines")
        text += "\n"
        ours = 0
        for line in signatures[:-1].split("\n"):
            matched = _SIGNATURE.fullmatch(line)
            encoded = matched and _from_base64(matched[2])
            if not matched or not encoded or len(encoded) <= _KEY_ID_SIZE:
                raise CheckpointError("the note has a malformed signature line")
            key_id, signature = encoded[:_KEY_ID_SIZE], encoded[_KEY_ID_SIZE:]
            if (matched[1], key_id) == (self.name, self.key_id):
                if not self.verify(signature, text):
                    raise CheckpointError("a signature of the audit key on the note is not valid")
                ours += 1
        if not ours:
            raise CheckpointError("the note has no signature of the audit key")
        return _parse_text(text, self.name)


def sign(checkpoint: Checkpoint, verifier: NoteVerifier, signer: Callable[[bytes], bytes]) -> str:
    """Returns the checkpoint as a note with one signature, which was verified.

    ``signer`` gets ``verifier.to_sign(text)`` and returns the raw signature, 64 bytes.
    Raises CheckpointError if that is not the key's signature.
    """
    if verifier.name != checkpoint.origin:
        raise CheckpointError("the name of the audit key differs from the log's origin")
    text = checkpoint.text()
    signature = verifier.note_signature(signer(verifier.to_sign(text)))
    if not verifier.verify(signature, text):
        raise CheckpointError("the token returned a signature that the audit key does not verify")
    return f"{text}\n— {verifier.name} {_base64(verifier.key_id + signature)}\n"


def _parse_text(text: str, origin: str) -> Checkpoint:
    lines = text[:-1].split("\n")
    if len(lines) < 3 or not all(lines) or not _SIZE.fullmatch(lines[1]):
        raise CheckpointError("the note's text is not an origin, a size and a root")
    root = _from_base64(lines[2])
    if root is None:
        raise CheckpointError("the note's root is not in base64")
    if lines[0] != origin:
        raise CheckpointError("the checkpoint is of a log with another origin")
    return Checkpoint(origin, int(lines[1]), root)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _from_base64(text: str) -> bytes | None:
    """Returns the bytes, None unless the text is their one encoding (RFC 4648 section 3.5)."""
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError:
        return None
    return data if _base64(data) == text else None

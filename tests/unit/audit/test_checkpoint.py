import base64
import subprocess
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from signer.audit.format.checkpoint import MAX_NOTE, Checkpoint, CheckpointError, NoteVerifier, sign
from signer.audit.format.merkle import EMPTY_ROOT

ORIGIN = "audit.example.test/signer"
CHECKPOINT = Checkpoint(ORIGIN, 20_852_163, bytes(range(32)))

Key = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey
ED25519 = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
P256 = ec.derive_private_key(0x5167E2, ec.SECP256R1())
OTHER = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(32))
both_kinds = pytest.mark.parametrize("key", [ED25519, P256], ids=["Ed25519", "P-256"])


def spki(key: Key | rsa.RSAPrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def token(key: Key) -> Callable[[bytes], bytes]:
    """Signs as the token does: Ed25519 over the message, r‖s over a digest."""
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return key.sign

    def sign_digest(digest: bytes) -> bytes:
        r, s = decode_dss_signature(key.sign(digest, ec.ECDSA(Prehashed(hashes.SHA256()))))
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")

    return sign_digest


def signed(key: Key, checkpoint: Checkpoint = CHECKPOINT) -> str:
    return sign(checkpoint, NoteVerifier.from_spki(checkpoint.origin, spki(key)), token(key))


def signature_line(key: Key, name: str, text: str) -> str:
    verifier = NoteVerifier.from_spki(name, spki(key))
    signature = verifier.note_signature(token(key)(verifier.to_sign(text)))
    return f"— {name} {base64.b64encode(verifier.key_id + signature).decode()}\n"


def parse(note: str, key: Key = ED25519) -> Checkpoint:
    return NoteVerifier.from_spki(ORIGIN, spki(key)).parse(note)


def test_the_text_is_origin_size_and_root() -> None:
    root = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="

    assert CHECKPOINT.text() == f"{ORIGIN}\n20852163\n{root}\n"
    assert Checkpoint(ORIGIN, 0, EMPTY_ROOT).text().split("\n")[1] == "0"


@both_kinds
def test_a_signed_checkpoint_is_read(key: Key) -> None:
    note = signed(key)

    assert parse(note, key) == CHECKPOINT
    text, _, line = note.partition("\n\n")
    assert f"{text}\n" == CHECKPOINT.text()
    assert line.startswith(f"— {ORIGIN} ")
    assert line.endswith("\n")


@both_kinds
@settings(max_examples=25, deadline=None)
@given(size=st.integers(1, 10**19 - 1), root=st.binary(min_size=32, max_size=32))
def test_every_checkpoint_comes_back(key: Key, size: int, root: bytes) -> None:
    checkpoint = Checkpoint(ORIGIN, size, root)

    assert parse(signed(key, checkpoint), key) == checkpoint


def test_a_published_note_and_its_verifier_key() -> None:
    # The example of golang.org/x/mod/sumdb/note.
    vkey = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
    text = (
        "If you think cryptography is the answer to your problem,\n"
        "then you don't know what your problem is.\n"
    )
    encoded = base64.b64decode(
        "x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM="
    )
    public = ed25519.Ed25519PublicKey.from_public_bytes(base64.b64decode(vkey.split("+", 2)[2])[1:])
    der = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    verifier = NoteVerifier.from_spki("PeterNeumann", der)

    assert encoded[:4] == verifier.key_id == bytes.fromhex(vkey.split("+")[1])
    assert verifier.verify(encoded[4:], text)
    assert not verifier.verify(encoded[4:], text + "\n")


def test_key_ids_are_those_of_the_specification() -> None:
    raw = ED25519.public_key().public_bytes_raw()
    named = sha256(ORIGIN.encode() + b"\n\x01" + raw).digest()[:4]

    assert NoteVerifier.from_spki(ORIGIN, spki(ED25519)).key_id == named
    assert NoteVerifier.from_spki(ORIGIN, spki(P256)).key_id == sha256(spki(P256)).digest()[:4]


@both_kinds
def test_openssl_verifies_the_signature(key: Key, tmp_path: Path) -> None:
    text, _, line = signed(key).rpartition("\n\n")
    (tmp_path / "text").write_text(text + "\n")
    (tmp_path / "signature").write_bytes(base64.b64decode(line.split(" ")[2])[4:])
    (tmp_path / "key.der").write_bytes(spki(key))
    command = [
        *("openssl", "pkeyutl", "-verify", "-rawin", "-in", "text", "-sigfile", "signature"),
        *("-pubin", "-keyform", "DER", "-inkey", "key.der"),
        *(["-digest", "sha256"] if key is P256 else []),
    ]

    right = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    (tmp_path / "text").write_text(text)
    wrong = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert (right.returncode, right.stdout) == (0, "Signature Verified Successfully\n")
    assert wrong.returncode == 1


@both_kinds
def test_each_flipped_bit_of_a_note_is_found(key: Key) -> None:
    note = signed(key).encode()
    for position in range(len(note)):
        for bit in range(8):
            flipped = bytearray(note)
            flipped[position] ^= 1 << bit
            text = flipped.decode(errors="surrogateescape")
            with pytest.raises(CheckpointError):
                parse(text, key)


def test_a_note_with_two_signatures_is_read_with_either_key() -> None:
    text = CHECKPOINT.text()
    lines = [signature_line(key, ORIGIN, text) for key in (ED25519, P256)]

    for note in (f"{text}\n{lines[0]}{lines[1]}", f"{text}\n{lines[1]}{lines[0]}"):
        assert parse(note, ED25519) == parse(note, P256) == CHECKPOINT
        with pytest.raises(CheckpointError, match="no signature of the audit key"):
            parse(note, OTHER)


def test_unknown_signers_are_ignored_even_where_they_share_a_name_or_an_id() -> None:
    text = CHECKPOINT.text()
    key_id = NoteVerifier.from_spki(ORIGIN, spki(ED25519)).key_id
    same_id = base64.b64encode(key_id + bytes(64)).decode()
    strangers = [
        signature_line(OTHER, "witness.example.test", text),
        signature_line(OTHER, ORIGIN, text),
        f"— witness.example.test {same_id}\n",
        f"— {ORIGIN} {base64.b64encode(b'none' + b'x').decode()}\n",
    ]
    ours = signature_line(ED25519, ORIGIN, text)

    assert parse(f"{text}\n{''.join(strangers)}{ours}") == CHECKPOINT
    assert parse(f"{text}\n{ours}{''.join(strangers * 5)}") == CHECKPOINT
    with pytest.raises(CheckpointError, match="no signature of the audit key"):
        parse(f"{text}\n{''.join(strangers)}")


def test_one_wrong_signature_of_our_key_spoils_the_note() -> None:
    text = CHECKPOINT.text()
    right = signature_line(ED25519, ORIGIN, text)
    wrong = signature_line(ED25519, ORIGIN, "something else\n")

    for lines in (right + wrong, wrong + right):
        with pytest.raises(CheckpointError, match="on the note is not valid"):
            parse(f"{text}\n{lines}")


def test_extension_lines_are_signed_and_ignored() -> None:
    text = CHECKPOINT.text() + "an extension\n"
    assert parse(f"{text}\n{signature_line(ED25519, ORIGIN, text)}") == CHECKPOINT

    changed = text.replace("an", "no")
    with pytest.raises(CheckpointError):
        parse(f"{changed}\n{signature_line(ED25519, ORIGIN, text)}")


ROOT = base64.b64encode(bytes(range(32))).decode()


@pytest.mark.parametrize(
    "text",
    [
        f"other.example.test\n7\n{ROOT}\n",
        f"{ORIGIN}\n07\n{ROOT}\n",
        f"{ORIGIN}\n-7\n{ROOT}\n",
        f"{ORIGIN}\n7.0\n{ROOT}\n",
        f"{ORIGIN}\n\N{ARABIC-INDIC DIGIT SEVEN}\n{ROOT}\n",
        f"{ORIGIN}\n{'9' * 5000}\n{ROOT}\n",
        f"{ORIGIN}\n0\n{ROOT}\n",
        f"{ORIGIN}\n7\n{ROOT[:-1]}\n",
        f"{ORIGIN}\n7\n{ROOT[:-2]}9=\n",
        f"{ORIGIN}\n7\n{ROOT[:-4]}\n",
        f"{ORIGIN}\n7\n",
        f"{ORIGIN}\n7\n{ROOT}\n\nextension\n",
        f"\n7\n{ROOT}\n",
    ],
)
def test_signed_texts_that_are_no_checkpoint_of_ours_are_refused(text: str) -> None:
    note = f"{text}\n{signature_line(ED25519, ORIGIN, text)}"
    with pytest.raises(CheckpointError) as caught:
        parse(note)
    assert "signature" not in str(caught.value)  # it is right; the text is not


NOTE = signed(ED25519)


@pytest.mark.parametrize(
    "note",
    [
        "",
        "\n",
        "\n\n",
        CHECKPOINT.text(),
        NOTE[:-1],
        NOTE + "\n",
        NOTE + "— no signature\n",
        NOTE + "— name AAAA\n",
        NOTE + "— name AAAAAAA\n",
        NOTE + "- name AAAAAAAA\n",
        NOTE + "—  AAAAAAAA\n",
        NOTE.replace("\n", "\r\n"),
        NOTE.replace("\n\n", "\n\x00\n\n"),
        "\ud800" + NOTE,
        NOTE + "— name AAAAAAAA\n" * (MAX_NOTE // 16),
    ],
)
def test_malformed_notes_are_refused(note: str) -> None:
    with pytest.raises(CheckpointError):
        parse(note)


@settings(deadline=None)
@given(st.text(max_size=300))
def test_foreign_texts_are_refused_without_another_error(text: str) -> None:
    for note in (text, f"{text}\n\n— {ORIGIN} {text}\n", f"{NOTE}{text}x"):
        with pytest.raises(CheckpointError):
            parse(note)


def test_the_token_must_sign_what_it_was_asked_to() -> None:
    verifier = NoteVerifier.from_spki(ORIGIN, spki(ED25519))

    with pytest.raises(CheckpointError, match="does not verify"):
        sign(CHECKPOINT, verifier, token(OTHER))
    with pytest.raises(CheckpointError, match="signature of 3 bytes"):
        sign(CHECKPOINT, verifier, lambda _: b"???")
    with pytest.raises(CheckpointError, match="the name of the audit key differs"):
        sign(Checkpoint("other", 1, bytes(32)), verifier, token(ED25519))


@pytest.mark.parametrize("origin", ["", "two words", "a+b", "line\nbreak", "nul\0", "a\u2003b"])
def test_origins_that_cannot_name_a_key_are_refused(origin: str) -> None:
    with pytest.raises(CheckpointError, match="origin"):
        Checkpoint(origin, 1, bytes(32))


@pytest.mark.parametrize(("size", "root"), [(-1, bytes(32)), (1, bytes(31)), (0, bytes(32))])
def test_impossible_checkpoints_are_refused(size: int, root: bytes) -> None:
    with pytest.raises(CheckpointError):
        Checkpoint(ORIGIN, size, root)


def test_only_two_kinds_of_keys_can_audit() -> None:
    unsuited = [
        spki(rsa.generate_private_key(65537, 2048)),
        spki(ec.generate_private_key(ec.SECP384R1())),
        b"no key",
        b"",
    ]
    for der in unsuited:
        with pytest.raises(CheckpointError, match="audit key"):
            NoteVerifier.from_spki(ORIGIN, der)

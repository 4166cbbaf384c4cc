"""Messages in hand: genuine ones are found and proven, forged ones are told as what they are."""

import base64
import json
import zlib
from collections.abc import Callable
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import pytest
from click.testing import Result
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from signer.algorithms import Algorithm
from signer.audit.format.record import Column, RecordKind, Value
from signer.formats import base45, shc
from signer.formats.cms_asn1 import DATA
from signer.formats.cms_template import template
from signer.formats.cose import Envelope
from signer.formats.hcert import text as hcert_text
from tests.stand_ins import small_log
from tests.unit.cli.test_audit import ORIGIN, pem, run, sealed
from tests.unit.formats.conftest import certify

OURS, THEIRS = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
PAYLOADS = (b'{"born":1950}', b'{"born":1990}')
ENVELOPE = Envelope({1: -7, 4: b"kid"})
DETACHED = template(certify(OURS), Algorithm.ES256, DATA, 1)


def sign(key: ec.EllipticCurvePrivateKey, data: bytes) -> bytes:
    r, s = decode_dss_signature(key.sign(data, ec.ECDSA(hashes.SHA256())))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def b64url(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


class Form(NamedTuple):
    """How a format makes the bytes to sign of a payload, and the file of its message.

    The file of a raw signature comes beside its message.
    """

    to_sign: Callable[[bytes], bytes]
    finish: Callable[[bytes, bytes], bytes]
    raw: bool = False


def jws(payload: bytes) -> bytes:
    return b64url(b'{"alg":"ES256","kid":"k"}') + b"." + b64url(payload)


def hcert(payload: bytes, made: bytes) -> bytes:
    return hcert_text(ENVELOPE.message(ENVELOPE.to_sign(payload), made))


def cms(payload: bytes) -> bytes:
    head, tail = DETACHED.around_digest(1)
    return head + sha256(payload).digest() + tail


FORMS = {
    "JWS": Form(jws, lambda payload, made: jws(payload) + b"." + b64url(made) + b"\n"),
    "SHC": Form(jws, lambda payload, made: shc.text(jws(payload) + b"." + b64url(made)) + b"\n"),
    "COSE_SIGN1": Form(
        ENVELOPE.to_sign, lambda payload, made: ENVELOPE.message(ENVELOPE.to_sign(payload), made)
    ),
    "HCERT": Form(ENVELOPE.to_sign, hcert),
    "CMS": Form(cms, lambda payload, made: DETACHED.message(cms(payload), made)),
    "MESSAGE": Form(lambda payload: payload, lambda payload, _: payload, raw=True),
    "DIGEST": Form(lambda payload: payload, lambda payload, _: payload, raw=True),
}


class Signed(NamedTuple):
    """A log with one batch of both payloads for each format, and the signatures by format."""

    audit: Path
    made: dict[str, list[bytes]]


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> Signed:
    audit = tmp_path_factory.mktemp("signed") / "audit"
    key = Ed25519PrivateKey.generate()
    (audit / "checkpoints").mkdir(parents=True)
    (audit / "audit.pub.pem").write_bytes(pem(key))
    log, made = small_log(audit, origin=ORIGIN), dict[str, list[bytes]]()
    log.append(RecordKind.START, {})
    for name, form in FORMS.items():
        tbs = [form.to_sign(payload + name.encode() * form.raw) for payload in PAYLOADS]
        made[name] = [sign(OURS, data) for data in tbs]
        fields: dict[str, Value] = {
            "principal": "spiffe://signer.example/issuer",
            "key_version": "facilities/f/keys/k/versions/1",
            "format": name,
            "rule": "facilities.f.clients",
            "policy": bytes(32),
            "now": 1,
        }
        digests = Column(32, b"".join(sha256(data).digest() for data in tbs))
        intent = log.append(RecordKind.INTENT, fields, digests)
        column = Column(64, b"".join(made[name]))
        log.append(RecordKind.OUTCOME, {"intent": intent, "attempts": 1, "failures": {}}, column)
    (audit / "checkpoints" / "newest").write_text(sealed(log, key))
    log.close()
    return Signed(audit, made)


def files(folder: Path, name: str, payload: bytes, made: bytes) -> list[object]:
    """Writes a message as it would be handed over; returns the options that name it."""
    form = FORMS[name]
    message = folder / "message"
    message.write_bytes(form.finish(payload + name.encode() * form.raw, made))
    if not form.raw:
        return ["--file", message]
    signature = folder / "signature"
    signature.write_bytes(made)
    return ["--file", message, "--signature", signature]


def ask(signed: Signed, command: str, *words: object) -> Result:
    return run(command, "--dir", signed.audit, *words)


@pytest.mark.parametrize("name", FORMS)
def test_a_genuine_message_is_found_proven_and_compared(
    signed: Signed, tmp_path: Path, name: str
) -> None:
    in_hand = files(tmp_path, name, PAYLOADS[1], signed.made[name][1])
    found = ask(signed, "find", *in_hand)
    assert found.exit_code == 0, found.stderr
    assert "This very message was signed here" in found.stdout
    (match,) = json.loads(ask(signed, "find", *in_hand, "--json").stdout)
    assert (match["format"], match["item"]) == (name, 1)
    proof = tmp_path / "proof.json"
    assert ask(signed, "prove", *in_hand, "--output", proof).exit_code == 0
    key = ("--key", signed.audit / "audit.pub.pem")
    proven = run("verify", "--proof", proof, *key, *in_hand)
    assert proven.exit_code == 0, proven.stderr
    assert "This very message was signed here" in proven.stdout
    alone = json.loads(run("verify", "--proof", proof, *key, "--json").stdout)
    assert alone["compared"] is None


def another_payload(signed: Signed, name: str) -> tuple[bytes, bytes]:
    return b'{"born":1951}', signed.made[name][0]


def another_key(_signed: Signed, name: str) -> tuple[bytes, bytes]:
    form = FORMS[name]
    return PAYLOADS[0], sign(THEIRS, form.to_sign(PAYLOADS[0] + name.encode() * form.raw))


def another_item(signed: Signed, name: str) -> tuple[bytes, bytes]:
    return PAYLOADS[0], signed.made[name][1]


FORGERIES = [
    (another_payload, "this signature was made here, but over another message"),
    (another_key, "this signature is another one"),
    (another_item, "this signature is another one"),
    (another_item, "this signature was made here, but over another message"),
]


@pytest.mark.parametrize(("forge", "text"), FORGERIES)
@pytest.mark.parametrize("name", FORMS)
def test_a_forged_message_is_neither_found_nor_proven(
    signed: Signed,
    tmp_path: Path,
    name: str,
    forge: Callable[[Signed, str], tuple[bytes, bytes]],
    text: str,
) -> None:
    genuine = files(tmp_path, name, PAYLOADS[0], signed.made[name][0])
    proof = tmp_path / "genuine.json"
    assert ask(signed, "prove", *genuine, "--output", proof).exit_code == 0

    forged = files(tmp_path, name, *forge(signed, name))
    found = ask(signed, "find", *forged)
    assert found.exit_code == 1
    assert text in " ".join(found.stdout.split())
    assert "This very message" not in found.stdout
    output = tmp_path / "forged.json"
    refused = ask(signed, "prove", *forged, "--output", output)
    assert refused.exit_code == 1
    assert "There is nothing to prove" in refused.stderr
    assert not output.exists()
    key = ("--key", signed.audit / "audit.pub.pem")
    compared = run("verify", "--proof", proof, *key, *forged)
    assert (compared.exit_code, compared.stdout) == (1, "")
    assert "not of the message in hand" in compared.stderr


@pytest.mark.parametrize("name", FORMS)
def test_a_foreign_message_is_not_in_the_log(signed: Signed, tmp_path: Path, name: str) -> None:
    in_hand = files(tmp_path, name, b'{"born":1}', bytes(64))
    found = ask(signed, "find", *in_hand)
    assert (found.exit_code, found.stdout) == (1, "")
    assert "not in the log" in found.stderr


@pytest.mark.parametrize("name", ["COSE_SIGN1", "HCERT"])
def test_a_changed_header_is_another_message(signed: Signed, tmp_path: Path, name: str) -> None:
    message = ENVELOPE.message(ENVELOPE.to_sign(PAYLOADS[0]), signed.made[name][0])
    changed = message.replace(b"kid", b"KID")
    if name == "HCERT":
        changed = b"HC1:" + base45.encode(zlib.compress(changed))
    file = tmp_path / "message"
    file.write_bytes(changed)
    found = ask(signed, "find", "--file", file)
    assert found.exit_code == 1
    assert "over another message" in found.stdout


def test_a_message_or_a_signature_alone_says_what_was_not_compared(
    signed: Signed, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    alone = partial(ask, signed, "find", "--file", file)
    file.write_bytes(PAYLOADS[0] + b"MESSAGE")
    assert alone().exit_code == 0
    assert "Its signature was not compared" in " ".join(alone().stdout.split())
    for content in (signed.made["MESSAGE"][0], base64.b64encode(signed.made["MESSAGE"][0])):
        file.write_bytes(content)
        assert alone().exit_code == 0
        assert "What it signs was not compared" in " ".join(alone().stdout.split())


def test_an_item_by_its_record_is_compared_with_the_message(signed: Signed, tmp_path: Path) -> None:
    in_hand = files(tmp_path, "JWS", PAYLOADS[0], signed.made["JWS"][0])
    assert ask(signed, "prove", "--record", 1, "--item", 0, *in_hand).exit_code == 0
    other = ask(signed, "prove", "--record", 1, "--item", 1, *in_hand)
    assert other.exit_code == 1
    assert "neither this message nor this signature" in other.stderr


def test_what_does_not_go_together_is_wrong_usage(signed: Signed, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x")
    assert ask(signed, "find", "--signature", file).exit_code == 2
    assert ask(signed, "find", "00" * 32, "--file", file).exit_code == 2
    assert ask(signed, "verify", "--file", file).exit_code == 2
    key = ("--key", signed.audit / "audit.pub.pem")
    assert run("verify", "--proof", file, *key, "--decide").exit_code == 2

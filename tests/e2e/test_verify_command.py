"""``signer verify`` of what a real appliance signed, and of what was changed afterwards."""

import base64
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cbor2
import pytest

from signer.formats.finished import finished
from signer.formats.hcert import text as hcert_text
from tests.commands import Done, Run, run, signer
from tests.e2e.forgeries import Signed, forgeries
from tests.e2e.samples import bundle
from tests.e2e.sources import of_appliance

__all__ = ["run"]

RECORDS, DCC = "facilities/01-001/keys/records", "facilities/moh/keys/dcc"
DIGEST = "facilities/moh/keys/digest"
Sign = Callable[..., Path]


@pytest.fixture
def sign(appliance: Any, tmp_path: Path) -> Sign:
    def run(key: str, message_format: str, payload: bytes, name: str = "payload") -> Path:
        file = tmp_path / name
        file.write_bytes(payload)
        words = ("--key", key, "--format", message_format, "--json", file)
        done = signer("sign", "--client", appliance.client_file(), *words)
        assert done.code == 0, done.err
        return Path(json.loads(done.out)["output"])

    return run


@pytest.fixture
def exported(appliance: Any, tmp_path: Path) -> Callable[[str], Path]:
    def run(form: str) -> Path:
        out = tmp_path / f"keys-{form}"
        done = signer(
            *("keys", "export", "--form", form, "--out", out),
            *("--client", appliance.client_file("auditor")),
        )
        assert done.code == 0, done.err
        return out

    return run


def forged(path: Path, change: Callable[[bytes], bytes]) -> Path:
    other = path.with_name(f"forged-{path.name}")
    other.write_bytes(change(path.read_bytes()))
    return other


def judged(done: Done) -> list[bool]:
    return [json.loads(line)["valid"] for line in done.out.splitlines()]


def test_a_jws_verifies_and_a_forged_one_does_not(
    sign: Sign, exported: Callable[[str], Path]
) -> None:
    made, keys = sign(RECORDS, "JWS", b'{"born":1950}'), exported("jwks")
    done = signer("verify", "--keys", keys, made)
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(f"{made}: valid JWS, ES256, key ")
    payload = base64.urlsafe_b64encode(b'{"born":1990}').rstrip(b"=")
    other = forged(made, lambda token: token.replace(token.split(b".")[1], payload))
    done = signer("verify", "--keys", keys, made, other)
    assert done.code == 1
    assert f"{other}: NOT VALID: its signature is wrong: the message was changed" in done.out
    assert done.err == "signer: 1 of 2 messages are not valid\n"


def test_a_cose_sign1_verifies_and_a_forged_one_does_not(
    sign: Sign, exported: Callable[[str], Path]
) -> None:
    made, keys = sign(RECORDS, "COSE_SIGN1", b"born 1950"), exported("jwks")
    other = forged(made, lambda message: message.replace(b"1950", b"1990"))
    done = signer("verify", "--keys", keys, "--json", made, other)
    assert (done.code, judged(done)) == (1, [True, False]), done.out
    assert base64.b64decode(json.loads(done.out.splitlines()[0])["payload"]) == b"born 1950"


@pytest.mark.parametrize("form", ["trust-list", "certificates"])
def test_a_certificate_verifies_and_a_forged_one_does_not(
    sign: Sign, exported: Callable[[str], Path], vaccinations: dict[str, bytes], form: str
) -> None:
    payload = next(iter(vaccinations.values()))
    made, keys = sign(DCC, "HCERT", payload), exported(form)
    born = json.loads(payload)["dob"]
    other = sign(DCC, "HCERT", payload.replace(born.encode(), b"1990-01-01"), "other")
    # The signature of the one behind the content of the other.
    swapped = forged(made, lambda text: _swapped(text, other.read_bytes()))
    done = signer("verify", "--keys", keys, "--json", made, other, swapped)
    assert (done.code, judged(done)) == (1, [True, True, False])
    [first, *_] = map(json.loads, done.out.splitlines())
    assert (first["issuer"], first["dcc"]) == ("VN", json.loads(payload))


def _swapped(text: bytes, other: bytes) -> bytes:

    ours, theirs = finished(text), finished(other)
    assert ours is not None
    assert theirs is not None
    parts = [ours.protected, {}, theirs.payload, ours.signature]
    return hcert_text(cbor2.dumps(cbor2.CBORTag(18, parts)))


CHANGED, GENUINE = (
    "its signature is wrong: the message was changed",
    "it is genuine, but of another",
)
IN_ONE = {"header": CHANGED, "payload": CHANGED, "signature": CHANGED}
ATTRIBUTES = "its signature is wrong: its attributes were changed"
RAW = "it is not a signature of this message by a key that is trusted"
IN_CMS = {"header": ATTRIBUTES, "signature": ATTRIBUTES, "document": GENUINE}
FORGED = {
    ("MESSAGE", "01-001/records"): {"signature": RAW, "document": RAW},
    ("JWS", "01-001/records"): IN_ONE,
    ("COSE_SIGN1", "01-001/records"): IN_ONE,
    ("HCERT", "moh/dcc"): IN_ONE,
    ("CMS", "moh/documents"): IN_CMS,
    ("TIMESTAMP", "moh/tsa"): {**IN_CMS, "payload": "its time was changed"},
    ("SHC", "moh/cards"): IN_ONE,
}


@pytest.mark.parametrize(("message_format", "short"), FORGED)
def test_each_forged_copy_is_refused_with_its_reason(
    appliance: Any,
    vaccinations: dict[str, bytes],
    tmp_path: Path,
    run: Run,
    message_format: str,
    short: str,
) -> None:
    who = of_appliance(appliance, short, tmp_path)
    cards = [json.dumps(bundle()).encode()]
    documents = {"HCERT": list(vaccinations.values()), "SHC": cards, "JWS": [b'{"born": 1950}']}
    [signed] = who.signed(message_format, documents.get(message_format, [b"born 1950"])[:1])
    keys = who.trust.jwks if message_format == "SHC" else who.trust.certificate
    document, made = tmp_path / "document", tmp_path / "made"

    def verified(each: Signed) -> Done:
        document.write_bytes(each.payload)
        made.write_bytes(each.made)
        inside = ("--signature", made, document) if "document" in reasons else (made,)
        return run("verify", "--keys", keys or who.trust.public_key, *inside)

    reasons = FORGED[message_format, short]
    done = verified(signed)
    assert done.code == 0, done.out
    forged = forgeries(message_format, signed)
    assert forged.keys() == reasons.keys()
    for name, copy in forged.items():
        done = verified(copy)
        assert done.code == 1, name
        assert f"NOT VALID: {reasons[name]}" in done.out, name


@pytest.mark.parametrize("short", ["records", "records-rsa", "records-rs256", "records-ed25519"])
def test_a_raw_signature_verifies_with_its_message_alone(
    appliance: Any, sign: Sign, tmp_path: Path, short: str
) -> None:
    made = sign(f"facilities/01-001/keys/{short}", "MESSAGE", b"born 1950")
    pem = appliance.key(f"01-001/{short}")["public_key"]
    message, other = made.with_suffix(""), tmp_path / "other"
    other.write_bytes(b"born 1990")
    words = ("verify", "--keys", pem, "--signature", made)
    assert signer(*words, message).code == 0
    done = signer(*words, other)
    assert done.code == 1
    assert "NOT VALID: it is not a signature of this message by a key that is trusted" in done.out


def test_the_signature_of_a_digest_verifies_with_digest_or_message(
    sign: Sign, exported: Callable[[str], Path], tmp_path: Path
) -> None:
    keys, digest = exported("jwks"), hashlib.sha256(b"a document").digest()
    made = sign(DIGEST, "DIGEST", digest)
    document, in_hex, other = (tmp_path / name for name in ("document", "hex", "other"))
    document.write_bytes(b"a document")
    in_hex.write_text(f"{digest.hex()}\n")
    other.write_bytes(hashlib.sha256(b"another").digest())
    words = ("verify", "--keys", keys, "--signature", made)
    assert signer(*words, document).code == 0
    for file in (made.with_suffix(""), in_hex):
        assert signer(*words, "--format", "digest", file).code == 0
    assert signer(*words, "--format", "DIGEST", other).code == 1


def test_the_lines_of_sign_verify_by_the_keys_of_the_appliance(
    appliance: Any, tmp_path: Path
) -> None:
    client = ("--client", appliance.client_file())
    records, signed = tmp_path / "records", tmp_path / "signed"
    records.write_text('{"n":1}\nnot JSON\n{"n":2}\n')
    for message_format, bad in (("JWS", 1), ("COSE_SIGN1", 0)):
        words = ("--key", RECORDS, "--format", message_format, "--lines", records)
        done = signer("sign", *client, *words)
        assert done.code == bad
        signed.write_text(done.out)
        done = signer("verify", *client, "--lines", "--json", signed)
        assert (done.code, judged(done)) == (bad, [True, not bad, True]), done
        said = [json.loads(line) for line in done.out.splitlines()]
        assert [each["line"] for each in said] == [1, 2, 3]
        assert said[0]["key"] == f"{RECORDS}/versions/1"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "give --keys FILE, or --client FILE"),
        (("--keys", "KEYS", "--format", "MESSAGE"), "MESSAGE needs --signature FILE"),
        (("--keys", "KEYS", "--signature", "KEYS", "--lines"), "--signature goes with one INPUT"),
        (("--keys", "KEYS", "--signature", "KEYS", "--format", "JWS"), "a message, or a digest"),
    ],
)
def test_wrong_usage_ends_with_two(tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    done = signer("verify", *(str(file) if word == "KEYS" else word for word in words), file)
    assert done.code == 2
    assert said in done.err


def test_a_file_without_keys_is_named(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    done = signer("verify", "--keys", file, file)
    assert done.code == 1
    assert f"{file}: it must be a JWK Set or a trust list" in done.err

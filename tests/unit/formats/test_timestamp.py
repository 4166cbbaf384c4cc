"""Time-stamps: OpenSSL accepts them and refuses changed ones; serial numbers do not repeat."""

import dataclasses
import hashlib
import re
import subprocess
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from signer.algorithms import Algorithm
from signer.client._cutting import output_bound
from signer.client.key_files import TrustedKey
from signer.client.verification import TrustedKeys, VerificationError
from signer.errors import CallError, Reason
from signer.format_terms import ContentRules, FormatContext, TimestampTerms
from signer.formats import FORMATS
from signer.formats.cms_template import template
from signer.formats.payloads import ContentTerms, PayloadError
from signer.formats.timestamp import MAX_BYTES
from signer.formats.timestamp_asn1 import FAILURES, TST_INFO, granted, refused
from signer.formats.timestamp_reading import detached_format, read_timestamp
from signer.model import Format, KeyVersion
from tests.unit.formats.conftest import NOW, TIME_STAMPING, PrivateKey, SoftKey, certify

TIMESTAMP = FORMATS[Format.TIMESTAMP]
DOCUMENT = b"a document of nobody"
TERMS = TimestampTerms("1.3.6.1.4.1.32473.1", 2)
CALL = "0b5e3bb4-6a4c-4f0e-9d5a-9a3b1a6d7c11"
STAMPS = [Algorithm.ES256, Algorithm.ES384, Algorithm.RS256]
STAMPING, CODE_SIGNING = [TIME_STAMPING], "1.3.6.1.5.5.7.3.3"


def stamping(key: SoftKey) -> KeyVersion:
    return dataclasses.replace(
        key.version, certificate=certify(key.private, STAMPING, critical=True)
    )


@pytest.fixture(scope="module")
def tsa(keys: dict[Algorithm, SoftKey]) -> dict[Algorithm, SoftKey]:
    return {each: SoftKey(key.private, stamping(key)) for each, key in keys.items()}


def context_of(version: KeyVersion, *, call: str = CALL, now: int = NOW) -> FormatContext:
    return FormatContext(version, now, timestamp=TERMS, call_id=call)


def query(folder: Path, *words: str, document: bytes = DOCUMENT) -> bytes:
    (folder / "document").write_bytes(document)
    command = ["openssl", "ts", "-query", "-data", str(folder / "document"), *words]
    subprocess.run([*command, "-out", str(folder / "query")], capture_output=True, check=True)
    return (folder / "query").read_bytes()


def stamp(key: SoftKey, *requests: bytes, context: FormatContext | None = None) -> list[bytes]:
    ctx = context or context_of(key.version)
    prepared = TIMESTAMP.prepare(requests, ctx)
    assert not prepared.failures
    return TIMESTAMP.finish(prepared, [key.sign(each) for each in prepared.to_sign], ctx)


def openssl(folder: Path, key: SoftKey, made: bytes, *words: str) -> str:
    """Returns what OpenSSL says against a time-stamp; "" where it accepts it."""
    (folder / "answer").write_bytes(made)
    certificate = x509.load_der_x509_certificate(key.version.certificate or b"")
    (folder / "ca.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    command = ["openssl", "ts", "-verify", "-in", str(folder / "answer"), *words]
    command += ["-CAfile", str(folder / "ca.pem"), "-untrusted", str(folder / "ca.pem")]
    done = subprocess.run(
        [*command, "-attime", str(NOW)], capture_output=True, text=True, check=False
    )
    assert done.returncode or "Verification: OK" in done.stdout
    return done.stderr if done.returncode else ""


def text_of(folder: Path, made: bytes) -> str:
    (folder / "answer").write_bytes(made)
    command = ["openssl", "ts", "-reply", "-in", str(folder / "answer"), "-text"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


FORMS = {
    "with the certificate": ("-sha256", "-cert"),
    "without it": ("-sha256",),
    "without a nonce": ("-sha256", "-cert", "-no_nonce"),
    "sha384": ("-sha384", "-cert"),
    "sha512": ("-sha512", "-cert"),
    "under the policy": ("-sha256", "-cert", "-tspolicy", TERMS.policy),
}


@pytest.mark.parametrize("words", FORMS.values(), ids=FORMS.keys())
@pytest.mark.parametrize("algorithm", STAMPS)
def test_openssl_accepts_the_answer_to_its_request(
    tsa: dict[Algorithm, SoftKey], tmp_path: Path, algorithm: Algorithm, words: tuple[str, ...]
) -> None:
    key = tsa[algorithm]
    [made] = stamp(key, query(tmp_path, *words))
    assert openssl(tmp_path, key, made, "-queryfile", str(tmp_path / "query")) == ""
    assert openssl(tmp_path, key, made, "-data", str(tmp_path / "document")) == ""
    text = text_of(tmp_path, made)
    assert f"Policy OID: {TERMS.policy}\n" in text
    assert "Time stamp: Jan 15 12:00:00 2022 GMT" in text
    assert "Accuracy: 0x02 seconds" in text
    assert ("Nonce: unspecified" in text) == ("-no_nonce" in words)
    inside = key.version.certificate or b""
    assert (inside in made) == ("-cert" in words)


def test_openssl_refuses_another_document_another_nonce_and_changes(
    tsa: dict[Algorithm, SoftKey], tmp_path: Path
) -> None:
    key = tsa[Algorithm.ES256]
    [made] = stamp(key, query(tmp_path, "-sha256", "-cert"))
    query(tmp_path, "-sha256", "-cert")  # the same document, with another nonce
    assert "nonce" in openssl(tmp_path, key, made, "-queryfile", str(tmp_path / "query")).lower()
    (tmp_path / "document").write_bytes(b"another")
    data = ("-data", str(tmp_path / "document"))
    assert "imprint" in openssl(tmp_path, key, made, *data).lower()
    (tmp_path / "document").write_bytes(DOCUMENT)
    assert openssl(tmp_path, key, made, *data) == ""
    for changed in (
        made.replace(b"20220115120000Z", b"20220115120001Z"),
        made[:-1] + bytes([made[-1] ^ 1]),
    ):
        assert changed != made
        assert openssl(tmp_path, key, changed, *data) != ""


def test_serial_numbers_differ_in_and_between_calls_and_come_back_with_a_repetition(
    tsa: dict[Algorithm, SoftKey], tmp_path: Path
) -> None:
    key, request = tsa[Algorithm.ES256], query(tmp_path, "-sha256")
    version = key.version
    first, second = context_of(version), context_of(version, call=CALL.replace("0b", "0c"))
    later = dataclasses.replace(first, first=5)
    calls = [[request] * 5, [request] * 5, [request] * 5]
    made = [
        stamp(key, *each, context=ctx)
        for each, ctx in zip(calls, (first, second, later), strict=True)
    ]
    serials = [read_timestamp(each).serial for part in made for each in part]
    assert len(set(serials)) == 15
    assert all(0 < serial < 2**127 for serial in serials)
    # The same items of the same call, however it is cut into parts.
    whole = TIMESTAMP.prepare([request] * 10, first)
    assert whole.to_sign[5:] == TIMESTAMP.prepare([request] * 5, later).to_sign


def der(*changes: tuple[bytes, bytes]) -> bytes:
    """A request for SHA-256 with the certificate, and changed bytes."""
    digest = hashlib.sha256(DOCUMENT).digest()
    imprint = bytes.fromhex("3031300d060960864801650304020105000420") + digest
    body = b"\x02\x01\x01" + imprint + b"\x01\x01\xff"
    made = b"\x30" + bytes([len(body)]) + body
    for before, after in changes:
        assert before in made
        made = made.replace(before, after)
    return made


def with_part(part: bytes) -> bytes:
    made = der()
    return b"\x30" + bytes([len(made) - 2 + len(part)]) + made[2:] + part


REFUSED = {
    "empty": (b"", "", "not a time-stamp request in DER"),
    "not DER": (b"GET / HTTP/1.0", "", "not a time-stamp request in DER"),
    "more after it": (der() + b"\0", "", "not a time-stamp request in DER"),
    "version 2": (der((b"\x02\x01\x01", b"\x02\x01\x02")), "version", "version is 2, not 1"),
    "sha224": (
        der((bytes.fromhex("608648016503040201"), bytes.fromhex("608648016503040204"))),
        "messageImprint.hashAlgorithm",
        "hashAlgorithm is not one of sha256, sha384, sha512",
    ),
    "short for sha512": (
        der((bytes.fromhex("608648016503040201"), bytes.fromhex("608648016503040203"))),
        "messageImprint.hashedMessage",
        "hashedMessage is not a sha512 digest of 64 bytes",
    ),
    "extensions": (with_part(b"\xa0\x02\x30\x00"), "extensions", "extensions are not supported"),
}


@pytest.mark.parametrize(("payload", "member", "said"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_granted_is_refused_alone(
    tsa: dict[Algorithm, SoftKey], payload: bytes, member: str, said: str
) -> None:
    ctx = context_of(tsa[Algorithm.ES256].version)
    prepared = TIMESTAMP.prepare([der(), payload, der()], ctx)
    assert set(prepared.failures) == {1}
    failure = prepared.failures[1]
    assert (failure.reason, failure.member) == (Reason.PAYLOAD_INVALID, member)
    assert said in failure.message
    with pytest.raises(PayloadError, match=re.escape(said)):
        TIMESTAMP.inspect(payload, ContentTerms(ContentRules(), None, None, NOW, TERMS))
    outputs = TIMESTAMP.finish(prepared, [bytes(64), b"", bytes(64)], ctx)
    assert [bool(output) for output in outputs] == [True, False, True]


def test_a_request_for_another_policy_is_refused(
    tsa: dict[Algorithm, SoftKey], tmp_path: Path
) -> None:
    payload = query(tmp_path, "-sha256", "-tspolicy", "1.2.3.4")
    ctx = context_of(tsa[Algorithm.ES256].version)
    failure = TIMESTAMP.prepare([payload], ctx).failures[0]
    assert failure.member == "reqPolicy"
    assert f"reqPolicy is not {TERMS.policy}, the only one here" in failure.message


def test_false_may_be_written_out(tsa: dict[Algorithm, SoftKey]) -> None:
    key = tsa[Algorithm.ES256]
    [made] = stamp(key, der((b"\x01\x01\xff", b"\x01\x01\x00")))
    assert (key.version.certificate or b"") not in made


def test_lengths_are_bounded(tsa: dict[Algorithm, SoftKey]) -> None:
    nonce = with_nonce(MAX_BYTES)
    for algorithm in STAMPS:
        key = tsa[algorithm]
        ctx = context_of(key.version)
        [made] = stamp(key, nonce)
        assert len(made) <= TIMESTAMP.max_output([nonce], ctx)
        assert TIMESTAMP.max_output([nonce], ctx) <= output_bound(len(nonce), Format.TIMESTAMP)
    too_long = with_nonce(MAX_BYTES + 1)
    failure = TIMESTAMP.prepare([too_long], ctx).failures[0]
    assert failure.message == f"payload is longer than {MAX_BYTES} bytes"


def with_nonce(length: int) -> bytes:
    """A request of this length, by its nonce."""
    parts = der()[2:]
    fixed, certificate = parts[:-3], parts[-3:]
    number = length - 4 - len(parts) - 4
    nonce = b"\x02\x82" + number.to_bytes(2) + b"\x01" * number
    body = fixed + nonce + certificate
    made = b"\x30\x82" + len(body).to_bytes(2) + body
    assert len(made) == length
    return made


UNFIT: dict[str, tuple[Callable[[PrivateKey], bytes | None], str]] = {
    "none": (lambda _: None, "no certificate: import one before it signs TIMESTAMP"),
    "no usage": (lambda private: certify(private, critical=True), "is not for time-stamps"),
    "not critical": (lambda private: certify(private, STAMPING), "is not for time-stamps"),
    "two usages": (
        lambda private: certify(private, [*STAMPING, CODE_SIGNING], critical=True),
        "is not for time-stamps",
    ),
}


@pytest.mark.parametrize(("certificate", "said"), UNFIT.values(), ids=UNFIT.keys())
def test_a_certificate_that_no_verifier_accepts_signs_nothing(
    keys: dict[Algorithm, SoftKey], certificate: Callable[[PrivateKey], bytes | None], said: str
) -> None:
    key = keys[Algorithm.ES256]
    version = dataclasses.replace(key.version, certificate=certificate(key.private))
    for step in (TIMESTAMP.max_output, TIMESTAMP.prepare):
        with pytest.raises(CallError, match=said) as caught:
            step([der()], context_of(version))
        assert caught.value.reason is Reason.KEY_VERSION_NOT_ACTIVE


@pytest.mark.parametrize("algorithm", [Algorithm.PS256, Algorithm.EDDSA])
def test_what_openssl_does_not_verify_is_not_signed(
    tsa: dict[Algorithm, SoftKey], algorithm: Algorithm
) -> None:
    with pytest.raises(CallError, match=f"ES256, ES384, RS256, not with {algorithm}"):
        TIMESTAMP.prepare([der()], context_of(tsa[algorithm].version))


def test_without_a_policy_nothing_is_signed(tsa: dict[Algorithm, SoftKey]) -> None:
    ctx = dataclasses.replace(context_of(tsa[Algorithm.ES256].version), timestamp=None)
    with pytest.raises(CallError, match="no policy of time-stamps"):
        TIMESTAMP.prepare([der()], ctx)


@pytest.mark.parametrize("failure", FAILURES)
def test_openssl_reads_why_there_is_no_token(tmp_path: Path, failure: str) -> None:
    made = refused(failure, ["what is wrong"])
    (tmp_path / "answer").write_bytes(made)
    command = ["openssl", "ts", "-reply", "-in", str(tmp_path / "answer"), "-text"]
    text = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    assert "Status: Rejected." in text
    assert "what is wrong" in text
    words = {
        "badAlg": "unrecognized or unsupported algorithm identifier",
        "badRequest": "transaction not permitted or supported",
        "badDataFormat": "the data submitted has the wrong format",
        "timeNotAvailable": "the TSA's time source is not available",
        "unacceptedPolicy": "the requested TSA policy is not supported by the TSA",
        "unacceptedExtension": "the requested extension is not supported by the TSA",
        "systemFailure": "the request cannot be handled due to system failure",
    }
    assert words[failure] in text


# --- `signer verify` ------------------------------------------------------------------------------


def trusting(key: SoftKey) -> TrustedKeys:
    version = key.version
    return TrustedKeys([TrustedKey("k", version.spki, certificate=version.certificate)])


@pytest.mark.parametrize("algorithm", STAMPS)
def test_a_time_stamp_verifies_as_an_answer_and_as_a_token(
    tsa: dict[Algorithm, SoftKey], tmp_path: Path, algorithm: Algorithm
) -> None:
    key = tsa[algorithm]
    [made] = stamp(key, query(tmp_path, "-sha384", "-cert"))
    (tmp_path / "answer").write_bytes(made)
    token = tmp_path / "token"
    command = ["openssl", "ts", "-reply", "-in", str(tmp_path / "answer"), "-token_out"]
    subprocess.run([*command, "-out", str(token)], check=True, capture_output=True)
    for each in (made, token.read_bytes()):
        assert detached_format(each) is Format.TIMESTAMP
        said = trusting(key).verify_timestamp(DOCUMENT, each, NOW)
        assert (said.format, said.time, said.key) == (Format.TIMESTAMP, NOW, "k")


def refusal(key: SoftKey, made: bytes, document: bytes = DOCUMENT, now: int = NOW) -> str:
    with pytest.raises(VerificationError) as caught:
        trusting(key).verify_timestamp(document, made, now)
    return str(caught.value)


def test_what_is_wrong_is_said(
    tsa: dict[Algorithm, SoftKey], keys: dict[Algorithm, SoftKey]
) -> None:
    key = tsa[Algorithm.ES256]
    [made] = stamp(key, der())
    assert "but of another message: that has another sha256 digest" in refusal(key, made, b"x")
    later = made.replace(b"20220115120000Z", b"20220115120001Z")
    assert refusal(key, later).startswith("its time was changed")
    assert refusal(key, made[:-1] + bytes([made[-1] ^ 1])).startswith("its signature is wrong")
    assert "which is in the future" in refusal(key, made, now=NOW - 1000)
    assert refusal(keys[Algorithm.ES384], made).startswith("no key that is trusted")
    assert refusal(key, refused("badAlg", ["x"])).endswith("its status is 2")
    assert refusal(key, b"%PDF") == "it is not a time-stamp in DER (RFC 3161)"
    stamps = (made for _ in count() for made in stamp(key, der()))
    ending_in_a_blank = next(made for made in stamps if made[-1:].isspace())
    for each in (made, ending_in_a_blank):
        with pytest.raises(VerificationError, match="it is a TIMESTAMP, which does not contain"):
            trusting(key).verify(each, NOW)


def test_a_certificate_that_is_not_for_time_stamps_is_refused(
    keys: dict[Algorithm, SoftKey], tsa: dict[Algorithm, SoftKey]
) -> None:
    """A key for documents cannot make time-stamps that count."""
    key = keys[Algorithm.ES256]
    good = read_timestamp(stamp(tsa[Algorithm.ES256], der())[0])
    made = template(key.version.certificate or b"", Algorithm.ES256, TST_INFO, NOW)
    head, tail = made.around_digest(NOW)
    content = good.cms.content or b""
    signed = head + hashlib.sha256(content).digest() + tail
    forged = granted(made.message(signed, key.sign(signed), content))
    assert refusal(key, forged).endswith("the certificate of k is not for time-stamps alone")

"""CMS signatures: OpenSSL accepts them, and refuses changed ones; they are read as written."""

import dataclasses
import hashlib
import re
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from signer.algorithms import Algorithm
from signer.client._cutting import output_bound
from signer.client.key_files import TrustedKey
from signer.client.verification import TrustedKeys, VerificationError
from signer.errors import CallError, Reason
from signer.formats import FORMATS
from signer.formats.cms_reading import is_cms, read_cms
from signer.formats.cms_template import CmsTemplate
from signer.formats.payloads import MessageError
from signer.model import Format, KeyVersion
from signer.x509 import public_key_pem
from tests.unit.formats.conftest import NOW, YEAR, ContextMaker, SoftKey, certify

CMS, DIGEST = FORMATS[Format.CMS], FORMATS[Format.CMS_DIGEST]
DOCUMENT = b"%PDF-1.7 a document of nobody"
FAR = 2**33
IN_2051 = int(datetime(2051, 6, 1, tzinfo=UTC).timestamp())
HASHES = {
    Algorithm.ES256: "sha256",
    Algorithm.ES384: "sha384",
    Algorithm.RS256: "sha256",
    Algorithm.PS256: "sha256",
    Algorithm.EDDSA: "sha512",
}
BY_OPENSSL = [each for each in Algorithm if each is not Algorithm.EDDSA]
"""What OpenSSL 3.0 verifies in CMS; later versions know Ed25519, too."""
Keys = Mapping[Algorithm, SoftKey]


@pytest.fixture
def make(keys: Keys, context: ContextMaker) -> "Maker":
    return Maker(keys, context)


class Maker:
    """Signs one document as the appliance does."""

    def __init__(self, keys: Keys, context: ContextMaker) -> None:
        self._keys, self._context = keys, context

    def __call__(
        self,
        algorithm: Algorithm = Algorithm.ES256,
        document: bytes = DOCUMENT,
        *,
        now: int = NOW,
        version: KeyVersion | None = None,
    ) -> bytes:
        ctx = self._context(algorithm, now=now, version=version)
        prepared = CMS.prepare([document], ctx)
        [output] = CMS.finish(prepared, [self._keys[algorithm].sign(prepared.to_sign[0])], ctx)
        return output


def openssl(folder: Path, certificate: bytes, made: bytes, document: bytes, now: int = NOW) -> str:
    """Returns what OpenSSL says against a signature; "" where it accepts it."""
    (folder / "signature").write_bytes(made)
    (folder / "document").write_bytes(document)
    read = x509.load_der_x509_certificate(certificate)
    (folder / "ca.pem").write_bytes(read.public_bytes(Encoding.PEM))
    command = ["openssl", "cms", "-verify", "-cades", "-binary", "-inform", "DER"]
    command += ["-in", str(folder / "signature"), "-content", str(folder / "document")]
    command += ["-CAfile", str(folder / "ca.pem"), "-attime", str(now), "-out", "/dev/null"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode or "CAdES Verification successful" in done.stderr
    return done.stderr if done.returncode else ""


def certificate_of(key: SoftKey) -> bytes:
    assert key.version.certificate is not None
    return key.version.certificate


def trusting(*keys: SoftKey) -> TrustedKeys:
    return TrustedKeys(
        TrustedKey("k", key.version.spki, certificate=key.version.certificate) for key in keys
    )


@pytest.mark.parametrize("algorithm", BY_OPENSSL)
def test_openssl_accepts_a_signature_and_refuses_another_document(
    make: Maker, keys: Keys, tmp_path: Path, algorithm: Algorithm
) -> None:
    made, certificate = make(algorithm), certificate_of(keys[algorithm])
    assert openssl(tmp_path, certificate, made, DOCUMENT) == ""
    assert "verification failure" in openssl(tmp_path, certificate, made, DOCUMENT + b" ")


@pytest.mark.parametrize("algorithm", BY_OPENSSL)
def test_openssl_refuses_a_changed_attribute_and_a_changed_signature(
    make: Maker, keys: Keys, tmp_path: Path, algorithm: Algorithm
) -> None:
    made, certificate = make(algorithm), certificate_of(keys[algorithm])
    other_time = made.replace(b"220115120000Z", b"220115120001Z")
    for changed in (other_time, made[:-1] + bytes([made[-1] ^ 1])):
        assert changed != made
        assert openssl(tmp_path, certificate, changed, DOCUMENT) != ""


def test_openssl_refuses_a_signature_beside_another_certificate(
    make: Maker, keys: Keys, tmp_path: Path
) -> None:
    """The same key and name in another certificate: signing-certificate-v2 tells them apart."""
    key = keys[Algorithm.ES256]
    made, ours = make(), certificate_of(key)
    others = (certify(key.private, not_after=NOW + YEAR) for _ in range(1000))
    other = next(each for each in others if len(each) == len(ours))
    changed = made.replace(ours, other)
    assert changed != made
    assert openssl(tmp_path, other, changed, DOCUMENT) != ""


def test_ed25519_as_openssl_reads_and_verifies_its_parts(
    make: Maker, keys: Keys, tmp_path: Path
) -> None:
    made = make(Algorithm.EDDSA)
    (tmp_path / "signature").write_bytes(made)
    listed = subprocess.run(
        ["openssl", "asn1parse", "-inform", "DER", "-in", str(tmp_path / "signature")],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    numbers = r" *(\d+):d=5 +hl=(\d+) l= *(\d+) "
    [attributes] = [line for line in listed if re.match(numbers + r"cons: cont \[ 0 ]", line)]
    [signature] = [line for line in listed if re.match(numbers + "prim: OCTET STRING", line)]

    def cut(line: str) -> tuple[int, int, int]:
        found = re.match(numbers, line)
        assert found is not None
        return int(found[1]), int(found[2]), int(found[3])

    start, head, length = cut(attributes)
    (tmp_path / "signed").write_bytes(b"\x31" + made[start + 1 : start + head + length])
    start, head, length = cut(signature)
    (tmp_path / "raw").write_bytes(made[start + head : start + head + length])
    (tmp_path / "key.pem").write_text(public_key_pem(keys[Algorithm.EDDSA].version.spki))
    command = ["openssl", "pkeyutl", "-verify", "-rawin", "-pubin"]
    command += ["-inkey", str(tmp_path / "key.pem"), "-in", str(tmp_path / "signed")]
    command += ["-sigfile", str(tmp_path / "raw")]
    subprocess.run(command, check=True, capture_output=True)


def test_times_from_2050_on_are_written_in_full(make: Maker, keys: Keys, tmp_path: Path) -> None:
    key = keys[Algorithm.ES256]
    certificate = certify(key.private, not_after=IN_2051 + YEAR)
    version = dataclasses.replace(key.version, certificate=certificate)
    made = make(version=version, now=IN_2051)
    assert openssl(tmp_path, certificate, made, DOCUMENT, IN_2051) == ""
    assert read_cms(made).time == IN_2051
    assert b"20510601000000Z" in made


def named_certificate(private: ec.EllipticCurvePrivateKey, serial: int, name: str) -> bytes:
    kind = x509.name._ASN1Type.T61String if name.isascii() else x509.name._ASN1Type.BMPString
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name, kind)])
    builder = x509.CertificateBuilder(
        issuer_name=subject,
        subject_name=subject,
        public_key=private.public_key(),
        serial_number=serial,
        not_valid_before=datetime.fromtimestamp(NOW - YEAR, UTC),
        not_valid_after=datetime.fromtimestamp(NOW + YEAR, UTC),
    )
    return builder.sign(private, hashes.SHA256()).public_bytes(Encoding.DER)


@pytest.mark.parametrize("serial", [1, 127, 128, 2**159 - 1])
@pytest.mark.parametrize("name", ["old types", "Bộ Y tế"])
def test_the_issuer_is_written_as_in_the_certificate(
    make: Maker, keys: Keys, tmp_path: Path, serial: int, name: str
) -> None:
    key = keys[Algorithm.ES256]
    assert isinstance(key.private, ec.EllipticCurvePrivateKey)
    certificate = named_certificate(key.private, serial, name)
    made = make(version=dataclasses.replace(key.version, certificate=certificate))
    assert openssl(tmp_path, certificate, made, DOCUMENT) == ""
    assert read_cms(made).names(certificate)


@pytest.mark.parametrize("algorithm", Algorithm)
@given(document=st.binary(max_size=200), now=st.integers(NOW, NOW + YEAR))
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_read_is_what_was_written(
    make: Maker, keys: Keys, algorithm: Algorithm, document: bytes, now: int
) -> None:
    key = keys[algorithm]
    made = make(algorithm, document, now=now)
    parts = read_cms(made)
    key.verify(parts.signature, parts.signed)
    assert (parts.algorithm, parts.time, parts.content) == (algorithm, now, None)
    assert parts.digest == hashlib.new(HASHES[algorithm], document).digest()
    assert parts.certificate() == key.version.certificate
    said = trusting(key).verify_cms(Format.CMS, document, made, now)
    assert (said.format, said.algorithm, said.time) == (Format.CMS, algorithm, now)


@pytest.mark.parametrize("algorithm", Algorithm)
def test_a_digest_gives_the_signature_of_its_document(
    context: ContextMaker, algorithm: Algorithm
) -> None:
    ctx, digest = context(algorithm), hashlib.new(HASHES[algorithm], DOCUMENT).digest()
    assert DIGEST.prepare([digest], ctx) == CMS.prepare([DOCUMENT], ctx)
    wrong = [b"", digest[:-1], digest + b"\0", DOCUMENT]
    failures = DIGEST.prepare(wrong, ctx).failures
    assert {failure.reason for failure in failures.values()} == {Reason.PAYLOAD_INVALID}
    assert len(failures) == len(wrong)
    assert f"not a {HASHES[algorithm]} digest of {len(digest)} bytes" in failures[0].message


def test_signatures_of_one_batch_have_one_template(
    context: ContextMaker, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    built, encode = list[object](), CmsTemplate._encoded

    def counted(self: CmsTemplate, *form: Any) -> tuple[bytes, bytes, bytes]:
        built.append(form)
        return encode(self, *form)

    monkeypatch.setattr(CmsTemplate, "_encoded", counted)
    certificate = certify(keys[Algorithm.ES256].private, not_after=NOW + 7 * YEAR)
    version = dataclasses.replace(keys[Algorithm.ES256].version, certificate=certificate)
    for now in range(NOW, NOW + 5):
        ctx = context(version=version, now=now)
        prepared = CMS.prepare([b"%d" % number for number in range(40)], ctx)
        made = [keys[Algorithm.ES256].sign(each) for each in prepared.to_sign]
        outputs = CMS.finish(prepared, made, ctx)
        assert [read_cms(each).signature for each in outputs] == made
    assert len(built) == len(set(built)) <= 8  # one for each length of a signature in DER


def test_the_client_leaves_enough_room_for_an_answer(context: ContextMaker) -> None:
    for algorithm in Algorithm:
        assert CMS.max_output([b""], context(algorithm)) <= output_bound(0, Format.CMS)


UNFIT = {
    "no certificate": ({"certificate": None}, "no certificate: import one before it signs CMS"),
    "not a certificate": ({"certificate": b"\x30\x00"}, "cannot be read: replace it"),
}


@pytest.mark.parametrize(("change", "words"), UNFIT.values(), ids=UNFIT.keys())
def test_without_a_certificate_nothing_is_signed(
    context: ContextMaker, change: dict[str, bytes | None], words: str
) -> None:
    version = dataclasses.replace(context().version, **change)  # type: ignore[arg-type]
    refused(context, version, words)


@pytest.mark.parametrize(
    ("bounds", "words"),
    [
        ({"not_before": NOW + 1}, "is not valid yet"),
        ({"not_after": NOW - 1}, "has expired: rotate the key"),
    ],
)
def test_outside_the_times_of_the_certificate_nothing_is_signed(
    context: ContextMaker, keys: Keys, bounds: dict[str, int], words: str
) -> None:
    key = keys[Algorithm.ES256]
    certificate = certify(key.private, **bounds)  # type: ignore[arg-type]
    refused(context, dataclasses.replace(key.version, certificate=certificate), words)


def refused(context: ContextMaker, version: KeyVersion, words: str) -> None:
    for step in (CMS.max_output, CMS.prepare, DIGEST.prepare):
        with pytest.raises(CallError, match=words) as caught:
            step([DOCUMENT], context(version=version))
        assert caught.value.reason is Reason.KEY_VERSION_NOT_ACTIVE


# --- refused by `signer verify`, and why ----------------------------------------------------------


def refusal(trusted: TrustedKeys, made: bytes, document: bytes = DOCUMENT, now: int = NOW) -> str:
    with pytest.raises(VerificationError) as caught:
        trusted.verify_cms(Format.CMS, document, made, now)
    return str(caught.value)


def test_another_document_is_named_as_such(make: Maker, keys: Keys) -> None:
    said = refusal(trusting(keys[Algorithm.ES256]), make(), DOCUMENT + b" ")
    assert said == "it is genuine, but of another message: that has another sha256 digest"


@pytest.mark.parametrize("algorithm", Algorithm)
def test_changed_attributes_and_signatures_are_refused(
    make: Maker, keys: Keys, algorithm: Algorithm
) -> None:
    made, trusted = make(algorithm), trusting(keys[algorithm])
    other_time = made.replace(b"220115120000Z", b"220115120001Z")
    for changed in (other_time, made[:-1] + bytes([made[-1] ^ 1])):
        assert refusal(trusted, changed).startswith("its signature is wrong: its attributes")


def test_a_signature_of_a_key_that_is_not_trusted(make: Maker, keys: Keys) -> None:
    said = refusal(trusting(keys[Algorithm.ES384]), make())
    assert said.startswith("no key that is trusted has its certificate (SHA-256 ")


def test_a_public_key_is_trusted_with_any_certificate_in_the_message(
    make: Maker, keys: Keys
) -> None:
    key = keys[Algorithm.ES256]
    trusted = TrustedKeys([TrustedKey("k", key.version.spki)])
    assert trusted.verify_cms(Format.CMS, DOCUMENT, make(), NOW).key == "k"


def test_another_certificate_of_the_same_key_is_not_trusted(make: Maker, keys: Keys) -> None:
    key = keys[Algorithm.ES256]
    other = dataclasses.replace(key.version, certificate=certify(key.private, not_after=NOW + YEAR))
    assert "no key that is trusted" in refusal(trusting(SoftKey(key.private, other)), make())


def test_times(make: Maker, keys: Keys) -> None:
    trusted = trusting(keys[Algorithm.ES256])
    assert "which is in the future" in refusal(trusted, make(now=NOW + 1000))
    key = keys[Algorithm.ES256]
    short = dataclasses.replace(key.version, certificate=certify(key.private, not_after=NOW + 5))
    ours = trusting(SoftKey(key.private, short))
    made = make(version=short)
    assert ours.verify_cms(Format.CMS, DOCUMENT, made, NOW + YEAR).time == NOW
    late = CmsTemplate(
        short.certificate or b"", Algorithm.ES256, read_cms(made).content_type, late=False
    )
    head, tail = late.around_digest(NOW + 6)
    signed = head + hashlib.sha256(DOCUMENT).digest() + tail
    beyond = late.message(signed, key.sign(signed))
    assert "its certificate was not valid at " in refusal(ours, beyond, now=NOW + YEAR)


def test_what_is_not_such_a_signature_is_refused(make: Maker, keys: Keys) -> None:
    trusted, made = trusting(keys[Algorithm.ES256]), make()
    for changed in (b"", b"0", made[:-1], made + b"\0", b"0\x80" + made[2:], DOCUMENT):
        assert refusal(trusted, changed).startswith("it is not a CMS signature in DER")


def test_a_signature_alone_is_named_as_what_it_is(make: Maker, keys: Keys) -> None:
    made = make()
    assert is_cms(made)
    with pytest.raises(VerificationError, match="does not contain what it signs: give both"):
        trusting(keys[Algorithm.ES256]).verify(made, NOW)


FOREIGN = {
    "with its content": (["-cades", "-nodetach"], "it contains what it signs"),
    "without attributes": (["-noattr"], "it is not a CMS signature in DER with signed attributes"),
    "without CAdES": ([], "without signing-certificate-v2"),
    "sha512": (["-cades", "-md", "sha512"], "its signature algorithm is not supported"),
}


@pytest.mark.parametrize(("words", "said"), FOREIGN.values(), ids=FOREIGN.keys())
def test_signatures_of_openssl_in_other_forms(
    keys: Keys, tmp_path: Path, words: list[str], said: str
) -> None:
    trusted, made = by_openssl(keys[Algorithm.ES256], tmp_path, words)
    assert said in refusal(trusted, made)


def test_a_signature_of_openssl_is_accepted(keys: Keys, tmp_path: Path) -> None:
    trusted, made = by_openssl(keys[Algorithm.ES256], tmp_path, ["-cades"])
    assert trusted.verify_cms(Format.CMS, DOCUMENT, made, FAR).algorithm is Algorithm.ES256


def by_openssl(key: SoftKey, folder: Path, words: list[str]) -> tuple[TrustedKeys, bytes]:
    """OpenSSL signs at the time of the machine, so with a certificate for all times."""
    private, certificate = key.private, certify(key.private, not_after=FAR)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "key.pem").write_bytes(pem)
    read = x509.load_der_x509_certificate(certificate)
    (folder / "certificate.pem").write_bytes(read.public_bytes(Encoding.PEM))
    (folder / "document").write_bytes(DOCUMENT)
    command = ["openssl", "cms", "-sign", "-binary", "-md", "sha256", *words, "-outform", "DER"]
    command += ["-signer", str(folder / "certificate.pem"), "-inkey", str(folder / "key.pem")]
    command += ["-in", str(folder / "document")]
    made = subprocess.run(command, capture_output=True, check=True).stdout
    version = dataclasses.replace(key.version, certificate=certificate)
    return trusting(SoftKey(private, version)), made


def test_any_bytes_are_refused_and_nothing_else_is_raised(make: Maker) -> None:
    made = make()

    @given(st.integers(0, len(made) - 1), st.integers(1, 255))
    def changed(place: int, mask: int) -> None:
        other = bytearray(made)
        other[place] ^= mask
        try:
            read_cms(bytes(other))
        except MessageError as error:
            assert str(error)

    changed()

"""What the appliance signs is accepted by programs of others, and a forged copy is refused.

Each format meets each program that reads it, with each algorithm that both know.
"""

import base64
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import segno

from signer.algorithms import Algorithm
from signer.formats import timestamp
from tests.e2e import verifiers
from tests.e2e.forgeries import Signed, forgeries
from tests.e2e.samples import bundle
from tests.e2e.sources import Source, Trust, in_software, of_appliance

Judge = Callable[[Signed], verifiers.Verdict]

_RECORDS = (
    *("01-001/records", "01-001/records-rsa", "01-001/records-rs256", "01-001/records-ed25519"),
    Algorithm.ES384,
)
_DOCUMENTS = ("moh/documents", Algorithm.ES384, Algorithm.RS256, Algorithm.PS256)
_STAMPS = ("moh/tsa", Algorithm.ES384, Algorithm.RS256)
KEYS: Mapping[str, Sequence[str | Algorithm]] = {
    "MESSAGE": _RECORDS,
    "DIGEST": ("moh/digest",),
    "JWS": _RECORDS,
    "COSE_SIGN1": _RECORDS,
    "HCERT": ("moh/dcc", "moh/dcc-rsa"),
    "CMS": _DOCUMENTS,
    "CMS_DIGEST": ("moh/documents",),
    "TIMESTAMP": _STAMPS,
    "SHC": ("moh/cards",),
}
"""Keys of the appliance by their names, and algorithms of keys in software."""

READERS: Mapping[str, Sequence[str]] = {
    "MESSAGE": ("openssl",),
    "DIGEST": ("openssl",),
    "JWS": ("jwcrypto", "jose"),
    "COSE_SIGN1": ("pycose", "@auth0/cose"),
    "HCERT": ("python-cwt", "pycose", "@auth0/cose"),
    "CMS": ("openssl cms",),
    "CMS_DIGEST": ("openssl cms",),
    "TIMESTAMP": ("openssl ts", "rfc3161-client"),
    "SHC": ("kill-the-clipboard",),
}
CASES = [
    (message_format, key, reader)
    for message_format, readers in READERS.items()
    for key in KEYS[message_format]
    for reader in readers
]

_RECORD = b'{"dose": 1, "name": "Nguy\xe1\xbb\x85n", "weight": 1.50}'
_TEXTS = [b"%PDF-1.7 \xff\x00", b"", b"line\r\nline\n", b"x" * 5000]


def documents(message_format: str, vaccinations: dict[str, bytes]) -> list[bytes]:
    if message_format == "HCERT":
        return list(vaccinations.values())
    if message_format == "JWS":
        return [_RECORD, *vaccinations.values()]
    if message_format == "SHC":
        return [json.dumps(bundle(total=1)).encode(), json.dumps(bundle(), indent=2).encode()]
    if message_format == "MESSAGE":
        return [each for each in _TEXTS if each]  # OpenSSL reads no empty file for Ed25519
    return _TEXTS


# --- the readers ----------------------------------------------------------------------------------


def _by_openssl(reader: str, trust: Trust) -> Judge:
    def judge(signed: Signed) -> verifiers.Verdict:
        at = () if trust.at is None else ("-attime", str(trust.at))
        try:
            if reader == "openssl cms":
                verifiers.openssl_cms(*signed, trust.roots, *at)
            elif reader == "openssl ts":
                verifiers.openssl_ts(*signed, trust.roots, *at)
            else:
                verifiers.openssl(*signed, trust.public_key, trust.algorithm)
        except verifiers.RejectedError as error:
            return {"refused": str(error)}
        return {}

    return judge


def _arguments(reader: str, trust: Trust) -> Sequence[object]:
    """What the program of a reader trusts."""
    if reader in {"jwcrypto", "jose"}:
        return trust.public_key, trust.algorithm
    if reader in {"pycose", "@auth0/cose"}:
        return trust.certificate or trust.public_key, trust.algorithm
    only: Mapping[str, object] = {
        "python-cwt": trust.certificate,
        "kill-the-clipboard": trust.jwks,
        "rfc3161-client": trust.roots,
    }
    return (only[reader],)


@contextmanager
def judging(reader: str, message_format: str, trust: Trust) -> Iterator[Judge]:
    """Yields a function that has the reader judge messages of this format."""
    if reader.startswith("openssl"):
        yield _by_openssl(reader, trust)
        return
    with verifiers.running(reader, *_arguments(reader, trust)) as judge:
        if message_format == "TIMESTAMP":
            yield lambda signed: judge(verifiers.in_base64(*signed))
        elif message_format == "COSE_SIGN1":
            yield lambda signed: judge(verifiers.in_base64(signed.made))
        else:
            yield lambda signed: judge(signed.made.decode())


def check_content(message_format: str, payload: bytes, verdict: verifiers.Verdict) -> None:
    """What a reader has read is what was signed."""
    if message_format == "HCERT":
        assert verdict["dcc"] == json.loads(payload)
    elif message_format == "JWS":
        assert verdict["payload"].encode() == payload
    elif message_format == "COSE_SIGN1":
        assert base64.b64decode(verdict["payload"]) == payload
    elif message_format == "SHC":
        assert verdict["bundle"] == json.loads(payload)


# --- the tests ------------------------------------------------------------------------------------


@pytest.fixture
def source(appliance: Any, tmp_path: Path) -> Callable[[str, str | Algorithm], Source]:
    def make(message_format: str, key: str | Algorithm) -> Source:
        if isinstance(key, Algorithm):
            return in_software(key, tmp_path, stamping=message_format == "TIMESTAMP")
        return of_appliance(appliance, key, tmp_path)

    return make


@pytest.mark.parametrize(("message_format", "key", "reader"), CASES)
def test_what_was_signed_is_accepted_and_a_forged_copy_refused(
    source: Callable[[str, str | Algorithm], Source],
    vaccinations: dict[str, bytes],
    message_format: str,
    key: str | Algorithm,
    reader: str,
) -> None:
    who = source(message_format, key)
    made = who.signed(message_format, documents(message_format, vaccinations))
    with judging(reader, message_format, who.trust) as judge:
        for signed in made:
            verdict = judge(signed)
            assert "refused" not in verdict, verdict
            check_content(message_format, signed.payload, verdict)
        for name, forged in forgeries(message_format, made[0]).items():
            assert "refused" in judge(forged), name


@pytest.mark.parametrize("algorithm", [Algorithm.PS256, Algorithm.EDDSA])
def test_algorithms_that_time_stamps_do_not_offer_are_not_verified(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, algorithm: Algorithm
) -> None:
    """If rfc3161-client accepts one of them, it can be offered."""
    monkeypatch.setattr(timestamp, "ALGORITHMS", frozenset(Algorithm))
    who = in_software(algorithm, tmp_path, stamping=True)
    [signed] = who.signed("TIMESTAMP", [b"a document"])
    with judging("rfc3161-client", "TIMESTAMP", who.trust) as judge:
        assert "Unable to verify" in judge(signed)["refused"]


def test_health_certificates_are_for_a_year_at_most(
    appliance: Any, vaccinations: dict[str, bytes], tmp_path: Path
) -> None:
    who = of_appliance(appliance, "moh/dcc", tmp_path)
    [made] = who.signed("HCERT", [next(iter(vaccinations.values()))])
    assert who.trust.certificate is not None
    [claim] = verifiers.hcert([made.made.decode()], who.trust.certificate)
    assert claim["iss"] == "VN"
    assert claim["iat"] <= time.time() < claim["exp"] <= claim["iat"] + 366 * 86_400


@pytest.mark.parametrize("reader", READERS["HCERT"])
def test_the_certificate_of_another_key_is_refused(
    appliance: Any, vaccinations: dict[str, bytes], tmp_path: Path, reader: str
) -> None:
    payload = next(iter(vaccinations.values()))
    [made] = of_appliance(appliance, "moh/dcc", tmp_path).signed("HCERT", [payload])
    other = of_appliance(appliance, "moh/dcc-rsa", tmp_path)
    with judging(reader, "HCERT", other.trust) as judge:
        assert "refused" in judge(made)


@pytest.mark.parametrize(("message_format", "key"), [("HCERT", "moh/dcc"), ("SHC", "moh/cards")])
def test_a_qr_code_holds_the_text_and_a_damaged_one_nothing(
    appliance: Any, vaccinations: dict[str, bytes], tmp_path: Path, message_format: str, key: str
) -> None:
    who = of_appliance(appliance, key, tmp_path)
    made = who.signed(message_format, documents(message_format, vaccinations))
    texts = [each.made.decode() for each in made]
    pictures = [tmp_path / f"{number}.png" for number in range(len(texts))]
    for text, picture in zip(texts, pictures, strict=True):
        segno.make_qr(text, error="q").save(str(picture), scale=3)
    damaged = tmp_path / "damaged.pbm"
    segno.make_qr(texts[0], error="q").save(str(damaged), scale=3)
    whole_picture = damaged.read_bytes()
    damaged.write_bytes(whole_picture[: len(whole_picture) // 2].ljust(len(whole_picture), b"\0"))
    assert verifiers.qr_codes(pictures) == texts
    with pytest.raises(verifiers.RejectedError, match="has 0 QR codes"):
        verifiers.qr_codes([damaged])

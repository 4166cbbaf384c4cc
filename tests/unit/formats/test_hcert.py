import dataclasses
import hashlib
import json
import os
import random
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import cbor2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from signer.algorithms import Algorithm
from signer.errors import CallError, Reason
from signer.format_terms import ContentRules, FormatContext, HcertTerms
from signer.formats import FORMATS, hcert
from signer.formats.payloads import ContentTerms, PayloadError
from signer.model import Format
from tests.unit.formats import test_base45 as base45

Maker = Callable[..., FormatContext]
HCERT = FORMATS[Format.HCERT]

DOCUMENT: dict[str, Any] = {
    "ver": "1.3.0",
    "nam": {"fnt": "NGUYEN", "fn": "Nguyễn"},
    "dob": "1990-01-01",
    "v": [{"co": "VN", "ci": "URN:UVCI:01:VN:1", "dn": 2, "sd": 2.5, "dt": "2022-01-01"}],
    "x": {"unknown": [None, True, -1, "text"]},
}


def of_type(kind: str) -> bytes:
    return json.dumps({"ver": "1", "nam": {}, "dob": "", kind: [{}]}).encode()


@pytest.mark.parametrize(
    ("algorithm", "identifier"), [(Algorithm.ES256, -7), (Algorithm.PS256, -37)]
)
@pytest.mark.parametrize(
    "payload", [json.dumps(DOCUMENT).encode(), cbor2.dumps(DOCUMENT)], ids=["json", "cbor"]
)
def test_round_trip(
    context: Maker,
    keys: Mapping[Algorithm, Any],
    algorithm: Algorithm,
    identifier: int,
    payload: bytes,
) -> None:
    key, ctx = keys[algorithm], context(algorithm)
    prepared = HCERT.prepare([payload], ctx)
    (output,) = HCERT.finish(prepared, [key.sign(prepared.to_sign[0])], ctx)

    text = output.decode("ascii")
    assert text.startswith("HC1:")
    message = cbor2.loads(zlib.decompress(base45.decode(text[4:])))
    assert message.tag == 18
    protected, unprotected, cwt, signature = message.value
    certificate = x509.load_der_x509_certificate(key.version.certificate)
    kid = hashlib.sha256(certificate.public_bytes(Encoding.DER)).digest()[:8]
    assert protected == cbor2.dumps({1: identifier, 4: kid})
    assert unprotected == {}
    key.verify(signature, cbor2.dumps(["Signature1", protected, b"", cwt]))

    claims = cbor2.loads(cwt)
    assert claims == {1: "VN", 4: ctx.now + 365 * 86_400, 6: ctx.now, -260: {1: DOCUMENT}}
    assert cwt == cbor2.dumps(claims, canonical=True)
    assert type(claims[4]) is type(claims[6]) is int


def test_member_order_and_white_space_do_not_matter(context: Maker) -> None:
    turned = dict(reversed(DOCUMENT.items()))
    payloads = [
        json.dumps(DOCUMENT, indent=3).encode(),
        json.dumps(turned, ensure_ascii=False).encode(),
        cbor2.dumps(turned, indefinite_containers=True),
    ]
    prepared = HCERT.prepare(payloads, context())
    assert not prepared.failures
    assert len(set(prepared.to_sign)) == 1


VACCINATION = "1.3.6.1.4.1.1847.2021.1.2"
OTHER = "1.3.6.1.5.5.7.3.2"


@pytest.mark.parametrize(
    ("usages", "allowed"),
    [
        ([], "vtr"),
        ([OTHER], "vtr"),
        (["1.3.6.1.4.1.1847.2021.1.1"], "t"),
        ([VACCINATION], "v"),
        (["1.3.6.1.4.1.1847.2021.1.3"], "r"),
        (["1.3.6.1.4.1.0.1847.2021.1.1"], "t"),
        (["1.3.6.1.4.1.0.1847.2021.1.2", OTHER], "v"),
        (["1.3.6.1.4.1.0.1847.2021.1.3", VACCINATION], "vr"),
    ],
)
def test_key_usage(
    context: Maker, certified: Callable[..., Any], usages: list[str], allowed: str
) -> None:
    ctx = context(version=certified(usages=usages))
    prepared = HCERT.prepare([of_type(kind) for kind in "vtr"], ctx)
    refused = {i for i, kind in enumerate("vtr") if kind not in allowed}
    assert set(prepared.failures) == refused
    assert {f.reason for f in prepared.failures.values()} <= {Reason.CONTENT_DENIED}


def test_content_rules_apply(context: Maker) -> None:
    payloads = [json.dumps(DOCUMENT).encode(), of_type("v")]
    rules = ContentRules(countries=frozenset({"VN"}))
    prepared = HCERT.prepare(payloads, context(content=rules))
    assert set(prepared.failures) == {1}
    assert prepared.failures[1].reason is Reason.CONTENT_DENIED


def test_a_day_begins_where_it_begins_first_on_earth(context: Maker) -> None:
    rules = ContentRules(future_dates=False)
    midnight = 1_642_204_800 - 14 * 3600  # 2022-01-15T00:00:00+14:00
    payload = json.dumps({"ver": "", "nam": {}, "dob": "", "v": [{"dt": "2022-01-15"}]}).encode()
    before = HCERT.prepare([payload], context(now=midnight - 1, content=rules))
    after = HCERT.prepare([payload], context(now=midnight, content=rules))
    assert before.failures[0].reason is Reason.CONTENT_DENIED
    assert not after.failures


def accepted(ctx: FormatContext) -> None:
    assert not HCERT.prepare([of_type("v")], ctx).failures


def refused(ctx: FormatContext, words: str) -> None:
    for step in (HCERT.max_output, HCERT.prepare):
        with pytest.raises(CallError, match=words) as caught:
            step([of_type("v"), b"bad"], ctx)
        assert caught.value.reason is Reason.KEY_VERSION_NOT_ACTIVE


def test_no_terms(context: Maker) -> None:
    refused(context(hcert=None), "no issuer and validity")


@pytest.mark.parametrize("algorithm", [Algorithm.ES384, Algorithm.RS256, Algorithm.EDDSA])
def test_other_algorithms(context: Maker, algorithm: Algorithm) -> None:
    refused(context(algorithm), "ES256 or PS256")


def test_no_certificate(context: Maker) -> None:
    version = dataclasses.replace(context().version, certificate=None)
    refused(context(version=version), "no certificate")


def test_unreadable_certificate(context: Maker) -> None:
    version = dataclasses.replace(context().version, certificate=b"\x30\x00")
    refused(context(version=version), "cannot be read")


def test_certificate_not_valid_yet(context: Maker, certified: Callable[..., Any]) -> None:
    now = context().now
    refused(context(version=certified(not_before=now + 1)), "not valid yet")
    accepted(context(version=certified(not_before=now)))


def test_certificate_that_would_end_first(context: Maker, certified: Callable[..., Any]) -> None:
    terms = HcertTerms("VN", 3600)
    end = context().now + 3600
    refused(context(version=certified(not_after=end - 1), hcert=terms), "ends before")
    accepted(context(version=certified(not_after=end), hcert=terms))


def test_claims_keep_the_given_order() -> None:
    head = hcert.claims_head({4: 2, 6: 1, 1: "AT"})
    assert head + b"\xa0" == cbor2.dumps({4: 2, 6: 1, 1: "AT", -260: {1: {}}})


def test_usages_that_are_an_empty_list(context: Maker, certified: Callable[..., Any]) -> None:
    # Against RFC 5280, but found in use: a certificate without usages.
    ctx = context(version=certified(raw_usages=b"\x30\x00"))
    assert not HCERT.prepare([of_type(kind) for kind in "vtr"], ctx).failures


def test_malformed_usages(context: Maker, certified: Callable[..., Any]) -> None:
    refused(context(version=certified(raw_usages=b"\x05\x00")), "cannot be read")


# --- what a QR code holds ---------------------------------------------------------------------

VERSION_40 = {"L": 4296, "M": 3391, "Q": 2420, "H": 1852}  # ISO/IEC 18004, alphanumeric


def noted(length: int, letters: str) -> bytes:
    """A certificate with a note of so many letters, drawn as if at random."""
    drawn = random.Random(length)
    note = "".join(drawn.choice(letters) for _ in range(length))
    return json.dumps(DOCUMENT | {"note": note}, ensure_ascii=False).encode()


@pytest.mark.parametrize("level", "LMQH")
@pytest.mark.parametrize("algorithm", [Algorithm.ES256, Algorithm.PS256])
@pytest.mark.parametrize("letters", ["a", "0123456789abcdef", "Nguyễn Văn Mẫu Trần Thị"])
def test_what_no_qr_code_of_the_level_holds_is_refused(
    context: Maker, algorithm: Algorithm, level: str, letters: str
) -> None:
    most = VERSION_40[level]
    ctx = context(algorithm, content=ContentRules(qr_level=level))
    payloads = [noted(length, letters) for length in range(0, 6000, 61)]
    prepared = HCERT.prepare(payloads, ctx)
    free = HCERT.prepare(payloads, context(algorithm))
    assert not free.failures
    size = 64 if algorithm is Algorithm.ES256 else 256
    texts = HCERT.finish(free, [os.urandom(size) for _ in payloads], ctx)
    for index, text in enumerate(texts):
        if index not in prepared.failures:
            assert len(text) <= most
            assert prepared.to_sign[index] == free.to_sign[index]
            continue
        failure = prepared.failures[index]
        assert (failure.reason, failure.rule) == (
            Reason.PAYLOAD_INVALID,
            "default.content.qr_level",
        )
        # 48 characters are kept free for a signature that is compressed worse than most.
        assert len(text) + 100 > most
        assert f" characters, but a QR code of level {level} holds {most} " in failure.message
        told = int(failure.message.split()[4])
        assert most < told
        assert abs(told - len(text)) < 100
    assert prepared.failures or letters == "a"
    assert 0 not in prepared.failures


def test_a_payload_is_judged_without_a_key() -> None:
    terms = ContentTerms(ContentRules(qr_level="Q"), HcertTerms("VN", 3600), None, 1_700_000_000)
    HCERT.inspect(json.dumps(DOCUMENT).encode(), terms)
    for payload in (b"{}", noted(4000, "0123456789abcdef")):
        with pytest.raises(PayloadError):
            HCERT.inspect(payload, terms)
    strict = terms._replace(content=ContentRules(dcc_schema=True))
    with pytest.raises(PayloadError) as caught:
        HCERT.inspect(json.dumps(DOCUMENT).encode(), strict)
    assert caught.value.failure.member == "v.0.tg"

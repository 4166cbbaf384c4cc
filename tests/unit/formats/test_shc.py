import base64
import dataclasses
import json
import os
import random
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from signer.algorithms import Algorithm
from signer.client._cutting import output_bound
from signer.errors import CallError, Reason
from signer.format_terms import ContentRules, FormatContext, ShcTerms
from signer.formats import FORMATS, shc
from signer.formats.payloads import ContentTerms, PayloadError
from signer.model import Format
from tests.unit.formats.conftest import CARDS, NOW

Maker = Callable[..., FormatContext]
SHC = FORMATS[Format.SHC]

ENTRY = {"fullUrl": "resource:0", "resource": {"resourceType": "Patient", "birthDate": "1979"}}
BUNDLE: dict[str, Any] = {"resourceType": "Bundle", "type": "collection", "entry": [ENTRY]}


def packed(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def opened(card: bytes) -> tuple[dict[str, Any], bytes, bytes, bytes]:
    """Header, payload, signing input and signature, read as the framework says."""
    text = card.decode("ascii")
    assert text.startswith("shc:/")
    pairs = [text[i : i + 2] for i in range(5, len(text), 2)]
    jws = "".join(chr(int(pair) + 45) for pair in pairs)
    header, payload, signature = (
        base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)) for part in jws.split(".")
    )
    inflater = zlib.decompressobj(-15)
    whole = inflater.decompress(payload) + inflater.flush()
    assert not inflater.unused_data
    return json.loads(header), whole, jws.rpartition(".")[0].encode(), signature


def test_round_trip(context: Maker, keys: Mapping[Algorithm, Any]) -> None:
    key, ctx = keys[Algorithm.ES256], context()
    prepared = SHC.prepare([packed(BUNDLE)], ctx)
    (card,) = SHC.finish(prepared, [key.sign(prepared.to_sign[0])], ctx)

    header, payload, signing_input, signature = opened(card)
    assert header == {"zip": "DEF", "alg": "ES256", "kid": key.version.thumbprint}
    key.verify(signature, signing_input)
    assert json.loads(payload) == {
        "iss": "https://cards.example/vn",
        "nbf": NOW,
        "vc": {
            "type": [
                "https://smarthealth.cards#health-card",
                "https://smarthealth.cards#immunization",
            ],
            "credentialSubject": {"fhirVersion": "4.0.1", "fhirBundle": BUNDLE},
        },
    }
    assert shc.text(shc.jws_of(card)) == card


def test_a_bundle_loses_its_white_space_and_nothing_else(context: Maker) -> None:
    spaced = (
        b'\n{ "resourceType" :"Bundle","type":"collection",\t"n":[1.50 , -0, 1e2],\r\n'
        b' "note" : "a  b\\" : , \\\\" , "entry":[{"fullUrl":"resource:0","resource":'
        b'{"resourceType":"Patient"}}]} '
    )
    prepared = SHC.prepare([spaced], context())
    (card,) = SHC.finish(prepared, [bytes(64)], context())
    _, payload, _, _ = opened(card)
    assert (
        b'{"resourceType":"Bundle","type":"collection","n":[1.50,-0,1e2],'
        b'"note":"a  b\\" : , \\\\","entry":[{"fullUrl":"resource:0","resource":'
        b'{"resourceType":"Patient"}}]}'
    ) in payload


REFUSED: dict[str, tuple[Any, str]] = {
    "no bundle": ({"resourceType": "Patient"}, "resourceType"),
    "another type": (BUNDLE | {"type": "document"}, "type"),
    "no entry": (BUNDLE | {"entry": []}, "entry"),
    "entry is an object": (BUNDLE | {"entry": {}}, "entry"),
    "entry of texts": (BUNDLE | {"entry": [ENTRY, "x"]}, "entry.1"),
    "no address": (BUNDLE | {"entry": [{"resource": {}}]}, "entry.0.fullUrl"),
    "no resource": (BUNDLE | {"entry": [{"fullUrl": "resource:0"}]}, "entry.0.resource"),
    "a resource of no type": (
        BUNDLE | {"entry": [ENTRY | {"resource": {"id": 1}}]},
        "entry.0.resource",
    ),
}


@pytest.mark.parametrize(("value", "member"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_not_a_bundle_is_refused(context: Maker, value: Any, member: str) -> None:
    failure = SHC.prepare([packed(value)], context()).failures[0]
    assert (failure.reason, failure.member) == (Reason.PAYLOAD_INVALID, member)
    assert failure.message.startswith(member)


@pytest.mark.parametrize("payload", [b"", b"[]", b'{"a":1,"a":2}', packed(BUNDLE)[:-1]])
def test_what_is_not_json_is_refused(context: Maker, payload: bytes) -> None:
    assert SHC.prepare([payload], context()).failures[0].reason is Reason.PAYLOAD_INVALID


def test_length_is_bounded(context: Maker) -> None:
    room = shc.MAX_BYTES - len(packed(BUNDLE | {"x": ""}))
    longest = packed(BUNDLE | {"x": "a" * room})
    assert not SHC.prepare([longest], context()).failures
    assert SHC.prepare([longest + b" "], context()).failures


# ISO/IEC 18004 table 7: digits that the largest code holds alone; shc:/ takes the place of 18.
DIGITS = {"L": 7089, "M": 5596, "Q": 3993, "H": 3057}


@pytest.mark.parametrize("level", "LMQH")
def test_what_no_qr_code_of_the_level_holds_is_refused(context: Maker, level: str) -> None:
    drawn = random.Random(1).randbytes
    payloads = [packed(BUNDLE | {"x": drawn(size).hex()}) for size in range(0, 2600, 7)]
    ctx, free = context(content=ContentRules(qr_level=level)), context()
    failures = SHC.prepare(payloads, ctx).failures
    prepared = SHC.prepare(payloads, free)
    cards = SHC.finish(prepared, [os.urandom(64) for _ in payloads], free)
    lengths = [len(card) - len("shc:/") for card in cards]
    refused = [length for index, length in enumerate(lengths) if index in failures]
    accepted = [length for index, length in enumerate(lengths) if index not in failures]
    assert max(accepted) <= DIGITS[level] - 18 < min(refused)
    assert failures[len(payloads) - 1].rule == "default.content.qr_level"
    assert f"would have {lengths[-1]} digits" in failures[len(payloads) - 1].message


def refused_as_a_whole(ctx: FormatContext, words: str) -> None:
    for step in (SHC.max_output, SHC.prepare):
        with pytest.raises(CallError, match=words) as caught:
            step([packed(BUNDLE)], ctx)
        assert caught.value.reason is Reason.KEY_VERSION_NOT_ACTIVE


def test_without_an_issuer_nothing_is_signed(context: Maker) -> None:
    refused_as_a_whole(context(shc=None), "no issuer for SHC")


@pytest.mark.parametrize("algorithm", [each for each in Algorithm if each is not Algorithm.ES256])
def test_other_algorithms(context: Maker, algorithm: Algorithm) -> None:
    refused_as_a_whole(context(algorithm), "SHC is signed with ES256")


def test_no_certificate_is_needed(context: Maker) -> None:
    version = dataclasses.replace(context().version, certificate=None)
    assert not SHC.prepare([packed(BUNDLE)], context(version=version)).failures


def test_a_payload_is_judged_without_a_key() -> None:
    terms = ContentTerms(ContentRules(qr_level="H"), None, CARDS, NOW)
    SHC.inspect(packed(BUNDLE), terms)
    for payload in (b"{}", packed(BUNDLE | {"x": random.Random(1).randbytes(2000).hex()})):
        with pytest.raises(PayloadError):
            SHC.inspect(payload, terms)


def test_types_are_in_one_order(context: Maker) -> None:
    names = frozenset({"laboratory", "immunization", "covid19"})
    ctx = context(shc=ShcTerms("https://cards.example", names))
    (card,) = SHC.finish(SHC.prepare([packed(BUNDLE)], ctx), [bytes(64)], ctx)
    types = json.loads(opened(card)[1])["vc"]["type"]
    assert [each.partition("#")[2] for each in types] == ["health-card", *sorted(names)]


@pytest.mark.parametrize("text", [b"", b"shc:/", b"shc:/567", b"shc:/5x", b"HC1:56", b"5676"])
def test_other_texts_are_not_cards(text: bytes) -> None:
    with pytest.raises(ValueError, match="not a SMART Health Card"):
        shc.jws_of(text)


@pytest.mark.parametrize("size", [0, 100, 5000, shc.MAX_BYTES])
def test_the_client_leaves_enough_room_for_an_answer(context: Maker, size: int) -> None:
    issuer = "https://" + "a" * 192
    types = frozenset(f"type-of-card-{number}" for number in range(8))
    ctx = context(shc=ShcTerms(issuer, types))
    assert SHC.max_output([bytes(size)], ctx) <= output_bound(size, Format.SHC)

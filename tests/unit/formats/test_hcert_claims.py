"""Health certificates about something else than a DCC: health links, and DVCs by a schema."""

import base64
import dataclasses
import json
import zlib
from collections.abc import Mapping
from typing import Any

import cbor2
import pytest

from signer.algorithms import Algorithm
from signer.client.key_files import TrustedKey
from signer.client.verification import TrustedKeys, VerificationError
from signer.errors import Failure, Reason
from signer.format_terms import ContentRules, FormatContext, Handles, HcertClaim
from signer.formats import FORMATS, base45, hcert
from signer.formats.hcert_claims import host_of
from signer.formats.revocation import handle, handles_of_signed
from signer.model import Format
from signer.policy.json_schema import read_schema
from tests.unit.formats.conftest import NOW, YEAR, ContextMaker, SoftKey

HCERT = FORMATS[Format.HCERT]
DAY = 86_400
LINK: dict[str, Any] = {
    "url": "https://records.example.vn/List/_search?_id=abc&code=folder",
    "key": "rxTgYlOaKJPFtcEd0qcceN8wEU4p94SqAwIWQe6uX7Q",
    "exp": NOW + 30 * DAY,
    "flag": "LP",
    "label": "Sổ tiêm chủng",
    "v": 1,
}
SCHEMA = {
    "type": "object",
    "required": ["n", "dt"],
    "properties": {"n": {"type": "string"}, "dt": {"type": "string", "format": "date"}},
}
DVC: dict[str, Any] = {"n": "Nguyễn Văn Mẫu", "dt": "2021-06-11", "x": [1, None, 1.5]}
VHL_RULES = ContentRules(
    claims=frozenset({HcertClaim.VHL}),
    link_hosts=frozenset({"records.example.vn"}),
    paths={"link_hosts": "profiles.p.content.link_hosts"},
)
DVC_RULES = ContentRules(
    claims=frozenset({HcertClaim.DVC, HcertClaim.VHL}),
    schema=read_schema("dvc", SCHEMA),
    paths={"dvc_schema": "profiles.p.content.dvc_schema"},
)
DCC = b'{"ver":"1.3.0","nam":{},"dob":"1950-01-01","v":[{"dt":"2021-06-01"}]}'


def link(**changes: Any) -> bytes:
    payload = {name: each for name, each in (LINK | changes).items() if each is not ...}
    packed = base64.urlsafe_b64encode(json.dumps(payload, separators=(",", ":")).encode())
    return b"vhlink:/" + packed.rstrip(b"=")


@pytest.fixture
def linking(context: ContextMaker) -> FormatContext:
    return dataclasses.replace(context(), content=VHL_RULES)


@pytest.fixture
def vaccinating(context: ContextMaker) -> FormatContext:
    return dataclasses.replace(context(), content=DVC_RULES)


def signed(keys: Mapping[Algorithm, SoftKey], context: FormatContext, payload: bytes) -> bytes:
    prepared = HCERT.prepare([payload], context)
    assert prepared.failures == {}
    [made] = HCERT.finish(prepared, [keys[Algorithm.ES256].sign(prepared.to_sign[0])], context)
    assert len(made) <= HCERT.max_output([payload], context)
    return made


def refused(context: FormatContext, payload: bytes) -> Failure:
    failure: Failure = HCERT.prepare([payload], context).failures[0]
    return failure


def cwt_of(text: bytes) -> dict[int, Any]:
    message = cbor2.loads(zlib.decompress(base45.decode(text[4:])))
    claims: dict[int, Any] = cbor2.loads(message.value[2])
    assert message.value[2] == cbor2.dumps(claims, canonical=True)
    return claims


def trusted(keys: Mapping[Algorithm, SoftKey]) -> TrustedKeys:
    version = keys[Algorithm.ES256].version
    key = TrustedKey("k", version.spki, version.algorithm, version.certificate)
    return TrustedKeys([key])


# --- links ---------------------------------------------------------------------------------------


def test_a_link_is_claim_5_and_the_certificate_ends_with_it(
    keys: Mapping[Algorithm, SoftKey], linking: FormatContext
) -> None:
    text = signed(keys, linking, link())
    cwt = {1: "VN", 4: LINK["exp"], 6: NOW, -260: {5: link().decode()}}
    assert cwt_of(text) == cwt
    claims = trusted(keys).verify(text, NOW).claims
    assert claims is not None
    assert (claims.claim, claims.expires, claims.content) == (HcertClaim.VHL, LINK["exp"], LINK)
    assert (claims.type, claims.dcc) == (None, {})
    with pytest.raises(VerificationError, match="it is genuine, but expired at"):
        trusted(keys).verify(text, LINK["exp"])


@pytest.mark.parametrize(
    ("changes", "member", "text"),
    [
        ({"url": "http://records.example.vn/x"}, "url", "should be an https URL"),
        ({"url": "https://records.example.vn"}, "url", "should be an https URL"),
        ({"url": "https://a@records.example.vn/x"}, "url", "should be an https URL"),
        ({"url": "https://records.example.vn/x y"}, "url", "should be an https URL"),
        ({"url": "https://evil.example\\@records.example.vn/"}, "url", "should be an https URL"),
        ({"url": ...}, "url", "should be an https URL"),
        ({"url": "https://records.example.vn:99999/x"}, "url", "should be an https URL"),
        ({"url": "https://records.example.vn:0/x"}, "url", "should be an https URL"),
        ({"url": "https://records.example.vn../x"}, "url", "should be an https URL"),
        ({"url": "https://./x"}, "url", "should be an https URL"),
        ({"key": "short"}, "key", "should be 32 bytes"),
        ({"key": f"{LINK['key'][:-1]}R"}, "key", "should be 32 bytes"),
        ({"key": 7}, "key", "should be 32 bytes"),
        ({"exp": ...}, "exp", "should be a time in whole seconds"),
        ({"exp": 1.5}, "exp", "should be a time in whole seconds"),
        ({"exp": True}, "exp", "should be a time in whole seconds"),
        ({"exp": NOW}, "exp", "is over already"),
        ({"exp": NOW + YEAR + 1}, "exp", "is later than 365 days from now"),
        ({"flag": "PL"}, "flag", "letters L, P and U"),
        ({"flag": "PU"}, "flag", "letters L, P and U"),
        ({"label": "x" * 81}, "label", "at most 80 characters"),
        ({"v": 2}, "v", "should be 1"),
        ({"v": True}, "v", "should be 1"),
    ],
)
def test_a_link_that_no_reader_could_follow_is_refused_by_its_member(
    linking: FormatContext, changes: dict[str, Any], member: str, text: str
) -> None:
    failure = refused(linking, link(**changes))
    assert (failure.reason, failure.member) == (Reason.PAYLOAD_INVALID, member)
    assert text in failure.message
    assert "example" not in failure.message


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "records.example.vn.evil.example",
        "records.example.vn:8443",
        "records.example.vn:4430",
        "records.example.vn.:8443",
        "example.vn",
    ],
)
def test_a_link_to_another_host_is_denied(linking: FormatContext, host: str) -> None:
    failure = refused(linking, link(url=f"https://{host}/x"))
    rule = "profiles.p.content.link_hosts"
    assert (failure.reason, failure.rule) == (Reason.CONTENT_DENIED, rule)
    assert host not in failure.message


@pytest.mark.parametrize(
    "host",
    [
        "Records.Example.VN",
        "records.example.vn:443",
        "records.example.vn:0443",
        "Records.example.vn.",
    ],
)
def test_an_equal_host_in_another_form_is_allowed(
    keys: Mapping[Algorithm, SoftKey], linking: FormatContext, host: str
) -> None:
    text = signed(keys, linking, link(url=f"https://{host}/x"))
    claims = trusted(keys).verify(text, NOW).claims
    assert claims is not None
    assert host_of(claims.content) == "records.example.vn"


def test_a_link_has_one_text_in_base64url(linking: FormatContext) -> None:
    """Spare bits of the last character that are not 0: some readers refuse it, others do not."""
    texts = (link(label="x" * length) for length in range(4))
    payload = next(text for text in texts if len(text.removeprefix(b"vhlink:/")) % 4 == 2)
    digits = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    other = payload[:-1] + digits[digits.index(payload[-1:]) | 1 :][:1]
    assert other != payload
    failure = refused(linking, other)
    assert failure.reason is Reason.PAYLOAD_INVALID
    assert "in Base64url" in failure.message


@pytest.mark.parametrize(
    "payload",
    [
        b"vhlink:/",
        b"vhlink:/!",
        b"vhlink:/e30=",
        b"vhlink:/A",
        link() + b"\n",
        b"vhlink:/" + base64.urlsafe_b64encode(b'{"url":1,"url":2}').rstrip(b"="),
        b"vhlink:/" + base64.urlsafe_b64encode(b"[]").rstrip(b"="),
        b"vhlink:/" + b"A" * 17_000,
        b"shlink:/e30",
        DCC,
        b"",
    ],
)
def test_what_is_not_a_link_is_not_signed_by_a_key_for_links(
    linking: FormatContext, payload: bytes
) -> None:
    assert refused(linking, payload).reason is Reason.PAYLOAD_INVALID


def test_a_key_for_dccs_signs_no_link(context: ContextMaker) -> None:
    failure = refused(context(), link())
    assert failure.reason is Reason.CONTENT_DENIED
    assert failure.rule == "default.content.claims"


def test_a_link_has_the_handle_of_its_signature_alone(linking: FormatContext) -> None:
    [to_sign] = HCERT.prepare([link()], linking).to_sign
    made = bytes(range(64))
    none = bytes(16)
    assert handles_of_signed(to_sign, Algorithm.ES256, made) == Handles(
        none, none, handle(made[:32])
    )


def test_a_link_that_no_qr_code_holds_is_refused(linking: FormatContext) -> None:
    rules = dataclasses.replace(VHL_RULES, qr_level="H")
    failure = refused(
        dataclasses.replace(linking, content=rules),
        link(url="https://records.example.vn/" + "".join(map(str, range(900)))),
    )
    assert "a QR code of level H holds" in failure.message


# --- by a schema ---------------------------------------------------------------------------------


@pytest.mark.parametrize("payload", [json.dumps(DVC).encode(), cbor2.dumps(DVC)])
def test_an_object_by_the_schema_is_claim_minus_6(
    keys: Mapping[Algorithm, SoftKey], vaccinating: FormatContext, payload: bytes
) -> None:
    text = signed(keys, vaccinating, payload)
    assert cwt_of(text) == {1: "VN", 4: NOW + YEAR, 6: NOW, -260: {-6: DVC}}
    claims = trusted(keys).verify(text, NOW).claims
    assert claims is not None
    assert (claims.claim, claims.content) == (HcertClaim.DVC, DVC)
    assert cwt_of(signed(keys, vaccinating, link()))[-260] == {5: link().decode()}


@pytest.mark.parametrize(
    ("changes", "member", "text"),
    [
        ({"dt": "11.06.2021"}, "dt", 'dt breaks "format" of the schema'),
        ({"n": 7}, "n", "n should be of the type string"),
    ],
)
def test_an_object_that_breaks_the_schema_is_refused_by_its_member(
    vaccinating: FormatContext, changes: dict[str, Any], member: str, text: str
) -> None:
    failure = refused(vaccinating, json.dumps(DVC | changes).encode())
    assert (failure.reason, failure.member, failure.message) == (
        Reason.PAYLOAD_INVALID,
        member,
        text,
    )
    assert failure.rule == "profiles.p.content.dvc_schema"


@pytest.mark.parametrize("payload", [b"", b"[]", b'{"n":"a","n":"b"}', b"{" + b" " * 17_000, DCC])
def test_what_is_not_such_an_object_is_refused(vaccinating: FormatContext, payload: bytes) -> None:
    assert refused(vaccinating, payload).reason is Reason.PAYLOAD_INVALID


# --- what verifiers refuse -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("about", "text"),
    [
        ({2: {}}, "the claim 2, which is not known: 1 (DCC), 5 (VHL), -6 (DVC) are"),
        ({"1": {}}, "the claim '1', which is not known"),
        ({1: {}, 5: ""}, "more than one health certificate"),
        ({}, "not a CWT with issuer, times and one health certificate"),
        ({5: {"u": link().decode()}}, "not a VHL, as its claim 5 says"),
        ({5: "shlink:/e30"}, "its health link cannot be read"),
        ({5: link(exp=NOW + 5).decode()}, "ends at another time than its CWT"),
        ({-6: "text"}, "not a DVC, as its claim -6 says"),
        ({1: "text"}, "not a DCC, as its claim 1 says"),
    ],
)
def test_other_claims_are_genuine_and_refused(
    keys: Mapping[Algorithm, SoftKey], linking: FormatContext, about: dict[Any, Any], text: str
) -> None:
    [to_sign] = HCERT.prepare([link()], linking).to_sign
    parts = cbor2.loads(to_sign)
    parts[3] = cbor2.dumps({1: "VN", 4: LINK["exp"], 6: NOW, -260: about})
    signature = keys[Algorithm.ES256].sign(cbor2.dumps(parts))
    message = cbor2.dumps(cbor2.CBORTag(18, [parts[1], {}, parts[3], signature]))
    with pytest.raises(VerificationError) as caught:
        trusted(keys).verify(hcert.text(message), NOW)
    assert text in str(caught.value)
    assert LINK["key"] not in str(caught.value)


def test_a_list_of_one_link_is_read_as_other_issuers_write_it(
    keys: Mapping[Algorithm, SoftKey], linking: FormatContext
) -> None:
    [to_sign] = HCERT.prepare([link()], linking).to_sign
    parts = cbor2.loads(to_sign)
    parts[3] = cbor2.dumps({1: "VN", 4: LINK["exp"], 6: NOW, -260: {5: [link().decode()]}})
    signature = keys[Algorithm.ES256].sign(cbor2.dumps(parts))
    message = cbor2.dumps(cbor2.CBORTag(18, [parts[1], {}, parts[3], signature]))
    assert trusted(keys).verify(hcert.text(message), NOW).claims is not None

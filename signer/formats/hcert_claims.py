"""What a health certificate can be about: the claims inside of claim -260 of its CWT.

WHO SMART Trust, HCert: 1 is the EU's DCC, 5 a Verifiable Health Link, -6 a digital vaccination
certificate whose JSON schema the policy has (proposed by WHO; a number for development). A link is
that of IHE's Verifiable Health Links (ITI VHL), with the payload of HL7's SMART Health Links.
"""

import base64
import binascii
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from signer import cbor
from signer.format_terms import ContentRules, HcertClaim, link_host
from signer.formats import dcc
from signer.formats.payloads import cbor_map, denied, json_object, unreadable

NUMBERS: Mapping[HcertClaim, int] = {HcertClaim.DCC: 1, HcertClaim.VHL: 5, HcertClaim.DVC: -6}
"""The number of each claim inside of claim -260."""

LINK = b"vhlink:/"
MOST_LABEL = 80  # characters: SMART Health Links, payload
_NOT_A_LINK = "payload should be vhlink:/ and a JSON object in Base64url without padding"
_BASE64URL = re.compile(rb"[A-Za-z0-9_-]+")
_ONE_FORM = "payload should have 0 in the spare bits of its last character in Base64url"
_KEY = re.compile(r"[A-Za-z0-9_-]{42}[AEIMQUYcgkosw048]")  # 32 bytes; two bits of 258 are spare
_URL = re.compile(r"https://((?:[A-Za-z0-9-]+\.)*[A-Za-z0-9-]+\.?(?::[0-9]{1,5})?)/[!-~]*")


class Subject(NamedTuple):
    """What one certificate is about.

    ``encoded`` is what the claim with this ``number`` has, in CBOR. ``document`` has members by
    which it can be compared with another record. ``type`` is that of a DCC. ``expires`` is the
    time of a link's own end, in seconds since the epoch.
    """

    number: int
    encoded: bytes
    document: Mapping[str, Any]
    type: str | None = None
    expires: int | None = None


def reader(rules: ContentRules, ahead: dcc.Horizon) -> Callable[[bytes], Subject]:
    """Returns what reads payloads as a claim that a key may sign, and raises PayloadError.

    A link begins with ``vhlink:/``; an object is a DCC or DVC, of which a policy allows one.
    """
    number = NUMBERS[HcertClaim.DCC]

    def certificate(payload: bytes) -> Subject:
        read = dcc.read(payload)
        dcc.check(read, rules, ahead)
        return Subject(number, _encoded(read.document), read.document, read.type)

    objects: Callable[[bytes], Subject] = partial(_no_object, rules=rules)
    if HcertClaim.DCC in rules.claims:
        objects = certificate
    elif HcertClaim.DVC in rules.claims:
        objects = partial(_by_schema, rules=rules)

    def read(payload: bytes) -> Subject:
        return _link(payload, rules) if payload.startswith(LINK) else objects(payload)

    return read


def read_link(text: bytes) -> dict[str, Any]:
    """Returns the payload of a link; raises PayloadError for one that no reader could follow."""
    packed = text[len(LINK) :]
    if not text.startswith(LINK) or not _BASE64URL.fullmatch(packed):
        raise unreadable(_NOT_A_LINK)
    try:
        content = base64.urlsafe_b64decode(packed + b"=" * (-len(packed) % 4))
    except binascii.Error:
        raise unreadable(_NOT_A_LINK) from None
    if base64.urlsafe_b64encode(content).rstrip(b"=") != packed:
        raise unreadable(_ONE_FORM)
    link = json_object(content)
    for name, fits, text_of_fault in _LINK_MEMBERS:
        if not fits(link.get(name)):
            raise unreadable(f"{name} {text_of_fault}", member=name)
    return link


def host_of(link: Mapping[str, Any]) -> str:
    """Returns the host of a link's URL in the form in which hosts are compared."""
    match = _URL.fullmatch(link["url"])
    return link_host(match[1]) if match else ""


def _is_url(value: object) -> bool:
    match = _URL.fullmatch(value) if isinstance(value, str) else None
    return match is not None and bool(link_host(match[1]))


def _no_object(_payload: bytes, rules: ContentRules) -> Subject:
    text = f"payload should be a link that begins with {LINK.decode()}"
    raise unreadable(text, rule=rules.path("claims"))


def _link(payload: bytes, rules: ContentRules) -> Subject:
    if HcertClaim.VHL not in rules.claims:
        raise denied(rules.path("claims"), "content rule claims: VHL is not allowed with this key")
    if len(payload) > dcc.MAX_BYTES:
        raise unreadable(f"payload is longer than {dcc.MAX_BYTES} bytes")
    link = read_link(payload)
    if rules.link_hosts and host_of(link) not in rules.link_hosts:
        rule = rules.path("link_hosts")
        raise denied(rule, "content rule link_hosts: the host of url is not an allowed one")
    text = _encoded(payload.decode("ascii"))
    return Subject(NUMBERS[HcertClaim.VHL], text, link, expires=link["exp"])


def _by_schema(payload: bytes, rules: ContentRules) -> Subject:
    if len(payload) > dcc.MAX_BYTES:
        raise unreadable(f"payload is longer than {dcc.MAX_BYTES} bytes")
    is_cbor = 0xA0 <= payload[0] <= 0xBF if payload else False
    document = cbor_map(payload) if is_cbor else json_object(payload)
    encoded = _encoded(document)  # first: it refuses NaN, at which the schema library fails
    if rules.schema is not None and (wrong := rules.schema.fault(document)) is not None:
        text = f"{wrong.member or 'payload'} {wrong.text}"
        raise unreadable(text, member=wrong.member, rule=rules.path("dvc_schema"))
    return Subject(NUMBERS[HcertClaim.DVC], encoded, document)


def _encoded(value: object) -> bytes:
    try:
        return cbor.encode_deterministic(value)
    except cbor.CborError as error:
        raise unreadable(f"payload has {error}") from None


def _is_flag(value: object) -> bool:
    """Whether a value is absent, or some of L, P and U, each once, in the order of letters."""
    return value is None or (isinstance(value, str) and value in _FLAGS)


_FLAGS = frozenset({"", "L", "P", "U", "LP", "LU"})  # U excludes P
_LINK_MEMBERS = (
    ("url", _is_url, "should be an https URL"),
    ("key", lambda v: isinstance(v, str) and _KEY.fullmatch(v), "should be 32 bytes in Base64url"),
    ("exp", lambda v: type(v) is int and v > 0, "should be a time in whole seconds since 1970"),
    ("flag", _is_flag, "should be some of the letters L, P and U, in this order; not P with U"),
    (
        "label",
        lambda v: v is None or (isinstance(v, str) and len(v) <= MOST_LABEL),
        f"should be a text of at most {MOST_LABEL} characters",
    ),
    ("v", lambda v: v is None or (type(v) is int and v == 1), "should be 1"),
)
"""Members of a link: whether a value fits, and what it should be."""

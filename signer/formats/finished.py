"""Finished messages, read back: what was signed, the signature, and the header over both.

A compact JWS (RFC 7515 section 7.1), a SMART Health Card as digits, a COSE_Sign1 (RFC 9052
section 4.2), also as a CWT (RFC 8392 section 6), and an HCERT's text. Nothing is verified here.
"""

import base64
import binascii
import io
import re
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import lru_cache
from typing import Any, NamedTuple

import cbor2

from signer import cbor
from signer.algorithms import PROPERTIES, Algorithm
from signer.format_terms import HcertClaim
from signer.formats import base45, dcc, hcert_claims, shc
from signer.formats.payloads import MessageError, PayloadError, json_object
from signer.model import Format

MAX_MESSAGE = 4 << 20
"""Bytes of a message, as in the API, and of a decompressed one."""

_JWS = re.compile(rb"(([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]*))\.([A-Za-z0-9_-]+)")
_HCERT = b"HC1:"
_SIGN1_DEPTH = 5  # two tags, the message, its header, and a list in that
_NO_HEADERS = cbor2.dumps({})
_MOST_DEPTH = 66  # maps and lists inside each other: those of a payload, in two more
_SHORT_HEADER = 256  # bytes; longer ones are read each time
_LATEST = 253_402_300_799  # 9999-12-31T23:59:59Z, the last time that can be written
_BY_NUMBER: Mapping[object, HcertClaim] = {n: name for name, n in hcert_claims.NUMBERS.items()}
_BY_COSE = {row.cose: algorithm for algorithm, row in PROPERTIES.items()}


JOSE = frozenset({Format.JWS, Format.SHC})
"""Formats with a header in JSON, and so with a key id that is text."""


class SigningHeader(NamedTuple):
    """What a message says of its signature; no key id is ``""`` or ``b""``."""

    algorithm: Algorithm
    kid: str | bytes


class Finished(NamedTuple):
    """A message in its parts: ``signed`` are the bytes that were signed.

    ``protected`` is its header as encoded in it, ``unprotected`` that of COSE which is not
    signed. The ``payload`` of a SMART Health Card is compressed.
    """

    format: Format
    protected: bytes
    unprotected: Mapping[Any, Any] | None
    payload: bytes
    signed: bytes
    signature: bytes

    def header(self) -> SigningHeader:
        """Reads algorithm and key id; raises MessageError."""
        if self.format not in JOSE:
            return _cose(self)
        read = _jose_again if len(self.protected) <= _SHORT_HEADER else _jose
        return read(self.protected, self.format)


class Claims(NamedTuple):
    """The CWT of a health certificate; times from 1970 to 9999, in seconds since the epoch.

    ``content`` is what it is about: a DCC or DVC, or the payload of a health link. A DCC has
    exactly one ``type`` (one of ``dcc.TYPES``); others have None.
    """

    issuer: str
    issued: int
    expires: int
    content: dict[str, Any]
    type: str | None
    claim: HcertClaim = HcertClaim.DCC

    @property
    def dcc(self) -> dict[str, Any]:
        """The DCC; empty if it is about something else."""
        return self.content if self.claim is HcertClaim.DCC else {}


class CardClaims(NamedTuple):
    """The claims of a SMART Health Card in JSON; times from 1970 to 9999, as in Claims.

    Without ``expires`` the card does not expire.
    """

    document: bytes
    not_before: float
    expires: float | None


def finished(content: bytes) -> Finished | None:
    """Reads a finished message; returns None for other content."""
    text = content.strip()
    with suppress(ValueError):
        return _compact(shc.jws_of(text), Format.SHC)
    if message := _compact(text, Format.JWS):
        return message
    if text.startswith(_HCERT):
        with suppress(MessageError):
            return finished_hcert(text)
        return None
    return _sign1(content, Format.COSE_SIGN1)


def finished_jws(content: bytes) -> Finished | None:
    """Reads a compact JWS; returns None for other content."""
    return _compact(content.strip(), Format.JWS)


def finished_hcert(text: bytes) -> Finished:
    """Reads the text of an HCERT; raises MessageError, which says what cannot be read of it."""
    try:
        packed = base45.decode(text.removeprefix(_HCERT))
    except ValueError:
        raise MessageError("what comes after HC1: is not Base45") from None
    try:
        message = _unpacked(packed, zlib.MAX_WBITS)
    except ValueError:
        raise MessageError(
            f"what is in its Base45 is not one zlib stream of less than {MAX_MESSAGE} bytes"
        ) from None
    found = _sign1(message, Format.HCERT)
    if found is None:
        raise MessageError("what is in its zlib stream is not a COSE_Sign1")
    return found


def claims_of(message: Finished) -> Claims:
    """Reads the CWT of a health certificate; raises MessageError."""
    match _map_of(message.payload, "payload"):
        case {1: str(issuer), 4: int(expires), 6: int(issued), -260: dict(about)} if about:
            _check_time("exp", expires)
            _check_time("iat", issued)
            if len(about) > 1:
                raise MessageError("its payload has more than one health certificate")
            [(number, value)] = about.items()
            return _subject(Claims(issuer, issued, expires, {}, None), number, value)
    raise MessageError("its payload is not a CWT with issuer, times and one health certificate")


def _subject(claims: Claims, number: object, value: object) -> Claims:
    """Returns claims with what they are about; raises MessageError."""
    claim = _BY_NUMBER.get(number)
    match claim, value:
        case HcertClaim.DCC, dict(document):
            kind = dcc.type_of(document)
            if kind is None:
                raise MessageError("its certificate has not exactly one type: one of v, t and r")
            return claims._replace(content=document, type=kind)
        case HcertClaim.DVC, dict(document):
            return claims._replace(content=document, claim=claim)
        case HcertClaim.VHL, str(link) | [str(link)]:
            try:
                content = hcert_claims.read_link(link.encode())
            except PayloadError as error:
                raise MessageError(f"its health link cannot be read: {error}") from None
            if content["exp"] != claims.expires:
                raise MessageError("its health link ends at another time than its CWT")
            return claims._replace(content=content, claim=claim)
    if claim is None:
        known = ", ".join(f"{n} ({name})" for name, n in hcert_claims.NUMBERS.items())
        shown = number if isinstance(number, int) else repr(number)[:32]
        raise MessageError(f"its certificate is the claim {shown}, which is not known: {known} are")
    raise MessageError(f"its certificate is not a {claim}, as its claim {number} says")


def card_claims_of(message: Finished) -> CardClaims:
    """Reads the claims of a SMART Health Card; raises MessageError."""
    document = _inflated(message.payload)
    try:
        claims = json_object(document)
    except PayloadError as error:
        raise MessageError(f"its payload is not one JSON object: {error}") from None
    not_before, expires = claims.get("nbf"), claims.get("exp")
    _check_time("nbf", not_before)
    if "exp" in claims:
        _check_time("exp", expires)
    return CardClaims(document, not_before, expires)  # type: ignore[arg-type]


def _inflated(packed: bytes) -> bytes:
    try:
        return _unpacked(packed, -zlib.MAX_WBITS)
    except ValueError:
        raise MessageError(
            f"its payload is not one raw DEFLATE stream of less than {MAX_MESSAGE} bytes"
        ) from None


def _unpacked(packed: bytes, window: int) -> bytes:
    """Returns what one compressed stream holds; ``window`` is as in zlib. Raises ValueError."""
    inflater = zlib.decompressobj(window)
    with suppress(zlib.error):
        unpacked = inflater.decompress(packed, MAX_MESSAGE)
        if inflater.eof and not inflater.unused_data:
            return unpacked
    raise ValueError


def _check_time(name: str, value: object) -> None:
    if type(value) not in {int, float} or not 0 <= value <= _LATEST:  # type: ignore[operator]
        raise MessageError(f"its `{name}` is not a time from 1970 to 9999, in seconds")


def _compact(text: bytes, message_format: Format) -> Finished | None:
    match = _JWS.fullmatch(text)
    if match is None:
        return None
    try:
        header, payload, signature = (_base64url(match[part]) for part in (2, 3, 4))
    except binascii.Error:
        return None
    return Finished(message_format, header, None, payload, match[1], signature)


def _sign1(content: bytes, message_format: Format) -> Finished | None:
    with suppress(cbor2.CBORError):
        stream = io.BytesIO(content)
        message = cbor2.load(stream, max_depth=_SIGN1_DEPTH, allow_indefinite=False)
        if stream.read().strip():
            return None
        match _untagged(message):
            case [
                bytes() as protected,
                Mapping() as unprotected,
                bytes() as payload,
                bytes() as signature,
            ]:
                header = b"" if protected == _NO_HEADERS else protected  # RFC 9052 section 4.4
                signed = cbor2.dumps(["Signature1", header, b"", payload])
                return Finished(message_format, protected, unprotected, payload, signed, signature)
    return None


def _untagged(message: object) -> object:
    """Returns what a message is without its tags: of a CWT before one of COSE, or of COSE_Sign1."""
    match message:
        case cbor2.CBORTag(tag=61, value=cbor2.CBORTag() as inner):
            message = inner
    match message:
        case cbor2.CBORTag(tag=18, value=inner):
            return inner
    return message


def _map_of(data: bytes, what: str) -> Mapping[Any, Any]:
    try:
        value = cbor.load(data, _MOST_DEPTH, any_names=True)
    except cbor.CborError as error:
        raise MessageError(f"its {what} is not one CBOR map: it has {error}") from None
    if not isinstance(value, Mapping):
        raise MessageError(f"its {what} is not a CBOR map")
    return value


def _jose(protected: bytes, message_format: Format) -> SigningHeader:
    try:
        header = json_object(protected)
    except PayloadError as error:
        raise MessageError(f"its header is not one JSON object: {error}") from None
    if "crit" in header:
        raise MessageError("its header has `crit`: its extensions are not supported")
    if "b64" in header:  # without `crit`, which RFC 7797 section 6 demands
        raise MessageError("its header has `b64`: payloads that are not Base64 are not supported")
    if message_format is Format.SHC and header.get("zip") != "DEF":
        raise MessageError("its header has not `zip` DEF, as that of each SMART Health Card")
    algorithm: Any = header.get("alg")
    kid = header.get("kid", "")
    if not isinstance(kid, str):
        raise MessageError("its header has a `kid` that is not text")
    return SigningHeader(_algorithm(algorithm, lambda: Algorithm(algorithm)), kid)


_jose_again = lru_cache(maxsize=1024)(_jose)  # what a key signs has the same header each time


def _cose(message: Finished) -> SigningHeader:
    header = _map_of(message.protected, "header") if message.protected else {}
    if 2 in header:
        raise MessageError("its header has `crit`: its extensions are not supported")
    unsigned = message.unprotected or {}
    if 2 in unsigned:  # RFC 9052 section 3.1
        raise MessageError("its header has `crit` where it is not signed, which nothing may have")
    # Each key has the algorithms of its kind, so that one which is not signed changes nothing.
    algorithm: Any = header.get(1, unsigned.get(1))
    kid = header.get(4, unsigned.get(4, b""))
    if not isinstance(kid, bytes):
        raise MessageError("its header has a key id that is not a byte string")
    return SigningHeader(_algorithm(algorithm, lambda: _BY_COSE[algorithm]), kid)


def _algorithm(value: object, read: Callable[[], Algorithm]) -> Algorithm:
    try:
        return read()
    except (KeyError, TypeError, ValueError):
        shown = value if isinstance(value, int) else repr(value)[:32]
        names = ", ".join(Algorithm)
        raise MessageError(f"its algorithm is {shown}: it must be one of {names}") from None


def _base64url(text: bytes) -> bytes:
    return base64.urlsafe_b64decode(text + b"=" * (-len(text) % 4))

"""What a forger makes of a signed message: copies with one part changed, the rest as it was.

A copy can be read as well as the message: only its signature, or a digest, tells them apart.
"""

import base64
import json
import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import cbor2

from signer.formats import base45, hcert, shc


class Signed(NamedTuple):
    """What a caller gave, and what the appliance made of it."""

    payload: bytes
    made: bytes


Change = Callable[[Any], Any]
_DETACHED = {"MESSAGE", "DIGEST", "CMS", "CMS_DIGEST", "TIMESTAMP"}
"""Formats that do not hold what they sign."""


def forgeries(message_format: str, signed: Signed) -> dict[str, Signed]:
    """Returns the copies by what was changed: header, payload, signature, document."""
    copies = {
        name: Signed(signed.payload, change(signed.made))
        for name, change in _CHANGES[message_format].items()
    }
    if message_format in _DETACHED:
        copies["document"] = Signed(signed.payload + b"x", signed.made)
    assert signed not in copies.values()
    return copies


def _flipped(data: bytes) -> bytes:
    """One bit of the last byte but one is another: so S of ECDSA in DER is as long as it was."""
    return data[:-2] + bytes([data[-2] ^ 1]) + data[-1:]


# --- JOSE -----------------------------------------------------------------------------------------


def _jws(header: Change, payload: Change, signature: Change) -> Callable[[bytes], bytes]:
    def change(token: bytes) -> bytes:
        parts = [base64.urlsafe_b64decode(part + b"==") for part in token.split(b".")]
        changed = (header(parts[0]), payload(parts[1]), signature(parts[2]))
        return b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in changed)

    return change


def _spaced(document: bytes) -> bytes:
    """The same JSON with other white space."""
    return json.dumps(json.loads(document), indent=1).encode()


def _same(value: Any) -> Any:
    return value


def _repacked(payload: bytes) -> bytes:
    card = zlib.decompress(payload, -zlib.MAX_WBITS)
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(_spaced(card)) + packer.flush()


# --- COSE -----------------------------------------------------------------------------------------


def _cose(header: Change, payload: Change, signature: Change) -> Callable[[bytes], bytes]:
    def change(message: bytes) -> bytes:
        protected, unprotected, content, made = cbor2.loads(message).value
        parts = [header(protected), unprotected, payload(content), signature(made)]
        return cbor2.dumps(cbor2.CBORTag(18, parts))

    return change


def _turned(protected: bytes) -> bytes:
    """The same header in another order."""
    return cbor2.dumps(dict(reversed(cbor2.loads(protected).items())))


def _older(content: bytes) -> bytes:
    """The same certificate of a person with another date of birth."""
    claims = cbor2.loads(content)
    claims[-260][1]["dob"] = "1901-01-01"
    return cbor2.dumps(claims)


def _text(change: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    """The change of a COSE_Sign1, in the text of an HCERT."""

    def changed(text: bytes) -> bytes:
        return hcert.text(change(zlib.decompress(base45.decode(text.removeprefix(hcert.PREFIX)))))

    return changed


# --- CMS ------------------------------------------------------------------------------------------

_SIGNING_TIME = bytes.fromhex("06092a864886f70d010905310f170d")  # RFC 5652 section 11.3
_GENERALIZED_TIME = b"\x18\x0f"


def _earlier(head: bytes) -> Callable[[bytes], bytes]:
    """The time after ``head``, in its first place, is of another second."""

    def change(message: bytes) -> bytes:
        end = message.index(b"Z", message.index(head) + len(head)) - 1
        digit = b"%d" % ((int(message[end : end + 1]) + 1) % 10)
        return message[:end] + digit + message[end + 1 :]

    return change


_JWS = {
    "header": _jws(_spaced, _same, _same),
    "payload": _jws(_same, _spaced, _same),
    "signature": _jws(_same, _same, _flipped),
}
_COSE = {
    "header": _cose(_turned, _same, _same),
    "payload": _cose(_same, lambda content: content + b"x", _same),
    "signature": _cose(_same, _same, _flipped),
}
_RAW = {"signature": _flipped}
_CMS = {"header": _earlier(_SIGNING_TIME), "signature": _flipped}
_CHANGES: Mapping[str, Mapping[str, Callable[[bytes], bytes]]] = {
    "MESSAGE": _RAW,
    "DIGEST": _RAW,
    "JWS": _JWS,
    "COSE_SIGN1": _COSE,
    "HCERT": {
        name: _text(change)
        for name, change in {**_COSE, "payload": _cose(_same, _older, _same)}.items()
    },
    "CMS": _CMS,
    "CMS_DIGEST": _CMS,
    "TIMESTAMP": {**_CMS, "payload": _earlier(_GENERALIZED_TIME)},
    "SHC": {
        name: lambda card, change=change: shc.text(change(shc.jws_of(card)))  # type: ignore[misc]
        for name, change in {**_JWS, "payload": _jws(_same, _repacked, _same)}.items()
    },
}

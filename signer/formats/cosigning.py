"""Co-signing: a health certificate is signed only beside a facility's signed record of the same.

The record is a compact JWS. Which keys count, the caller of this module knows; what of the
record the certificate must repeat, the policy says.
"""

from collections.abc import Mapping
from typing import Any

from signer.format_terms import Cosigned
from signer.formats.finished import finished_jws
from signer.formats.payloads import MessageError, PayloadError, denied, json_object

_ABSENT = object()


def check(record: bytes, cosigned: Cosigned, document: Mapping[str, Any]) -> None:
    """Raises PayloadError if a signed record does not stand for a certificate."""
    members = _record(record, cosigned)
    for path, name in cosigned.terms.members.items():
        value, theirs = _at(document, path), _at(members, name)
        if theirs is _ABSENT or type(value) is not type(theirs) or value != theirs:
            raise _refused(cosigned, f"{path} is not {name} of the signed record")


def _record(record: bytes, cosigned: Cosigned) -> Mapping[str, Any]:
    """Returns the members of a record whose signature holds."""
    if not record:
        raise _refused(cosigned, "the payload has no signed record: send it in cosignatures")
    message = finished_jws(record)
    if message is None:
        raise _refused(cosigned, "the signed record is not a compact JWS")
    try:
        header = message.header()
    except MessageError as error:
        raise _refused(cosigned, f"the signed record cannot be read: {error}") from None
    cosigner = cosigned.find(str(header.kid))
    if isinstance(cosigner, str):
        raise _refused(cosigned, f"the signed record does not count: {cosigner}")
    if header.algorithm is not cosigner.algorithm or not cosigner.correct(
        message.signed, message.signature
    ):
        raise _refused(cosigned, "the signature of the record is wrong")
    try:
        return json_object(message.payload)
    except PayloadError as error:
        raise _refused(cosigned, f"the signed record cannot be read: {error}") from None


def _refused(cosigned: Cosigned, text: str) -> PayloadError:
    return denied(cosigned.terms.rule, f"rule cosigning: {text}")


def _at(document: object, path: str) -> object:
    """Returns the value at a dotted path, in lists by their index; _ABSENT if there is none."""
    value: Any = document
    for part in path.split("."):
        if isinstance(value, Mapping):
            value = value.get(part, _ABSENT)
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            return _ABSENT
    return value

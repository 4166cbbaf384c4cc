"""Converts between the messages of the API and the values of the model.

The requests for signatures are read from bytes: items are counted before they are kept.
"""

from collections.abc import Iterator, Mapping, Sequence

from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import code_pb2, error_details_pb2, status_pb2

from signer.errors import CallError, Failure, Reason, invalid
from signer.format_terms import Handles
from signer.keys.wrapping_use import WrappingUse
from signer.model import MAX_BATCH_ITEMS, Format, KeyState, KeyVersion
from signer.v1 import keys_pb2, signing_pb2

DOMAIN = "signer.v1"
"""``ErrorInfo.domain`` of all our errors."""
MAX_VIOLATIONS = 10
MAX_VIOLATION_BYTES = 200
"""Bytes of a path, and of its description. Clients turn trailers beyond 8 KiB into
RESOURCE_EXHAUSTED, and texts of a policy can have any length.
"""
DEFAULT_PAGE = 100
LARGEST_PAGE = 1000
PAGE_BYTES = 1024 * 1024
"""A page ends after the entry that passes this size: entries can be long."""

FORMATS: Mapping[int, Format] = {
    signing_pb2.Format.Value(f"FORMAT_{each.name}"): each for each in Format
}

_BATCH = 2  # the number of the field of SignStreamRequest
UNCOUNTED_BYTES = 128 * 1024
"""A message up to this length is read without counting: it takes a few milliseconds."""
_LONGEST_NUMBER = 10  # bytes of a varint
_PAYLOAD, _RECORD = 0x1A, 0x2A  # the tags of payloads and signed records, fields 3 and 5
_OTHER_FIELDS = 64  # beside the payloads: those of the message, and of later versions


def call_status(error: CallError, call_id: str = "") -> status_pb2.Status:
    """Returns the google.rpc.Status of a refused call, with exactly one ErrorInfo.

    Its metadata has the ``call_id`` under which the log has the call.
    """
    metadata = {**error.metadata, "call_id": call_id} if call_id else error.metadata
    status = _status(error.reason, error.message, metadata, error.retry_after)
    if error.violations:
        bad = error_details_pb2.BadRequest()
        for each in error.violations[:MAX_VIOLATIONS]:
            bad.field_violations.add(field=_short(each.field), description=_short(each.description))
        status.details.add().Pack(bad)
    return status


def item_status(failure: Failure) -> status_pb2.Status:
    """Returns the google.rpc.Status of a failed item; metadata has its rule and its member."""
    named = {"rule": failure.rule, "member": failure.member}
    metadata = {name: value for name, value in named.items() if value}
    return _status(failure.reason, failure.message, metadata, failure.retry_after)


def revocation(handles: Sequence[Handles]) -> signing_pb2.RevocationHandles:
    """Returns the handles of certificates as columns."""
    uvcis, countries, signatures = zip(*handles, strict=True)
    return signing_pb2.RevocationHandles(
        uvci=b"".join(uvcis), country_uvci=b"".join(countries), signature=b"".join(signatures)
    )


def _status(
    reason: Reason, message: str, metadata: Mapping[str, str], retry_after: float | None
) -> status_pb2.Status:
    status = status_pb2.Status(code=reason.code, message=message)
    info = error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN, metadata=metadata)
    status.details.add().Pack(info)
    if retry_after is not None:
        hint = error_details_pb2.RetryInfo()
        hint.retry_delay.FromMilliseconds(max(1, round(retry_after * 1000)))
        status.details.add().Pack(hint)
    return status


def _short(text: str) -> str:
    data = text.encode()
    if len(data) <= MAX_VIOLATION_BYTES:
        return text
    return data[: MAX_VIOLATION_BYTES - 3].decode(errors="ignore") + "..."


def code_name(code: int) -> str:
    """Returns the name of a gRPC code, for metrics and logs."""
    return str(code_pb2.Code.Name(code))


def key_version(
    version: KeyVersion, state: KeyState, *, primary: bool = False
) -> keys_pb2.KeyVersion:
    """Returns a version as the API shows it, in its state at this time."""
    return keys_pb2.KeyVersion(
        name=version.name,
        algorithm=f"ALGORITHM_{version.algorithm.name}",
        state=f"KEY_STATE_{state}",
        public_key=version.spki,
        certificate=version.certificate or b"",
        kid=version.kid,
        jwk_thumbprint=version.thumbprint,
        create_time=timestamp(version.created),
        activate_time=timestamp(version.activate_at),
        sign_until_time=timestamp(version.sign_until),
        deactivate_time=timestamp(version.deactivate_at),
        destroy_time=timestamp(version.destroy_at),
        primary=primary,
        compromised=version.compromised,
    )


def wrapping_key(use: WrappingUse) -> keys_pb2.WrappingKey:
    """Returns a wrapping key as the API shows it."""
    return keys_pb2.WrappingKey(
        id=use.id,
        cka_id=use.cka_id,
        create_time=timestamp(use.created),
        tokens=use.tokens,
        newest_on=use.newest_on,
        destroyed=use.destroyed,
        key_versions=use.versions,
    )


def bad_token() -> CallError:
    """Returns the error of a page token that does not belong to the list."""
    text = "is not a page token of this list: send next_page_token of the previous page"
    return invalid("page_token", text)


def page_size(requested: int) -> int:
    """Returns the number of entries on a page; raises CallError."""
    if not 0 <= requested <= LARGEST_PAGE:
        raise invalid("page_size", f"is {requested}, expected 0 to {LARGEST_PAGE}")
    return requested or DEFAULT_PAGE


def timestamp(seconds: float | None) -> Timestamp | None:
    """Returns seconds since the epoch as the API's message; None for None."""
    if seconds is None:
        return None
    moment = Timestamp()
    moment.FromNanoseconds(round(seconds * 1000) * 1_000_000)
    return moment


# --- requests for signatures, from bytes -----------------------------------------------------


def read_batch_request(message: bytes) -> signing_pb2.SignBatchRequest:
    """Reads a message; raises DecodeError, and CallError for more items than any batch has.

    4 MiB of empty payloads are two million items, which would take 100 MB when read.
    """
    if len(message) > UNCOUNTED_BYTES:
        _count(message, 0, len(message))
    return signing_pb2.SignBatchRequest.FromString(message)


def read_stream_request(message: bytes) -> signing_pb2.SignStreamRequest:
    """Does so for a request of a stream."""
    if len(message) > UNCOUNTED_BYTES:
        for number, start, end in _fields(message, 0, len(message)):
            if number == _BATCH:
                _count(message, start, end)
    return signing_pb2.SignStreamRequest.FromString(message)


def _count(message: bytes, at: int, end: int) -> None:
    """Raises CallError if the batch in these bytes has more items than any may have.

    These are its payloads, and the signed records beside them.
    """
    left = {True: MAX_BATCH_ITEMS + _OTHER_FIELDS, False: MAX_BATCH_ITEMS + _OTHER_FIELDS}
    while at < end:
        is_payload = message[at] == _PAYLOAD
        left[is_payload] -= 1
        if left[is_payload] < 0:
            field = "payloads" if is_payload else "cosignatures"
            raise invalid(
                field, f"has more than {MAX_BATCH_ITEMS} items, the limit everywhere: split it"
            )
        at = _end_of_field(message, at)


def _end_of_field(message: bytes, at: int) -> int:
    """Returns where a field ends; raises DecodeError for other bytes.

    A batch has thousands of payloads, of which most have a length of one or two bytes: these
    are passed without more calls, or their batch would hold the event loop for milliseconds.
    """
    if message[at] in {_PAYLOAD, _RECORD} and at + 2 < len(message):
        length, high = message[at + 1], message[at + 2]
        if length < 0x80:
            return at + 2 + length
        if high < 0x80:
            return at + 3 + (length & 0x7F | high << 7)
    return _field(message, at)[2]


def _fields(message: bytes, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yields number and bounds of each field. Raises DecodeError for other bytes."""
    while at < end:
        number, start, at = _field(message, at)
        yield number, start, min(at, end)


def _field(message: bytes, at: int) -> tuple[int, int, int]:
    """Returns number and bounds of the field that begins here; raises DecodeError.

    Protocol Buffers' encoding: a tag (number, and kind in the low 3 bits), then a varint
    (kind 0), 8 bytes (1), a length and so many bytes (2), or 4 bytes (5). Groups (3 and 4),
    which our messages do not have, could hide fields.
    """
    tag, start = _varint(message, at)
    match tag & 7:
        case 0:
            _, end = _varint(message, start)
        case 1:
            end = start + 8
        case 2:
            length, start = _varint(message, start)
            end = start + length
        case 5:
            end = start + 4
        case _:
            raise DecodeError("a group")
    return tag >> 3, start, end


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """Returns the number that begins at ``at``, and where it ends."""
    value = 0
    for shift, byte in enumerate(message[at : at + _LONGEST_NUMBER]):
        value |= (byte & 0x7F) << 7 * shift
        if byte < 0x80:
            return value, at + shift + 1
    raise DecodeError("a number that does not end")

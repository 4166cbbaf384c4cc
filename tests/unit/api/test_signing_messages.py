"""Items are counted in the bytes of a message, before they are kept."""

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from signer.api.signing_messages import UNCOUNTED_BYTES, read_batch_request, read_stream_request
from signer.errors import CallError
from signer.model import MAX_BATCH_ITEMS
from signer.v1.signing_pb2 import SignBatchRequest, SignStreamRequest


def batch(items: int, payload: bytes = b"") -> SignBatchRequest:
    return SignBatchRequest(
        key="k", format="FORMAT_MESSAGE", payloads=[payload] * items, request_id="r"
    )


@pytest.mark.parametrize("payload", [bytes(100), bytes(300)])
def test_as_many_as_allowed_are_read_and_many_more_are_refused(payload: bytes) -> None:
    allowed, more = batch(MAX_BATCH_ITEMS, payload), batch(MAX_BATCH_ITEMS + 65, payload)
    assert len(allowed.SerializeToString()) > UNCOUNTED_BYTES
    assert read_batch_request(allowed.SerializeToString()) == allowed
    stream = SignStreamRequest(tag=7, batch=allowed)
    stream.timeout.FromSeconds(3)
    assert read_stream_request(stream.SerializeToString()) == stream
    with pytest.raises(CallError) as caught:
        read_batch_request(more.SerializeToString())
    assert caught.value.violations[0].field == "payloads"
    with pytest.raises(CallError):
        read_stream_request(SignStreamRequest(tag=7, batch=more).SerializeToString())


def test_two_million_empty_payloads_are_refused_in_every_form() -> None:
    empty = b"\x1a\x00" * (2 << 20)
    group = b"\x0b" + empty + b"\x0c"
    long_tag = b"\x9a\x80\x00\x00" * (1 << 20)
    for message in (empty, long_tag):
        with pytest.raises(CallError):
            read_batch_request(message)
    for message in (group, b"\xff" * UNCOUNTED_BYTES * 2):
        with pytest.raises(DecodeError):
            read_batch_request(message)


def test_a_payload_full_of_the_tag_is_one_item() -> None:
    asked = batch(1, b"\x1a\x00" * 100_000)
    assert read_batch_request(asked.SerializeToString()) == asked


@given(st.binary(max_size=200), st.integers(0, 60))
def test_other_bytes_are_refused_or_read_as_protobuf_does(noise: bytes, at: int) -> None:
    message = noise[:at] + batch(1, bytes(UNCOUNTED_BYTES)).SerializeToString() + noise[at:]
    try:
        wanted: SignBatchRequest | None = SignBatchRequest.FromString(message)
    except DecodeError:
        wanted = None
    try:
        read = read_batch_request(message)
    except CallError:
        pass  # noise can make more fields of the zeros than any batch has
    except DecodeError:
        # A group is refused, although protobuf skips it.
        assert wanted is None or any(byte & 7 in {3, 4} for byte in noise)
    else:
        assert read == wanted

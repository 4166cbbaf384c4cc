"""Items are counted in the bytes of a message, before they are kept."""

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from signer.api.signing_messages import read_batch_request, read_stream_request
from signer.errors import CallError
from signer.policy.document import MAX_BATCH_ITEMS
from signer.v1.signing_pb2 import SignBatchRequest, SignStreamRequest


def batch(items: int, payload: bytes = b"") -> SignBatchRequest:
    return SignBatchRequest(
        key="k", format="FORMAT_MESSAGE", payloads=[payload] * items, request_id="r"
    )


@pytest.mark.parametrize("payload", [b"", b"\x1a" * 3, bytes(300)])
def test_as_many_as_allowed_are_read_and_one_more_is_refused(payload: bytes) -> None:
    allowed, one_more = batch(MAX_BATCH_ITEMS, payload), batch(MAX_BATCH_ITEMS + 1, payload)
    assert read_batch_request(allowed.SerializeToString()) == allowed
    stream = SignStreamRequest(tag=7, batch=allowed)
    stream.timeout.FromSeconds(3)
    assert read_stream_request(stream.SerializeToString()) == stream
    with pytest.raises(CallError) as caught:
        read_batch_request(one_more.SerializeToString())
    assert caught.value.violations[0].field == "payloads"
    with pytest.raises(CallError):
        read_stream_request(SignStreamRequest(tag=7, batch=one_more).SerializeToString())


def test_a_payload_full_of_the_tag_is_one_item() -> None:
    asked = batch(1, b"\x1a\x00" * 100_000)
    assert read_batch_request(asked.SerializeToString()) == asked


@given(st.binary(max_size=200), st.integers(0, 60))
def test_other_bytes_are_refused_or_read_as_protobuf_does(noise: bytes, at: int) -> None:
    tags = b"\x1a" * (MAX_BATCH_ITEMS + 1)
    message = noise[:at] + tags + noise[at:]
    try:
        wanted: SignBatchRequest | None = SignBatchRequest.FromString(message)
    except DecodeError:
        wanted = None
    try:
        read = read_batch_request(message)
    except (DecodeError, CallError):
        assert wanted is None or len(wanted.payloads) > MAX_BATCH_ITEMS
    else:
        assert read == wanted

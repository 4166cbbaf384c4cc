import random
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from signer.formats import deflate

RANDOM = random.Random(1).randbytes(deflate.MAX_LENGTH)


@given(st.binary(max_size=600))
def test_any_inflater_reads_it(message: bytes) -> None:
    stream = deflate.compress(message)
    assert zlib.decompress(stream) == message
    assert len(stream) <= len(message) + deflate.OVERHEAD


@pytest.mark.parametrize("length", [0, 1, 447, 448, 449, 4095, 4096, 40_000, deflate.MAX_LENGTH])
@pytest.mark.parametrize("source", [RANDOM, b"abc" * 22_000], ids=["random", "repeating"])
def test_bound_at_all_lengths(length: int, source: bytes) -> None:
    message = source[:length]
    stream = deflate.compress(message)
    assert zlib.decompress(stream) == message
    assert len(stream) <= length + deflate.OVERHEAD


def test_long_messages_are_compressed() -> None:
    assert len(deflate.compress(b"health certificate " * 50)) < 100


def test_header_names_the_full_window() -> None:
    # Published verifiers inflate only what begins with 0x78.
    for message in (b"", RANDOM[:300], RANDOM[:3000], bytes(3000)):
        stream = deflate.compress(message)
        assert stream[0] == 0x78
        assert int.from_bytes(stream[:2], "big") % 31 == 0


def test_calls_do_not_share_state() -> None:
    first = deflate.compress(b"a" * 1000)
    deflate.compress(b"b" * 1000)
    assert deflate.compress(b"a" * 1000) == first

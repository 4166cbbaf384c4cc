import pytest
from hypothesis import given
from hypothesis import strategies as st

from signer.client._cutting import BATCH_BYTES, cut, fits, output_bound
from signer.model import Format

FORMATS = list(Format)


@given(
    sizes=st.lists(st.integers(0, 1_500_000), max_size=30),
    message_format=st.sampled_from(FORMATS),
    batch_items=st.integers(1, 7),
)
def test_every_payload_once_in_order_and_within_all_limits(
    sizes: list[int], message_format: Format, batch_items: int
) -> None:
    payloads = [bytes(size) for size in sizes]
    batches = list(cut(payloads, message_format, batch_items))
    assert [p for batch in batches for p in batch.payloads] == payloads
    assert [batch.start for batch in batches] == [
        sum(len(b.payloads) for b in batches[:n]) for n in range(len(batches))
    ]
    for batch in batches:
        assert 1 <= len(batch.payloads) <= batch_items
        if len(batch.payloads) > 1:
            assert sum(len(p) for p in batch.payloads) <= BATCH_BYTES
            outputs = sum(output_bound(len(p), message_format) for p in batch.payloads)
            assert outputs <= BATCH_BYTES


@given(sizes=st.lists(st.integers(0, 2_000), min_size=1, max_size=60))
def test_batches_are_as_full_as_the_item_limit_allows(sizes: list[int]) -> None:
    batches = list(cut([bytes(s) for s in sizes], Format.MESSAGE, 10))
    assert [len(b.payloads) for b in batches[:-1]] == [10] * (len(batches) - 1)


@pytest.mark.parametrize("message_format", FORMATS)
def test_what_does_not_fit_stands_alone(message_format: Format) -> None:
    large = bytes(BATCH_BYTES + 1)
    assert not fits(len(large), message_format)
    batches = list(cut([b"a", large, b"b"], message_format, 10))
    assert [len(b.payloads) for b in batches] == [1, 1, 1]


def test_reads_one_payload_beyond_a_full_batch_and_no_more() -> None:
    read = 0

    def endless() -> object:
        nonlocal read
        while True:
            read += 1
            yield b"x"

    batches = cut(endless(), Format.JWS, 5)  # type: ignore[arg-type]
    next(batches)
    assert read == 6

from typing import Any

import cbor2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from signer.audit.format.canonical import CanonicalError, decode, encode

# The examples of RFC 8949 appendix A that such values can have.
EXAMPLES: list[tuple[Any, str]] = [
    (0, "00"),
    (23, "17"),
    (24, "1818"),
    (1000, "1903e8"),
    (18446744073709551615, "1bffffffffffffffff"),
    (-18446744073709551616, "3bffffffffffffffff"),
    (-1000, "3903e7"),
    (False, "f4"),
    (None, "f6"),
    (b"\x01\x02\x03\x04", "4401020304"),
    ("\u6c34", "63e6b0b4"),
    ([1, [2, 3], [4, 5]], "8301820203820405"),
    ({"a": 1, "b": [2, 3]}, "a26161016162820203"),
]


@pytest.mark.parametrize(("value", "encoded"), EXAMPLES)
def test_examples_of_the_standard(value: Any, encoded: str) -> None:
    assert encode(value, 2).hex() == encoded
    assert decode(bytes.fromhex(encoded), 2) == value


def test_the_shorter_name_comes_first_and_then_the_lower() -> None:
    names = ["aa", "b", "Z", "a" * 24, "", "ab"]

    decoded = decode(encode(dict.fromkeys(names), 1), 1)
    assert list(decoded) == ["", "Z", "b", "aa", "ab", "a" * 24]


@pytest.mark.parametrize("tag", [0, 1, 2, 4, 28, 35, 256, 258, 40000])
def test_tags_are_refused_before_anything_is_made_of_them(tag: int) -> None:
    for content in ("x", 1, b"x", [1, 2]):
        with pytest.raises(CanonicalError):
            decode(cbor2.dumps(cbor2.CBORTag(tag, content)), 4)


@pytest.mark.parametrize("encoded", ["9f01ff", "bf616101ff", "7f6161ff", "5f4101ff"])
def test_indefinite_lengths_are_refused(encoded: str) -> None:
    with pytest.raises(CanonicalError):
        decode(bytes.fromhex(encoded), 4)


def test_depth_counts_maps_and_lists() -> None:
    value = {"a": [{"b": 1}]}

    assert decode(encode(value, 3), 3) == value
    with pytest.raises(CanonicalError):
        encode(value, 2)
    with pytest.raises(CanonicalError):
        decode(encode(value, 3), 2)


values = st.recursive(
    st.integers(-(1 << 64), (1 << 64) - 1) | st.floats() | st.text(max_size=9) | st.none(),
    lambda v: st.lists(v, max_size=4) | st.dictionaries(st.text(max_size=3) | st.binary(), v),
    max_leaves=6,
)


@settings(deadline=None)
@given(values, st.booleans(), st.data())
def test_what_is_read_is_what_would_be_written(
    value: Any, canonical: bool, data: st.DataObject
) -> None:
    written = bytearray(cbor2.dumps(value, canonical=canonical))
    if data.draw(st.booleans()):
        written[data.draw(st.integers(0, len(written) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        read = decode(bytes(written), 8)
    except CanonicalError:
        return
    assert encode(read, 8) == written


@pytest.mark.parametrize(
    "encoded",
    [
        "f90000",  # a float
        "fb3ff8000000000000",
        "f7",  # undefined
        "f0",  # a simple value
        "a1416101",  # a name of bytes
        "a162c3a901",  # a name that is not ASCII
        "a2616201616102",  # another order
        "a262616101616202",  # the longer name first
        "1817",  # a long form
        "0000",  # a byte behind it
    ],
)
def test_another_value_or_another_form_is_refused_at_any_depth(encoded: str) -> None:
    for data in (encoded, "81" + encoded, "a16161" + encoded, "a16161f6" + encoded):
        with pytest.raises(CanonicalError):
            decode(bytes.fromhex(data), 4)


def test_what_is_written_is_read() -> None:
    for value, encoded in EXAMPLES:
        assert encode(decode(bytes.fromhex(encoded), 2), 2).hex() == encoded, value

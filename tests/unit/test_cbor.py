import itertools
import math
import struct
from typing import Any

import cbor2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from signer import cbor
from signer.cbor import CborError, decode_record, encode_flat, encode_record

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**64) + 1, 2**64 - 1)
    | st.text()
    | st.binary()
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@pytest.mark.parametrize("count", [0, 23, 24, 255, 256, 65_535, 65_536, 2**32 - 1, 2**32])
def test_head(count: int) -> None:
    assert cbor.head(0, count) == cbor2.dumps(count)


@given(st.binary(max_size=300))
def test_byte_string(data: bytes) -> None:
    assert cbor.byte_string(data) == cbor2.dumps(data)


@given(values)
def test_deterministic_is_the_canonical_encoding(value: object) -> None:
    # For text names the older length-first order and that of RFC 8949 are the same.
    assert cbor.encode_deterministic(value) == cbor2.dumps(value, canonical=True)


@given(st.dictionaries(st.text(), st.none()))
def test_names_are_sorted_by_their_encoded_bytes(value: dict[str, None]) -> None:
    encoded = cbor2.loads(cbor.encode_deterministic(value))
    names = [cbor2.dumps(name) for name in encoded]
    assert names == sorted(names)


def test_names_of_more_than_ascii() -> None:
    # Two bytes each, c3a9 after 7a7a: shorter in characters, but not before.
    assert cbor.encode_deterministic({"é": 1, "zz": 2}) == b"\xa2\x62zz\x02\x62\xc3\xa9\x01"


def test_order_is_the_callers() -> None:
    value = {"b": {"d": 1, "c": 2}, "a": 3}
    assert list(cbor2.loads(cbor.encode(value, cbor.as_given))) == ["b", "a"]
    assert cbor.encode(value, cbor.as_given) == cbor2.dumps(value)


def test_halves_stay_halves() -> None:
    for half in range(1 << 16):
        (value,) = struct.unpack(">e", half.to_bytes(2, "big"))
        if math.isfinite(value):
            assert cbor.encode_deterministic(value) == b"\xf9" + half.to_bytes(2, "big")


def test_floats_keep_value_and_sign() -> None:
    for value, width in ((1.5, 3), (-0.0, 3), (100000.5, 5), (0.1, 9), (1e300, 9)):
        encoded = cbor.encode_deterministic([value])
        assert len(encoded) == 1 + width
        assert repr(cbor2.loads(encoded)) == repr([value])


REFUSED: dict[str, Any] = {
    "bytes as name": {b"a": 1},
    "names of two kinds": {"a": 1, b"b": 2},
    "integer as name": {1: 1},
    "bignum": {"a": 2**64},
    "negative bignum": {"a": -(2**64)},
    "nan": {"a": math.nan},
    "infinity": [math.inf],
    "undefined": {"a": cbor2.undefined},
    "simple value": {"a": cbor2.CBORSimpleValue(16)},
    "tag": {"a": cbor2.CBORTag(1, 1)},
    "half a surrogate pair": {"a": "\ud800"},
    "half a surrogate pair in a name": {"\udfff": 1},
}


@pytest.mark.parametrize("value", REFUSED.values(), ids=REFUSED.keys())
def test_what_is_not_carried(value: object) -> None:
    with pytest.raises(CborError):
        cbor.encode_deterministic(value)


def test_every_permutation_encodes_the_same() -> None:
    members = [("b", 1), ("a", {"z": 1, "y": 2}), ("aa", [])]
    encodings = {
        cbor.encode_deterministic(dict(order)) for order in itertools.permutations(members)
    }
    assert len(encodings) == 1


# Records: each value has one encoding

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
    assert encode_record(value, 2).hex() == encoded
    assert decode_record(bytes.fromhex(encoded), 2) == value


def test_the_shorter_name_comes_first_and_then_the_lower() -> None:
    names = ["aa", "b", "Z", "a" * 24, "", "ab"]

    decoded = decode_record(encode_record(dict.fromkeys(names), 1), 1)
    assert list(decoded) == ["", "Z", "b", "aa", "ab", "a" * 24]


@pytest.mark.parametrize("tag", [0, 1, 2, 4, 28, 35, 256, 258, 40000])
def test_tags_are_refused_before_anything_is_made_of_them(tag: int) -> None:
    for content in ("x", 1, b"x", [1, 2]):
        with pytest.raises(CborError):
            decode_record(cbor2.dumps(cbor2.CBORTag(tag, content)), 4)


@pytest.mark.parametrize("encoded", ["9f01ff", "bf616101ff", "7f6161ff", "5f4101ff"])
def test_indefinite_lengths_are_refused(encoded: str) -> None:
    with pytest.raises(CborError):
        decode_record(bytes.fromhex(encoded), 4)


def test_depth_counts_maps_and_lists() -> None:
    value = {"a": [{"b": 1}]}

    assert decode_record(encode_record(value, 3), 3) == value
    with pytest.raises(CborError):
        encode_record(value, 2)
    with pytest.raises(CborError):
        decode_record(encode_record(value, 3), 2)


record_values = st.recursive(
    st.integers(-(1 << 64), (1 << 64) - 1) | st.floats() | st.text(max_size=9) | st.none(),
    lambda v: st.lists(v, max_size=4) | st.dictionaries(st.text(max_size=3) | st.binary(), v),
    max_leaves=6,
)


@settings(deadline=None)
@given(record_values, st.booleans(), st.data())
def test_what_is_read_is_what_would_be_written(
    value: Any, canonical: bool, data: st.DataObject
) -> None:
    written = bytearray(cbor2.dumps(value, canonical=canonical))
    if data.draw(st.booleans()):
        written[data.draw(st.integers(0, len(written) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        read = decode_record(bytes(written), 8)
    except CborError:
        return
    assert encode_record(read, 8) == written


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
        with pytest.raises(CborError):
            decode_record(bytes.fromhex(data), 4)


def test_what_is_written_as_a_record_is_read() -> None:
    for value, encoded in EXAMPLES:
        assert encode_record(decode_record(bytes.fromhex(encoded), 2), 2).hex() == encoded, value


def test_only_few_and_short_names_are_kept_in_memory() -> None:
    before = cbor._kept_layout.cache_info().currsize
    for number in range(50):
        many = {f"name {number} {index}": 0 for index in range(cbor.KEPT_NAMES + 1)}
        long = {f"{number}" + "x" * cbor.KEPT_SIZE: 0}
        encoded = cbor2.loads(cbor.encode_deterministic(many))
        assert list(encoded) == sorted(many, key=lambda name: (len(name), name))
        assert cbor2.loads(cbor.encode_deterministic(long)) == long
    assert cbor._kept_layout.cache_info().currsize == before
    with pytest.raises(cbor.CborError, match="not text"):
        cbor.encode_deterministic({1: 2})


@given(st.lists(st.none() | st.binary() | st.text(st.characters(exclude_categories=["Cs"]))))
def test_a_flat_list_is_encoded_as_in_records(values: list[str | bytes | None]) -> None:
    assert encode_flat(values) == encode_record(values, 1)

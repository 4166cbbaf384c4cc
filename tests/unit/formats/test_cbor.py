from __future__ import annotations

import itertools
import math
import struct
from typing import Any

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from signer.errors import Reason
from signer.formats import cbor
from signer.formats.items import ItemError

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
    assert cbor.encode(value, cbor.deterministic) == cbor2.dumps(value, canonical=True)


@given(st.dictionaries(st.text(), st.none()))
def test_names_are_sorted_by_their_encoded_bytes(value: dict[str, None]) -> None:
    encoded = cbor2.loads(cbor.encode(value, cbor.deterministic))
    names = [cbor2.dumps(name) for name in encoded]
    assert names == sorted(names)


def test_names_of_more_than_ascii() -> None:
    # Two bytes each, c3a9 after 7a7a: shorter in characters, but not before.
    assert cbor.encode({"é": 1, "zz": 2}, cbor.deterministic) == b"\xa2\x62zz\x02\x62\xc3\xa9\x01"


def test_order_is_the_callers() -> None:
    value = {"b": {"d": 1, "c": 2}, "a": 3}
    assert list(cbor2.loads(cbor.encode(value, cbor.as_given))) == ["b", "a"]
    assert cbor.encode(value, cbor.as_given) == cbor2.dumps(value)


def test_halves_stay_halves() -> None:
    for half in range(1 << 16):
        (value,) = struct.unpack(">e", half.to_bytes(2, "big"))
        if math.isfinite(value):
            assert cbor.encode(value, cbor.deterministic) == b"\xf9" + half.to_bytes(2, "big")


def test_floats_keep_value_and_sign() -> None:
    for value, width in ((1.5, 3), (-0.0, 3), (100000.5, 5), (0.1, 9), (1e300, 9)):
        encoded = cbor.encode([value], cbor.deterministic)
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
    with pytest.raises(ItemError) as caught:
        cbor.encode(value, cbor.deterministic)
    assert caught.value.failure.reason is Reason.PAYLOAD_INVALID


def test_every_permutation_encodes_the_same() -> None:
    members = [("b", 1), ("a", {"z": 1, "y": 2}), ("aa", [])]
    encodings = {
        cbor.encode(dict(order), cbor.deterministic) for order in itertools.permutations(members)
    }
    assert len(encodings) == 1

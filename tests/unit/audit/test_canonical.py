from typing import Any

import cbor2
import pytest

from signer.audit.canonical import CanonicalError, decode, encode

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

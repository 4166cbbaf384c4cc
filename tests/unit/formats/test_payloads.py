import dataclasses
import io
import json
from collections.abc import Mapping
from typing import Any

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from signer.algorithms import Algorithm
from signer.errors import Reason
from signer.formats import payloads
from signer.formats.payloads import PayloadError

DEEPEST = payloads.MAX_DEPTH


def nested_json(depth: int) -> bytes:
    return b'{"a":' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}"


def nested_cbor(depth: int) -> bytes:
    return b"\xa1\x61a" + b"\x81" * (depth - 1) + b"\x01"


SECRET = "geheim"

BAD_JSON = {
    "nothing": b"",
    "list": b"[1]",
    "text": f'"{SECRET}"'.encode(),
    "number": b"7",
    "null": b"null",
    "cut": b'{"a":1',
    "two objects": b"{}{}",
    "trailing": f'{{"a":1}} {SECRET}'.encode(),
    "byte order mark": b"\xef\xbb\xbf{}",
    "utf-16": '{"a":1}'.encode("utf-16"),
    "utf-16 without mark": '{"a":1}'.encode("utf-16-le"),
    "latin-1": '{"a":"é"}'.encode("latin-1"),
    "surrogate in utf-8": b'{"a":"\xed\xa0\x80"}',
    "overlong": b'{"a":"\xc0\xaf"}',
    "duplicate": f'{{"{SECRET}":1,"{SECRET}":2}}'.encode(),
    "duplicate inside": b'{"a":[{"b":{"c":1,"c":1}}]}',
    "duplicate by escape": b'{"a":1,"\\u0061":2}',
    "half a surrogate pair": b'{"a":"\\ud83d"}',
    "the other half": b'{"a":["x\\uDE00"]}',
    "halves in the wrong order": b'{"a":"\\ude00\\ud83d"}',
    "halves as names": b'{"\\ud800":1,"\\ud801":2}',
    "nan": b'{"a":NaN}',
    "infinity": b'{"a":Infinity}',
    "minus infinity": b'{"a":-Infinity}',
    "infinite double": b'{"a":1e400}',
    "long integer": b'{"a":' + b"9" * 100_000 + b"}",
    "integer beyond 64 bits": b'{"a":18446744073709551616}',
    "single quotes": b"{'a':1}",
    "comment": b'{"a":1}//',
    "trailing comma": b'{"a":1,}',
    "control character": b'{"a":"\x01"}',
    "bad escape": b'{"a":"\\x"}',
    "leading zero": b'{"a":01}',
    "hexadecimal": b'{"a":0x1}',
    "bare fraction": b'{"a":.5}',
    "other digits": '{"a":\u0661}'.encode(),
    "deep": nested_json(DEEPEST + 1),
    "very deep": nested_json(100_000),
    "unclosed": b'{"a":' * 500_000,
}


@pytest.mark.parametrize("payload", BAD_JSON.values(), ids=BAD_JSON.keys())
def test_json_that_is_refused(payload: bytes) -> None:
    with pytest.raises(PayloadError) as caught:
        payloads.json_object(payload)
    assert caught.value.failure.reason is Reason.PAYLOAD_INVALID
    assert SECRET not in caught.value.failure.message
    assert len(caught.value.failure.message) <= 200


def test_a_byte_order_mark_is_named() -> None:
    with pytest.raises(PayloadError, match="begins with a byte order mark: leave it out"):
        payloads.json_object(BAD_JSON["byte order mark"])


@pytest.mark.parametrize(
    "payload",
    [
        b"{}",
        b' \r\n\t{ "a" : 1 } \n',
        b'{"a":18446744073709551615,"b":-18446744073709551615,"c":1.5e300}',
        '{"tên":"Nguyễn","😀":"\\ud83d\\ude00"}'.encode(),
        b'{"a":{"x":1},"b":{"x":1}}',
        nested_json(DEEPEST),
        json.dumps({"a": [[{}]] * 500}).encode(),  # many brackets, not deep
        b'{"a":"' + b"[{" * 500 + b'"}',
    ],
)
def test_json_that_is_read(payload: bytes) -> None:
    assert payloads.json_object(payload) == json.loads(payload)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.text()
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(st.dictionaries(st.text(), json_values), st.booleans())
def test_any_json_object_is_read(value: dict[str, Any], ascii_only: bool) -> None:
    payload = json.dumps(value, ensure_ascii=ascii_only).encode()
    assert payloads.json_object(payload) == value


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(payload: bytes) -> None:
    for read in (payloads.json_object, payloads.cbor_map):
        try:
            assert type(read(payload)) is dict
        except PayloadError as error:
            assert error.failure.reason is Reason.PAYLOAD_INVALID


@given(st.binary(min_size=1, max_size=60))
def test_any_bytes_inside_a_cbor_map(inner: bytes) -> None:
    payload = b"\xa1\x61a" + inner
    try:
        value = payloads.cbor_map(payload)
    except PayloadError:
        return
    stream = io.BytesIO(payload)
    assert repr(cbor2.load(stream)) == repr(value)
    assert stream.tell() == len(payload)


BAD_CBOR = {
    "nothing": b"",
    "list": b"\x80",
    "integer": b"\x01",
    "cut": b"\xa1\x61a",
    "trailing": b"\xa1\x61a\x01\x00",
    "second map": b"\xa0\xa0",
    "duplicate": b"\xa2\x61a\x01\x61a\x02",
    "duplicate inside": b"\xa1\x61a\x81\xa2\x61b\x01\x61b\x01",
    "duplicate in another form": b"\xa2\x61a\x01\x78\x01a\x02",
    "integer as key": b"\xa1\x01\x02",
    "list as key": b"\xa1\x80\x02",
    "not utf-8": b"\xa1\x61a\x61\xff",
    "break alone": b"\xa1\x61a\xff",
    "no break": b"\xbf\x61a\x01",
    "long map without content": b"\xbb\x7f" + b"\xff" * 7,
    "long list without content": b"\xa1\x61a\x9b\x7f" + b"\xff" * 7,
    "long text without content": b"\xa1\x61a\x7b\x7f" + b"\xff" * 7,
    "long bytes without content": b"\xa1\x61a\x5b\x7f" + b"\xff" * 7,
    "reserved length": b"\xa1\x61a\x1c",
    "deep": nested_cbor(DEEPEST + 1),
    "very deep": nested_cbor(100_000),
    "deep without lengths": b"\xbf\x61a" * 100_000,
}


@pytest.mark.parametrize("payload", BAD_CBOR.values(), ids=BAD_CBOR.keys())
def test_cbor_that_is_refused(payload: bytes) -> None:
    with pytest.raises(PayloadError) as caught:
        payloads.cbor_map(payload)
    assert caught.value.failure.reason is Reason.PAYLOAD_INVALID
    assert len(caught.value.failure.message) <= 200


@pytest.mark.parametrize("tag", [*range(300), 1004, 43000, 55799, 2**32, 2**64 - 1])
def test_no_tag_is_read(tag: int) -> None:
    for content in ("text", "2021-01-01", 1, [1, 2], b"\x01", {"a": 1}, "a*b"):
        value = cbor2.dumps(content)
        payload = b"\xa1\x61a" + cbor2.dumps(cbor2.CBORTag(tag, 0))[:-1] + value
        with pytest.raises(PayloadError):
            payloads.cbor_map(payload)


@pytest.mark.parametrize(
    "payload",
    [
        b"\xa0",
        b"\xbf\xff",
        b"\xbf\x61a\x9f\x01\x02\xff\x61b\x7f\x61x\x61y\xff\xff",
        nested_cbor(DEEPEST),
    ],
)
def test_cbor_that_is_read(payload: bytes) -> None:
    assert payloads.cbor_map(payload) == cbor2.loads(payload)


@pytest.mark.parametrize("algorithm", Algorithm)
def test_length_is_that_of_real_signatures(
    keys: Mapping[Algorithm, Any], algorithm: Algorithm
) -> None:
    key = keys[algorithm]
    assert payloads.signature_length(key.version) == len(key.sign(b"message"))


def test_a_pin_that_is_not_rsa_raises_type_error(keys: Mapping[Algorithm, Any]) -> None:
    version = dataclasses.replace(keys[Algorithm.ES256].version, algorithm=Algorithm.PS256)
    with pytest.raises(TypeError, match="not RSA"):
        payloads.signature_length(version)


def test_a_payload_of_too_many_values_is_refused_before_it_is_read() -> None:
    most = payloads.MAX_VALUES
    assert len(payloads.json_object(b'{"a":[' + b"1," * (most - 3) + b"1]}")["a"]) == most - 2
    with pytest.raises(payloads.PayloadError, match="more than 16384 members and list entries"):
        payloads.json_object(b'{"a":[' + b"1," * (most - 1) + b"1]}")
    with pytest.raises(payloads.PayloadError, match="more than"):
        payloads.json_object(b"[" * 250_000)

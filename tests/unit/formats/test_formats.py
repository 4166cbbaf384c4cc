"""What holds for every format: bounds, isolation, the same bytes for the same context."""

import json
from collections.abc import Callable, Mapping
from typing import Any

import cbor2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from signer import cbor
from signer.algorithms import Algorithm
from signer.errors import Reason
from signer.format_terms import FormatContext, PreparedBatch
from signer.formats import FORMATS, dcc, hcert
from signer.formats.payloads import signature_length
from signer.model import Format

Maker = Callable[..., FormatContext]

many = settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**64) + 1, 2**64 - 1)
    | st.text(max_size=30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from([0.1, 1e300, 1e-5]),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=15,
)


def compact(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def dcc_of(extra: dict[str, Any]) -> dict[str, Any]:
    return extra | {"ver": "1.3.0", "nam": {}, "dob": "", "v": [{"co": "VN"}]}


def bundle_of(extra: dict[str, Any]) -> dict[str, Any]:
    entry = {"fullUrl": "resource:0", "resource": {"resourceType": "Patient"}}
    return extra | {"resourceType": "Bundle", "type": "collection", "entry": [entry]}


certificates = st.dictionaries(st.text(max_size=5), json_values, max_size=5).map(
    lambda extra: dcc_of({"x-" + name: value for name, value in extra.items()})
)
dccs = certificates.flatmap(
    lambda value: st.sampled_from(
        [compact(value), cbor2.dumps(value), cbor2.dumps(value, indefinite_containers=True)]
    )
)
REQUEST = bytes.fromhex("3036 020101 3031300d06096086480165030402010500 0420")  # RFC 3161
good: Mapping[Format, st.SearchStrategy[bytes]] = {
    Format.DIGEST: st.binary(min_size=32, max_size=32),
    Format.MESSAGE: st.binary(),
    Format.JWS: st.dictionaries(st.text(max_size=5), json_values, max_size=5).map(compact),
    Format.COSE_SIGN1: st.binary(max_size=300),
    Format.HCERT: dccs,
    Format.CMS: st.binary(max_size=300),
    Format.CMS_DIGEST: st.binary(min_size=32, max_size=32),
    Format.TIMESTAMP: st.binary(min_size=32, max_size=32).map(lambda digest: REQUEST + digest),
    Format.SHC: st.dictionaries(st.text(max_size=5), json_values, max_size=5).map(
        lambda extra: compact(bundle_of({"x-" + name: value for name, value in extra.items()}))
    ),
}
bad: Mapping[Format, bytes] = {
    Format.DIGEST: b"short",
    Format.CMS_DIGEST: b"short",
    Format.TIMESTAMP: b"short",
    Format.JWS: b"[]",
    Format.HCERT: b'{"ver":"1"}',
    Format.SHC: b'{"resourceType":"Patient"}',
}


def finish(format_: Format, prepared: PreparedBatch, context: FormatContext) -> list[bytes]:
    size = signature_length(context.version)
    signatures = [
        b"" if i in prepared.failures else bytes([i + 1 & 0xFF or 1]) * size
        for i in range(len(prepared.to_sign))
    ]
    return FORMATS[format_].finish(prepared, signatures, context)


def test_every_format_is_offered() -> None:
    assert set(FORMATS) == set(Format)


@pytest.mark.parametrize("format_", Format)
@given(data=st.data())
@many
def test_max_output_is_an_upper_bound(context: Maker, format_: Format, data: st.DataObject) -> None:
    payloads = data.draw(st.lists(good[format_], max_size=4))
    algorithms = [
        Algorithm.ES256,
        *[Algorithm.PS256] * (format_ not in {Format.SHC, Format.TIMESTAMP}),
    ]
    algorithm = data.draw(st.sampled_from(algorithms))
    ctx = context(algorithm, stamping=format_ is Format.TIMESTAMP)
    prepared = FORMATS[format_].prepare(payloads, ctx)
    assert not prepared.failures
    outputs = finish(format_, prepared, ctx)
    assert all(outputs)
    assert sum(map(len, outputs)) <= FORMATS[format_].max_output(payloads, ctx)


GROWING = {
    "short floats": [0.1] * 1500,
    "exponents": [9e9, 1e22, 1.5e-7, -9e9] * 350,
    "lists of 256 names": [{f"n{i}": 0 for i in range(256)}] * 6,
    "lists of 256 bytes": [[0] * 256] * 30,
    "texts of 256 in 24 members": {"a" * 256 + str(i): "b" * 256 for i in range(24)},
    "lists of lists": [[[]] * 300] * 10,
    "texts of 256": ["a" * 256] * 50,
    "long text": "é" * 7000,
    "integers": [0, 23, 24, 255, 256, 65_535, 65_536, 2**32 - 1, 2**32, 2**64 - 1, -(2**64) + 1],
    "random": [f"{i * 2654435761 % 2**32:08x}" for i in range(1200)],
}


@pytest.mark.parametrize("value", GROWING.values(), ids=GROWING.keys())
@pytest.mark.parametrize("form", ["json", "definite", "indefinite"])
def test_bound_of_hcert_holds_where_cbor_grows(context: Maker, value: object, form: str) -> None:
    document = dcc_of({"x": value})
    if form == "json":
        # The shortest spellings of these floats.
        payload = compact(document).replace(b"9000000000.0", b"9e9").replace(b"1e+22", b"1e22")
    else:
        payload = cbor2.dumps(document, indefinite_containers=form == "indefinite")
    assert_growth_is_bounded(payload)
    ctx = context()
    prepared = FORMATS[Format.HCERT].prepare([payload], ctx)
    assert not prepared.failures
    (output,) = finish(Format.HCERT, prepared, ctx)
    assert len(output) <= FORMATS[Format.HCERT].max_output([payload], ctx)


def assert_growth_is_bounded(payload: bytes) -> None:
    # Before compression, which would hide it.
    encoded = cbor.encode_deterministic(dcc.read(payload).document)
    assert len(encoded) <= len(payload) + hcert._growth([payload])


@given(dccs)
def test_a_certificate_in_cbor_is_hardly_longer(payload: bytes) -> None:
    assert_growth_is_bounded(payload)


def test_bound_leaves_room_for_full_batches(context: Maker) -> None:
    payload = compact(dcc_of({"x": "a" * 350}))
    payloads = [payload] * 4096
    ctx = context()
    bound = FORMATS[Format.HCERT].max_output(payloads, ctx)
    assert bound < 4 << 20  # what an answer may be


@pytest.mark.parametrize("format_", Format)
@given(data=st.data())
@many
def test_same_context_same_bytes(context: Maker, format_: Format, data: st.DataObject) -> None:
    payloads = data.draw(st.lists(good[format_], min_size=1, max_size=3))
    ctx = context(stamping=format_ is Format.TIMESTAMP)
    first, second = (FORMATS[format_].prepare(payloads, ctx) for _ in range(2))
    assert first == second
    assert finish(format_, first, ctx) == finish(format_, second, ctx)


@pytest.mark.parametrize("format_", bad)
@given(data=st.data())
@many
def test_a_bad_item_fails_alone(context: Maker, format_: Format, data: st.DataObject) -> None:
    fit = data.draw(st.lists(st.booleans(), min_size=1, max_size=6))
    payloads = [data.draw(good[format_]) if ok else bad[format_] for ok in fit]
    ctx = context(stamping=format_ is Format.TIMESTAMP)
    prepared = FORMATS[format_].prepare(payloads, ctx)
    assert set(prepared.failures) == {i for i, ok in enumerate(fit) if not ok}
    outputs = finish(format_, prepared, ctx)
    for i, ok in enumerate(fit):
        if ok:
            alone = FORMATS[format_].prepare([payloads[i]], ctx)
            # A time-stamp's serial number is that of its place.
            assert prepared.to_sign[i] == alone.to_sign[0] or format_ is Format.TIMESTAMP
            assert outputs[i]
        else:
            assert prepared.failures[i].reason is Reason.PAYLOAD_INVALID
            assert prepared.to_sign[i] == outputs[i] == b""


@pytest.mark.parametrize("format_", Format)
def test_an_item_without_signature_has_no_output(context: Maker, format_: Format) -> None:
    payloads = {
        Format.DIGEST: bytes(32),
        Format.CMS_DIGEST: bytes(32),
        Format.TIMESTAMP: REQUEST + bytes(32),
        Format.JWS: b"{}",
        Format.HCERT: compact(dcc_of({})),
        Format.SHC: compact(bundle_of({})),
    }
    payload = payloads.get(format_, b"any")
    ctx = context(stamping=format_ is Format.TIMESTAMP)
    prepared = FORMATS[format_].prepare([payload] * 3, ctx)
    outputs = FORMATS[format_].finish(prepared, [bytes(64), b"", bytes(64)], ctx)
    assert [bool(output) for output in outputs] == [True, False, True]


@pytest.mark.parametrize("format_", Format)
def test_an_empty_batch(context: Maker, format_: Format) -> None:
    ctx = context(stamping=format_ is Format.TIMESTAMP)
    prepared = FORMATS[format_].prepare([], ctx)
    assert FORMATS[format_].finish(prepared, [], ctx) == []
    assert FORMATS[format_].max_output([], ctx) == 0

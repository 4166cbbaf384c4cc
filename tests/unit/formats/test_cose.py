import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import cbor2
import pytest

from signer.algorithms import Algorithm
from signer.format_terms import FormatContext
from signer.formats import FORMATS
from signer.formats.cose import Envelope
from signer.model import Format

Maker = Callable[..., FormatContext]
COSE = FORMATS[Format.COSE_SIGN1]

# IANA "COSE Algorithms": RFC 9053 tables 1 and 2, RFC 8230, RFC 8812.
IDENTIFIERS = {
    Algorithm.ES256: -7,
    Algorithm.ES384: -35,
    Algorithm.PS256: -37,
    Algorithm.EDDSA: -8,
    Algorithm.RS256: -257,
}


@pytest.mark.parametrize("algorithm", Algorithm)
@pytest.mark.parametrize(
    "payload", [b"", b"payload", bytes(24), bytes(256), bytes(70_000)], ids=len
)
def test_round_trip(
    context: Maker, keys: Mapping[Algorithm, Any], algorithm: Algorithm, payload: bytes
) -> None:
    key, ctx = keys[algorithm], context(algorithm)
    prepared = COSE.prepare([payload], ctx)
    (output,) = COSE.finish(prepared, [key.sign(prepared.to_sign[0])], ctx)

    message = cbor2.loads(output)
    assert message.tag == 18
    protected, unprotected, carried, signature = message.value
    assert cbor2.loads(protected) == {1: IDENTIFIERS[algorithm], 4: key.version.kid}
    assert protected == cbor2.dumps(cbor2.loads(protected), canonical=True)
    assert unprotected == {}
    assert carried == payload
    key.verify(signature, cbor2.dumps(["Signature1", protected, b"", payload]))
    assert output == cbor2.dumps(cbor2.CBORTag(18, [protected, {}, payload, signature]))
    assert len(output) <= COSE.max_output([payload], ctx)


def test_kid_is_the_versions(context: Maker) -> None:
    ctx = context()
    version = dataclasses.replace(ctx.version, kid=b"12345678", certificate=None)
    (signed,) = COSE.prepare([b"x"], dataclasses.replace(ctx, version=version)).to_sign
    assert cbor2.loads(cbor2.loads(signed)[1])[4] == b"12345678"


def test_headers_are_the_callers() -> None:
    wrap = Envelope({4: b"k", 1: -7}, {4: b"k"}, b"aad")
    signed = wrap.to_sign(b"payload")
    protected = cbor2.dumps({4: b"k", 1: -7})
    assert signed == cbor2.dumps(["Signature1", protected, b"aad", b"payload"])
    expected = cbor2.CBORTag(18, [protected, {4: b"k"}, b"payload", b"s"])
    assert wrap.message(signed, b"s") == cbor2.dumps(expected)


def test_empty_protected_header_is_an_empty_string() -> None:
    assert cbor2.loads(Envelope({}).to_sign(b"x"))[1] == b""

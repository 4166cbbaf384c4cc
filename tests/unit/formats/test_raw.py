import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from signer.algorithms import Algorithm
from signer.errors import CallError, Reason
from signer.format_terms import FormatContext
from signer.formats import FORMATS
from signer.model import Format

Maker = Callable[..., FormatContext]

DIGESTS = [
    (Algorithm.ES256, 32),
    (Algorithm.RS256, 32),
    (Algorithm.PS256, 32),
    (Algorithm.ES384, 48),
]


@pytest.mark.parametrize(("algorithm", "size"), DIGESTS)
def test_digest_has_exactly_the_length_of_the_keys_hash(
    context: Maker, algorithm: Algorithm, size: int
) -> None:
    payloads = [bytes(size), bytes(size - 1), bytes(size + 1), b"", bytes(20), bytes(64)]
    prepared = FORMATS[Format.DIGEST].prepare(payloads, context(algorithm))
    assert prepared.prehashed
    assert prepared.to_sign[0] == payloads[0]
    assert set(prepared.failures) == {1, 2, 3, 4, 5}
    assert {f.reason for f in prepared.failures.values()} == {Reason.PAYLOAD_INVALID}
    assert str(size) in prepared.failures[1].message


def test_digest_with_eddsa_is_refused_as_a_whole(context: Maker) -> None:
    with pytest.raises(CallError) as caught:
        FORMATS[Format.DIGEST].prepare([bytes(32), bytes(64)], context(Algorithm.EDDSA))
    assert caught.value.reason is Reason.FIELD_INVALID


def test_message_is_signed_as_it_is(context: Maker) -> None:
    payloads = [b"", b"\x00", b"message"]
    ctx = context(Algorithm.EDDSA)
    prepared = FORMATS[Format.MESSAGE].prepare(payloads, ctx)
    assert list(prepared.to_sign) == payloads
    assert not prepared.failures
    assert not prepared.prehashed
    assert FORMATS[Format.MESSAGE].finish(prepared, [b"a", b"", b"c"], ctx) == [b"a", b"", b"c"]


@pytest.mark.parametrize("algorithm", Algorithm)
def test_output_is_the_raw_signature(
    context: Maker, keys: Mapping[Algorithm, Any], algorithm: Algorithm
) -> None:
    key = keys[algorithm]
    ctx = context(algorithm)
    prepared = FORMATS[Format.MESSAGE].prepare([b"message"], ctx)
    (output,) = FORMATS[Format.MESSAGE].finish(prepared, [key.sign(prepared.to_sign[0])], ctx)
    key.verify(output, b"message")
    assert len(output) == FORMATS[Format.MESSAGE].max_output([b"message"], ctx)


def test_digest_depends_on_the_algorithm_only(context: Maker) -> None:
    ctx = context()
    other = dataclasses.replace(ctx, version=dataclasses.replace(ctx.version, certificate=None))
    digest = hashlib.sha256(b"message").digest()
    assert FORMATS[Format.DIGEST].prepare([digest], ctx) == FORMATS[Format.DIGEST].prepare(
        [digest], other
    )

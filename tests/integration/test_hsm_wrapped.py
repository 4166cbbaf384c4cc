"""Wrapped keys in the workers of a real SoftHSM: unwrapped, kept, dropped, and refused."""

import hashlib
import secrets
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from signer.algorithms import Algorithm
from signer.errors import OperatorError
from signer.hsm.front.admin import open_admin
from signer.hsm.spec import HeldWrappingKey, WorkerMode
from signer.model import KeyVersion, WrappedKey, wrapping_cka_id, wrapping_label
from tests.integration.hsm_probe import ask
from tests.integration.hsm_token import SoftToken, version

WRAPS = "one"
KINDS = [
    (Algorithm.ES256, 0),
    (Algorithm.ES384, 0),
    (Algorithm.PS256, 2048),
    (Algorithm.RS256, 2048),
]


@pytest.fixture
def token(tmp_path: Path) -> SoftToken:
    return SoftToken(tmp_path / "hsm")


@pytest.fixture
def admin(token: SoftToken) -> Iterator[Any]:
    with open_admin(token.settings, token.state) as opened:
        opened.make_wrapping_key(WRAPS)
        yield opened


def made(admin: Any, algorithm: Algorithm = Algorithm.ES256, bits: int = 0) -> KeyVersion:
    cka_id = secrets.token_bytes(16)
    spki, wrapped = admin.generate_wrapped(algorithm, bits, cka_id, WRAPS)
    return replace(version(algorithm, cka_id, spki), wrapped=wrapped)


def sign(admin: Any, key: KeyVersion, wrapped: WrappedKey | None) -> list[bytes]:
    data = [hashlib.sha384(b"x").digest()[: 48 if key.algorithm is Algorithm.ES384 else 32]]
    signed: list[bytes] = admin.sign(key.algorithm, key.cka_id, key.spki, data, wrapped)
    return signed


@pytest.mark.parametrize(("algorithm", "bits"), KINDS)
def test_keys_are_made_that_no_token_holds(
    admin: Any, token: SoftToken, algorithm: Algorithm, bits: int
) -> None:
    key = made(admin, algorithm, bits)
    assert len(sign(admin, key, key.wrapped)) == 1
    assert admin.inventory() == []
    folder = Path(token.settings.environment["SOFTHSM2_CONF"]).parent
    objects = {path.name for path in folder.glob("token/*/*.object")} - {"token.object"}
    assert len(objects) == 1, "the wrapping key"


def test_a_token_that_wraps_no_such_key_says_so(admin: Any) -> None:
    with pytest.raises(OperatorError, match="does not wrap keys for EdDSA") as refused:
        made(admin, Algorithm.EDDSA)
    assert refused.value.unsupported
    key = made(admin)
    assert len(sign(admin, key, key.wrapped)) == 1, "the worker goes on"


def test_the_wrapping_key_is_made_once_and_does_nothing_but_unwrap(admin: Any) -> None:
    first = admin.make_wrapping_key(WRAPS)
    assert {name for name, value in first.items() if value} == {
        *("token", "private", "sensitive", "unwrap", "never_extractable")
    }
    key = made(admin)
    assert admin.make_wrapping_key(WRAPS) == first
    assert len(sign(admin, key, key.wrapped)) == 1


def test_what_was_changed_does_not_unwrap(admin: Any) -> None:
    key, other = made(admin), made(admin)
    assert key.wrapped is not None
    assert other.wrapped is not None
    flipped = bytes([key.wrapped.blob[0] ^ 1]) + key.wrapped.blob[1:]
    for wrong, verdict in (
        (key.wrapped._replace(blob=flipped), "NOT_UNWRAPPED"),
        (with_hash(key.wrapped, flipped), "NOT_UNWRAPPED"),
        (with_hash(key.wrapped, key.wrapped.blob[:-8]), "NOT_UNWRAPPED"),
        (with_hash(key.wrapped, b""), "NOT_UNWRAPPED"),
        (key.wrapped._replace(wrapping_key="absent"), "NO_WRAPPING_KEY"),
        (other.wrapped, "SIGNED"),  # and the signature is wrong: nothing leaves
    ):
        with pytest.raises(OperatorError, match=f"cannot sign .*{verdict}"):
            sign(admin, key, wrong)
        assert len(sign(admin, key, key.wrapped)) == 1


def test_a_known_key_wraps_nothing(admin: Any, token: SoftToken) -> None:
    ask("plant", token.spec(), cka_id=wrapping_cka_id("known").hex(), label=wrapping_label("known"))
    with pytest.raises(OperatorError, match="NEVER_EXTRACTABLE is not as demanded"):
        admin.generate_wrapped(Algorithm.ES256, 0, b"0123456789abcdef", "known")
    with pytest.raises(OperatorError, match="NEVER_EXTRACTABLE is not as demanded"):
        admin.make_wrapping_key("known")
    key = made(admin)
    assert len(sign(admin, key, key.wrapped)) == 1


def test_what_a_token_holds_of_wrapping_keys_is_read(admin: Any, token: SoftToken) -> None:
    """Also by a worker that may only list, beside keys that others have put there."""
    for name in ("known", "twice", "twice"):
        ask("plant", token.spec(), cka_id=wrapping_cka_id(name).hex(), label=wrapping_label(name))
    admin.make_wrapping_key("two")
    with open_admin(token.settings, token.state, WorkerMode.LIST) as listing:
        seen = listing.wrapping_keys([WRAPS, "absent", "known", "twice", "two"])
    assert seen == [
        HeldWrappingKey(1),
        HeldWrappingKey(0),
        HeldWrappingKey(1, ("NEVER_EXTRACTABLE",)),
        HeldWrappingKey(2),
        HeldWrappingKey(1),
    ]


def test_what_another_wrapping_key_has_wrapped_does_not_unwrap(admin: Any) -> None:
    admin.make_wrapping_key("two")
    key = made(admin)
    assert key.wrapped is not None
    with pytest.raises(OperatorError, match="NOT_UNWRAPPED"):
        sign(admin, key, key.wrapped._replace(wrapping_key="two"))


def with_hash(wrapped: WrappedKey, blob: bytes) -> WrappedKey:
    return wrapped._replace(blob=blob, sha256=hashlib.sha256(blob).digest())

import hashlib
from typing import Any

import pytest

from signer.algorithms import Algorithm
from signer.errors import OperatorError
from signer.key_index import KeyIndex
from signer.keys.lifecycle import NewKey, cka_id, create_key
from signer.keys.registry import Registry
from signer.model import KeyName, KeyState
from signer.x509 import cose_kid, fits, jwk_thumbprint

NAME = KeyName("01-001", "records")


@pytest.mark.parametrize("algorithm", Algorithm)
def test_a_new_key_is_version_1_and_active_at_once(
    registry: Registry, token: Any, algorithm: Algorithm
) -> None:
    bits = 2048 if algorithm in (Algorithm.RS256, Algorithm.PS256) else 0
    version = create_key(registry, token, NewKey(NAME, algorithm, bits), 50.0)
    assert (version.number, version.state, version.token) == (1, KeyState.ACTIVE, "soft")
    assert (version.created, version.activate_at, version.sign_until) == (50.0, 50.0, None)
    assert version.active(50.0)
    assert fits(version.spki, algorithm)
    assert version.kid == cose_kid(version.spki, None)
    assert version.thumbprint == jwk_thumbprint(version.spki)
    assert version.cka_id in token.keys
    assert registry.snapshot() == KeyIndex([version], 1)


def test_the_cka_id_follows_from_the_name() -> None:
    text = b"signer.v1 key\0facilities/01-001/keys/records/versions/1"
    assert cka_id(NAME, 1) == hashlib.sha256(text).digest()[:16]
    assert len({cka_id(NAME, 1), cka_id(NAME, 2), cka_id(KeyName("01-002", "records"), 1)}) == 3


@pytest.mark.parametrize(
    ("algorithm", "bits"),
    [
        (Algorithm.RS256, 0),
        (Algorithm.PS256, 1024),
        (Algorithm.RS256, 2047),
        (Algorithm.ES256, 256),
        (Algorithm.EDDSA, 2048),
    ],
)
def test_impossible_lengths_are_refused(
    registry: Registry, token: Any, algorithm: Algorithm, bits: int
) -> None:
    with pytest.raises(OperatorError, match="bits"):
        create_key(registry, token, NewKey(NAME, algorithm, bits), 1.0)
    assert token.keys == {}


def test_a_key_is_not_made_twice(registry: Registry, token: Any) -> None:
    version = create_key(registry, token, NewKey(NAME, Algorithm.ES256), 1.0)
    with pytest.raises(OperatorError, match="the registry has that version"):
        create_key(registry, token, NewKey(NAME, Algorithm.ES256), 2.0)
    assert registry.snapshot() == KeyIndex([version], 1)
    assert len(token.keys) == 1


def test_a_key_left_by_a_crash_is_met_and_named(registry: Registry, token: Any) -> None:
    token.generate(Algorithm.ES256, 0, cka_id(NAME, 1), "left behind")
    with pytest.raises(OperatorError, match=cka_id(NAME, 1).hex()):
        create_key(registry, token, NewKey(NAME, Algorithm.ES256), 1.0)
    assert registry.revision() == 0


def test_a_key_of_another_kind_is_not_registered(
    registry: Registry, token: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = token.generate
    monkeypatch.setattr(token, "generate", lambda _, *others: made(Algorithm.ES384, *others))
    with pytest.raises(OperatorError, match="does not fit ES256"):
        create_key(registry, token, NewKey(NAME, Algorithm.ES256), 1.0)
    assert registry.revision() == 0

import hashlib
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from signer.algorithms import PROPERTIES, Algorithm
from signer.model import IDENTIFIER, KeyName, KeyState, parse_key_or_version
from tests.stand_ins import key_version

IDS = st.from_regex(IDENTIFIER, fullmatch=True)
VERSION = key_version(
    number=3, thumbprint="thumbprint", created=10.0, activate_at=100.0, sign_until=200.0
)


@given(IDS, IDS, st.one_of(st.none(), st.integers(1, 999_999_999)))
def test_names_are_read_as_they_are_written(facility: str, key: str, number: int | None) -> None:
    name = KeyName(facility, key)
    text = str(name) if number is None else f"{name}/versions/{number}"
    assert parse_key_or_version(text) == (name, number)
    assert KeyName.parse(str(name)) == name


@given(st.text(max_size=80) | st.from_regex(r"facilities/.{0,70}/keys/.{0,70}", fullmatch=True))
def test_malformed_names_raise_value_error(text: str) -> None:
    whole, separator, number = text.partition("/versions/")
    parts = whole.split("/")
    good = (
        len(parts) == 4
        and parts[::2] == ["facilities", "keys"]
        and all(IDENTIFIER.fullmatch(part) for part in parts[1::2])
        and (not separator or (number.isascii() and number.isdigit() and number[0] != "0"))
        and len(number) < 10
    )
    if good:
        parse_key_or_version(text)
    else:
        with pytest.raises(ValueError, match=r"expected facilities/\{facility\}/keys/\{key\}"):
            parse_key_or_version(text)


@pytest.mark.parametrize("text", ["a", "0", "a-b", "a.b_c", "a" * 63])
def test_identifiers(text: str) -> None:
    assert KeyName.parse(f"facilities/{text}/keys/{text}") == KeyName(text, text)


@pytest.mark.parametrize("text", ["", "A", "-a", "a-", ".", "a" * 64, "a/b", "a\n", "é", "a b"])
def test_malformed_identifiers(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        KeyName.parse(f"facilities/{text}/keys/k")
    with pytest.raises(ValueError, match="expected"):
        KeyName.parse(f"facilities/f/keys/{text}")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("facilities/MOH/keys/dcc", "it has 'M', and ids have only a-z"),
        ("facilities/moh/keys/dcc/", "it ends with a slash"),
        (" facilities/moh/keys/dcc", "it begins or ends with a blank"),
        ("facilities/moh/keys/đ", r"it has '\\u0111', and ids"),
        ("facilities/moh/keys/a b", "it has ' ', and ids"),
    ],
)
def test_the_character_that_is_wrong_is_named(text: str, fault: str) -> None:
    with pytest.raises(ValueError, match=f"^expected facilities/.*/keys/.*: {fault}"):
        KeyName.parse(text)


@pytest.mark.parametrize("number", ["", "0", "-1", "01", "1.0", "x", "1" * 10, "1/versions/1"])
def test_malformed_versions(number: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        parse_key_or_version(f"facilities/f/keys/k/versions/{number}")


def test_names_are_in_order() -> None:
    names = [KeyName("b", "a"), KeyName("a", "b"), KeyName("a", "a")]
    assert sorted(names) == [KeyName("a", "a"), KeyName("a", "b"), KeyName("b", "a")]
    assert VERSION.name == "facilities/f/keys/k/versions/3"


@pytest.mark.parametrize(
    ("now", "changes", "expected"),
    [
        (99.9, {}, KeyState.PRE_ACTIVE),
        (100.0, {}, KeyState.ACTIVE),
        (199.9, {}, KeyState.ACTIVE),
        (200.0, {}, KeyState.DEACTIVATED),
        (1e12, {"sign_until": None}, KeyState.ACTIVE),
        (150.0, {"activate_at": None}, KeyState.PRE_ACTIVE),
    ],
)
def test_the_state_in_force_follows_the_clock(
    now: float, changes: dict[str, Any], expected: KeyState
) -> None:
    version = replace(VERSION, **changes)
    assert version.state_at(now) is expected
    assert version.active(now) is (expected is KeyState.ACTIVE)


@pytest.mark.parametrize("state", sorted(set(KeyState) - {KeyState.ACTIVE, KeyState.SUSPENDED}))
@pytest.mark.parametrize("now", [0.0, 150.0, 300.0])
def test_other_states_do_not_follow_the_clock(state: KeyState, now: float) -> None:
    version = replace(VERSION, state=state)
    assert version.state_at(now) is state
    assert not version.active(now)


def test_a_suspended_version_ends_by_the_clock_too() -> None:
    suspended = replace(VERSION, state=KeyState.SUSPENDED)
    assert [suspended.state_at(now) for now in (150.0, 300.0)] == [
        KeyState.SUSPENDED,
        KeyState.DEACTIVATED,
    ]


def test_every_algorithm_has_its_hash() -> None:
    sizes = {
        algorithm: hashlib.new(name).digest_size
        for algorithm in Algorithm
        if (name := PROPERTIES[algorithm].hash_name)
    }
    assert sizes == {
        Algorithm.ES256: 32,
        Algorithm.ES384: 48,
        Algorithm.RS256: 32,
        Algorithm.PS256: 32,
    }
    assert PROPERTIES[Algorithm.EDDSA].hash_name is None

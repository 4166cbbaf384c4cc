"""Wrapping keys as a whole: which wraps new keys, where it is, and what it has wrapped."""

from signer.keys.wrapping_use import newest_wrapping_key, wrapping_uses
from signer.model import KeyVersion, WrapMechanism, WrappedKey, WrappingKey, wrapping_cka_id
from tests.stand_ins import key_version

KEYS = [
    WrappingKey("first", "t", 1.0),
    WrappingKey("first", "u", 1.0),
    WrappingKey("second", "t", 2.0),
    WrappingKey("gone", "t", 3.0, destroyed=True),
]


def wrapped(number: int, by: str) -> KeyVersion:
    key = WrappedKey(b"", b"", WrapMechanism.AES_KEY_WRAP_PAD, by)
    return key_version(number=number, cka_id=bytes([number]), wrapped=key)


def test_new_keys_are_wrapped_by_the_newest_of_each_token() -> None:
    assert newest_wrapping_key(KEYS, "t") == "second"
    assert newest_wrapping_key(KEYS, "u") == "first"
    assert newest_wrapping_key(KEYS, "v") == ""


def test_each_is_listed_once_with_its_tokens_and_what_it_wraps() -> None:
    versions = [wrapped(1, "first"), wrapped(2, "first"), wrapped(3, "unknown"), key_version()]
    uses = wrapping_uses(KEYS, versions)
    assert [(u.id, u.created, u.tokens, u.newest_on, u.destroyed, u.versions) for u in uses] == [
        ("gone", 3.0, ("t",), (), True, 0),
        ("second", 2.0, ("t",), ("t",), False, 0),
        ("first", 1.0, ("t", "u"), ("u",), False, 2),
        ("unknown", None, (), (), False, 1),
    ]
    assert uses[0].cka_id == wrapping_cka_id("gone")

"""What a worker remembers of pinned public keys, and which signatures it checks."""

import pytest

from signer.algorithms import Algorithm
from signer.hsm.frames import SignPart
from signer.hsm.worker import __main__ as worker
from signer.hsm.worker.__main__ import Pins

LOADED: list[bytes] = []


class CountingVerifier:
    """Takes every signature for correct but those that say otherwise."""

    def __init__(self, _: Algorithm, spki: bytes) -> None:
        if spki == b"unsuitable":
            raise ValueError(spki)
        LOADED.append(spki)
        self.signature_length = 5

    def correct(self, _: bytes, signature: bytes) -> bool:
        return signature == b"right"


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> Pins:
    monkeypatch.setattr(worker, "Verifier", CountingVerifier)
    monkeypatch.setattr(worker, "MAX_VERIFIERS", 2)
    monkeypatch.setattr(worker, "MAX_PINS", 4)
    LOADED.clear()
    return Pins()


def part(name: bytes, count: int = 1, every: int = 100) -> SignPart:
    return SignPart(Algorithm.ES256, every, name, name, [b"item"] * count)


def checked(kept: Pins, name: bytes, count: int = 1, every: int = 100) -> int:
    return kept.check(part(name, count, every), [b"right"] * count)[0]


def test_the_first_signature_of_a_key_is_checked_and_then_one_in_so_many(kept: Pins) -> None:
    assert [checked(kept, b"a", 60) for _ in range(5)] == [1, 1, 0, 1, 0]
    assert checked(kept, b"a", 60, every=1) == 60


def test_a_key_is_loaded_again_only_for_a_check(kept: Pins) -> None:
    for name in (b"a", b"b", b"c"):
        assert checked(kept, name) == 1
    assert LOADED == [b"a", b"b", b"c"]
    assert checked(kept, b"a") == 0
    assert kept.width(part(b"a")) == 5
    assert LOADED == [b"a", b"b", b"c"], "nothing of it is checked"
    assert checked(kept, b"a", 99) == 1
    assert LOADED[3:] == [b"a"]


def test_a_key_of_which_nothing_is_known_any_more_is_checked_at_once(kept: Pins) -> None:
    for name in (b"a", b"b", b"c", b"d", b"e"):
        checked(kept, name)
    assert checked(kept, b"b") == 0
    assert checked(kept, b"a") == 1, "it had gone for the fifth"


def test_a_key_that_is_looked_up_again_is_checked_at_once(kept: Pins) -> None:
    assert [checked(kept, b"a", 10) for _ in range(2)] == [1, 0]
    kept.begin_again(part(b"a"))
    assert [checked(kept, b"a", 10) for _ in range(2)] == [1, 0]


def test_a_wrong_or_short_signature_has_the_whole_part_checked(kept: Pins) -> None:
    checked(kept, b"a")
    made = [b"right", b"wrong", b"right"]
    assert kept.check(part(b"a", 3), made) == (0, []), "not in the sample"
    assert kept.check(part(b"a", 3, every=1), made) == (3, [1])
    assert kept.check(part(b"a", 3), [b"right", b"short!", b"right"]) == (3, [1])


def test_a_pin_that_does_not_fit_is_refused_each_time(kept: Pins) -> None:
    for _ in range(2):
        with pytest.raises(ValueError, match="unsuitable"):
            kept.width(part(b"unsuitable"))

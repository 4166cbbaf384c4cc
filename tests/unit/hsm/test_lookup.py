"""Private keys by CKA_ID, searched for or in an index, on a fake token that counts calls."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest

from signer.hsm.frames import Verdict
from signer.hsm.worker import lookup
from signer.hsm.worker.cryptoki import CKA_ID, CKA_LABEL
from signer.hsm.worker.lookup import IndexedKeys, KeyFinder, SearchedKeys
from signer.hsm.worker.unwrapping import NotOneKey
from signer.model import TokenObject, inventory_digest

BOTH = pytest.mark.parametrize("kind", [SearchedKeys, IndexedKeys])


class FakeObjects:
    """Keys by handle."""

    def __init__(self, *keys: tuple[int, bytes, str]) -> None:
        self.keys = {handle: TokenObject(cka_id, label) for handle, cka_id, label in keys}
        self.calls: Counter[str] = Counter()

    def find(self, wanted: Mapping[int, bytes], most: int | None = None) -> list[int]:
        self.calls["search" if wanted else "pass"] += 1
        found = [
            handle
            for handle, names in self.keys.items()
            if wanted.get(CKA_ID, names.cka_id) == names.cka_id
            and wanted.get(CKA_LABEL, names.label.encode()) == names.label.encode()
        ]
        return found[:most]

    def names(self, handle: int) -> TokenObject | None:
        self.calls["names"] += 1
        return self.keys.get(handle)

    def counted(self) -> Counter[str]:
        """Returns the calls since the last time."""
        calls, self.calls = self.calls, Counter()
        return calls


def refusal(keys: KeyFinder, cka_id: bytes) -> Verdict:
    with pytest.raises(NotOneKey) as refused:
        keys.find(cka_id)
    return refused.value.verdict


def finder(kind: Any, *keys: tuple[int, bytes, str]) -> tuple[KeyFinder, FakeObjects]:
    objects = FakeObjects(*keys)
    return kind(objects), objects


@BOTH
def test_no_key_one_key_and_two_keys_are_told_apart(kind: Any) -> None:
    keys, _ = finder(kind, (1, b"a", "one"), (2, b"b", "two"), (3, b"b", "three"), (4, b"", ""))
    assert keys.find(b"a") == 1
    assert refusal(keys, b"b") is Verdict.AMBIGUOUS
    assert refusal(keys, b"x") is Verdict.NO_KEY
    assert keys.has_label("three")
    assert not keys.has_label("four")


@BOTH
def test_a_key_that_was_made_is_found_once_it_is_named(kind: Any) -> None:
    keys, objects = finder(kind, (1, b"a", "one"))
    assert refusal(keys, b"b") is Verdict.NO_KEY
    objects.keys[2] = TokenObject(b"b", "two")
    keys.forget([b"b"])
    assert keys.find(b"b") == 2
    assert keys.find(b"a") == 1
    assert keys.has_label("two")


@BOTH
def test_a_key_that_was_destroyed_is_gone_once_it_is_named(kind: Any) -> None:
    keys, objects = finder(kind, (1, b"a", "one"), (2, b"b", "two"))
    assert keys.find(b"a") == 1
    del objects.keys[1]
    keys.forget([b"a"])
    assert refusal(keys, b"a") is Verdict.NO_KEY
    assert not keys.has_label("one")
    objects.keys[1] = TokenObject(b"c", "three")  # the module uses the handle again
    keys.forget([b"c", b"a"])
    assert keys.find(b"c") == 1
    assert refusal(keys, b"a") is Verdict.NO_KEY


@BOTH
def test_one_of_two_keys_of_an_id_that_was_removed_leaves_the_other(kind: Any) -> None:
    keys, objects = finder(kind, (1, b"a", "one"), (2, b"a", "two"))
    assert refusal(keys, b"a") is Verdict.AMBIGUOUS
    del objects.keys[1]
    keys.forget([b"a"])
    assert keys.find(b"a") == 2


@BOTH
def test_a_key_that_this_process_made_is_found(kind: Any) -> None:
    keys, objects = finder(kind, (1, b"a", "one"))
    for handle, names in {2: TokenObject(b"b", "two"), 3: TokenObject(b"a", "three")}.items():
        objects.keys[handle] = names
        keys.add(handle, names)
    assert keys.find(b"b") == 2
    assert keys.has_label("two")
    assert refusal(keys, b"a") is Verdict.AMBIGUOUS


def test_a_search_is_made_once_and_again_after_a_stop() -> None:
    keys, objects = finder(SearchedKeys, *((n, b"%d" % n, "") for n in range(9)))
    assert objects.counted() == {}, "nothing is read at the start"
    for _ in range(3):
        assert keys.find(b"1") == 1
        assert keys.find(b"2") == 2
    assert objects.counted() == {"search": 2}
    keys.release([b"1", b"x"])
    assert [keys.find(b"1"), keys.find(b"2")] == [1, 2]
    assert objects.counted() == {"search": 1}
    keys.release([b"1", b"2"])
    assert [keys.find(b"1"), keys.find(b"2")] == [1, 2]
    assert objects.counted() == {"search": 2}
    assert keys.digest == b""


def test_the_handle_that_was_used_least_recently_is_the_first_to_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lookup, "MAX_HANDLES", 3)
    keys, objects = finder(SearchedKeys, *((n, b"%d" % n, "") for n in range(9)))
    for n in (1, 2, 3, 1, 4):
        keys.find(b"%d" % n)
    assert objects.counted() == {"search": 4}
    for n in (1, 3, 4):
        keys.find(b"%d" % n)
    assert objects.counted() == {}
    keys.find(b"2")
    assert objects.counted() == {"search": 1}


def test_an_index_reads_each_name_once() -> None:
    keys, objects = finder(IndexedKeys, *((n + 1, b"%d" % n, "") for n in range(9)))
    assert objects.counted() == {"pass": 1, "names": 9}
    assert keys.digest == inventory_digest(objects.keys.values())
    for _ in range(3):
        assert keys.find(b"5") == 6
        assert refusal(keys, b"nobody named it") is Verdict.NO_KEY
    keys.release([b"5"])
    assert keys.find(b"5") == 6
    assert objects.counted() == {}
    objects.keys |= {n + 1: TokenObject(b"%d" % n, "") for n in range(20, 23)}
    keys.forget(b"%d" % n for n in (20, 21, 22, 99))
    assert objects.counted() == {}, "not before one is used"
    assert [keys.find(b"%d" % n) for n in (20, 21, 22)] == [21, 22, 23]
    assert refusal(keys, b"99") is Verdict.NO_KEY
    assert objects.counted() == {"pass": 1, "names": 3}, "one pass for all of them"


def test_a_key_that_goes_while_the_index_is_read_is_left_out() -> None:
    objects = FakeObjects((1, b"a", "one"), (2, b"b", "two"))
    first = objects.keys.copy()
    objects.find = lambda *_: [*first]  # type: ignore[method-assign]
    del objects.keys[2]
    keys = IndexedKeys(objects)  # type: ignore[arg-type]
    assert keys.find(b"a") == 1
    assert refusal(keys, b"b") is Verdict.NO_KEY

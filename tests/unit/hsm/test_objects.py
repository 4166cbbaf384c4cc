from types import SimpleNamespace

import pytest

from signer.hsm.spec import FailureKind, TokenFailure
from signer.hsm.worker.token import PrivateKeys
from signer.model import TokenObject


def book(*names: tuple[int, bytes, str]) -> PrivateKeys:
    made = PrivateKeys("t")
    for handle, cka_id, label in names:
        made.add(SimpleNamespace(handle=handle), cka_id, label)
    return made


def test_keys_are_found_by_id_and_listed_with_their_labels() -> None:
    keys = book((1, b"a", "one"), (2, b"b", ""), (3, b"c", ""))
    found = keys.find(b"a")
    assert found is not None
    assert found.handle == 1
    assert keys.find(b"x") is None
    assert b"b" in keys
    assert keys.label(b"a") == "one"
    assert keys.handles == {1, 2, 3}
    assert keys.listed() == [TokenObject(b"a", "one"), TokenObject(b"b", ""), TokenObject(b"c", "")]


@pytest.mark.parametrize(("cka_id", "label"), [(b"a", "two"), (b"b", "one"), (b"a", "")])
def test_an_ambiguous_name_is_refused(cka_id: bytes, label: str) -> None:
    keys = book((1, b"a", "one"))
    with pytest.raises(TokenFailure, match="two private keys") as refused:
        keys.add(SimpleNamespace(handle=2), cka_id, label)
    assert refused.value.kind is FailureKind.AMBIGUOUS
    assert keys.listed() == [TokenObject(b"a", "one")]


def test_a_key_that_is_gone_is_removed_and_its_names_are_free() -> None:
    keys = book((1, b"a", "one"), (2, b"b", "two"), (3, b"c", "three"))
    assert keys.retain({2, 9}) == [b"a", b"c"]
    assert keys.listed() == [TokenObject(b"b", "two")]
    assert keys.handles == {2}
    assert not keys.has_label("one")
    keys.add(SimpleNamespace(handle=4), b"a", "one")
    keys.remove(b"a")
    keys.remove(b"a")
    assert keys.find(b"a") is None
    assert keys.retain({2}) == []

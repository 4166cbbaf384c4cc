"""Which unwrapped keys a worker keeps, and what it says of those that do not unwrap."""

import hashlib
from typing import Any

import pytest

from signer.algorithms import Algorithm
from signer.hsm.frames import FrameError, Verdict, pack_wrapped, unpack_wrapped
from signer.hsm.worker.return_values import CryptokiError
from signer.hsm.worker.unwrapping import NotOneKey, UnwrappedKeys
from signer.model import TokenObject, WrapMechanism, WrappedKey, wrapping_cka_id

WRAPS = "w"


class FakeObjects:
    """The session of a token: handles of wrapping keys, and of keys that are unwrapped."""

    def __init__(self) -> None:
        self.wrapping = {wrapping_cka_id(WRAPS): [7]}
        self.unwrapped: dict[int, bytes] = {}
        self.codes: list[int] = []  # what C_UnwrapKey returns next, one by one
        self.searches, self._next = 0, 100
        self.lost = False

    def find(self, wanted: dict[int, bytes], most: int, kind: bytes) -> list[int]:
        del most, kind
        self.searches += 1
        [cka_id] = wanted.values()
        return self.wrapping.get(cka_id, [])

    def names(self, handle: int) -> TokenObject | None:
        if self.lost:
            raise CryptokiError("C_GetAttributeValue", 0x0B3)
        return TokenObject(b"", str(handle))

    def unwrap(
        self,
        mechanism: WrapMechanism,
        wrapping_key: int,
        blob: bytes,
        algorithm: Algorithm,
        cka_id: bytes,
        *,
        to_sign: bool,
    ) -> int:
        del mechanism, blob, algorithm
        assert to_sign
        if self.codes and (code := self.codes.pop(0)):
            raise CryptokiError("C_UnwrapKey", code)
        assert [wrapping_key] in self.wrapping.values()
        self._next += 1
        self.unwrapped[self._next] = cka_id
        return self._next

    def destroy(self, handle: int) -> None:
        del self.unwrapped[handle]


def packed(name: bytes, **changes: Any) -> bytes:
    blob = b"wrapped " + name
    key = WrappedKey(
        blob, hashlib.sha256(blob).digest(), WrapMechanism.AES_KEY_WRAP_PAD, WRAPS, ("t",)
    )
    return pack_wrapped(key._replace(**changes))


def use(keys: UnwrappedKeys, name: bytes, wrapped: bytes | None = None) -> int:
    wrapped = wrapped or packed(name)
    known = keys.known(name, wrapped)
    return known if known is not None else keys.unwrap(name, Algorithm.ES256, wrapped)


@pytest.fixture
def objects() -> FakeObjects:
    return FakeObjects()


def made(objects: FakeObjects, most: int = 3) -> UnwrappedKeys:
    return UnwrappedKeys(objects, most)  # type: ignore[arg-type] # what it needs of them


def test_what_was_used_longest_ago_is_destroyed_first(objects: FakeObjects) -> None:
    keys = made(objects)
    for name in (b"a", b"b", b"c", b"a", b"d"):
        use(keys, name)
    assert sorted(objects.unwrapped.values()) == [b"a", b"c", b"d"]
    assert objects.searches == 1, "the wrapping key is looked for once"
    assert len(keys) == 3


def test_a_stopped_key_is_destroyed_and_unwrapped_again(objects: FakeObjects) -> None:
    keys = made(objects)
    first = use(keys, b"a")
    keys.drop([b"a", b"never seen"])
    assert objects.unwrapped == {}
    assert use(keys, b"a") != first


def test_other_bytes_are_another_key(objects: FakeObjects) -> None:
    keys = made(objects)
    first = use(keys, b"a")
    assert keys.known(b"a", packed(b"b")) is None
    second = use(keys, b"a", packed(b"b"))
    assert first != second
    assert list(objects.unwrapped) == [second], "the first one is destroyed"


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({"blob": b"changed"}, Verdict.NOT_UNWRAPPED),
        ({"sha256": bytes(32)}, Verdict.NOT_UNWRAPPED),
        ({"wrapping_key": "another"}, Verdict.NO_WRAPPING_KEY),
    ],
)
def test_what_does_not_fit_is_not_unwrapped(
    objects: FakeObjects, changes: dict[str, object], verdict: Verdict
) -> None:
    with pytest.raises(NotOneKey) as refused:
        use(made(objects), b"a", packed(b"a", **changes))
    assert refused.value.verdict is verdict


def test_of_two_wrapping_keys_with_one_id_none_is_used(objects: FakeObjects) -> None:
    objects.wrapping[wrapping_cka_id(WRAPS)] = [7, 8]
    with pytest.raises(NotOneKey) as refused:
        use(made(objects), b"a")
    assert refused.value.verdict is Verdict.NO_WRAPPING_KEY


def test_a_wrapping_key_that_was_replaced_is_found_again(objects: FakeObjects) -> None:
    keys = made(objects)
    use(keys, b"a")
    objects.wrapping[wrapping_cka_id(WRAPS)] = [8]
    objects.codes = [0x0F0]
    use(keys, b"b")
    assert objects.searches == 2
    objects.codes = [0x0F0, 0x0F0]
    with pytest.raises(NotOneKey) as refused:
        use(keys, b"c")
    assert refused.value.verdict is Verdict.NO_WRAPPING_KEY, "found, and not there again"
    use(keys, b"c")


@pytest.mark.parametrize("code", [0x005, 0x040, 0x110])
def test_a_code_for_a_changed_blob_is_one_for_a_lost_session_where_it_is_lost(
    objects: FakeObjects, code: int
) -> None:
    keys = made(objects)
    objects.codes = [code]
    with pytest.raises(NotOneKey):
        use(keys, b"a")
    objects.codes, objects.lost = [code], True
    with pytest.raises(CryptokiError):
        use(keys, b"a")


def test_a_session_without_room_makes_some(objects: FakeObjects) -> None:
    keys = made(objects, 10)
    objects.codes = [0x031]
    with pytest.raises(CryptokiError):
        use(keys, b"first")
    for name in b"abcdef":
        use(keys, bytes([name]))
    objects.codes = [0x031, 0]
    use(keys, b"g")
    assert sorted(objects.unwrapped.values()) == [b"d", b"e", b"f", b"g"]


@pytest.mark.parametrize("broken", [b"", b"\x07" + bytes(48), bytes(48)])
def test_a_wrapped_key_that_is_cut_short_is_no_frame(broken: bytes) -> None:
    with pytest.raises(FrameError):
        unpack_wrapped(broken)

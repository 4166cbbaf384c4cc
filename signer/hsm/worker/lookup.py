"""Private keys by their CKA_ID: found by a search when they are first used, or in an index of all.

Which of the two is the token's ``key_lookup``: a search of a module that walks all objects would
take longer than the signature.
"""

from collections import OrderedDict
from collections.abc import Iterable
from typing import Protocol

from signer.hsm.frames import Verdict
from signer.hsm.worker.cryptoki import CKA_ID, CKA_LABEL, Objects
from signer.hsm.worker.unwrapping import NotOneKey
from signer.model import TokenObject, inventory_digest

MAX_HANDLES = 32_768  # that a worker keeps; a miss costs four calls
_TWICE = 0  # the handle under which an index keeps an id of two keys (CK_INVALID_HANDLE)


class KeyFinder(Protocol):
    """The private keys of one token. Every method may raise CryptokiError."""

    @property
    def digest(self) -> bytes:
        """The digest of all keys, see ``inventory_digest``; empty if they are not known."""

    def find(self, cka_id: bytes) -> int:
        """Returns the handle of the key; raises NotOneKey."""

    def has_label(self, label: str) -> bool:
        """Returns whether a key has a label."""

    def add(self, handle: int, names: TokenObject) -> None:
        """Adds a key that this process has just created."""

    def forget(self, ids: Iterable[bytes]) -> None:
        """Looks these keys up again when they are next used."""

    def release(self, ids: Iterable[bytes]) -> None:
        """Keeps nothing of keys that are stopped that a search finds again."""


class SearchedKeys:
    """Searches for each key when it is first used; keeps the handles that were used last."""

    digest = b""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._handles: OrderedDict[bytes, int] = OrderedDict()

    def find(self, cka_id: bytes) -> int:
        handles = self._handles
        if (known := handles.get(cka_id)) is not None:
            handles.move_to_end(cka_id)
            return known
        found = self._objects.find({CKA_ID: cka_id}, most=2)
        if len(found) != 1:
            raise NotOneKey(Verdict.AMBIGUOUS if found else Verdict.NO_KEY)
        handles[cka_id] = found[0]
        if len(handles) > MAX_HANDLES:
            handles.popitem(last=False)
        return found[0]

    def has_label(self, label: str) -> bool:
        return bool(self._objects.find({CKA_LABEL: label.encode()}, most=1))

    def add(self, handle: int, names: TokenObject) -> None:
        """Does nothing: a search finds it."""

    def forget(self, ids: Iterable[bytes]) -> None:
        for cka_id in ids:
            self._handles.pop(cka_id, None)

    def release(self, ids: Iterable[bytes]) -> None:
        self.forget(ids)


class IndexedKeys:
    """Reads the names of all keys in one pass: where a search walks all objects anyway.

    Another pass follows where one of the keys is used that ``forget`` has named; it reads the
    names of those keys alone. A key that nobody named stays unknown, and costs no search.
    """

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._names: dict[int, TokenObject] = {}
        self._handles: dict[bytes, int] = {}
        self._changed: set[bytes] = set()
        self._look()

    @property
    def digest(self) -> bytes:
        return inventory_digest(self._names.values())

    def find(self, cka_id: bytes) -> int:
        if cka_id in self._changed:
            self._look()
        handle = self._handles.get(cka_id)
        if not handle:
            raise NotOneKey(Verdict.NO_KEY if handle is None else Verdict.AMBIGUOUS)
        return handle

    def has_label(self, label: str) -> bool:
        return any(names.label == label for names in self._names.values())

    def add(self, handle: int, names: TokenObject) -> None:
        twice = names.cka_id in self._handles
        self._names[handle] = names
        self._handles[names.cka_id] = _TWICE if twice else handle

    def forget(self, ids: Iterable[bytes]) -> None:
        for cka_id in ids:
            self._names.pop(self._handles.pop(cka_id, _TWICE), None)
            self._changed.add(cka_id)

    def release(self, ids: Iterable[bytes]) -> None:
        """Does nothing: the index is what the token holds, whether it may sign or not."""

    def _look(self) -> None:
        known, self._names, self._handles = self._names, {}, {}
        for handle in self._objects.find({}):
            names = known.get(handle) or self._objects.names(handle)
            if names is not None:  # else it was destroyed meanwhile
                self.add(handle, names)
        self._changed.clear()

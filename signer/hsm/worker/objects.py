"""The private keys of one token, as they were enumerated last. Pure: it loads no module."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from typing import Any, NamedTuple

from signer.hsm.spec import FailureKind, TokenFailure
from signer.model import TokenObject


class _Entry(NamedTuple):
    key: Any  # an object of python-pkcs11
    label: str


class PrivateKeys:
    """Private keys by CKA_ID, each with its label; no two share either."""

    def __init__(self, token: str) -> None:
        """Takes the token's label, for texts."""
        self._token = token
        self._entries: dict[bytes, _Entry] = {}
        self._ids: dict[int, bytes] = {}
        self._labels: set[str] = set()

    def __contains__(self, cka_id: object) -> bool:
        return cka_id in self._entries

    def find(self, cka_id: bytes) -> Any | None:
        """Returns the object, None where there is none."""
        entry = self._entries.get(cka_id)
        return None if entry is None else entry.key

    def has_label(self, label: str) -> bool:
        return label in self._labels

    def label(self, cka_id: bytes) -> str:
        """Returns the label of a key that is there."""
        return self._entries[cka_id].label

    def listed(self) -> list[TokenObject]:
        """Returns every key, in the order of the enumeration."""
        return [TokenObject(cka_id, entry.label) for cka_id, entry in self._entries.items()]

    @property
    def handles(self) -> AbstractSet[int]:
        """The handles of all keys."""
        return self._ids.keys()

    def add(self, key: Any, cka_id: bytes, label: str) -> None:
        """Takes a key in.

        Raises TokenFailure where another one has its id or its label: then nobody
        can say which one a name means. An empty label is no name.
        """
        if cka_id in self._entries or (label and label in self._labels):
            raise TokenFailure(
                FailureKind.AMBIGUOUS,
                f"token {self._token} holds two private keys with the CKA_ID {cka_id.hex()} or "
                "with its label: remove or rename one with the HSM's own tool",
            )
        self._entries[cka_id] = _Entry(key, label)
        self._ids[key.handle] = cka_id
        if label:
            self._labels.add(label)

    def remove(self, cka_id: bytes) -> None:
        """Forgets a key; one that is not there is forgotten already."""
        entry = self._entries.pop(cka_id, None)
        if entry is not None:
            del self._ids[entry.key.handle]
            self._labels.discard(entry.label)

    def keep(self, present: AbstractSet[int]) -> list[bytes]:
        """Forgets the keys whose handle is not among those present; returns their ids."""
        gone = [cka_id for handle, cka_id in self._ids.items() if handle not in present]
        for cka_id in gone:
            self.remove(cka_id)
        return gone

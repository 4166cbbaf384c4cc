"""All key versions at one revision of the registry, by key, number and thumbprint."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable, Iterator

from signer.model import KeyName, KeyVersion


class KeyIndex:
    """All key versions at one revision of the registry; immutable, so threads may share it.

    ``revision`` is the registry's counter when they were read; equality covers it.
    ``complete``: no row of a version was left out because it cannot be read.
    """

    __slots__ = ("_by_key", "_by_thumbprint", "_keys", "_names", "complete", "revision")

    def __init__(self, versions: Iterable[KeyVersion] = (), revision: int = 0) -> None:
        self.revision, self.complete = revision, True
        by_key: dict[KeyName, dict[int, KeyVersion]] = {}
        self._by_thumbprint: dict[str, KeyVersion] = {}
        for version in versions:
            self._by_thumbprint[version.thumbprint] = version
            numbered = by_key.setdefault(version.key, {})
            if version.number in numbered:
                raise ValueError(f"two versions are named {version.name}")
            numbered[version.number] = version
        self._by_key = {key: dict(sorted(numbered.items())) for key, numbered in by_key.items()}
        self._keys = sorted(by_key, key=str)
        self._names = [str(key) for key in self._keys]

    def updated(
        self, changed: Iterable[KeyVersion], revision: int, *, complete: bool = True
    ) -> KeyIndex:
        """Returns an index with these versions added or replaced."""
        index = KeyIndex(changed, revision)
        index.complete = complete
        if not self._by_key:
            return index
        fresh = [key for key in index._keys if key not in self._by_key]
        for key, numbered in index._by_key.items():
            if key in self._by_key:
                index._by_key[key] = dict(sorted((self._by_key[key] | numbered).items()))
        index._by_key = self._by_key | index._by_key
        index._by_thumbprint = self._by_thumbprint | index._by_thumbprint
        index._keys, index._names = self._keys, self._names
        if fresh:  # all are in order but these: to sort all again takes ten times as long
            index._keys, index._names = self._keys.copy(), self._names.copy()
            for key in fresh:
                at = bisect_left(index._names, name := str(key))
                index._keys.insert(at, key)
                index._names.insert(at, name)
        return index

    def changed_since(self, before: KeyIndex) -> Iterator[KeyVersion]:
        """Yields the versions that differ from those in an earlier index, or are new."""
        for key, numbered in self._by_key.items():
            if before._by_key.get(key) is numbered:
                continue  # shared by `updated`: nothing of this key has changed
            for number, version in numbered.items():
                if before.version(key, number) != version:
                    yield version

    def written_since(self, before: KeyIndex) -> Iterator[KeyVersion]:
        """Yields the versions with another revision than in an earlier index, also the same ones.

        Officers name the revision that they saw: it counts, whatever was written.
        """
        for key, numbered in self._by_key.items():
            if (earlier := before._by_key.get(key)) is None or earlier is numbered:
                continue
            for number, version in numbered.items():
                if number in earlier and version.revision != earlier[number].revision:
                    yield version

    def version(self, name: KeyName, number: int) -> KeyVersion | None:
        """Returns one version, whatever its state."""
        return self._by_key.get(name, {}).get(number)

    def by_thumbprint(self, thumbprint: str) -> KeyVersion | None:
        """Returns the version with a JWS key id, whatever its state."""
        return self._by_thumbprint.get(thumbprint)

    def versions(self, name: KeyName) -> tuple[KeyVersion, ...]:
        """Returns all versions of a key, oldest first; none of a key that does not exist."""
        return tuple(self._by_key.get(name, {}).values())

    def primary(self, name: KeyName, now: float) -> KeyVersion | None:
        """Returns the version that signs for the key at the time ``now``.

        It is the active one with the latest activation; of two at the same instant, the newer.
        """
        active = [v for v in self._by_key.get(name, {}).values() if v.active(now)]
        if len(active) > 1:
            return max(active, key=lambda v: (v.activate_at or 0.0, v.number))
        return active[0] if active else None

    def names(self, prefix: str = "", after: str = "", limit: int | None = None) -> list[KeyName]:
        """Returns up to ``limit`` names that start with ``prefix`` and come after ``after``.

        They are in the order of their text: the last name of a page is the ``after`` of the next.
        A prefix of one facility ends with a slash, or ``facilities/01`` matches 01-001 too.
        """
        start = max(bisect_left(self._names, prefix), bisect_right(self._names, after))
        # No name has a character above "z", so this is the end of the prefix's range.
        end = bisect_left(self._names, prefix + "\x7f")
        if limit is not None:
            end = min(end, start + limit)
        return self._keys[start:end]

    def by_key(self) -> Iterator[tuple[KeyName, Collection[KeyVersion]]]:
        """Returns each key with all its versions, oldest first."""
        return ((name, numbered.values()) for name, numbered in self._by_key.items())

    def __iter__(self) -> Iterator[KeyVersion]:
        for numbered in self._by_key.values():
            yield from numbered.values()

    def __len__(self) -> int:
        return sum(map(len, self._by_key.values()))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, KeyIndex):
            return NotImplemented
        return self.revision == other.revision and self._by_key == other._by_key

    __hash__ = None  # type: ignore[assignment]  # equality is by content, which is large

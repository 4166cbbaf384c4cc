"""Which wrapped keys are accounted for. Pure: values in, values out.

A wrapped key is in the registry, where somebody may write anything. So the log records for each
one the hash of the wrapped bytes, the mechanism, the wrapping key and a hash of the public key. It
is served only if it is what the operation made that created it, or one that wrapped it anew. No two
versions have one public key, or one facility could sign with the key of another.
"""

import hashlib
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from signer import cbor
from signer.audit.format.record import RecordError, Value
from signer.model import KeyState, KeyVersion
from signer.officers.packing import HASH, hash_of_name, place_of, rows_in
from signer.officers.possession import claim_of_wrapped, proves
from signer.x509 import is_canonical

_ENTRY = struct.Struct(f">{HASH}sH{HASH}s{HASH}s")
_SINCE = struct.Struct(">Q")


class WrappedStanding(NamedTuple):
    """What is accounted for of a wrapped key.

    ``content`` is a hash of the wrapped bytes and of their mechanism, ``pin`` one of the public
    key; ``wrapping_key`` is the id of what has wrapped it. ``since`` is for ``Wrapping``.
    """

    content: bytes
    wrapping_key: str
    pin: bytes
    since: int = 0

    def same(self, other: "WrappedStanding | None") -> bool:
        """Whether both are of the same wrapped bytes."""
        return other is not None and self[:3] == other[:3]

    @property
    def wrapping(self) -> "Wrapping":
        """Returns what has wrapped the key."""
        return Wrapping(self.wrapping_key, self.since)


class Wrapping(NamedTuple):
    """What has wrapped a key: a wrapping key, by its id.

    Only operations that were proposed after ``since``, in seconds since the epoch, wrap the key
    anew: otherwise two that were done, there and back, would account for any wrapped bytes.
    ``operation`` is the one that has wrapped it anew, if that is known; empty for the one that made
    the key.
    """

    key: str
    since: int
    operation: str = ""


class WrappedRow(NamedTuple):
    """A wrapped key as a record has it; ``sha256`` is that of the wrapped bytes."""

    name: str
    sha256: bytes
    mechanism: str
    wrapping_key: str
    pin: bytes

    @classmethod
    def of(cls, version: KeyVersion) -> "WrappedRow | None":
        """Returns what the registry has of a version, None if it is not wrapped.

        The hash is that of the bytes, and empty where the registry states another one.
        """
        if (key := version.wrapped) is None:
            return None
        sha256 = hashlib.sha256(key.blob).digest()
        stated = sha256 if sha256 == key.sha256 else b""
        pin = hashlib.sha256(version.spki).digest()[:HASH]
        return cls(version.name, stated, str(key.mechanism), key.wrapping_key, pin)

    @property
    def standing(self) -> WrappedStanding:
        """Returns what is accounted for by this row, of an operation that is not known."""
        content = hashlib.sha256(cbor.encode_flat([self.sha256, self.mechanism])).digest()
        return WrappedStanding(content[:HASH], self.wrapping_key, self.pin)


def read_wrapped(rows: object) -> list[WrappedRow]:
    """Reads the wrapped keys of a record; raises RecordError."""
    found = []
    for row in rows_in(rows):
        match row:
            case [str(name), bytes(sha256), str(mechanism), str(wrapping_key), bytes(pin)] if (
                len(pin) == HASH
            ):
                found.append(WrappedRow(name, sha256, mechanism, wrapping_key, pin))
            case _:
                raise RecordError("a wrapped key cannot be read")
    return found


def wrapped_rows(rows: Iterable[WrappedRow]) -> list[Value]:
    """Returns wrapped keys as records hold them."""
    return [list(row) for row in rows]


def standing_of_wrapped(version: KeyVersion) -> WrappedStanding | None:
    """Returns what the registry has of a version's wrapped key, None if it is not wrapped."""
    row = WrappedRow.of(version)
    return None if row is None else row.standing


class WrappedStandings:
    """What is accounted for of all wrapped keys, by a hash of the version's name.

    What is once accounted for stays known: a public key is that of one version for ever.
    """

    def __init__(self) -> None:
        self._known: dict[bytes, WrappedStanding] = {}
        self._owners: dict[bytes, bytes] = {}  # names by pins

    def __bool__(self) -> bool:
        return bool(self._known)

    def get(self, name: str) -> WrappedStanding | None:
        return self._known.get(hash_of_name(name))

    def put(self, name: str, standing: WrappedStanding) -> None:
        key = hash_of_name(name)
        self._known[key] = standing
        self._owners.setdefault(standing.pin, key)

    def is_of_another(self, name: str, pin: bytes) -> bool:
        """Returns whether another version has a public key."""
        return self._owners.get(pin, hash_of_name(name)) != hash_of_name(name)

    def clear(self) -> None:
        self._known.clear()
        self._owners.clear()

    def packed(self) -> dict[str, Value]:
        """Returns the fields of a snapshot."""
        keys = sorted({standing.wrapping_key for standing in self._known.values()})
        numbers = {key: number for number, key in enumerate(keys)}
        entries = (
            _ENTRY.pack(name, numbers[at.wrapping_key], at.content, at.pin)
            for name, at in sorted(self._known.items())
        )
        since = (_SINCE.pack(at.since) for _, at in sorted(self._known.items()))
        return {
            "wrapping_keys": list(keys),
            "wrapped": b"".join(entries),
            "wrapped_since": b"".join(since),
        }

    def load(self, said: Mapping[Any, Any]) -> None:
        """Reads what ``packed`` wrote; nothing if it is not there. Raises RecordError."""
        keys, entries = said.get("wrapping_keys", ()), said.get("wrapped", b"")
        self.clear()
        try:
            assert isinstance(entries, bytes)  # noqa: S101 - reported below, as what follows
            names = [str(key) for key in rows_in(keys)]
            # Earlier versions did not write since when.
            since = said.get("wrapped_since", bytes(len(entries) // _ENTRY.size * _SINCE.size))
            assert isinstance(since, bytes)  # noqa: S101
            pairs = zip(_ENTRY.iter_unpack(entries), _SINCE.iter_unpack(since), strict=True)
            for (name, number, content, pin), (proposed,) in pairs:
                self._known[name] = WrappedStanding(content, names[number], pin, proposed)
                self._owners.setdefault(pin, name)
        except (AssertionError, struct.error, IndexError, ValueError) as error:
            raise RecordError("the snapshot's wrapped keys cannot be read") from error


class WrappingStep(Protocol):
    """An operation, as far as it makes wrapped keys; see Permit."""

    def wrapped_with(self, place: bytes) -> Wrapping | None:
        """Returns what wraps the key with a CKA_ID of this hash."""

    def wraps_anew(self, before: Wrapping) -> Wrapping | None:
        """Returns what wraps a key anew that was wrapped so before."""


def steps_to(
    version: KeyVersion,
    known: WrappedStanding | None,
    taken: Callable[[str, bytes], bool],
    steps: Sequence[WrappingStep],
    *,
    new: bool,
) -> list[tuple[int, WrappedRow]] | None:
    """Returns what has led to a version's wrapped key, by the numbers of the steps.

    None: nothing accounts for it. ``known`` is what was accounted for before, ``taken`` returns
    whether another version has a public key. ``new``: the version itself was not there before.
    """
    row = WrappedRow.of(version)
    if row is None:
        gone = known is not None and version.state is not KeyState.DESTROYED
        return None if gone else []
    if row.standing.same(known):
        return []
    if not row.sha256 or not is_canonical(version.spki) or taken(version.name, row.pin):
        return None
    if (known is None and not new) or (known is not None and known.pin != row.pin):
        return None
    return _path(version, row, known, steps)


def _path(
    version: KeyVersion,
    row: WrappedRow,
    known: WrappedStanding | None,
    steps: Sequence[WrappingStep],
) -> list[tuple[int, WrappedRow]] | None:
    """Returns the steps that lead to a version's row, None if they do not.

    Of a key that was wrapped anew since, the first wrapped bytes are not known. An operation that
    wraps anew accounts for no other bytes than those with which the key itself has signed that.
    """
    path: list[tuple[int, WrappedRow]] = []
    place = place_of(version.cka_id)
    at = None if known is None else known.wrapping
    for number, step in enumerate(steps):
        after = step.wrapped_with(place) if at is None else step.wraps_anew(at)
        if after is None:
            continue
        at = after
        if at.key == row.wrapping_key and _proven(version, at):
            return [*path, (number, row)]
        path.append((number, row._replace(wrapping_key=at.key, sha256=b"")))
    return None


def _proven(version: KeyVersion, by: Wrapping) -> bool:
    """Returns whether a version's key has signed that an operation wrapped it so."""
    wrapped = version.wrapped
    if wrapped is None or not by.operation:
        return wrapped is not None
    return proves(version, claim_of_wrapped(by.operation, version.name, wrapped), wrapped.proof)

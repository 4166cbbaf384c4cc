"""Short hashes and rows, as records of keys and snapshots have them."""

import hashlib
from collections.abc import Iterable
from functools import lru_cache

from signer.audit.format.record import Value

HASH = 16  # bytes of a hash


def place_of(cka_id: bytes) -> bytes:
    """Returns the hash of a CKA_ID."""
    return hashlib.sha256(cka_id).digest()[:HASH]


@lru_cache(maxsize=256)  # a record names a hundred versions several times each
def hash_of_name(name: str) -> bytes:
    """Returns the hash of a version's name."""
    return hashlib.sha256(name.encode()).digest()[:HASH]


def rows_in(rows: object) -> Iterable[Value]:
    """Returns the rows of a list, none of anything else."""
    return rows if isinstance(rows, list | tuple) else ()

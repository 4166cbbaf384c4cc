"""Wrapping keys as a whole: where each is, and how many private keys it has wrapped."""

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from signer.model import KeyVersion, WrappingKey, wrapping_cka_id


class WrappingUse(NamedTuple):
    """One wrapping key with all of its tokens.

    ``created`` is in seconds since the epoch, None if only versions name the key. ``newest_on``
    are those of its ``tokens`` on which new private keys are wrapped by it. ``versions`` counts
    the key versions that it has wrapped.
    """

    id: str
    created: float | None
    tokens: tuple[str, ...]
    newest_on: tuple[str, ...]
    destroyed: bool
    versions: int

    @property
    def cka_id(self) -> bytes:
        """The CKA_ID of the key on its tokens."""
        return wrapping_cka_id(self.id)


def newest_wrapping_key(keys: Iterable[WrappingKey], token: str) -> str:
    """Returns the id of the newest wrapping key on a token, empty if there is none."""
    here = [key for key in keys if key.token == token and not key.destroyed]
    return max(here, key=lambda key: key.created).id if here else ""


def wrapping_uses(keys: Iterable[WrappingKey], versions: Iterable[KeyVersion]) -> list[WrappingUse]:
    """Returns each wrapping key once, also one that only versions name; the newest first."""
    keys = list(keys)
    newest = {token: newest_wrapping_key(keys, token) for token in {key.token for key in keys}}
    wrapped = Counter(v.wrapped.wrapping_key for v in versions if v.wrapped is not None)
    uses = []
    for identity in {key.id for key in keys} | wrapped.keys():
        rows = sorted(key for key in keys if key.id == identity)
        tokens = tuple(key.token for key in rows)
        uses.append(
            WrappingUse(
                id=identity,
                created=min((key.created for key in rows), default=None),
                tokens=tokens,
                newest_on=tuple(token for token in tokens if newest[token] == identity),
                destroyed=any(key.destroyed for key in rows),
                versions=wrapped[identity],
            )
        )
    return sorted(uses, key=lambda use: (-(use.created or 0.0), use.id))

"""Registry and token compared at the start: what either has and the other has not.

Nothing is mended here. A key on the token that the registry does not know never signs;
a version whose key is not on the token fails its callers with HSM_UNAVAILABLE. What an
interrupted operation has left is completed by that operation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager

from signer.errors import OperatorError
from signer.events import Events, TokenDiffers
from signer.hsm.front.service import Hsm
from signer.model import (
    KeyState,
    KeyVersion,
    TokenAdmin,
    TokenObject,
    inventory_digest,
)

MOST_NAMED = 100
"""Differences that are named; the rest is counted."""

Admin = Callable[[str], AbstractContextManager[TokenAdmin]]


class Reconciler:
    """Compares each token once, as soon as it serves; ``found`` is what differs."""

    def __init__(
        self,
        hsm: Hsm,
        versions: Callable[[], Iterable[KeyVersion]],
        open_admin: Admin,
        events: Events,
    ) -> None:
        self.found: list[str] = []
        self._hsm, self._versions = hsm, versions
        self._open_admin, self._events = open_admin, events
        self._left = list(hsm.pools)

    def look(self) -> None:
        """Compares the tokens that serve by now, and reports what differs."""
        for label in [each for each in self._left if self._hsm.pools[each].inventory]:
            self._left.remove(label)
            seen = self._hsm.pools[label].inventory
            try:
                found = differences(label, seen, self._versions(), self._open_admin)
            except OperatorError as error:
                found = [f"token {label} could not be compared with the registry: {error}"]
            if found:
                self.found += found
                self._events.emit(TokenDiffers(found))


def differences(
    token: str, seen: bytes, versions: Iterable[KeyVersion], open_admin: Admin
) -> list[str]:
    """Returns how a token differs from the registry's versions, a line each.

    ``seen`` is the digest of the keys that a worker has found: where it is the expected
    one the token is not asked again. Raises OperatorError where it cannot be asked.
    """
    expected = {
        version.cka_id: version
        for version in versions
        if version.token == token and version.state is not KeyState.DESTROYED
    }
    wanted = (TokenObject(v.cka_id, v.name) for v in expected.values())
    if seen == inventory_digest(wanted):
        return []
    with open_admin(token) as admin:
        there = {each.cka_id: each.label for each in admin.inventory()}
    lines = [
        f"token {token} does not hold the key of {version.name}: restore the token's backup, or"
        " schedule the destruction of the version"
        for cka_id, version in expected.items()
        if cka_id not in there
    ]
    lines += [
        f"token {token} holds a key that the registry does not know: CKA_ID {cka_id.hex()},"
        f" label {label[:200]!r}; an operation that is not ended may have made it (list them:"
        " `signer operations list --state FAILED`), else remove it with the HSM's own tool"
        for cka_id, label in there.items()
        if cka_id not in expected
    ]
    return _bounded(lines, token)


def _bounded(lines: Sequence[str], token: str) -> list[str]:
    if len(lines) <= MOST_NAMED:
        return list(lines)
    return [*lines[:MOST_NAMED], f"token {token}: {len(lines) - MOST_NAMED} more differences"]

"""Registry and token compared at the start: the keys that only one of them has.

Nothing is repaired here. A key on the token that the registry does not know never signs;
a version whose key is not on the token fails its callers with HSM_UNAVAILABLE. What an
interrupted operation has left is completed by that operation.
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager

from signer.errors import OperatorError
from signer.events import Events, TokenDiffers
from signer.hsm.front.service import Hsm
from signer.keys.lifecycle import TokenAdmin
from signer.model import KeyState, KeyVersion, TokenObject, inventory_digest
from signer.signing.request import Served

MOST_NAMED = 100  # differences; the rest is counted
Admin = Callable[[str], AbstractContextManager[TokenAdmin]]


class Inventory:
    """Compares each token once, as soon as it serves; ``differences`` has a line for each."""

    def __init__(
        self, hsm: Hsm, served: Served, audit_key: KeyVersion, open_admin: Admin, events: Events
    ) -> None:
        self.differences: list[str] = []
        self._hsm, self._served, self._audit_key = hsm, served, audit_key
        self._open_admin, self._events = open_admin, events
        self._left = list(hsm.pools)

    def compare(self) -> None:
        """Compares the tokens that serve by now, and reports the differences."""
        for label in [label for label in self._left if self._hsm.pools[label].inventory]:
            self._left.remove(label)
            digest = self._hsm.pools[label].inventory
            versions = [*self._served.snapshot.keys, self._audit_key]
            try:
                lines = differences(label, digest, versions, self._open_admin)
            except OperatorError as error:
                lines = [f"token {label} could not be compared with the registry: {error}"]
            if lines:
                self.differences += lines
                self._events.emit(TokenDiffers(lines))


def differences(
    token: str, digest: bytes, versions: Iterable[KeyVersion], open_admin: Admin
) -> list[str]:
    """Returns how a token differs from the registry's versions, a line for each difference.

    ``digest`` is of the keys that a worker has found: if it is the expected one, the token is
    not read again. Raises OperatorError if the token cannot be read.
    """
    expected = {
        version.cka_id: version
        for version in versions
        if version.token == token and version.state is not KeyState.DESTROYED
    }
    if digest == inventory_digest(TokenObject(v.cka_id, v.name) for v in expected.values()):
        return []
    with open_admin(token) as admin:
        present = {key.cka_id: key.label for key in admin.inventory()}
    lines = [
        f"token {token} does not hold the key of {version.name}: restore the token's backup, or"
        " schedule the destruction of the version"
        for cka_id, version in expected.items()
        if cka_id not in present
    ]
    lines += [
        f"token {token} holds a key that the registry does not know: CKA_ID {cka_id.hex()},"
        f" label {label[:200]!r}; an operation that is not ended may have created it (list them:"
        " `signer operations list --state FAILED`), else remove it with the HSM's own tool"
        for cka_id, label in present.items()
        if cka_id not in expected
    ]
    if (more := len(lines) - MOST_NAMED) > 0:
        lines[MOST_NAMED:] = [f"token {token}: {more} more differences"]
    return lines

"""The key that signs the checkpoints of the audit log: in the registry, but no call can use it."""

from signer.algorithms import Algorithm
from signer.errors import OperatorError
from signer.keys.index import KeyIndex
from signer.keys.lifecycle import NewKey, TokenAdmin, create_key
from signer.keys.registry import Registry
from signer.model import AUDIT_KEY, KeyVersion


def ensure_audit_key(registry: Registry, admin: TokenAdmin, now: float) -> KeyVersion:
    """Returns the audit key; creates it if the registry has none. Raises OperatorError.

    It is an Ed25519 key, or an ES256 key where the token does not have that mechanism.
    """
    if registry.versions(AUDIT_KEY):
        return audit_key(registry, now)
    try:
        return create_key(registry, admin, NewKey(AUDIT_KEY, Algorithm.EDDSA), now)
    except OperatorError as error:
        if not error.unsupported:
            raise
    return create_key(registry, admin, NewKey(AUDIT_KEY, Algorithm.ES256), now)


def audit_key(registry: Registry, now: float) -> KeyVersion:
    """Returns the active version of the audit key; raises OperatorError if none is active."""
    version = KeyIndex(registry.versions(AUDIT_KEY)).primary(AUDIT_KEY, now)
    if version is None:
        raise OperatorError(
            "the registry has no audit key:"
            " `signer init --config FILE` creates it and starts the log"
        )
    return version

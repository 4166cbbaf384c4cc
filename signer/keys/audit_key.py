"""The key that signs the audit log's checkpoints: in the registry, out of every call's reach."""

from __future__ import annotations

from signer.errors import OperatorError
from signer.keys.generation import NewKey, create_key
from signer.keys.index import KeyIndex
from signer.keys.registry import Registry
from signer.model import AUDIT_KEY, Algorithm, KeyVersion, TokenAdmin


def ensure_audit_key(registry: Registry, admin: TokenAdmin, now: float) -> KeyVersion:
    """Returns the audit key, made if there is none. Raises OperatorError."""
    try:
        return audit_key(registry, now)
    except OperatorError:
        return create_audit_key(registry, admin, now)


def create_audit_key(registry: Registry, admin: TokenAdmin, now: float) -> KeyVersion:
    """Makes the audit key: Ed25519, or ES256 on a token without it. Raises OperatorError."""
    try:
        return create_key(registry, admin, NewKey(AUDIT_KEY, Algorithm.EDDSA), now)
    except OperatorError:
        return create_key(registry, admin, NewKey(AUDIT_KEY, Algorithm.ES256), now)


def audit_key(registry: Registry, now: float) -> KeyVersion:
    """Returns the audit key's version; raises OperatorError where there is none."""
    version = KeyIndex(registry.versions(AUDIT_KEY)).primary(AUDIT_KEY, now)
    if version is None:
        raise OperatorError(
            "the registry has no audit key: `signer init --config FILE` makes it and begins the log"
        )
    return version

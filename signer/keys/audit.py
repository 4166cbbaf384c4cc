"""The key that signs the audit log's checkpoints: in the registry, out of every call's reach."""

from __future__ import annotations

from signer.errors import OperatorError
from signer.keys.index import KeyIndex
from signer.keys.operations import NewKey, create_key
from signer.keys.registry import Registry
from signer.model import Algorithm, KeyName, KeyVersion, TokenAdmin

AUDIT_KEY = KeyName("_audit", "checkpoint")
"""No name of a facility begins with an underscore, so no request and no policy can name it."""


def create_audit_key(registry: Registry, admin: TokenAdmin, now: float) -> KeyVersion:
    """Makes the audit key: Ed25519, or ES256 on a token without it. Raises OperatorError."""
    try:
        return create_key(registry, admin, NewKey(AUDIT_KEY, Algorithm.EDDSA), now)
    except OperatorError:
        return create_key(registry, admin, NewKey(AUDIT_KEY, Algorithm.ES256), now)


def audit_key(index: KeyIndex, now: float) -> KeyVersion:
    """Returns the audit key's version; raises OperatorError where there is none."""
    version = index.primary(AUDIT_KEY, now)
    if version is None:
        raise OperatorError(
            "the registry has no audit key: `signer init --config FILE` makes it and begins the log"
        )
    return version


def without_audit_key(index: KeyIndex) -> KeyIndex:
    """Returns the keys that requests may name."""
    return KeyIndex((each for each in index if each.key != AUDIT_KEY), index.revision)

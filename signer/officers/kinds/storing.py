"""Where the keys are that an operation makes: on a token, or wrapped in the registry.

The policy says it, and the approved bytes name the wrapping key.
"""

from collections.abc import Iterable

from signer.model import KeyName, KeyState, KeyVersion, Storage
from signer.officers.kinds.operation_context import OperationContext, OperationError
from signer.policy.rules import Policy

_FIRST = "officers create one with `signer operations propose create-wrapping-key`"


def wrapping_key_of(
    keys: Iterable[KeyName], token: str, policy: Policy, context: OperationContext
) -> str:
    """Returns the id of the wrapping key for new keys, empty where they stay on the token.

    Raises OperationError if the keys are not all stored alike, or if there is no wrapping key.
    """
    stored = {key: _storage(key, policy) for key in keys}
    if len({*stored.values()}) > 1:
        some = [next(key for key, at in stored.items() if at == each) for each in Storage]
        raise OperationError(
            f"{some[0]} stays on the token by the policy and {some[1]} is stored wrapped: name"
            " keys of one kind of storage"
        )
    if Storage.WRAPPED not in stored.values():
        return ""
    if not (found := context.wrapping_key(token)):
        raise OperationError(f"token {token} has no wrapping key for wrapped keys: {_FIRST}")
    return found


def wrapping_key_for(key: KeyName, token: str, context: OperationContext) -> str:
    """Returns the id of the wrapping key for one key; empty also where there is none.

    ``changed_storage`` reports that.
    """
    stored = _storage(key, context.policy.policy)
    return context.wrapping_key(token) if stored == Storage.WRAPPED else ""


def storage_problems(wrapping_key: str, token: str, context: OperationContext) -> list[str]:
    """Returns why keys cannot be wrapped by the wrapping key of an operation."""
    here = {(key.id, key.token) for key in context.state.wrapping_keys if not key.destroyed}
    if not wrapping_key or (wrapping_key, token) in here:
        return []
    return [f"wrapping_key: token {token} does not have {wrapping_key[:36]}: {_FIRST}"]


def changed_storage(
    wrapping_key: str, key: KeyName, token: str, context: OperationContext
) -> list[str]:
    """Returns that the policy in force stores a key otherwise than an operation does."""
    storage = _storage(key, context.policy.policy)
    if bool(wrapping_key) == (storage == Storage.WRAPPED):
        return []
    if storage == Storage.WRAPPED and not context.wrapping_key(token):
        return [f"token {token} has no wrapping key for wrapped keys: {_FIRST}"]
    return [f"by the policy in force, the storage of {key} is {storage}: propose it again"]


def place_text(wrapping_key: str, token: str) -> str:
    """Returns where a new key is, for officers."""
    if not wrapping_key:
        return f"on token {token}"
    return f"made on token {token}, stored wrapped by wrapping key {wrapping_key}"


def is_stored(version: KeyVersion, wrapping_key: str) -> bool:
    """Returns whether a version is stored as an operation has made it, as far as its row shows.

    With what it is wrapped is judged by ``signer.officers.wrapped``.
    """
    gone = version.state is KeyState.DESTROYED
    return gone or (version.wrapped is not None) == bool(wrapping_key)


def _storage(key: KeyName, policy: Policy) -> str:
    terms = policy.terms_of(key)
    return str(Storage.TOKEN) if terms is None else terms.storage

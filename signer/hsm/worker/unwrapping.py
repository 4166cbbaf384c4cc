"""Wrapped keys: unwrapped into the session when they are first used, and kept for a while.

The front process sends a wrapped key with each part that it signs, as the registry has it and the
log accounts for it. A changed one is not unwrapped. An unwrapped key is an object of the session
that signs and can be neither read nor wrapped: it is gone when the session ends.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Collection

from signer.algorithms import Algorithm
from signer.hsm.frames import PackedWrapped, Verdict, unpack_wrapped
from signer.hsm.worker.cryptoki import CKA_ID, CKO_SECRET_KEY, Objects
from signer.hsm.worker.return_values import CryptokiError, ErrorClass

MAX_UNWRAPPED = 16_384
"""Unwrapped keys that a worker keeps; on SoftHSM each takes 8 KB, and half a millisecond to
unwrap again."""


class NotOneKey(Exception):
    """There is no key to sign with, for the reason of a verdict.

    Its id is that of no private key (NO_KEY) or of several (AMBIGUOUS), its wrapping key is not on
    the token (NO_WRAPPING_KEY), or it does not unwrap (NOT_UNWRAPPED).
    """

    def __init__(self, verdict: Verdict) -> None:
        self.verdict = verdict
        super().__init__(verdict.name)


class UnwrappedKeys:
    """The handles of unwrapped keys by the CKA_IDs that name them; the least used one goes."""

    def __init__(self, objects: Objects, most: int = MAX_UNWRAPPED) -> None:
        self._objects, self._most = objects, most
        self._keys: OrderedDict[bytes, tuple[bytes, int]] = OrderedDict()
        self._wrapping_keys: dict[bytes, int] = {}

    def __len__(self) -> int:
        return len(self._keys)

    def known(self, cka_id: bytes, packed: bytes) -> int | None:
        """Returns the handle of a key that is unwrapped; None: it is not, or not from these bytes.

        ``packed`` is the wrapped key, see ``signer.hsm.frames.pack_wrapped``.
        """
        known = self._keys.get(cka_id)
        if known is None or known[0] != packed:
            return None
        self._keys.move_to_end(cka_id)
        return known[1]

    def unwrap(self, cka_id: bytes, algorithm: Algorithm, packed: bytes) -> int:
        """Unwraps a key and keeps it; raises NotOneKey and CryptokiError."""
        self.drop([cka_id])
        self._leave(self._most - 1)
        try:
            handle = self.unwrap_once(cka_id, algorithm, unpack_wrapped(packed))
        except CryptokiError as error:
            if error.error_class is not ErrorClass.BUSY or not self._keys:
                raise
            self._leave(len(self._keys) // 2)  # the session has no room for so many
            handle = self.unwrap_once(cka_id, algorithm, unpack_wrapped(packed))
        self._keys[cka_id] = packed, handle
        return handle

    def unwrap_once(
        self, cka_id: bytes, algorithm: Algorithm, key: PackedWrapped, *, to_sign: bool = True
    ) -> int:
        """Unwraps a key, which the caller destroys; see Objects.unwrap.

        Raises NotOneKey and CryptokiError.
        """
        if hashlib.sha256(key.blob).digest() != key.sha256:
            raise NotOneKey(Verdict.NOT_UNWRAPPED)
        for _ in range(2):
            try:
                return self._unwrap(cka_id, algorithm, key, to_sign=to_sign)
            except CryptokiError as error:
                if not error.dead_handle:
                    raise
                self._wrapping_keys.pop(key.wrapping_key, None)  # it may have been replaced since
        raise NotOneKey(Verdict.NO_WRAPPING_KEY)

    def _unwrap(
        self, cka_id: bytes, algorithm: Algorithm, key: PackedWrapped, *, to_sign: bool
    ) -> int:
        wrapping_key = self.wrapping_key(key.wrapping_key)
        try:
            return self._objects.unwrap(
                key.mechanism, wrapping_key, key.blob, algorithm, cka_id, to_sign=to_sign
            )
        except CryptokiError as error:
            if error.dead_handle or not error.not_unwrapped:
                raise
            # The same codes say that a session is at its end: then this raises.
            if self._objects.names(wrapping_key) is None:
                raise
            raise NotOneKey(Verdict.NOT_UNWRAPPED) from error

    def wrapping_key(self, cka_id: bytes) -> int:
        """Returns the handle of a wrapping key; raises NotOneKey and CryptokiError."""
        if (known := self._wrapping_keys.get(cka_id)) is not None:
            return known
        found = self._objects.find({CKA_ID: cka_id}, most=2, kind=CKO_SECRET_KEY)
        if len(found) != 1:
            raise NotOneKey(Verdict.NO_WRAPPING_KEY)
        self._wrapping_keys[cka_id] = found[0]
        return found[0]

    def drop(self, ids: Collection[bytes]) -> None:
        """Destroys unwrapped keys."""
        for cka_id in ids:
            if (known := self._keys.pop(cka_id, None)) is not None:
                self._objects.destroy(known[1])

    def _leave(self, most: int) -> None:
        """Destroys what was used longest ago, until at most so many are left."""
        while len(self._keys) > most:
            self._objects.destroy(self._keys.popitem(last=False)[1][1])

"""Makes key pairs on a token.

The CKA_ID of a new key follows from what makes it: an operation's id and the key's number
in it, or the key's name where no operation makes it. If the program dies after the HSM made
the key and before the registry has it, the next attempt finds the key on the token and does
not make a second one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from signer.algorithms import PROPERTIES, RSA_BITS, Algorithm
from signer.errors import OperatorError
from signer.keys import lifecycle
from signer.keys.certificates import cose_kid, fits, jwk_thumbprint
from signer.keys.registry import Registry
from signer.model import KeyName, KeyState, KeyVersion, TokenObject


class TokenAdmin(Protocol):
    """One token in a read-write session. Every method raises OperatorError."""

    @property
    def token(self) -> str:
        """The token's label."""

    def describe(self) -> dict[str, str]:
        """Returns label, serial, model, manufacturer and versions of the token."""

    def inventory(self) -> list[TokenObject]:
        """Returns every private key on the token."""

    def generate(self, algorithm: Algorithm, bits: int, cka_id: bytes, label: str) -> bytes:
        """Makes a key pair and returns its SubjectPublicKeyInfo in DER.

        ``bits`` is the length of an RSA modulus, else 0. The private key is read back and
        compared with the strict template. A pair with this ``cka_id`` and ``label`` that an
        interrupted attempt left is returned instead; another key with either is an error.
        """

    def attributes(self, cka_id: bytes) -> dict[str, bool]:
        """Returns the attributes of a private key, as the token reports them."""

    def destroy(self, cka_id: bytes, label: str) -> None:
        """Destroys both halves of a key pair, if they exist; another label is an error."""

    def sign(
        self, algorithm: Algorithm, cka_id: bytes, spki: bytes, inputs: Sequence[bytes]
    ) -> list[bytes]:
        """Signs digests of the key's hash (EdDSA: messages) and checks them with ``spki``."""


class NewKey(NamedTuple):
    """A key to make; ``bits`` is the RSA modulus, 0 for all other algorithms."""

    name: KeyName
    algorithm: Algorithm
    bits: int = 0


def cka_id(name: KeyName, number: int) -> bytes:
    """Returns the CKA_ID of a version that no operation made: 16 bytes of its name's hash."""
    return _cka_id(f"{name}/versions/{number}")


def cka_id_of(operation: str, index: int) -> bytes:
    """Returns the CKA_ID of an operation's key; ``index`` is the key's number in it, from 0."""
    return _cka_id(f"{operation}\0{index}")


def _cka_id(made_by: str) -> bytes:
    return hashlib.sha256(f"signer.v1 key\0{made_by}".encode()).digest()[:16]


def make_version(
    admin: TokenAdmin, new: NewKey, number: int, identifier: bytes, now: float
) -> KeyVersion:
    """Makes a key pair on the token, or finds the one that an earlier attempt left.

    Returns it PRE_ACTIVE; the registry does not have it yet. Raises OperatorError.
    """
    check_bits(new)
    label = f"{new.name}/versions/{number}"
    try:
        spki = admin.generate(new.algorithm, new.bits, identifier, label)
    except OperatorError as error:
        raise OperatorError(
            f"{new.name} was not made: {error} (CKA_ID {identifier.hex()}; an interrupted attempt"
            " leaves such a key, and it never signed anything)",
            error.kind,
        ) from error
    if not fits(spki, new.algorithm, new.bits or None):
        raise OperatorError(
            f"token {admin.token} made a key for {new.name} that does not fit {new.algorithm};"
            f" it is not registered: delete CKA_ID {identifier.hex()} and ask the HSM's maker"
        )
    return KeyVersion(
        key=new.name,
        number=number,
        algorithm=new.algorithm,
        state=KeyState.PRE_ACTIVE,
        token=admin.token,
        cka_id=identifier,
        spki=spki,
        certificate=None,
        kid=cose_kid(spki, None),
        thumbprint=jwk_thumbprint(spki),
        created=now,
        activate_at=None,
        sign_until=None,
    )


def create_key(registry: Registry, admin: TokenAdmin, new: NewKey, now: float) -> KeyVersion:
    """Makes version 1 of a key that no operation makes, active at once, and registers it.

    Raises OperatorError, and then the registry is unchanged.
    """
    made = make_version(admin, new, 1, cka_id(new.name, 1), now)
    version = lifecycle.activate(made, now, None, now)
    registry.add_version(version)
    return version


def check_bits(new: NewKey) -> None:
    """Raises OperatorError where the key length does not fit the algorithm."""
    is_rsa = PROPERTIES[new.algorithm].curve is None
    if is_rsa and new.bits not in RSA_BITS:
        raise OperatorError(
            f"{new.algorithm} needs a modulus of 2048, 3072 or 4096 bits; say which"
        )
    if not is_rsa and new.bits:
        raise OperatorError(f"{new.algorithm} has a fixed key length: omit --bits")

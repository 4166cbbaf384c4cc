"""Making keys and giving them certificates: token first, then registry.

The CKA_ID of a new key follows from what has it made: an operation's id and the place
in it, or for the first keys of an appliance their name. So if the program dies after
the HSM made the key and before the registry knew it, the next attempt meets the key
on the token instead of making a second one beside it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import NamedTuple

from cryptography.hazmat.primitives.serialization import Encoding

from signer.clock import Clock
from signer.errors import OperatorError
from signer.keys import lifecycle
from signer.keys.certificates import (
    RSA_BITS,
    check_certificate,
    cose_kid,
    fits,
    jwk_thumbprint,
    read_certificate,
)
from signer.keys.registry import Registry
from signer.keys.writing import Change
from signer.model import Algorithm, KeyName, KeyState, KeyVersion, TokenAdmin

_RSA = frozenset({Algorithm.RS256, Algorithm.PS256})


class NewKey(NamedTuple):
    """A key to make; ``bits`` is the RSA modulus, 0 for all other algorithms."""

    name: KeyName
    algorithm: Algorithm
    bits: int = 0


def cka_id(name: KeyName, number: int) -> bytes:
    """Returns the CKA_ID of a version that no operation made: 16 bytes of its name's hash."""
    return _cka_id(f"{name}/versions/{number}")


def cka_id_of(operation: str, place: int) -> bytes:
    """Returns the CKA_ID of the key that an operation makes at a place in it, from 0."""
    return _cka_id(f"{operation}\0{place}")


def _cka_id(made_by: str) -> bytes:
    return hashlib.sha256(f"signer.v1 key\0{made_by}".encode()).digest()[:16]


def make_version(
    admin: TokenAdmin, new: NewKey, number: int, identifier: bytes, now: float
) -> KeyVersion:
    """Makes a key pair on the token, or finds the one that an earlier attempt has left.

    It is PRE_ACTIVE and not in the registry yet. Raises OperatorError.
    """
    check_bits(new)
    label = f"{new.name}/versions/{number}"
    try:
        spki = admin.generate(new.algorithm, new.bits, identifier, label)
    except OperatorError as error:
        raise OperatorError(
            f"{new.name} is not made: {error} (CKA_ID {identifier.hex()};"
            " an attempt that ended half-way leaves such a key, and it never signed anything)"
        ) from error
    if not fits(spki, new.algorithm, new.bits or None):
        raise OperatorError(
            f"token {admin.token} made a key for {new.name} that is none for {new.algorithm};"
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
    """Makes a key pair in the HSM and registers it as version 1, active at once.

    Raises OperatorError, and then the registry is unchanged.
    """
    check_bits(new)
    if registry.versions(new.name):
        raise OperatorError(f"{new.name} exists; `signer keys show {new.name}` shows it")
    return _generate(registry, admin, new, now)


def create_keys(
    registry: Registry,
    admin: TokenAdmin,
    wanted: Iterable[NewKey],
    clock: Clock,
    on_created: Callable[[KeyVersion], None] = lambda _: None,
) -> None:
    """Makes those of the keys that the registry does not have, one after another.

    ``on_created`` hears of each key made. Raises OperatorError at the first
    that fails, or that is there with another algorithm; the keys before it stay.
    """
    index = registry.snapshot()
    for new in wanted:
        check_bits(new)
        there = index.versions(new.name)
        if not there:
            on_created(_generate(registry, admin, new, clock.now()))
        elif there[0].algorithm is not new.algorithm:
            raise OperatorError(
                f"{new.name} exists for {there[0].algorithm}, not {new.algorithm}:"
                " choose another name"
            )


def import_certificate(
    registry: Registry, version: KeyVersion, data: bytes, now: float, *, replaces: bool = False
) -> KeyVersion:
    """Checks a certificate (PEM or DER) and stores it with the version.

    It becomes the version's COSE key id, under which verifiers look it up; so
    another one takes its place only if ``replaces`` says so. The same one
    again changes nothing. Returns the version as it is then; raises OperatorError.
    """
    changed = certified(version, data, now, replaces=replaces)
    if changed is not version:
        with registry.writing() as write:
            write.change([Change(version, changed)])
    return changed


def certified(
    version: KeyVersion, data: bytes, now: float, *, replaces: bool = False
) -> KeyVersion:
    """Returns the version with a certificate, or itself where it has that one already.

    Raises OperatorError; see ``import_certificate``.
    """
    certificate = read_certificate(data)
    der = certificate.public_bytes(Encoding.DER)
    if der == version.certificate:
        return version
    check_certificate(certificate, version, now)
    if version.certificate is not None and not replaces:
        raise OperatorError(
            f"{version.name} has another certificate, under whose key id its messages are verified;"
            " publish the new one to verifiers first, then repeat with --replace"
        )
    return replace(version, certificate=der, kid=cose_kid(version.spki, der))


def check_bits(new: NewKey) -> None:
    """Raises OperatorError where RSA has no length of ours, or another algorithm has one."""
    if new.algorithm in _RSA and new.bits not in RSA_BITS:
        raise OperatorError(
            f"{new.algorithm} needs a modulus of 2048, 3072 or 4096 bits; say which"
        )
    if new.algorithm not in _RSA and new.bits:
        raise OperatorError(f"{new.algorithm} has one key length: leave the number of bits away")


def _generate(registry: Registry, admin: TokenAdmin, new: NewKey, now: float) -> KeyVersion:
    made = make_version(admin, new, 1, cka_id(new.name, 1), now)
    version = lifecycle.activate(made, now, None, now)
    registry.add_version(version)
    return version

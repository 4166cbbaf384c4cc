"""What a private key signs to show that it is where an operation has put it.

Whether a key is on a token, or in wrapped bytes, only that token can show. So the appliance that
executes such an operation has the key itself sign what was made, and keeps the signature in the
registry. Each appliance that accounts for the registry verifies it with the pinned public key:
someone who can write to the registry but cannot sign with the key cannot make another one.
"""

import hashlib

from signer import cbor
from signer.algorithms import PROPERTIES, Algorithm
from signer.hsm.mechanisms import Verifier
from signer.model import KeyVersion, Placement, WrappedKey

_HEAD = "signer.v1 possession"  # no message of any format begins as these bytes do


def claim_of_placement(operation: str, version: str, placement: Placement) -> bytes:
    """Returns what a key signs that an operation places on a further token."""
    return _claim("add-placement", operation, version, placement.token, placement.cka_id.hex())


def claim_of_wrapped(operation: str, version: str, wrapped: WrappedKey) -> bytes:
    """Returns what a key signs that an operation has wrapped anew."""
    sha256 = hashlib.sha256(wrapped.blob).hexdigest()
    made = str(wrapped.mechanism), wrapped.wrapping_key, sha256
    return _claim("rewrap", operation, version, *made)


def claim_of_wrapping_key(operation: str, version: str, wrapping_key: str, token: str) -> bytes:
    """Returns what a wrapped key signs on a further token that holds its wrapping key."""
    return _claim("place-wrapping-key", operation, version, wrapping_key, token)


def _claim(*parts: str) -> bytes:
    return cbor.encode_record([_HEAD, *parts], 1)


def signed_form(algorithm: Algorithm, message: bytes) -> bytes:
    """Returns what a token signs of a message: its digest, for EdDSA all of it."""
    name = PROPERTIES[algorithm].hash_name
    return hashlib.new(name, message).digest() if name else message


def proves(version: KeyVersion, claim: bytes, proof: bytes) -> bool:
    """Returns whether a version's key has signed a claim."""
    try:
        verifier = Verifier(version.algorithm, version.spki)
    except ValueError:  # the row's public key cannot be read, or does not fit its algorithm
        return False
    return verifier.correct(signed_form(version.algorithm, claim), proof)

"""A token in memory, and the end of the program at any point of its work."""

import hashlib
from collections.abc import Callable, Sequence

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa, utils
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from signer.algorithms import Algorithm
from signer.errors import OperatorError
from signer.model import TokenObject, WrapMechanism, WrappedKey

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey


class Crash(BaseException):
    """The program is gone: nothing catches this, and nothing is done after it."""


class Fate:
    """Ends the program at one point of its work; from then on it can do nothing at all."""

    def __init__(self) -> None:
        self.points = 0
        self.dead = False
        self._left: int | None = None
        self._meanwhile: tuple[int, Callable[[], None]] | None = None

    def meanwhile(self, points: int, act: Callable[[], None]) -> None:
        """Lets so many points pass, and has something done by others before the next.

        Others cannot write while a transaction is open.
        """
        self._meanwhile = points, act

    def crash_after(self, points: int) -> None:
        """Lets so many points pass, and ends the program at the next."""
        self._left = points

    def revive(self) -> None:
        self.dead, self._left, self._meanwhile = False, None, None

    def at(self, point: str) -> None:
        """Marks a point at which a program can end."""
        self.points += 1
        if self._meanwhile is not None and not point.startswith("before a commit"):
            left, act = self._meanwhile
            self._meanwhile = (left - 1, act) if left else None
            if not left:
                act()
        if self._left is not None:
            self._left -= 1
            self.dead = self.dead or self._left < 0
        if self.dead:
            raise Crash(point)


class SoftToken:
    """Makes, finds, destroys and uses keys as an administrative worker does.

    ``room`` is how many keys still fit, None for any number.
    """

    def __init__(self, fate: Fate, label: str = "soft") -> None:
        self._fate, self.token = fate, label
        self.extractable = False
        self.keys: dict[bytes, tuple[str, PrivateKey]] = {}
        self.room: int | None = None
        self.wrapping_keys: set[str] = set()
        self.wrapped: dict[bytes, PrivateKey] = {}  # by the SHA-256 of what wraps it
        self.generated = 0

    def describe(self) -> dict[str, str]:
        return {"label": self.token, "serial": "0001", "model": "memory"}

    def inventory(self) -> list[TokenObject]:
        return [TokenObject(cka_id, label) for cka_id, (label, _) in self.keys.items()]

    def attributes(self, cka_id: bytes) -> dict[str, bool]:
        if cka_id not in self.keys:
            raise OperatorError("there is no such key")
        return {"sensitive": True, "extractable": self.extractable}

    def generate(self, algorithm: Algorithm, bits: int, cka_id: bytes, label: str) -> bytes:
        self._fate.at("before a key is made")
        there = self.keys.get(cka_id)
        if there is None:
            if any(other == label for other, _ in self.keys.values()):
                raise OperatorError(f"the token has another key {label}")
            if self.room is not None and not self.room:
                raise OperatorError("the token is full")
            self.room = None if self.room is None else self.room - 1
            there = self.keys[cka_id] = label, _generate(algorithm, bits)
            self.generated += 1
        if there[0] != label:
            raise OperatorError(f"the token has another key under {cka_id.hex()}")
        self._fate.at("after a key is made")
        return spki_of(there[1])

    def destroy(self, cka_id: bytes, label: str) -> None:
        self._fate.at("before a key is destroyed")
        if self.keys.get(cka_id, (label,))[0] != label:
            raise OperatorError("this is another key")
        self.keys.pop(cka_id, None)
        self._fate.at("after a key is destroyed")

    def make_wrapping_key(self, identity: str) -> dict[str, bool]:
        self._fate.at("before a wrapping key is made")
        self.wrapping_keys.add(identity)
        self._fate.at("after a wrapping key is made")
        return {"sensitive": True, "extractable": False}

    def generate_wrapped(
        self, algorithm: Algorithm, bits: int, cka_id: bytes, wrapping_key: str
    ) -> tuple[bytes, WrappedKey]:
        del cka_id
        self._fate.at("before a key is made")
        key = _generate(algorithm, bits)
        self.generated += 1
        wrapped = self._wrap(key, wrapping_key)
        self._fate.at("after a key is made")
        return spki_of(key), wrapped

    def wrap_anew(
        self,
        algorithm: Algorithm,
        cka_id: bytes,
        spki: bytes,
        wrapped: WrappedKey,
        wrapping_key: str,
    ) -> WrappedKey:
        del algorithm, cka_id
        self._fate.at("before a key is wrapped anew")
        key = self.wrapped[wrapped.sha256]
        assert spki_of(key) == spki
        again = self._wrap(key, wrapping_key)
        self._fate.at("after a key is wrapped anew")
        return again

    def destroy_wrapping_key(self, identity: str) -> None:
        self._fate.at("before a wrapping key is destroyed")
        self.wrapping_keys.discard(identity)
        self._fate.at("after a wrapping key is destroyed")

    def _wrap(self, key: PrivateKey, wrapping_key: str) -> WrappedKey:
        if wrapping_key not in self.wrapping_keys:
            raise OperatorError("there is no such wrapping key")
        blob = f"{wrapping_key}/{len(self.wrapped)}".encode()
        sha256 = hashlib.sha256(blob).digest()
        self.wrapped[sha256] = key
        mechanism = WrapMechanism.AES_KEY_WRAP_PAD
        return WrappedKey(blob, sha256, mechanism, wrapping_key, (self.token,))

    def sign(
        self,
        algorithm: Algorithm,
        cka_id: bytes,
        spki: bytes,
        inputs: Sequence[bytes],
        wrapped: WrappedKey | None = None,
    ) -> list[bytes]:
        self._fate.at("before a signature")
        if wrapped is not None:
            if wrapped.sha256 not in self.wrapped:
                raise OperatorError(f"token {self.token} does not unwrap this key")
            key = self.wrapped[wrapped.sha256]
        elif cka_id not in self.keys:
            raise OperatorError("there is no such key")
        else:
            _, key = self.keys[cka_id]
        if spki_of(key) != spki:
            raise OperatorError(f"token {self.token} cannot sign with this key")
        return [_sign(algorithm, key, data) for data in inputs]


def spki_of(key: PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _generate(algorithm: Algorithm, bits: int) -> PrivateKey:
    match algorithm:
        case Algorithm.ES256:
            return ec.generate_private_key(ec.SECP256R1())
        case Algorithm.ES384:
            return ec.generate_private_key(ec.SECP384R1())
        case Algorithm.EDDSA:
            return ed25519.Ed25519PrivateKey.generate()
    return rsa.generate_private_key(65537, bits)


def _sign(algorithm: Algorithm, key: PrivateKey, data: bytes) -> bytes:
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return key.sign(data)
    if isinstance(key, rsa.RSAPrivateKey):
        pss = padding.PSS(padding.MGF1(hashes.SHA256()), 32)
        pad = pss if algorithm is Algorithm.PS256 else padding.PKCS1v15()
        return key.sign(data, pad, utils.Prehashed(hashes.SHA256()))
    hashed = hashes.SHA256() if algorithm is Algorithm.ES256 else hashes.SHA384()
    size = key.key_size // 8
    der = key.sign(data, ec.ECDSA(utils.Prehashed(hashed)))
    return b"".join(part.to_bytes(size, "big") for part in utils.decode_dss_signature(der))

"""Low s, and the check of signatures by software that is not the HSM's."""

import hashlib
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import (
    Prehashed,
    decode_dss_signature,
    encode_dss_signature,
)
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import example, given
from hypothesis import strategies as st

from signer.algorithms import PROPERTIES, Algorithm
from signer.hsm.mechanisms import (
    MECHANISMS,
    P256_ORDER,
    P384_ORDER,
    SHA256_DIGEST_INFO,
    Verifier,
    low_s,
)

CURVES = [(Algorithm.ES256, ec.SECP256R1(), 32), (Algorithm.ES384, ec.SECP384R1(), 48)]
RSA = rsa.generate_private_key(65537, 2048)


def spki(private: Any) -> bytes:
    der: bytes = private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return der


def sign(algorithm: Algorithm, private: Any, data: bytes) -> bytes:
    """The raw signature as a token makes it, by other software."""
    match algorithm:
        case Algorithm.EDDSA:
            signature = private.sign(data)
        case Algorithm.ES256 | Algorithm.ES384:
            size = 32 if algorithm is Algorithm.ES256 else 48
            digest = hashes.SHA256() if size == 32 else hashes.SHA384()
            r, s = decode_dss_signature(private.sign(data, ec.ECDSA(Prehashed(digest))))
            signature = r.to_bytes(size) + s.to_bytes(size)
        case Algorithm.RS256:
            signature = private.sign(data, padding.PKCS1v15(), Prehashed(hashes.SHA256()))
        case _:
            pss = padding.PSS(padding.MGF1(hashes.SHA256()), 32)
            signature = private.sign(data, pss, Prehashed(hashes.SHA256()))
    return bytes(signature)


KEYS: dict[Algorithm, Any] = {
    Algorithm.ES256: ec.generate_private_key(ec.SECP256R1()),
    Algorithm.ES384: ec.generate_private_key(ec.SECP384R1()),
    Algorithm.RS256: RSA,
    Algorithm.PS256: RSA,
    Algorithm.EDDSA: ed25519.Ed25519PrivateKey.generate(),
}


def data_for(algorithm: Algorithm, seed: bytes = b"data") -> bytes:
    name = PROPERTIES[algorithm].hash_name
    return seed if name is None else hashlib.new(name, seed).digest()


@pytest.mark.parametrize(("algorithm", "curve", "size"), CURVES)
def test_low_s_keeps_a_signature_right_and_s_small(
    algorithm: Algorithm, curve: ec.EllipticCurve, size: int
) -> None:
    private, order = ec.generate_private_key(curve), MECHANISMS[algorithm].order
    assert order is not None
    verifier, seen = Verifier(algorithm, spki(private)), set()
    for number in range(64):
        data = data_for(algorithm, bytes([number]))
        signature = sign(algorithm, private, data)
        s = int.from_bytes(signature[size:])
        low = low_s(signature, order)
        seen.add(low == signature)
        assert low[:size] == signature[:size]
        assert int.from_bytes(low[size:]) == min(s, order - s) <= order // 2
        assert verifier.correct(data, low)
    assert seen == {True, False}  # 64 signatures have both sorts


@given(st.integers(1, P256_ORDER - 1))
@example(1)
@example(P256_ORDER // 2)
@example(P256_ORDER // 2 + 1)
@example(P256_ORDER - 1)
def test_low_s_is_the_smaller_of_the_two_and_settled(s: int) -> None:
    low = low_s(bytes(32) + s.to_bytes(32), P256_ORDER)
    assert len(low) == 64
    assert int.from_bytes(low[32:]) == min(s, P256_ORDER - s)
    assert low_s(low, P256_ORDER) == low


def test_the_orders_are_those_of_the_curves() -> None:
    for order, curve, size in ((P256_ORDER, CURVES[0][1], 32), (P384_ORDER, CURVES[1][1], 48)):
        assert order.bit_length() == size * 8
        ec.derive_private_key(order - 1, curve)  # the largest private key there is
        with pytest.raises(ValueError, match=r".*"):
            ec.derive_private_key(order, curve)


def test_the_digest_info_is_that_of_sha256() -> None:
    digest = data_for(Algorithm.RS256)
    number = int.from_bytes(sign(Algorithm.RS256, RSA, digest))
    public = RSA.public_key().public_numbers()
    padded = pow(number, public.e, public.n).to_bytes(256)
    assert padded.endswith(b"\0" + SHA256_DIGEST_INFO + digest)


@pytest.mark.parametrize("algorithm", Algorithm)
def test_a_verifier_accepts_correct_signatures_only(algorithm: Algorithm) -> None:
    private = KEYS[algorithm]
    verifier = Verifier(algorithm, spki(private))
    data, other = data_for(algorithm), data_for(algorithm, b"other")
    signature = sign(algorithm, private, data)
    assert len(signature) == verifier.signature_length
    assert verifier.correct(data, signature)
    assert not verifier.correct(other, signature)
    for at in (0, len(signature) // 2, len(signature) - 1):
        flipped = bytearray(signature)
        flipped[at] ^= 1
        assert not verifier.correct(data, bytes(flipped))
    for wrong in (b"", signature[:-1], signature + b"\0", bytes(len(signature))):
        assert not verifier.correct(data, wrong)
    assert not verifier.correct(data, b"\xff" * len(signature))


@pytest.mark.parametrize("algorithm", Algorithm)
def test_a_verifier_refuses_the_signature_of_another_key(algorithm: Algorithm) -> None:
    others: dict[Algorithm, Any] = {
        Algorithm.ES256: ec.generate_private_key(ec.SECP256R1()),
        Algorithm.ES384: ec.generate_private_key(ec.SECP384R1()),
        Algorithm.EDDSA: ed25519.Ed25519PrivateKey.generate(),
    }
    other = others.get(algorithm) or rsa.generate_private_key(65537, 2048)
    data = data_for(algorithm)
    verifier = Verifier(algorithm, spki(KEYS[algorithm]))
    assert not verifier.correct(data, sign(algorithm, other, data))


def test_the_two_rsa_paddings_are_not_confused() -> None:
    digest = data_for(Algorithm.RS256)
    for made, checked in ((Algorithm.RS256, Algorithm.PS256), (Algorithm.PS256, Algorithm.RS256)):
        assert not Verifier(checked, spki(RSA)).correct(digest, sign(made, RSA, digest))


def test_der_is_not_a_raw_signature() -> None:
    private = KEYS[Algorithm.ES256]
    digest = data_for(Algorithm.ES256)
    signature = sign(Algorithm.ES256, private, digest)
    r, s = int.from_bytes(signature[:32]), int.from_bytes(signature[32:])
    der = encode_dss_signature(r, s)
    assert not Verifier(Algorithm.ES256, spki(private)).correct(digest, der)


@pytest.mark.parametrize("algorithm", Algorithm)
@pytest.mark.parametrize("pinned", [*Algorithm, "P-521", "RSA-1024", "garbage"])
def test_a_pin_must_fit_the_algorithm(algorithm: Algorithm, pinned: str) -> None:
    odd: dict[str, bytes] = {
        "P-521": spki(ec.generate_private_key(ec.SECP521R1())),
        "RSA-1024": spki(rsa.generate_private_key(65537, 1024)),  # noqa: S505 - to be refused
        "garbage": b"\x30\x03\x02\x01\x00",
    }
    pin = odd[pinned] if pinned in odd else spki(KEYS[Algorithm(pinned)])
    rsa_names = (Algorithm.RS256, Algorithm.PS256)
    if pinned == algorithm or (pinned in rsa_names and algorithm in rsa_names):
        assert Verifier(algorithm, pin).signature_length in (64, 96, 256)
    else:
        with pytest.raises(ValueError, match=r".+"):
            Verifier(algorithm, pin)


@pytest.mark.parametrize("algorithm", list(Algorithm))
@given(st.one_of(st.binary(max_size=600), st.sampled_from([b"\xff" * 64, b"\xff" * 96])))
@example(b"\xff" * 64)
@example(b"\xff" * 63)
@example(bytes(64))
@example(b"")
def test_what_is_no_signature_is_wrong_and_nothing_worse(algorithm: Algorithm, made: bytes) -> None:
    order = MECHANISMS[algorithm].order
    made = made if order is None else low_s(made, order)
    verifier = Verifier(algorithm, spki(KEYS[algorithm]))
    assert not verifier.correct(data_for(algorithm), made)

"""Orders and their answers on both sides of a socket, with a fake token."""

import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from signer.algorithms import Algorithm
from signer.errors import OperatorError
from signer.hsm.frames import Channel, Closed, FrameError, FrameKind, pack_json, unpack_json
from signer.hsm.front.admin import KEYS_AT_ONCE, AdminWorker
from signer.hsm.mechanisms import Verifier
from signer.hsm.spec import FailureKind, TokenFailure, WorkerMode
from signer.hsm.worker.__main__ import _operations as ordered
from signer.hsm.worker.administration import OPERATIONS, carry_out
from signer.hsm.worker.measuring import OpenTimes
from signer.hsm.worker.pairs import spki_of_point, spki_of_rsa
from signer.model import TokenObject


class FakeToken:
    """Holds the keys it is given, each under its number as a handle."""

    def __init__(self) -> None:
        self.holds: list[TokenObject] = []
        self.failure: TokenFailure | None = None
        self.spec = SimpleNamespace(mode=WorkerMode.ADMINISTER)
        self.objects = self
        self.heartbeat = SimpleNamespace(count=0)

    def beat(self) -> None:
        self.heartbeat.count += 1

    def find(self, wanted: Mapping[int, bytes]) -> list[int]:
        assert not wanted
        return list(range(len(self.holds)))

    def names(self, handle: int) -> TokenObject | None:
        return self.holds[handle] if handle < len(self.holds) else None

    def doing(self, _: str) -> AbstractContextManager[None]:
        return nullcontext()


def destroy(token: FakeToken, cka_id: str, label: str) -> None:
    if token.failure is not None:
        raise token.failure
    token.holds.remove(TokenObject(bytes.fromhex(cka_id), label))


@pytest.fixture
def token() -> FakeToken:
    return FakeToken()


@pytest.fixture
def admin(token: FakeToken, monkeypatch: pytest.MonkeyPatch) -> Iterator[AdminWorker]:
    monkeypatch.setitem(OPERATIONS, "destroy", destroy)
    ours, theirs = map(Channel, socket.socketpair())

    def answer() -> None:
        try:
            while True:
                _, body = theirs.receive()
                operations = ordered(token, OpenTimes(lambda _: None))  # type: ignore[arg-type]
                answer = carry_out(token, unpack_json(body), operations)  # type: ignore[arg-type]
                theirs.send(FrameKind.DONE, pack_json(answer))
        except Closed:
            return
        except (TokenFailure, FrameError) as failure:
            theirs.send(FrameKind.FATAL, pack_json({"text": str(failure)}))
        finally:
            theirs.close()

    worker = threading.Thread(target=answer)
    worker.start()
    process: Any = SimpleNamespace(channel=ours, kill=lambda: None, heartbeat=token.heartbeat)
    yield AdminWorker(process, "t", 30.0)
    ours.close()
    worker.join()


@pytest.mark.parametrize("count", [0, 1, KEYS_AT_ONCE, KEYS_AT_ONCE + 1, 15_000])
def test_an_inventory_of_any_length_arrives_whole(
    token: FakeToken, admin: AdminWorker, count: int
) -> None:
    label = "\u1ed9" * 200  # 1,200 bytes as JSON: together more than a frame may have
    token.holds = [TokenObject(b"%d" % number, f"{label}{number}") for number in range(count)]
    parts: list[float] = []
    assert admin.inventory(parts.append) == token.holds
    assert len(parts) == -(-count // KEYS_AT_ONCE), "it may rest after each part"


def test_keys_that_go_while_they_are_listed_are_left_out(
    token: FakeToken, admin: AdminWorker
) -> None:
    token.holds = [TokenObject(b"%d" % number, "") for number in range(KEYS_AT_ONCE + 5)]
    first = token.holds[:KEYS_AT_ONCE]

    def lose(_: float) -> None:
        token.holds = first

    assert admin.inventory(lose) == first


def test_a_worker_that_only_lists_keys_does_nothing_else(
    token: FakeToken, admin: AdminWorker
) -> None:
    token.holds = [TokenObject(b"a", "one")]
    token.spec.mode = WorkerMode.LIST
    assert admin.inventory() == token.holds
    with pytest.raises(OperatorError, match="not for this worker"):
        admin.destroy(b"a", "one")
    assert token.holds == [TokenObject(b"a", "one")]


def test_an_order_of_many_calls_is_not_taken_for_a_hang(
    admin: AdminWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(token: FakeToken) -> dict[str, str]:
        for _ in range(40):
            time.sleep(0.02)
            token.beat()
        return {"label": "t"}

    admin._seconds = 0.3
    monkeypatch.setitem(OPERATIONS, "describe", work)
    assert admin.describe() == {"label": "t"}


def test_an_order_of_which_one_call_hangs_ends_its_worker(
    admin: AdminWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()

    def hang(_: FakeToken) -> dict[str, str]:
        release.wait(20)
        return {}

    admin._seconds = 0.3
    monkeypatch.setitem(OPERATIONS, "describe", hang)
    with pytest.raises(OperatorError, match=r"did not answer within 0\.3 s and was killed"):
        admin.describe()
    release.set()


def test_a_failed_order_is_reported_and_the_worker_goes_on(
    token: FakeToken, admin: AdminWorker
) -> None:
    token.holds = [TokenObject(b"a", "one")]
    token.failure = TokenFailure(FailureKind.BUSY, "it is full")
    with pytest.raises(OperatorError, match="it is full") as refused:
        admin.destroy(b"a", "one")
    assert not refused.value.unsupported
    token.failure = TokenFailure(FailureKind.MODULE_FATAL, "it cannot", unsupported=True)
    with pytest.raises(OperatorError, match="it cannot") as refused:
        admin.destroy(b"a", "one")
    assert refused.value.unsupported
    token.failure = None
    admin.destroy(b"a", "one")
    assert token.holds == []


def test_a_failed_session_is_reported_and_the_worker_leaves(
    token: FakeToken, admin: AdminWorker
) -> None:
    token.failure = TokenFailure(FailureKind.SESSION_LOST, "it is unplugged", leave=True)
    with pytest.raises(OperatorError, match="it is unplugged"):
        admin.destroy(b"a", "one")
    with pytest.raises(OperatorError, match="worker of token t died"):
        admin.destroy(b"a", "one")


# --- public keys -------------------------------------------------------------------------------

CURVES = {Algorithm.ES256: ec.SECP256R1(), Algorithm.ES384: ec.SECP384R1()}


def public_key(algorithm: Algorithm) -> Any:
    if algorithm is Algorithm.EDDSA:
        return ed25519.Ed25519PrivateKey.generate().public_key()
    return ec.generate_private_key(CURVES[algorithm]).public_key()


def point(key: Any) -> bytes:
    if isinstance(key, ed25519.Ed25519PublicKey):
        return key.public_bytes_raw()
    encoded: bytes = key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    return encoded


def octets(content: bytes) -> bytes:
    return bytes([4, len(content)]) + content


@pytest.mark.parametrize("algorithm", [Algorithm.ES256, Algorithm.ES384, Algorithm.EDDSA])
def test_the_public_key_of_a_point_is_its_spki(algorithm: Algorithm) -> None:
    key = public_key(algorithm)
    spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert spki_of_point(algorithm, octets(point(key))) == spki


@pytest.mark.parametrize("algorithm", [Algorithm.ES256, Algorithm.ES384, Algorithm.EDDSA])
def test_a_point_without_its_octet_string_is_the_same(algorithm: Algorithm) -> None:
    key = public_key(algorithm)
    spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert spki_of_point(algorithm, point(key)) == spki


def test_a_point_that_begins_as_an_octet_string_does_is_a_point() -> None:
    while True:
        key = public_key(Algorithm.ES256)
        if point(key)[1] == len(point(key)) - 2:
            break
    spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert spki_of_point(Algorithm.ES256, point(key)) == spki


@pytest.mark.parametrize("algorithm", [Algorithm.ES256, Algorithm.ES384, Algorithm.EDDSA])
def test_a_malformed_point_is_refused(algorithm: Algorithm) -> None:
    good = point(public_key(algorithm))
    whole = octets(good)
    malformed = [
        b"",
        b"\x04",
        b"\x03" + whole[1:],  # a BIT STRING
        b"\x24" + whole[1:],  # constructed
        whole + b"\0",
        octets(good + b"\0"),
        octets(good[:-1]),
        octets(b""),
        b"\x04\x81" + whole[1:],  # the length in more bytes than DER allows
        b"\x04\x80" + good + b"\0\0",  # of indefinite length
        b"\x04\x82\x01\x00" + bytes(256),
        b"\x04\xff" + bytes(255),
        # One of the length of a point is taken for one.
        *(whole[:length] for length in range(2, len(whole)) if length != len(good)),
    ]
    if algorithm is not Algorithm.EDDSA:
        malformed.append(octets(good[:-1] + bytes([good[-1] ^ 1])))  # not on the curve
        malformed.append(octets(b"\x05" + good[1:]))
        other = Algorithm.ES384 if algorithm is Algorithm.ES256 else Algorithm.ES256
        malformed.append(octets(point(public_key(other))))
    for encoded in malformed:
        with pytest.raises(ValueError, match=r"."):
            spki_of_point(algorithm, encoded)


@pytest.mark.parametrize(
    ("bits", "used"),
    [(1024, False), (2048, True), (2056, False), (2560, False), (3072, True), (4096, True)],
)
def test_rsa_keys_of_three_lengths_are_used(bits: int, used: bool) -> None:
    numbers = rsa.generate_private_key(65537, bits).public_key().public_numbers()
    modulus, exponent = numbers.n.to_bytes(bits // 8), b"\x01\x00\x01"
    spki = numbers.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if used:
        assert spki_of_rsa(b"\0" + modulus, exponent) == spki
        assert Verifier(Algorithm.PS256, spki).signature_length == bits // 8
        return
    with pytest.raises(ValueError, match=f"{bits} bits"):
        spki_of_rsa(modulus, exponent)
    for algorithm in (Algorithm.RS256, Algorithm.PS256):
        with pytest.raises(ValueError, match="does not fit"):
            Verifier(algorithm, spki)

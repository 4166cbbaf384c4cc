"""What a worker reports when it has to leave, and how it signs the parts of a chunk."""

import socket
from collections.abc import Sequence
from typing import Any

import pytest

from signer.algorithms import Algorithm
from signer.hsm.frames import (
    Channel,
    FrameKind,
    SignFrame,
    SignPart,
    Verdict,
    pack_json,
    unpack_json,
)
from signer.hsm.spec import FailureKind, TokenFailure
from signer.hsm.worker import __main__ as worker
from signer.hsm.worker.cryptoki import _CLASSES, CryptokiError, ErrorClass

SPEC: dict[str, Any] = {
    "label": "t",
    "serial": None,
    "module": "",
    "pin_file": "",
    "state": "",
    "session_copies": False,
    "environment": {},
}


def report(monkeypatch: pytest.MonkeyPatch, error: Exception) -> dict[str, Any]:
    """What a worker reports that meets this error."""

    def fail(_: object) -> None:
        raise error

    monkeypatch.setattr(worker, "open_token", fail)
    ours, theirs = (Channel(end) for end in socket.socketpair())
    ours.send(FrameKind.CONFIGURE, pack_json(SPEC))
    worker.run(theirs)
    kind, body = ours.receive()
    for channel in (ours, theirs):
        channel.close()
    assert kind is FrameKind.FATAL
    return unpack_json(body)


@pytest.mark.parametrize("value", [*_CLASSES, 0x5, 0x80000001])
@pytest.mark.parametrize("call", ["C_SignInit", "C_Sign", "C_FindObjects"])
def test_every_error_of_the_module_is_reported(
    monkeypatch: pytest.MonkeyPatch, call: str, value: int
) -> None:
    said = report(monkeypatch, CryptokiError(call, value))
    assert FailureKind(said["kind"]) in {
        FailureKind.MODULE_FATAL,
        FailureKind.SESSION_LOST,
        FailureKind.BUSY,
    }
    assert f"{call} returned 0x{value:08x}" in said["text"]


def test_a_refusal_outside_the_beginning_of_a_signature_is_fatal() -> None:
    error = CryptokiError("C_Sign", 0x060)
    assert (error.error_class, error.usable) == (ErrorClass.REFUSED, False)
    assert error.failure is FailureKind.MODULE_FATAL


def test_other_errors_are_reported_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    said = report(monkeypatch, TokenFailure(FailureKind.TOKEN_ABSENT, "it is absent"))
    assert said == {"kind": "token_absent", "text": "it is absent"}
    said = report(monkeypatch, ZeroDivisionError("secret"))
    assert said["kind"] == "module_fatal"
    assert "ZeroDivisionError at test_worker.py" in said["text"]
    assert "secret" not in said["text"]


class FakeLoop:
    """Signs with the name of the key's handle."""

    def sign(self, handle: int, _: object, inputs: Sequence[bytes]) -> list[bytes]:
        if handle == 9:
            raise CryptokiError("C_SignInit", 0x063)
        return [b"%d" % handle * 64 for _ in inputs]


class FakeVerifier:
    signature_length = 64

    def correct(self, item: bytes, _: bytes) -> bool:
        return item != b"wrong"


class FakeToken:
    def private_key(self, cka_id: bytes) -> int | None:
        return None if cka_id == b"none" else int(cka_id)


@pytest.fixture
def signer(monkeypatch: pytest.MonkeyPatch) -> worker.ChunkSigner:
    def verifier(_: Algorithm, spki: bytes) -> FakeVerifier:
        if spki == b"unsuitable":
            raise ValueError(spki)
        return FakeVerifier()

    monkeypatch.setattr(worker, "Verifier", verifier)
    made = worker.ChunkSigner.__new__(worker.ChunkSigner)
    made.__dict__.update(_token=FakeToken(), _loop=FakeLoop(), _verifiers={}, _signed={})
    return made


def part(cka_id: bytes, *inputs: bytes, spki: bytes = b"spki") -> SignPart:
    return SignPart(Algorithm.ES256, 10, cka_id, spki, inputs or (b"item",))


def test_each_part_of_a_chunk_is_answered_for_itself(signer: worker.ChunkSigner) -> None:
    frame = SignFrame(
        5,
        [
            part(b"1", b"a", b"b"),
            part(b"none"),
            part(b"9"),
            part(b"2", spki=b"unsuitable"),
            part(b"3", b"wrong", b"right"),
            part(b"1", b"c"),
        ],
    )
    result = signer.sign(frame)
    assert result.chunk == 5
    assert [each.verdict for each in result.parts] == [
        Verdict.SIGNED,
        Verdict.NO_KEY,
        Verdict.REFUSED,
        Verdict.UNSUITABLE,
        Verdict.SIGNED,
        Verdict.SIGNED,
    ]
    first, *_, wrong, last = result.parts
    assert first.split() == [b"1" * 64] * 2
    assert (first.checked, last.checked) == (1, 0), "the first of a key, then one in ten"
    assert (wrong.checked, wrong.wrong, wrong.split()) == (2, [0], [bytes(64), b"3" * 64])

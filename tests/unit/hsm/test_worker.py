"""What a worker reports when it has to leave, and how it signs the parts of a chunk."""

import socket
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

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
from signer.hsm.worker.return_values import _CLASSES, CryptokiError, ErrorClass
from signer.hsm.worker.unwrapping import NotOneKey

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

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(worker, "open_token", fail)
    ours, theirs = (Channel(end) for end in socket.socketpair())
    ours.send(FrameKind.CONFIGURE, pack_json(SPEC))
    worker.run(theirs, Mock())
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


REFUSALS = {9: 0x063, 60: 0x060, 82: 0x082}  # of these handles


class FakeLoop:
    """Signs with the name of the key's handle."""

    def sign(self, handle: int, _: object, inputs: Sequence[bytes]) -> list[bytes]:
        if handle in REFUSALS:
            raise CryptokiError("C_SignInit", REFUSALS[handle])
        return [b"%d" % handle * 64 for _ in inputs]


class FakeVerifier:
    signature_length = 64

    def correct(self, item: bytes, signature: bytes) -> bool:
        return item != b"wrong" and not signature.startswith(b"7")


class FakeToken:
    """Its key of an id is the handle of that number, or what ``handles`` says, one by one."""

    def __init__(self) -> None:
        self.handles: list[int | Verdict] = []
        self.forgotten: list[bytes] = []
        self.reused: set[int] = set()
        self.away = False

    def private_key(self, cka_id: bytes) -> int:
        handle = self.handles.pop(0) if self.handles else int(cka_id)
        if isinstance(handle, Verdict):
            raise NotOneKey(handle)
        return handle

    def forget(self, ids: list[bytes]) -> None:
        self.forgotten += ids

    def is_key(self, handle: int, _: bytes) -> bool:
        return handle not in self.reused

    def look_for_itself(self) -> None:
        if self.away:
            raise TokenFailure(FailureKind.MODULE_FATAL, "it is away", leave=True)


@pytest.fixture
def signer(monkeypatch: pytest.MonkeyPatch) -> worker.ChunkSigner:
    def verifier(_: Algorithm, spki: bytes) -> FakeVerifier:
        if spki == b"unsuitable":
            raise ValueError(spki)
        return FakeVerifier()

    monkeypatch.setattr(worker, "Verifier", verifier)
    made = worker.ChunkSigner.__new__(worker.ChunkSigner)
    made.__dict__.update(_token=FakeToken(), _loop=FakeLoop(), _pins=worker.Pins())
    return made


def part(cka_id: bytes, *inputs: bytes, spki: bytes = b"spki") -> SignPart:
    return SignPart(Algorithm.ES256, 10, cka_id, spki, inputs or (b"item",))


def test_each_part_of_a_chunk_is_answered_for_itself(signer: worker.ChunkSigner) -> None:
    signer._token.handles = [1, Verdict.NO_KEY, Verdict.AMBIGUOUS]  # type: ignore[attr-defined]
    frame = SignFrame(
        5,
        [
            part(b"1", b"a", b"b"),
            part(b"none"),
            part(b"two"),
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
        Verdict.AMBIGUOUS,
        Verdict.REFUSED,
        Verdict.UNSUITABLE,
        Verdict.SIGNED,
        Verdict.SIGNED,
    ]
    first, *_, wrong, last = result.parts
    assert first.split() == [b"1" * 64] * 2
    assert (first.checked, last.checked) == (1, 0), "the first of a key, then one in ten"
    assert (wrong.checked, wrong.wrong, wrong.split()) == (2, [0], [bytes(64), b"3" * 64])


def test_the_time_of_a_part_has_what_found_its_key_and_what_was_refused(
    signer: worker.ChunkSigner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key that is unwrapped first takes its worker longer: who waits behind it waits for that."""
    now = 0.0

    def take(seconds: float) -> None:
        nonlocal now
        now += seconds

    class SlowToken(FakeToken):
        def private_key(self, cka_id: bytes) -> int:
            take(2.0)
            return super().private_key(cka_id)

    class SlowLoop(FakeLoop):
        def sign(self, handle: int, _: object, inputs: Sequence[bytes]) -> list[bytes]:
            take(1.0)
            return super().sign(handle, _, inputs)

    monkeypatch.setattr(worker, "time", SimpleNamespace(perf_counter=lambda: now))
    signer.__dict__.update(_token=SlowToken(), _loop=SlowLoop())
    assert signer.sign_part(part(b"1")).busy_us == 3_000_000
    assert signer.sign_part(part(b"9")) == (Verdict.REFUSED, 3_000_000, 0, 0, (), b"")


@pytest.mark.parametrize("dead", [60, 82])
@pytest.mark.parametrize(
    ("then", "verdict"),
    [
        (5, Verdict.SIGNED),
        (60, Verdict.NO_KEY),
        (9, Verdict.REFUSED),
        (Verdict.NO_KEY, Verdict.NO_KEY),
        (Verdict.AMBIGUOUS, Verdict.AMBIGUOUS),
    ],
)
def test_a_key_whose_handle_is_dead_is_looked_up_once_more(
    signer: worker.ChunkSigner, dead: int, then: int | Verdict, verdict: Verdict
) -> None:
    token: Any = signer._token
    token.handles = [dead, then]
    result = signer.sign_part(part(b"1"))
    assert result.verdict is verdict
    assert token.forgotten == [b"1"]
    assert token.handles == []
    if verdict is Verdict.SIGNED:
        assert result.split() == [b"5" * 64]


@pytest.mark.parametrize("verdict", [Verdict.NO_KEY, Verdict.NO_WRAPPING_KEY])
def test_a_token_that_is_away_is_not_a_key_that_it_lacks(
    signer: worker.ChunkSigner, verdict: Verdict
) -> None:
    token: Any = signer._token
    token.handles, token.away = [60, verdict], True
    with pytest.raises(TokenFailure, match="it is away"):
        signer.sign_part(part(b"1"))
    token.handles, token.away = [60, verdict], False
    assert signer.sign_part(part(b"1")).verdict is verdict


def test_a_handle_that_another_key_has_now_is_no_wrong_signature(
    signer: worker.ChunkSigner,
) -> None:
    """A module may use a handle again: then the signature is another key's."""
    token: Any = signer._token
    token.handles, token.reused = [7, 5], {7}
    result = signer.sign_part(part(b"1", b"a", b"b"))
    assert (result.split(), result.wrong) == ([b"5" * 64] * 2, [])
    token.handles, token.reused = [7], set()
    result = signer.sign_part(part(b"2", b"a", b"b"))
    assert (result.verdict, result.wrong) == (Verdict.SIGNED, [0, 1])
    assert token.forgotten == [b"1"]

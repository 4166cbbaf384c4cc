"""Orders and their answers on both sides of a socket, with a token that is none."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from signer.errors import OperatorError
from signer.hsm.frames import Channel, Closed, Kind, pack_json, unpack_json
from signer.hsm.front.admin import AdminWorker
from signer.hsm.spec import FailureKind, TokenFailure
from signer.hsm.worker.orders import KEYS_AT_ONCE, carry_out
from signer.model import TokenObject


class FakeToken:
    """Holds the keys it is given from the next ``refresh`` on."""

    def __init__(self) -> None:
        self.holds: list[TokenObject] = []
        self.refreshed = 0
        self.failure: TokenFailure | None = None
        self.keys = SimpleNamespace(listed=list)

    def refresh(self) -> None:
        self.refreshed += 1
        self.keys.listed = list(self.holds).copy

    def destroy(self, cka_id: bytes, label: str) -> None:
        if self.failure is not None:
            raise self.failure
        self.holds.remove(TokenObject(cka_id, label))


@pytest.fixture
def token() -> FakeToken:
    return FakeToken()


@pytest.fixture
def admin(token: FakeToken) -> Iterator[AdminWorker]:
    ours, theirs = map(Channel, socket.socketpair())

    def answer() -> None:
        try:
            while True:
                _, body = theirs.receive()
                told = carry_out(token, unpack_json(body))  # type: ignore[arg-type]
                theirs.send(Kind.DONE, pack_json(told))
        except Closed:
            return
        except TokenFailure as failure:
            theirs.send(Kind.FATAL, pack_json({"kind": failure.kind, "text": str(failure)}))
        finally:
            theirs.close()

    worker = threading.Thread(target=answer)
    worker.start()
    process: Any = SimpleNamespace(channel=ours, kill=lambda: None)
    yield AdminWorker(process, "t", 30.0)
    ours.close()
    worker.join()


@pytest.mark.parametrize("count", [0, 1, KEYS_AT_ONCE, KEYS_AT_ONCE + 1, 15_000])
def test_an_inventory_of_any_length_arrives_whole(
    token: FakeToken, admin: AdminWorker, count: int
) -> None:
    label = "\u1ed9" * 200  # 1,200 bytes as JSON: together more than a frame may have
    token.holds = [TokenObject(b"%d" % number, f"{label}{number}") for number in range(count)]
    assert admin.inventory() == token.holds
    assert token.refreshed == 1


def test_an_order_that_fails_is_told_and_the_worker_lives_on(
    token: FakeToken, admin: AdminWorker
) -> None:
    token.holds = [TokenObject(b"a", "one")]
    token.failure = TokenFailure(FailureKind.BUSY, "it is full")
    with pytest.raises(OperatorError, match="it is full"):
        admin.destroy(b"a", "one")
    token.failure = None
    admin.destroy(b"a", "one")
    assert token.holds == []


def test_a_failed_session_is_told_and_the_worker_leaves(
    token: FakeToken, admin: AdminWorker
) -> None:
    token.failure = TokenFailure(FailureKind.SESSION_LOST, "it is unplugged", leave=True)
    with pytest.raises(OperatorError, match="it is unplugged"):
        admin.destroy(b"a", "one")
    with pytest.raises(OperatorError, match="worker of token t died"):
        admin.destroy(b"a", "one")

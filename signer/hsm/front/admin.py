"""Administrative operations on a token, in a worker of their own.

The worker has a read-write session and lives as long as the ``with`` block; the
calling process loads no PKCS#11 module and reads no PIN.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from signer.errors import OperatorError
from signer.hsm.frames import (
    Closed,
    FrameError,
    Kind,
    SignFrame,
    Verdict,
    pack_json,
    pack_sign,
    unpack_json,
    unpack_result,
)
from signer.hsm.front.process import WorkerProcess
from signer.hsm.front.slot import START_SECONDS
from signer.hsm.spec import PinState, SeenToken, Sight, TokenSettings, TokenSpec
from signer.model import Algorithm, TokenObject

ORDER_SECONDS = 120.0
"""How long a worker may take for one order."""
LOOK_SECONDS = 20.0
"""How long it may take to look: nobody is kept waiting but whoever looks."""


class AdminWorker:
    """Makes and destroys keys on one token, and signs with them before they serve.

    Every method raises OperatorError where the token cannot do it, or where the
    worker has left or hangs.
    """

    def __init__(self, process: WorkerProcess, label: str, order_seconds: float) -> None:
        self._process = process
        self._seconds = order_seconds
        self.token = label

    def describe(self) -> dict[str, str]:
        """Returns what the token and its module say of themselves."""
        told: dict[str, str] = self._order("describe")["token"]
        return told

    def inventory(self) -> list[TokenObject]:
        """Returns every private key on the token, in parts that fit into a frame."""
        keys: list[TokenObject] = []
        while True:
            part = self._order("inventory", first=len(keys))
            keys += [TokenObject(bytes.fromhex(cka_id), label) for cka_id, label in part["keys"]]
            if not part["keys"] or len(keys) >= part["count"]:
                return keys

    def generate(self, algorithm: Algorithm, bits: int, cka_id: bytes, label: str) -> bytes:
        """Makes a key pair, or finds the one of an interrupted attempt; returns its SPKI in DER."""
        told = self._order(
            "generate", algorithm=algorithm, bits=bits, cka_id=cka_id.hex(), label=label
        )
        return bytes.fromhex(told["spki"])

    def attributes(self, cka_id: bytes) -> dict[str, bool]:
        """Returns the attributes of a private key by their names in lower case."""
        told: dict[str, bool] = self._order("attributes", cka_id=cka_id.hex())["attributes"]
        return told

    def destroy(self, cka_id: bytes, label: str) -> None:
        """Destroys both halves of a key pair; what is gone already is done."""
        self._order("destroy", cka_id=cka_id.hex(), label=label)

    def sign(
        self, algorithm: Algorithm, cka_id: bytes, spki: bytes, inputs: Sequence[bytes]
    ) -> list[bytes]:
        """Signs digests (messages for EdDSA), every signature checked."""
        frame = SignFrame(1, algorithm, 1, cka_id, spki, inputs)
        body = self._ask(Kind.RESULT, Kind.SIGN, *pack_sign(frame))
        with self._understanding():
            result = unpack_result(body)
        if result.verdict is not Verdict.SIGNED or result.wrong:
            raise OperatorError(
                f"token {self.token} cannot sign with the key {cka_id.hex()}: {result.verdict.name}"
            )
        return result.split()

    def wait(self, seconds: float) -> None:
        """Waits until the worker has opened its token."""
        self._hear(Kind.READY, seconds)

    def sight(self) -> Sight:
        """Returns what a worker that only looks has seen."""
        with self._understanding():
            told = unpack_json(self._hear(Kind.DONE, self._seconds))
        return Sight(
            tuple(SeenToken(each[0], each[1], frozenset(each[2])) for each in told["tokens"]),
            PinState(told["pin"]),
            told["pin_problem"],
        )

    def _order(self, operation: str, **details: Any) -> dict[str, Any]:
        order = pack_json({"operation": operation, **details})
        body = self._ask(Kind.DONE, Kind.ADMIN, order)
        with self._understanding():
            answer = unpack_json(body)
        if "error" in answer:
            raise OperatorError(answer["error"])
        return answer

    def _ask(self, wanted: Kind, kind: Kind, *parts: bytes) -> memoryview:
        return self._hear(wanted, self._seconds, kind, *parts)

    def _hear(self, wanted: Kind, seconds: float, *order: Any) -> memoryview:
        """Sends the order, if there is one, and waits for the answer of this kind."""
        channel = self._process.channel
        with self._given_up_after(seconds), self._understanding():
            if order:
                channel.send(*order)
            kind, body = channel.receive()
            if kind is Kind.FATAL:
                raise OperatorError(str(unpack_json(body).get("text")))
            if kind is not wanted:
                raise FrameError(f"an unexpected {kind.name}")
        return body

    @contextmanager
    def _understanding(self) -> Iterator[None]:
        try:
            yield
        except FrameError as error:
            raise OperatorError(f"the worker of token {self.token} sent {error}") from error

    @contextmanager
    def _given_up_after(self, seconds: float) -> Iterator[None]:
        """Kills a worker that is silent for so long: PKCS#11 has no time-outs."""
        hung = threading.Event()

        def give_up() -> None:
            hung.set()
            self._process.kill()
            self._process.channel.end()  # wakes us even where the kernel holds the process

        timer = threading.Timer(seconds, give_up)
        timer.daemon = True
        timer.start()
        try:
            yield
        except Closed as error:
            if hung.is_set():
                text = f"did not answer within {seconds:g} s and was killed: examine the HSM"
            else:
                text = "died: see the HSM's own logs"
            raise OperatorError(
                f"the worker of token {self.token} {text}, then repeat what was not done"
            ) from error
        finally:
            timer.cancel()


def wait_for_strays(token: TokenSettings, state: Path, seconds: float = ORDER_SECONDS) -> None:
    """Waits until the administrative workers of a daemon that was killed have left.

    One of them can still be at work in the HSM: who repeated its order meanwhile would
    make a second key under the same id. Raises OperatorError where one does not leave.
    """
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    end = time.monotonic() + seconds
    with _lock_file(token, state) as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= end:
                    raise OperatorError(
                        f"an administrative worker of token {token.label} from before the start"
                        " does not leave: end it, and examine the HSM"
                    ) from None
                time.sleep(0.05)
            else:
                return


@contextmanager
def _lock_file(token: TokenSettings, state: Path) -> Iterator[int]:
    """A file that every administrative worker of a token holds locked while it lives."""
    name = hashlib.sha256(token.label.encode()).hexdigest()[:16]
    descriptor = os.open(state / f"admin-{name}.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def look(token: TokenSettings, state: Path, *, seconds: float = LOOK_SECONDS) -> Sight:
    """Has a worker look at a module's tokens and at what is known of the PIN; it never logs in.

    Raises OperatorError where it cannot look.
    """
    try:
        process = WorkerProcess.start(TokenSpec.of(token, state, look_only=True))
    except OSError as error:
        raise OperatorError(f"no worker can be started: {error.strerror}") from error
    try:
        return AdminWorker(process, token.label, seconds).sight()
    finally:
        process.end()


@contextmanager
def open_admin(
    token: TokenSettings,
    state: Path,
    *,
    start_seconds: float = START_SECONDS,
    order_seconds: float = ORDER_SECONDS,
) -> Iterator[AdminWorker]:
    """Starts an administrative worker for one token.

    A worker that takes longer than ``start_seconds`` to open the token, or than
    ``order_seconds`` for one order, is killed. Raises OperatorError where it
    cannot open.
    """
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        with _lock_file(token, state) as lock:
            fcntl.flock(lock, fcntl.LOCK_SH)
            process = WorkerProcess.start(
                TokenSpec.of(token, state, read_write=True), keeps=(lock,)
            )
    except OSError as error:
        raise OperatorError(f"no worker can be started: {error.strerror}") from error
    worker = AdminWorker(process, token.label, order_seconds)
    try:
        worker.wait(start_seconds)
        yield worker
    finally:
        process.end()

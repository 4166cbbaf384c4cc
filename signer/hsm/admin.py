"""Administrative operations on a token, in a worker of their own.

The worker has a read-write session and lives as long as the ``with`` block; the
calling process loads no PKCS#11 module and reads no PIN.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from signer.errors import OperatorError
from signer.hsm.frames import (
    Closed,
    Kind,
    SignFrame,
    Verdict,
    pack_json,
    pack_sign,
    unpack_json,
    unpack_result,
)
from signer.hsm.process import WorkerProcess
from signer.hsm.spec import TokenSettings, TokenSpec
from signer.model import Algorithm


class AdminWorker:
    """Makes keys on one token and signs with them before they serve (a CSR, for instance)."""

    def __init__(self, process: WorkerProcess, label: str) -> None:
        self._process = process
        self.token = label

    def generate(self, algorithm: Algorithm, bits: int, cka_id: bytes, label: str) -> bytes:
        """Makes a key pair; returns its SPKI in DER. Raises OperatorError."""
        order = {"algorithm": algorithm, "bits": bits, "cka_id": cka_id.hex(), "label": label}
        result = unpack_json(self._ask(Kind.GENERATE, pack_json(order)))
        if "error" in result:
            raise OperatorError(result["error"])
        return bytes.fromhex(result["spki"])

    def sign(
        self, algorithm: Algorithm, cka_id: bytes, spki: bytes, inputs: Sequence[bytes]
    ) -> list[bytes]:
        """Signs digests (messages for EdDSA), every signature checked. Raises OperatorError."""
        frame = SignFrame(1, algorithm, 1, cka_id, spki, inputs)
        result = unpack_result(self._ask(Kind.SIGN, *pack_sign(frame)))
        if result.verdict is not Verdict.SIGNED or result.wrong:
            raise OperatorError(
                f"token {self.token} cannot sign with the key {cka_id.hex()}: {result.verdict.name}"
            )
        return result.split()

    def _ask(self, kind: Kind, *parts: bytes) -> memoryview:
        try:
            self._process.channel.send(kind, *parts)
            answer, body = self._process.channel.receive()
        except Closed as error:
            raise OperatorError(f"the worker of token {self.token} ended: {error}") from error
        if answer is Kind.FATAL:
            raise OperatorError(unpack_json(body)["text"])
        return body


@contextmanager
def open_admin(token: TokenSettings, state: Path) -> Iterator[AdminWorker]:
    """Starts an administrative worker for one token. Raises OperatorError where it cannot open."""
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    process = WorkerProcess.start(TokenSpec.of(token, state, read_write=True))
    try:
        kind, body = process.channel.receive()
        if kind is not Kind.READY:
            raise OperatorError(unpack_json(body)["text"])
        yield AdminWorker(process, token.label)
    except Closed as error:
        raise OperatorError(f"the worker of token {token.label} died at its start") from error
    finally:
        process.end()

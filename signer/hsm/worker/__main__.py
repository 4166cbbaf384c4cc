"""A worker process: one thread, one session, one PKCS#11 module.

It reads chunks from its socket, signs them, checks signatures with the pinned
public key, and answers. It knows no policy and no names of keys. Any failure of the
module that leaves the session in doubt ends the process: the front process starts
another, and recovery is the normal start.
"""

import contextlib
import ctypes
import os
import resource
import signal
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import NoReturn

from signer.hsm.frames import (
    Channel,
    Closed,
    FrameError,
    FrameKind,
    ResultFrame,
    ResultPart,
    SignFrame,
    SignPart,
    Verdict,
    pack_json,
    pack_result,
    unpack_ids,
    unpack_json,
    unpack_sign,
)
from signer.hsm.heartbeat import Heartbeat
from signer.hsm.mechanisms import MECHANISMS
from signer.hsm.spec import FailureKind, TokenFailure, TokenSpec, WorkerMode
from signer.hsm.worker.administration import carry_out
from signer.hsm.worker.cryptoki import CryptokiError, HotLoop
from signer.hsm.worker.lookup import NotOneKey
from signer.hsm.worker.pins import Pins
from signer.hsm.worker.token import Token, inspect, open_token


class ChunkSigner:
    """Signs chunks and checks what the module returns."""

    def __init__(self, token: Token) -> None:
        self._token = token
        self._loop = HotLoop(token.spec.module, token.session.handle, token.heartbeat)
        self._pins = Pins()

    def sign(self, chunk: SignFrame) -> ResultFrame:
        """Signs the parts of a chunk in order.

        Raises CryptokiError if the session must not go on.
        """
        return ResultFrame(chunk.chunk, [self.sign_part(part) for part in chunk.parts])

    def sign_part(self, part: SignPart) -> ResultPart:
        """Signs what one key has in a chunk; raises CryptokiError if the session must not go on."""
        try:
            width = self._pins.width(part)
        except ValueError:
            return _refused(Verdict.UNSUITABLE)
        try:
            result = self._attempt(part, width)
            if result is None:  # once more, with what the token holds now
                self._token.forget([part.cka_id])
                self._pins.begin_again(part)
                result = self._attempt(part, width)
        except NotOneKey as found:
            return _refused(found.verdict)
        except CryptokiError as error:
            if error.usable:
                return _refused(Verdict.REFUSED)
            raise
        return result or _refused(Verdict.NO_KEY)

    def _attempt(self, part: SignPart, width: int) -> ResultPart | None:
        """Signs and checks a part; returns None if the key's handle is not its handle any more.

        Then another process has destroyed the key, and may have created another one.
        """
        try:
            handle = self._token.private_key(part.cka_id)
            started = time.perf_counter()
            signatures = self._loop.sign(handle, MECHANISMS[part.algorithm], part.inputs)
        except CryptokiError as error:
            if error.dead_handle:
                return None
            raise
        checked, wrong = self._pins.check(part, signatures)
        if wrong and not self._token.is_key(handle, part.cka_id):
            return None
        blank = bytes(width)
        for index in wrong:
            signatures[index] = blank
        busy_us = int((time.perf_counter() - started) * 1e6)
        return ResultPart(Verdict.SIGNED, busy_us, checked, width, wrong, b"".join(signatures))


def _refused(verdict: Verdict) -> ResultPart:
    return ResultPart(verdict, 0, 0, 0, (), b"")


def serve(channel: Channel, token: Token) -> None:
    """Answers frames until the front process closes the socket."""
    signer = ChunkSigner(token)
    channel.send(FrameKind.READY, token.keys.digest)
    while True:
        kind, body = channel.receive()
        match kind:
            case FrameKind.SIGN:
                channel.send(FrameKind.RESULT, *pack_result(signer.sign(unpack_sign(body))))
            case FrameKind.KEYS:
                token.forget(unpack_ids(body))
            case FrameKind.DROP:
                token.drop(unpack_ids(body) or None)
            case FrameKind.ADMIN if token.spec.mode in (WorkerMode.ADMINISTER, WorkerMode.LIST):
                channel.send(FrameKind.DONE, pack_json(carry_out(token, unpack_json(body))))
            case _:
                raise FrameError(f"a {kind.name} frame, which is not for this worker")


def run(channel: Channel, heartbeat: Heartbeat) -> None:
    """Runs one worker: configure, open, serve; reports why where it has to leave."""
    try:
        kind, body = channel.receive()
        if kind is not FrameKind.CONFIGURE:
            raise FrameError(f"a {kind.name} frame before CONFIGURE")  # noqa: TRY301 - one exit for all
        spec = TokenSpec(**unpack_json(body))
        if spec.mode == WorkerMode.INSPECT:
            channel.send(FrameKind.DONE, pack_json(inspect(spec)))
            return
        token = open_token(spec, heartbeat, lambda said: channel.send(FrameKind.LOGIN, said))
        if spec.mode == WorkerMode.LIST:
            os.nice(19)  # not before: others wait for the lock under which it opens its token
        serve(channel, token)
    except Closed:
        return
    except TokenFailure as failure:
        _leave(channel, failure.kind, str(failure))
    except CryptokiError as error:
        _leave(channel, error.failure, str(error))
    except Exception as error:  # noqa: BLE001 - every end is reported to the front process
        # Only type and line: the text of a library could quote a secret.
        last = traceback.extract_tb(error.__traceback__)[-1]
        text = f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}"
        _leave(channel, FailureKind.MODULE_FATAL, f"{text} in the worker")


def _leave(channel: Channel, kind: FailureKind, text: str) -> None:
    with contextlib.suppress(Closed):
        channel.send(FrameKind.FATAL, pack_json({"kind": kind, "text": text}))


def harden() -> None:
    """Disables core dumps and tracing by others; ignores signals meant for the front process."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pr_set_dumpable = 4  # linux/prctl.h
    ctypes.CDLL(None).prctl(pr_set_dumpable, 0, 0, 0, 0)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def main() -> NoReturn:
    """Entry point: ``python -m signer.hsm.worker FD FD``: the socket, the heartbeat's counter."""
    harden()
    channel, counter = map(int, sys.argv[1:])
    heartbeat = Heartbeat(counter)
    os.close(counter)
    run(Channel(socket.socket(fileno=channel)), heartbeat)
    # Not sys.exit: a broken module could hang in its own clean-up.
    os._exit(0)


if __name__ == "__main__":
    main()

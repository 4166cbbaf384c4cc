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
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

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
from signer.hsm.mechanisms import MECHANISMS, Verifier
from signer.hsm.spec import FailureKind, TokenFailure, TokenSpec, WorkerMode
from signer.hsm.worker.administration import LISTING, OPERATIONS, carry_out
from signer.hsm.worker.cryptoki import HotLoop
from signer.hsm.worker.measuring import Measuring, OpenTimes
from signer.hsm.worker.return_values import CryptokiError
from signer.hsm.worker.token import Token, inspect, open_token
from signer.hsm.worker.unwrapping import NotOneKey

MAX_PINS = 32_768  # of which a worker knows what it has signed; each takes about 350 bytes
MAX_VERIFIERS = 2_048  # each takes about 3 KB; another one is loaded for the next check


class _Signed:
    """A pin's length of signatures in bytes, and how many were made in this worker's life."""

    __slots__ = ("count", "width")

    def __init__(self, width: int) -> None:
        self.width, self.count = width, 0


class Pins:
    """Checks signatures, one in ``check_every`` of a part, with its pinned public key.

    What is kept is bounded: a worker may sign with more keys than it has memory for.
    """

    def __init__(self) -> None:
        self._signed: OrderedDict[tuple[bytes, bytes], _Signed] = OrderedDict()
        self._verifiers: OrderedDict[tuple[bytes, bytes], Verifier] = OrderedDict()

    def width(self, part: SignPart) -> int:
        """Returns the length of a part's signatures in bytes.

        Raises ValueError if its pin does not fit its algorithm.
        """
        return self._of(part).width

    def check(self, part: SignPart, signatures: Sequence[bytes]) -> tuple[int, list[int]]:
        """Checks one signature in ``check_every``, and always the first of a key.

        Where one is wrong, checks the whole part. Returns how many were checked and
        the indexes of the wrong ones.
        """
        signed = self._of(part)
        sample = range(-signed.count % part.check_every, len(signatures), part.check_every)
        signed.count += len(signatures)
        right_length = all(len(signature) == signed.width for signature in signatures)
        if right_length and not sample:
            return 0, []
        correct, inputs = self._verifier(part).correct, part.inputs
        if right_length and all(correct(inputs[at], signatures[at]) for at in sample):
            return len(sample), []
        pairs = enumerate(zip(inputs, signatures, strict=True))
        return len(signatures), [at for at, (item, made) in pairs if not correct(item, made)]

    def begin_again(self, part: SignPart) -> None:
        """Has the next signature of a key checked: it may be another key's by now."""
        self._of(part).count = 0

    def _of(self, part: SignPart) -> _Signed:
        pin = (part.cka_id, part.spki)
        signed = self._signed.get(pin)
        if signed is not None:
            self._signed.move_to_end(pin)
            return signed
        signed = self._signed[pin] = _Signed(self._verifier(part).signature_length)
        if len(self._signed) > MAX_PINS:
            self._signed.popitem(last=False)
        return signed

    def _verifier(self, part: SignPart) -> Verifier:
        pin = (part.cka_id, part.spki)
        verifier = self._verifiers.get(pin)
        if verifier is not None:
            self._verifiers.move_to_end(pin)
            return verifier
        verifier = self._verifiers[pin] = Verifier(part.algorithm, part.spki)
        if len(self._verifiers) > MAX_VERIFIERS:
            self._verifiers.popitem(last=False)
        return verifier


class ChunkSigner:
    """Signs chunks and checks what the module returns."""

    def __init__(self, token: Token) -> None:
        self._token = token
        self._loop = HotLoop(token.spec.module, token.session.handle, token.heartbeat)
        self._pins = Pins()

    def sign(self, chunk: SignFrame) -> ResultFrame:
        """Signs the parts of a chunk in order.

        Raises CryptokiError or TokenFailure if the session must not go on.
        """
        return ResultFrame(chunk.chunk, [self.sign_part(part) for part in chunk.parts])

    def sign_part(self, part: SignPart) -> ResultPart:
        """Signs what one key has in a chunk; raises what ``sign`` raises.

        Its time includes what is done once for a key: to find it, or to unwrap it.
        """
        started = time.perf_counter()
        result = self._signed(part)
        return result._replace(busy_us=int((time.perf_counter() - started) * 1e6))

    def _signed(self, part: SignPart) -> ResultPart:
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
            if found.verdict in (Verdict.NO_KEY, Verdict.NO_WRAPPING_KEY):
                self._token.look_for_itself()  # else its absence would pass for the key's
            return _refused(found.verdict)
        except CryptokiError as error:
            if error.usable:
                return _refused(Verdict.REFUSED)
            raise
        return result or _refused(Verdict.NO_KEY)

    def _handle(self, part: SignPart) -> int:
        """Returns the handle to sign a part with; raises NotOneKey and CryptokiError.

        The first signature after a key was unwrapped is checked.
        """
        if not part.wrapped:
            return self._token.private_key(part.cka_id)
        unwrapped = self._token.unwrapped
        if (known := unwrapped.known(part.cka_id, part.wrapped)) is not None:
            return known
        self._pins.begin_again(part)
        return unwrapped.unwrap(part.cka_id, part.algorithm, part.wrapped)

    def _attempt(self, part: SignPart, width: int) -> ResultPart | None:
        """Signs and checks a part; returns None if the key's handle is not its handle any more.

        Then another process has destroyed the key, and may have created another one.
        """
        try:
            handle = self._handle(part)
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
        return ResultPart(Verdict.SIGNED, 0, checked, width, wrong, b"".join(signatures))


def _refused(verdict: Verdict) -> ResultPart:
    return ResultPart(verdict, 0, 0, 0, (), b"")


def _operations(token: Token, times: OpenTimes) -> Mapping[str, Callable[..., Any]]:
    """Returns what a worker can be ordered to do."""
    match token.spec.mode:
        case WorkerMode.ADMINISTER:
            return OPERATIONS
        case WorkerMode.LIST:
            return LISTING
        case WorkerMode.MEASURE:
            return Measuring(token, times).operations()
        case _:
            return {}


def serve(channel: Channel, token: Token, times: OpenTimes) -> None:
    """Answers frames until the front process closes the socket."""
    signer, operations = ChunkSigner(token), _operations(token, times)
    channel.send(FrameKind.READY, token.keys.digest)
    while True:
        kind, body = channel.receive()
        match kind:
            case FrameKind.SIGN:
                channel.send(FrameKind.RESULT, *pack_result(signer.sign(unpack_sign(body))))
            case FrameKind.KEYS:
                token.forget(unpack_ids(body))
            case FrameKind.DROP:
                token.drop(unpack_ids(body))
            case FrameKind.ADMIN if operations:
                answer = carry_out(token, unpack_json(body), operations)
                channel.send(FrameKind.DONE, pack_json(answer))
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
        times = OpenTimes(lambda said: channel.send(FrameKind.LOGIN, said))
        token = open_token(spec, heartbeat, times.report)
        times.opened()
        if spec.mode == WorkerMode.LIST:
            os.nice(19)  # not before: others wait for the lock under which it opens its token
        serve(channel, token, times)
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

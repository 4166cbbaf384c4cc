"""Administrative operations on a token, in a worker of their own.

The worker has a read-write session and lives as long as the ``with`` block; the
calling process loads no PKCS#11 module and reads no PIN.
"""

import fcntl
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, TextIO, TypeVar

from signer.algorithms import Algorithm
from signer.config.models import TokenConfig
from signer.errors import OperatorError
from signer.events import Events
from signer.files import open_lock
from signer.hsm.frames import (
    LOGGED_IN,
    Closed,
    FrameError,
    FrameKind,
    SignFrame,
    SignPart,
    Verdict,
    pack_json,
    pack_sign,
    pack_wrapped,
    unpack_json,
    unpack_result,
)
from signer.hsm.front.dispatcher import login_ended
from signer.hsm.front.process import WorkerProcess, token_spec
from signer.hsm.spec import (
    FailureKind,
    HeldWrappingKey,
    PinState,
    SeenToken,
    TokenInspection,
    WorkerMode,
)
from signer.model import TokenObject, WrapMechanism, WrappedKey, wrapping_cka_id, wrapping_label

T = TypeVar("T")
LoggedIn = Callable[[FailureKind | None], object]
"""Called when a worker has tried to log in; None: it has succeeded."""

KEYS_AT_ONCE = 100  # of which the names are read by one order
LOOK_SECONDS = 0.1  # so often is looked whether a worker hangs


class AdminWorker:
    """Implements TokenAdmin by orders to a worker; see there for what the methods return.

    Every method raises OperatorError if the token cannot do it, or where the
    worker has left or hangs.
    """

    def __init__(
        self,
        process: WorkerProcess,
        label: str,
        order_seconds: float,
        logged_in: LoggedIn = lambda _: None,
    ) -> None:
        """A worker of which one call takes longer than ``order_seconds`` is killed."""
        self._process = process
        self._logged_in = logged_in
        self._logging_in = False  # it has called C_Login, and has not reported success
        self._failed: FailureKind | None = None  # why it leaves, as it said itself
        self._seconds = order_seconds
        self.token = label

    def call(self, operation: str, **arguments: Any) -> Any:
        """Orders an operation of worker/administration.py; returns its result.

        Raises OperatorError as the worker reports it.
        """
        order = pack_json({"operation": operation, "arguments": arguments})
        answer = self._receive(FrameKind.DONE, unpack_json, self._seconds, FrameKind.ADMIN, order)
        if "error" in answer:
            raise OperatorError(answer["error"], unsupported=answer["unsupported"])
        return answer["result"]

    def describe(self) -> dict[str, str]:
        return dict(self.call("describe"))

    def inventory(self, rest: Callable[[float], object] = lambda _: None) -> list[TokenObject]:
        handles = self.call("handles")
        keys: list[TokenObject] = []
        for start in range(0, len(handles), KEYS_AT_ONCE):
            began = time.monotonic()
            names = self.call("names", handles=handles[start : start + KEYS_AT_ONCE])
            keys += [TokenObject(bytes.fromhex(cka_id), label) for cka_id, label in names]
            rest(time.monotonic() - began)
        return keys

    def wrapping_keys(self, ids: Sequence[str]) -> list[HeldWrappingKey]:
        """Returns what the token holds under the id of each wrapping key."""
        cka_ids = [wrapping_cka_id(identity).hex() for identity in ids]
        seen = self.call("wrapping_keys", cka_ids=cka_ids)
        return [HeldWrappingKey(held, tuple(wrong)) for held, wrong in seen]

    def generate(self, algorithm: Algorithm, bits: int, cka_id: bytes, label: str) -> bytes:
        spki = self.call(
            "generate", algorithm=algorithm, bits=bits, cka_id=cka_id.hex(), label=label
        )
        return bytes.fromhex(spki)

    def make_wrapping_key(self, identity: str) -> dict[str, bool]:
        cka_id, label = wrapping_cka_id(identity).hex(), wrapping_label(identity)
        return dict(self.call("make_wrapping_key", cka_id=cka_id, label=label))

    def generate_wrapped(
        self, algorithm: Algorithm, bits: int, cka_id: bytes, wrapping_key: str
    ) -> tuple[bytes, WrappedKey]:
        made = self.call(
            "generate_wrapped",
            algorithm=algorithm,
            bits=bits,
            cka_id=cka_id.hex(),
            wrapping_key=wrapping_cka_id(wrapping_key).hex(),
        )
        return bytes.fromhex(made["spki"]), self._wrapped(made, wrapping_key)

    def wrap_anew(
        self,
        algorithm: Algorithm,
        cka_id: bytes,
        spki: bytes,
        wrapped: WrappedKey,
        wrapping_key: str,
    ) -> WrappedKey:
        before = {
            "blob": wrapped.blob.hex(),
            "sha256": wrapped.sha256.hex(),
            "mechanism": wrapped.mechanism,
            "wrapping_key": wrapping_cka_id(wrapped.wrapping_key).hex(),
        }
        made = self.call(
            "wrap_anew",
            algorithm=algorithm,
            cka_id=cka_id.hex(),
            spki=spki.hex(),
            wrapped=before,
            wrapping_key=wrapping_cka_id(wrapping_key).hex(),
        )
        return self._wrapped(made, wrapping_key)

    def destroy_wrapping_key(self, identity: str) -> None:
        cka_id, label = wrapping_cka_id(identity).hex(), wrapping_label(identity)
        self.call("destroy_wrapping_key", cka_id=cka_id, label=label)

    def _wrapped(self, made: Mapping[str, str], wrapping_key: str) -> WrappedKey:
        blob, mechanism = bytes.fromhex(made["blob"]), WrapMechanism(made["mechanism"])
        sha256 = hashlib.sha256(blob).digest()
        return WrappedKey(blob, sha256, mechanism, wrapping_key, (self.token,))

    def attributes(self, cka_id: bytes) -> dict[str, bool]:
        return dict(self.call("attributes", cka_id=cka_id.hex()))

    def destroy(self, cka_id: bytes, label: str) -> None:
        self.call("destroy", cka_id=cka_id.hex(), label=label)

    def sign(
        self,
        algorithm: Algorithm,
        cka_id: bytes,
        spki: bytes,
        inputs: Sequence[bytes],
        wrapped: WrappedKey | None = None,
    ) -> list[bytes]:
        part = SignPart(algorithm, 1, cka_id, spki, inputs, pack_wrapped(wrapped))
        order = pack_sign(SignFrame(1, [part]))
        frame = self._receive(
            FrameKind.RESULT, unpack_result, self._seconds, FrameKind.SIGN, *order
        )
        result = frame.parts[0]
        if result.verdict is not Verdict.SIGNED or result.wrong:
            raise OperatorError(
                f"token {self.token} cannot sign with the key {cka_id.hex()}: {result.verdict.name}"
            )
        return result.split()

    def wait(self, seconds: float) -> None:
        """Waits until it has opened its token."""
        try:
            self._receive(FrameKind.READY, bytes, seconds)
        except OperatorError:
            if self._logging_in:
                self._logged_in(self._failed or FailureKind.DIED)
            raise

    def inspection(self) -> TokenInspection:
        """Waits for the answer of a worker in the mode INSPECT."""
        answer = self._receive(FrameKind.DONE, unpack_json, self._seconds)
        return TokenInspection(
            tuple(SeenToken(label, serial, frozenset(f)) for label, serial, f in answer["tokens"]),
            PinState(answer["pin"]),
            answer["pin_problem"],
        )

    def _receive(
        self, wanted: FrameKind, unpack: Callable[[memoryview], T], seconds: float, *order: Any
    ) -> T:
        """Sends the order, if there is one, and waits for the answer of this kind."""
        channel = self._process.channel
        try:
            with self._killed_if_hung(seconds):
                if order:
                    channel.send(*order)
                kind, body = channel.receive()
                while kind is FrameKind.LOGIN:
                    self._logging_in = body != LOGGED_IN
                    if not self._logging_in:
                        self._logged_in(None)
                    kind, body = channel.receive()
            if kind is FrameKind.FATAL:
                report = unpack_json(body)
                if "kind" in report:
                    self._failed = FailureKind(report["kind"])
                raise OperatorError(str(report["text"]))
            if kind is not wanted:
                raise FrameError(f"an unexpected {kind.name}")  # noqa: TRY301 - one exit for all
            return unpack(body)
        except FrameError as error:
            raise OperatorError(f"the worker of token {self.token} sent {error}") from error

    @contextmanager
    def _killed_if_hung(self, seconds: float) -> Iterator[None]:
        """Kills a worker whose heartbeat has not moved for this time."""
        heartbeat = self._process.heartbeat
        answered, hung = threading.Event(), threading.Event()

        def watch() -> None:
            beats, since = heartbeat.count, time.monotonic()
            while not answered.wait(min(LOOK_SECONDS, seconds)):
                now = time.monotonic()
                if heartbeat.count != beats:
                    beats, since = heartbeat.count, now
                elif now - since >= seconds:
                    hung.set()
                    self._process.kill()
                    # Ends our wait even if the kernel holds the process.
                    self._process.channel.end()
                    return

        threading.Thread(target=watch, name="hang-watch", daemon=True).start()
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
            answered.set()


def wait_for_orphans(token: TokenConfig, state: Path) -> None:
    """Waits until the administrative workers of a daemon that was killed have left.

    One of them can still be at work in the HSM: repeating its order meanwhile would make
    a second key under the same CKA_ID. Raises OperatorError if one does not leave within the
    time that an order may take.
    """
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    end = time.monotonic() + token.order_seconds
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


def _lock_file(token: TokenConfig, state: Path) -> TextIO:
    """Opens the file that a worker keeps locked until it ends, if it can change the token."""
    name = hashlib.sha256(token.label.encode()).hexdigest()[:16]
    return os.fdopen(open_lock(state / f"admin-{name}.lock"))


def inspect(token: TokenConfig, state: Path, *, seconds: float = 20.0) -> TokenInspection:
    """Returns what a module shows of its tokens and what is known of the PIN; logs in nowhere.

    Raises OperatorError.
    """
    with _start_errors():
        process = WorkerProcess.start(token_spec(token, state, WorkerMode.INSPECT))
    try:
        return AdminWorker(process, token.label, seconds).inspection()
    finally:
        process.end()


@contextmanager
def open_admin(
    token: TokenConfig,
    state: Path,
    mode: WorkerMode = WorkerMode.ADMINISTER,
    *,
    logged_in: LoggedIn = lambda _: None,
) -> Iterator[AdminWorker]:
    """Starts an administrative worker for one token, or one that only lists its keys.

    ``logged_in`` is called once it has tried to log in. A worker of which one call takes longer
    than the token's ``start_seconds`` while it opens the token, or than ``order_seconds``
    afterwards, is killed. Raises OperatorError if it cannot open.
    """
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _start_errors(), _lock_file(token, state) as lock:
        keeps: tuple[int, ...] = ()
        if mode is WorkerMode.ADMINISTER:  # nobody has to wait for one that changes nothing
            fcntl.flock(lock, fcntl.LOCK_SH)
            keeps = (lock.fileno(),)
        process = WorkerProcess.start(token_spec(token, state, mode), keeps=keeps)
    worker = AdminWorker(process, token.label, token.order_seconds, logged_in)
    try:
        worker.wait(token.start_seconds)
        yield worker
    finally:
        process.end()


class AdminWorkers:
    """Opens administrative workers on the configured tokens."""

    def __init__(self, tokens: Sequence[TokenConfig], state: Path, events: Events) -> None:
        self._events = events
        self._tokens = {token.label: token for token in tokens}
        self._state = state
        self._lock = threading.Lock()
        self._without_orphans: set[str] = set()

    def open(
        self, label: str, mode: WorkerMode = WorkerMode.ADMINISTER
    ) -> AbstractContextManager[AdminWorker]:
        """Opens a worker for a block; raises OperatorError."""

        def logged_in(failed: FailureKind | None) -> None:
            self._events.emit(login_ended(label, failed))

        return open_admin(self._tokens[label], self._state, mode, logged_in=logged_in)

    def open_list(self, label: str) -> AbstractContextManager[AdminWorker]:
        """Opens a worker that lists the token's keys in the background; raises OperatorError."""
        return self.open(label, WorkerMode.LIST)

    @contextmanager
    def open_alone(self, label: str) -> Iterator[AdminWorker]:
        """Does so after the workers of a killed daemon have left; raises OperatorError."""
        with self._lock:
            if label not in self._without_orphans:
                wait_for_orphans(self._tokens[label], self._state)
                self._without_orphans.add(label)
        with self.open(label) as admin:
            yield admin


@contextmanager
def _start_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OperatorError(f"no worker can be started: {error.strerror}") from error

"""kill -9 under load: whatever was answered is on record, and the next start needs no hand."""

import hashlib
import os
import secrets
import signal
import threading
import time
import uuid
from collections import Counter
from typing import Self

import psutil
import pytest

from signer.audit.format.record import RecordKind
from signer.audit.format.segments import list_segments
from signer.audit.read.reader import Reader
from signer.client import SignerClientError
from tests.daemon import RECORDS, SECONDS, Daemon, until

CALLERS = 3


class Callers:
    """Callers inside a ``with`` block; ``answered`` has what they got, ``open`` what they did not.

    An item of ``answered`` is the message's SHA-256 and the signature.
    """

    def __init__(self, daemon: Daemon) -> None:
        self.answered: list[tuple[bytes, bytes]] = []
        self.open: list[tuple[uuid.UUID, list[bytes]]] = []
        self._daemon = daemon
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._call) for _ in range(CALLERS)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(2 * SECONDS)
        assert not any(thread.is_alive() for thread in self._threads), "a call hangs"

    def take(self, messages: list[bytes], request_id: uuid.UUID) -> None:
        """Sends one batch; raises SignerClientError."""
        with self._daemon.client() as client:
            results = client.sign_batch(
                RECORDS, "MESSAGE", messages, timeout=SECONDS, request_id=request_id
            )
        items = [
            (hashlib.sha256(message).digest(), result.signature)
            for message, result in zip(messages, results, strict=True)
            if result.error is None
        ]
        with self._lock:
            self.answered += items

    def _call(self) -> None:
        while not self._over.is_set():
            messages = [os.urandom(20) for _ in range(secrets.choice((1, 50, 400)))]
            request_id = uuid.uuid4()
            try:
                self.take(messages, request_id)
            except SignerClientError:
                with self._lock:
                    self.open.append((request_id, messages))
                return  # the daemon was killed: until the next round


def kill(daemon: Daemon) -> None:
    """Ends the front process as a crash would."""
    assert daemon.process is not None
    daemon.workers()
    daemon.process.send_signal(signal.SIGKILL)
    assert daemon.process.wait(SECONDS) == -signal.SIGKILL


def on_record(daemon: Daemon) -> dict[bytes, list[bytes]]:
    """The signatures of the log by the digest that they are of."""
    reader = Reader(list_segments(daemon.folder / "audit"))
    digests: dict[int, list[bytes]] = {}
    found: dict[bytes, list[bytes]] = {}
    for record in reader.records(0, reader.size):
        column = record.column
        if record.kind is RecordKind.INTENT and column is not None:
            digests[record.seq] = [column.item(index) for index in range(column.count)]
        elif record.kind is RecordKind.OUTCOME and column is not None:
            for index, digest in enumerate(digests.pop(int(str(record.fields["intent"])))):
                found.setdefault(digest, []).append(column.item(index))
    return found


def kill_starting(daemon: Daemon) -> None:
    """Starts it and ends it again while it recovers the log, or soon after."""
    daemon.launch()
    assert daemon.process is not None
    front, lock = psutil.Process(daemon.process.pid), str(daemon.folder / "audit" / "lock")
    until(lambda: lock in {file.path for file in front.open_files()}, "the log is opened")
    time.sleep(secrets.randbelow(400) / 1000)
    kill(daemon)


@pytest.mark.parametrize("times", [5, pytest.param(200, marks=pytest.mark.torture)])
def test_what_was_answered_survives_kills(daemon: Daemon, times: int) -> None:
    answered: list[tuple[bytes, bytes]] = []
    repeated = 0
    daemon.start()
    for _ in range(times):
        callers = Callers(daemon)
        with callers:
            time.sleep(0.05 + secrets.randbelow(550) / 1000)
            kill(daemon)
        kill_starting(daemon)
        daemon.start()
        # Who got no answer repeats his request, and gets one: the first, if there was one.
        for request_id, messages in callers.open:
            callers.take(messages, request_id)
            repeated += 1
        answered += callers.answered
    assert daemon.stop() == 0
    recorded = on_record(daemon)
    assert len(answered) >= times * CALLERS
    assert repeated >= times
    # Exactly one signature of each: a repetition never signs what was released.
    assert [item for item in answered if recorded.get(item[0]) != [item[1]]] == []
    verified = daemon.run("audit", "verify")
    assert verified.code == 0, verified.errors
    reader = Reader(list_segments(daemon.folder / "audit"))
    kinds = Counter(record.kind for record in reader.records(0, reader.size))
    assert 1 + times <= kinds[RecordKind.START] <= 1 + 2 * times
    assert kinds[RecordKind.STOP] == 1

"""Thousands of requests while anything may go wrong: one outcome for each, as it was answered.

Callers send small batches, each under a request id of its own, and repeat it until it is answered;
some repeat it once more. Meanwhile the module errs, hangs and crashes, workers and the daemon are
killed, and connections break, in an order that a seed gives.
"""

import hashlib
import os
import random
import signal
import threading
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Self

import pytest

from signer.audit.format.record import RecordKind
from signer.audit.format.segments import list_segments
from signer.audit.read.reader import Reader
from signer.client import SignerClient, SignerClientError
from signer.errors import Reason
from tests.daemon import RECORDS, SECONDS, Daemon, correct, kill_workers, until
from tests.fault.shim import Action, Shim
from tests.fault.test_audit_kill import kill, on_record
from tests.fault.test_return_codes import CODES
from tests.proxy import Proxy

CALLERS = 12
REPEATED = 0.1  # the part of the requests that is repeated after its answer
HANG_SECONDS = 2.0


class Item(NamedTuple):
    """A message as it was answered: its signature, or why it has none."""

    message: bytes
    signature: bytes
    failure: str


class History:
    """Callers inside a ``with`` block, until they have made ``most`` requests."""

    def __init__(self, daemon: Daemon, proxy: Proxy, most: int, seed: int) -> None:
        me = daemon.dev["clients"]["issuer"]
        self._files = {
            "address": proxy.address,
            "server_name": daemon.dev["server_name"],
            "ca": daemon.dev["ca"],
            "certificate": me["cert"],
            "key": me["key"],
        }
        self.answers: dict[uuid.UUID, list[Item]] = {}
        self.most, self.repeated = most, 0
        self.errors: list[BaseException] = []
        self._seed, self._begun, self._lock = seed, 0, threading.Lock()
        self._threads = [threading.Thread(target=self._run, args=(at,)) for at in range(CALLERS)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for thread in self._threads:
            thread.join()
        assert not self.errors, self.errors

    def wait(self, number: int) -> None:
        """Waits until so many requests are answered."""
        until(lambda: len(self.answers) >= number or self.errors, f"{number} answers", 10 * SECONDS)

    def _run(self, number: int) -> None:
        try:
            chosen = random.Random(f"{self._seed} {number}")
            with SignerClient.from_files(**self._files) as client:
                while self._next():
                    self._request(client, chosen)
        except BaseException as error:  # noqa: BLE001 - the test's thread reports it
            self.errors.append(error)

    def _next(self) -> bool:
        with self._lock:
            self._begun += 1
            return self._begun <= self.most and not self.errors

    def _request(self, client: SignerClient, chosen: random.Random) -> None:
        messages = [os.urandom(16) for _ in range(chosen.choice((1, 1, 1, 3, 20)))]
        request_id = uuid.uuid4()
        items = self._answered(client, messages, request_id)
        with self._lock:
            self.answers[request_id] = items
        if chosen.random() < REPEATED:
            again = self._answered(client, messages, request_id)
            assert again == items, "a repetition got another answer"
            with self._lock:
                self.repeated += 1

    def _answered(
        self, client: SignerClient, messages: list[bytes], request_id: uuid.UUID
    ) -> list[Item]:
        """Sends one batch until it is answered."""
        while True:
            try:
                results = client.sign_batch(
                    RECORDS, "MESSAGE", messages, timeout=SECONDS, request_id=request_id
                )
            except SignerClientError as error:
                assert error.retryable, error
                continue
            return [
                Item(message, result.signature, result.error.reason if result.error else "")
                for message, result in zip(messages, results, strict=True)
            ]


class Faults:
    """What goes wrong, one thing at a time, as a seed says."""

    def __init__(self, daemon: Daemon, proxy: Proxy, shim: Shim, seed: int) -> None:
        self._daemon, self._proxy, self._shim = daemon, proxy, shim
        self._chosen = random.Random(seed)
        self.happened: Counter[str] = Counter()
        often, seldom = 4, 1
        self._kinds: dict[Callable[[], object], int] = {
            self._code: 3 * often,
            self._crash: often,
            self._hang: often,
            self._kill_one: often,
            self._kill_all: seldom,
            self._cut: often,
            self._kill_daemon: seldom,
            self._restart_daemon: seldom,
        }

    def happen(self) -> None:
        kinds, weights = [*self._kinds], [*self._kinds.values()]
        [kind] = self._chosen.choices(kinds, weights)
        self.happened[kind.__name__.strip("_")] += 1
        kind()

    def _function(self) -> str:
        return self._chosen.choice(("C_SignInit", "C_Sign", "C_CopyObject"))

    def _code(self) -> None:
        self._shim.clear()
        times, code = self._chosen.choice((1, 2, 5)), self._chosen.choice([*CODES])
        self._shim.on(self._function(), times=times, code=code)

    def _crash(self) -> None:
        self._shim.clear()
        action = self._chosen.choice((Action.ABORT, Action.SEGFAULT))
        self._shim.on("C_Sign", times=1, action=action)

    def _hang(self) -> None:
        self._shim.clear()
        self._shim.on(self._function(), times=1, action=Action.HANG)

    def _kill_one(self) -> None:
        kill_workers(self._daemon.folder, *self._daemon.workers()[:1])

    def _kill_all(self) -> None:
        kill_workers(self._daemon.folder, *self._daemon.workers())

    def _cut(self) -> None:
        self._proxy.cut(deaf=self._chosen.random() / 5)

    def _kill_daemon(self) -> None:
        self._shim.clear()
        until(lambda: self._daemon.reason() == "", "no worker is in its login")
        kill(self._daemon)
        self._daemon.start()

    def _restart_daemon(self) -> None:
        self._shim.clear()
        assert self._daemon.stop(signal.SIGTERM) == 0
        self._daemon.start()


def outcomes(daemon: Daemon) -> Counter[str]:
    """How many outcomes each request id has in the log."""
    reader = Reader(list_segments(daemon.folder / "audit"))
    ids: dict[object, str] = {}
    found: Counter[str] = Counter()
    for record in reader.records(0, reader.size):
        if record.kind is RecordKind.INTENT:
            ids[record.seq] = str(record.fields["request_id"])
        elif record.kind is RecordKind.OUTCOME:
            found[ids[record.fields["intent"]]] += 1
    return found


@pytest.mark.parametrize(
    ("times", "every"), [(250, 50), pytest.param(50_000, 250, marks=pytest.mark.torture)]
)
def test_every_request_has_one_outcome_whatever_goes_wrong(
    daemon: Daemon, shim: Shim, shim_module: Path, times: int, every: int
) -> None:
    seed = random.SystemRandom().getrandbits(32)
    print(f"\nseed {seed}")
    daemon.configure(
        token={
            "module": str(shim_module),
            "environment": shim.environment,
            "hang_seconds": HANG_SECONDS,
        }
    )
    daemon.start()
    faults: Faults
    with Proxy(daemon.settings["listen"]) as proxy:
        faults = Faults(daemon, proxy, shim, seed)
        with History(daemon, proxy, times, seed) as history:
            for number in range(every // 2, times, every):
                history.wait(number)
                faults.happen()
    shim.clear()
    until(lambda: daemon.reason() == "", "it serves again")
    assert daemon.stop() == 0

    items = [item for answer in history.answers.values() for item in answer]
    public = daemon.public_key()
    signed = [item for item in items if not item.failure]
    failed = Counter(item.failure for item in items if item.failure)
    print(f"{len(items)} items; failed: {dict(failed)}; faults: {dict(faults.happened)}")
    assert all(correct(public, item.message, item.signature) for item in signed)
    assert set(failed) <= {Reason.HSM_UNAVAILABLE}
    assert len(history.answers) == times
    assert history.repeated
    counted = outcomes(daemon)
    for request_id, answer in history.answers.items():
        # While no worker serves, nothing goes to the HSM: there is no intent, and all items fail.
        least = 0 if all(item.failure for item in answer) else 1
        assert least <= counted[str(request_id)] <= 1
    recorded = on_record(daemon)
    for item in items:
        found = recorded.get(hashlib.sha256(item.message).digest(), [])  # none without an intent
        signatures = [each for each in found if any(each)]
        assert signatures == ([] if item.failure else [item.signature])
    verified = daemon.run("audit", "verify")
    assert verified.code == 0, verified.errors

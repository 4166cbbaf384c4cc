"""Single items of a client whose connection breaks: each is signed once, and answered."""

import asyncio
import hashlib
import os
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any, Self

import pytest

from signer.audit.format.record import RecordKind
from signer.audit.format.segments import list_segments
from signer.audit.read.reader import Reader
from signer.client import AsyncSignerClient, SignerClient
from tests.daemon import RECORDS, SECONDS, Daemon, correct, kill_workers, until
from tests.fault.test_audit_kill import kill, on_record
from tests.fault.test_token import hide_token, show_token
from tests.proxy import Proxy
from tests.torture import long

pytestmark = pytest.mark.usefixtures("two_workers")

CALLERS = 24


class Signed(list[tuple[bytes, bytes]]):
    """Messages and their signatures; ``over`` ends the callers."""

    def __init__(self) -> None:
        super().__init__()
        self.over = threading.Event()

    def more(self) -> None:
        """Waits for so many more as are in flight, and one."""
        wanted = len(self) + CALLERS + 1
        until(lambda: len(self) >= wanted, "items are signed")


def message() -> bytes:
    return os.urandom(20)


def by_threads(sign: Callable[..., bytes], signed: Signed) -> None:
    def call() -> None:
        while not signed.over.is_set():
            each = message()
            signed.append((each, sign(each)))

    threads = [threading.Thread(target=call) for _ in range(CALLERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * SECONDS)
    assert not any(thread.is_alive() for thread in threads)


def one_by_threads(files: Any, signed: Signed) -> None:
    with SignerClient.from_files(**files) as client:

        def sign(each: bytes) -> bytes:
            return client.sign_one(RECORDS, "MESSAGE", each, timeout=SECONDS)

        by_threads(sign, signed)


def stream_by_threads(files: Any, signed: Signed) -> None:
    with SignerClient.from_files(**files) as client, client.stream(RECORDS, "MESSAGE") as stream:
        by_threads(lambda each: stream.sign(each, timeout=SECONDS), signed)


async def by_tasks(sign: Callable[[bytes], Any], signed: Signed) -> None:
    async def call() -> None:
        while not signed.over.is_set():
            each = message()
            signed.append((each, await sign(each)))

    await asyncio.gather(*(call() for _ in range(CALLERS)))


def one_by_tasks(files: Any, signed: Signed) -> None:
    async def work() -> None:
        async with AsyncSignerClient.from_files(**files) as client:
            await by_tasks(
                lambda each: client.sign_one(RECORDS, "MESSAGE", each, timeout=SECONDS), signed
            )

    asyncio.run(work())


def stream_by_tasks(files: Any, signed: Signed) -> None:
    async def work() -> None:
        async with (
            AsyncSignerClient.from_files(**files) as client,
            client.stream(RECORDS, "MESSAGE") as stream,
        ):
            await by_tasks(lambda each: stream.sign(each, timeout=SECONDS), signed)

    asyncio.run(work())


Work = Callable[[Any, Signed], None]
KINDS = [one_by_threads, one_by_tasks, stream_by_threads, stream_by_tasks]
ONE_FIRST = [one_by_threads, stream_by_tasks, *long(one_by_tasks, stream_by_threads)]
STREAM_FIRST = [one_by_tasks, stream_by_threads, *long(one_by_threads, stream_by_tasks)]
"""All of them, of which `make test` has a single call and a stream, from threads and tasks."""


class Program:
    """A client's program inside a ``with`` block, on a connection through a proxy."""

    def __init__(self, daemon: Daemon, proxy: Proxy, work: Work) -> None:
        dev = daemon.dev
        me = dev["clients"]["issuer"]
        files = {
            "address": proxy.address,
            "server_name": dev["server_name"],
            "ca": dev["ca"],
            "certificate": me["cert"],
            "key": me["key"],
        }
        self.signed = Signed()
        self.errors: list[BaseException] = []
        self._thread = threading.Thread(target=self._run, args=(work, files))

    def _run(self, work: Work, files: Any) -> None:
        try:
            work(files, self.signed)
        except BaseException as error:  # noqa: BLE001 - the test's thread reports it
            self.errors.append(error)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.signed.over.set()
        self._thread.join(2 * SECONDS)
        assert not self._thread.is_alive(), "a call hangs"
        assert not self.errors, self.errors


def check(daemon: Daemon, signed: Signed) -> None:
    """Every item that was answered has one signature on record, the one that was answered."""
    public = daemon.public_key()
    assert all(correct(public, *each) for each in signed)
    # A failed item, of an absent token, has zeros; the client sent it again.
    recorded = {
        digest: [signature for signature in signatures if any(signature)]
        for digest, signatures in on_record(daemon).items()
    }
    for each, signature in signed:
        assert recorded[hashlib.sha256(each).digest()] == [signature]
    assert sum(map(len, recorded.values())) == len(signed)
    verified = daemon.run("audit", "verify")
    assert verified.code == 0, verified.errors


def outcomes(daemon: Daemon) -> Counter[str]:
    """How many outcomes each request id has.

    Its other intents came to nothing because their caller had gone.
    """
    reader = Reader(list_segments(daemon.folder / "audit"))
    ids: dict[object, str] = {}
    found: Counter[str] = Counter()
    dropped: set[object] = set()
    for record in reader.records(0, reader.size):
        fields = record.fields
        if record.kind is RecordKind.INTENT:
            ids[record.seq] = str(fields["request_id"])
        elif record.kind is RecordKind.OUTCOME:
            found[ids[fields["intent"]]] += 1
        elif record.kind is RecordKind.INDETERMINATE:
            assert fields["reason"] == "CALLER_GONE"
            dropped.add(fields["intent"])
    assert len(ids) == found.total() + len(dropped)
    return found


@pytest.mark.parametrize("work", KINDS)
def test_a_broken_connection_loses_nothing_and_signs_nothing_twice(
    daemon: Daemon, work: Work
) -> None:
    daemon.start()
    with Proxy(daemon.settings["listen"]) as proxy:
        with Program(daemon, proxy, work) as program:
            for number in range(10):
                program.signed.more()
                proxy.cut(deaf=0.01 * (number % 5))
            program.signed.more()
        assert proxy.connections >= 11
    assert daemon.stop() == 0
    check(daemon, program.signed)
    assert set(outcomes(daemon).values()) == {1}


@pytest.mark.parametrize("work", ONE_FIRST)
def test_a_killed_or_restarted_daemon_loses_nothing_that_was_answered(
    daemon: Daemon, work: Work
) -> None:
    daemon.start()
    with Proxy(daemon.settings["listen"]) as proxy:
        with Program(daemon, proxy, work) as program:
            for end in (kill, Daemon.stop, kill):
                program.signed.more()
                end(daemon)
                daemon.start()
            program.signed.more()
        assert proxy.connections >= 4
    assert daemon.stop() == 0
    check(daemon, program.signed)


@pytest.mark.parametrize("work", STREAM_FIRST)
def test_killed_workers_and_an_absent_token_lose_nothing_that_was_answered(
    daemon: Daemon, work: Work
) -> None:
    daemon.start()
    with Proxy(daemon.settings["listen"]) as proxy, Program(daemon, proxy, work) as program:
        for absent in (False, True, False):
            program.signed.more()
            if absent:
                hide_token(daemon)
            kill_workers(daemon.folder, *daemon.workers())
            if absent:
                until(daemon.reason, "the token is away")
                show_token(daemon)
        program.signed.more()
    assert daemon.stop() == 0
    check(daemon, program.signed)

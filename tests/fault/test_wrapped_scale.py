"""Thousands of facilities with wrapped keys, with a millisecond added to each call of the module.

One operation enrols them, a daemon that starts anew serves them, others rotate a part of them.
``--wrapped-keys N`` sets how many there are; with ``-s`` the figures of this machine are printed.
"""

import asyncio
import os
import random
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import load_der_public_key

from signer.client import AsyncSignerClient
from tests.appliances import WrappedKeys
from tests.daemon import RECORDS, SECONDS, Daemon, correct
from tests.fault.shim import Shim
from tests.integration.officers import Office, csv_of

ISSUER = "spiffe://dev.signer.example/issuer"
LATENCY = 0.001  # seconds that each call of the module takes longer
WORKERS, CALLERS = 4, 48
SLICE = 3000  # single items of one measurement
PAUSE = 0.05  # seconds between the items of the caller during the enrolment
ROTATED = 10  # one key in so many
MIB = 1 << 20
FRONT_MIB, WORKER_MIB = 200, 60
OF_MODULE = 8 << 10
"""Bytes that SoftHSM keeps for each unwrapped key, measured without our code: a worker's own memory
is what is left without them."""


@pytest.fixture
def size(request: pytest.FixtureRequest) -> int:
    return int(request.config.getoption("--wrapped-keys"))


@pytest.fixture
def daemon(tmp_path: Path, shim_module: Path) -> Iterator[Daemon]:
    appliance = WrappedKeys(tmp_path / "dev")
    appliance.init()
    shim = Shim(tmp_path / "shim", index=True)
    made = Daemon(appliance.dir / "signer.yaml")
    made.configure(
        token={
            "module": str(shim_module),
            "environment": shim.environment,
            "workers": WORKERS,
            "key_lookup": None,
        },
        limits={"calls_per_client": 2 * CALLERS},
    )
    shim.latency = LATENCY
    yield made
    if made.running:
        assert made.stop() == 0


def say(text: str) -> None:
    """A figure of this machine, for a person who runs the test with -s."""
    print(f"\n{text}", flush=True)


def front_process(daemon: Daemon) -> psutil.Process:
    assert daemon.process is not None
    return psutil.Process(daemon.process.pid)


def cpu(daemon: Daemon) -> float:
    """CPU seconds of the front process so far."""
    times = front_process(daemon).cpu_times()
    return float(times.user + times.system)


def memory(daemon: Daemon, unwrapped: int = 0) -> tuple[int, int]:
    """MiB of the front process, and of the largest worker without what the module has."""
    front = front_process(daemon).memory_info().rss // MIB
    workers = [worker.memory_info().rss for worker in daemon.workers()]
    of_module = unwrapped * OF_MODULE
    say(
        f"memory in MiB: front {front}, largest worker {max(workers) // MIB}, of it the module's"
        f" objects about {of_module // MIB}"
    )
    return front, (max(workers) - of_module) // MIB


async def sign_each(office: Office, keys: Sequence[str]) -> float:
    """Signs one item with each key, many calls at a time; returns items a second."""
    identity = office.dev["clients"]["issuer"]
    client = AsyncSignerClient.from_files(
        office.dev["address"],
        server_name=office.dev["server_name"],
        ca=office.dev["ca"],
        certificate=identity["cert"],
        key=identity["key"],
    )
    left = iter(keys)

    async def call() -> None:
        for key in left:
            [item] = await client.sign_batch(key, "MESSAGE", [b"m"], timeout=60)
            assert item.ok, item.error

    async with client:
        began = time.monotonic()
        await asyncio.gather(*(call() for _ in range(CALLERS)))
        return len(keys) / (time.monotonic() - began)


def own_key_signs(office: Office, keys: Sequence[str], number: int) -> None:
    """Each key signs by this version, and that version's public key verifies it."""
    with office.client("issuer") as client:
        for key in keys:
            [item] = client.sign_batch(key, "MESSAGE", [b"own"])
            assert item.key_version == f"{key}/versions/{number}"
            public = load_der_public_key(client.get_key_version(item.key_version).public_key)
            assert isinstance(public, EllipticCurvePublicKey)
            assert correct(public, b"own", item.signature)


@contextmanager
def signing(daemon: Daemon) -> Iterator[list[float]]:
    """A caller signs an item now and then; yields how long each has taken, in seconds."""
    took, over = list[float](), threading.Event()

    def call() -> None:
        with daemon.client() as client:
            while not over.wait(PAUSE):
                began = time.monotonic()
                [item] = client.sign_batch(RECORDS, "MESSAGE", [b"m"], timeout=SECONDS)
                took.append(time.monotonic() - began)
                assert item.ok, item.error

    with ThreadPoolExecutor(1) as thread:
        calling = thread.submit(call)
        try:
            yield took
        finally:
            over.set()
        calling.result()


@contextmanager
def timed(daemon: Daemon, done: str, count: int) -> Iterator[None]:
    """Prints how long a block took, for so many keys, and what a caller saw meanwhile."""
    with signing(daemon) as took:
        began, used = time.monotonic(), cpu(daemon)
        yield
        seconds, used = time.monotonic() - began, cpu(daemon) - used
    took.sort()
    say(
        f"{count} {done} in {seconds:.0f} s, {count / seconds:.0f} a second, of a key"
        f" {1000 * used / count:.1f} ms of CPU of the front process; single items meanwhile: p50"
        f" {took[len(took) // 2]:.3f} s, p99 {took[len(took) * 99 // 100]:.3f} s, at most"
        f" {took[-1]:.3f} s; load average {os.getloadavg()[0]:.0f}"
    )


def enrol(daemon: Daemon, office: Office, names: Sequence[str]) -> None:
    """Enrols facilities by one operation, while a caller signs single items."""
    with timed(daemon, "facilities enrolled", len(names)):
        told = office.do("enrol", csv_of(list(names), ISSUER), seconds=3600)
    assert told.state == "DONE", told.note
    with office.client("auditor") as client:
        [wrapping] = client.list_wrapping_keys()
    assert wrapping.key_versions >= len(names)
    assert daemon.reason() == ""


def start_anew(daemon: Daemon) -> None:
    assert daemon.stop() == 0
    began = time.monotonic()
    daemon.start()
    say(
        f"start to serving: {time.monotonic() - began:.1f} s, {cpu(daemon):.1f} s of CPU of the"
        f" front process; load average {os.getloadavg()[0]:.0f}"
    )


def serve(daemon: Daemon, office: Office, keys: Sequence[str]) -> int:
    """Signs with each key in each worker, then compares one key with keys at random.

    Returns the MiB of the front process when each key has signed; later it keeps what callers may
    repeat, too.
    """
    rate = asyncio.run(sign_each(office, random.sample(keys, len(keys))))
    say(f"first use of each key, one item a call: {rate:.0f} items/s")
    front, _ = memory(daemon)
    for _ in range(WORKERS):  # each worker unwraps the keys that it is given
        asyncio.run(sign_each(office, random.sample(keys, len(keys))))
    rates = [
        (
            asyncio.run(sign_each(office, random.choices(keys, k=SLICE))),
            asyncio.run(sign_each(office, [keys[0]] * SLICE)),
        )
        for _ in range(3)
    ]
    ratio = sum(one for one, _ in rates) / sum(other for _, other in rates)
    shown = ", ".join(f"{one:.0f}/{other:.0f}" for one, other in rates)
    say(f"a random key each item: {ratio:.2f} of the rate of one key ({shown})")
    return front


def rotate(daemon: Daemon, office: Office, keys: Sequence[str]) -> None:
    content = "".join(f"{key}\n" for key in keys).encode()
    with timed(daemon, "keys rotated", len(keys)):
        told = office.do("rotate", content, activate_at=0, overlap_seconds=0, seconds=3600)
    assert told.state == "DONE", told.note


@pytest.mark.torture
def test_thousands_of_facilities_with_wrapped_keys_enrol_serve_and_rotate(
    daemon: Daemon, size: int
) -> None:
    names = [f"w-{number:05}" for number in range(size)]
    keys = [f"facilities/{name}/keys/records" for name in names]
    some = max(1, size // 20)
    daemon.start()
    office = Office(daemon.dev)
    enrol(daemon, office, names)
    start_anew(daemon)
    memory(daemon)
    front = serve(daemon, office, keys)
    _, worker = memory(daemon, unwrapped=size)
    own_key_signs(office, keys[::some], 1)
    rotated = keys[::ROTATED]
    rotate(daemon, office, rotated)
    start_anew(daemon)
    own_key_signs(office, rotated[:20], 2)
    own_key_signs(office, keys[1::some], 1)
    assert daemon.reason() == ""
    assert front < FRONT_MIB
    assert worker < WORKER_MIB

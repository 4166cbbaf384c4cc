"""A token in the real SoftHSM, its keys, and pools over it, without a daemon around them."""

import hashlib
import secrets
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import load_der_public_key

from signer.algorithms import PROPERTIES, Algorithm
from signer.clock import SystemClock
from signer.config.models import TokenConfig
from signer.event_loop import EventLoop
from signer.events import ChunkEnded, LoginEnded, WorkerFailedAgain, WorkerLeft
from signer.hsm.front.admin import open_admin
from signer.hsm.front.chunks import Signed, SignJob
from signer.hsm.front.pool import Pool
from signer.hsm.front.process import token_spec
from signer.hsm.mechanisms import Verifier
from signer.hsm.spec import TokenSpec
from signer.model import KeyName, KeyVersion
from signer.tools.dev import softhsm, texts
from tests.daemon import until
from tests.stand_ins import Recorder, key_version

SECONDS = 30.0
"""Deadline of every job: what hangs fails its test."""


class TestedToken:
    """A token of a module, with its configuration."""

    def __init__(self, settings: TokenConfig, state: Path) -> None:
        self.settings, self.state = settings, state
        state.mkdir(parents=True)

    def make(self, *kinds: tuple[Algorithm, int]) -> list[KeyVersion]:
        """Makes one key of each algorithm and length."""
        with open_admin(self.settings, self.state) as admin:
            return [self._version(admin, algorithm, bits) for algorithm, bits in kinds]

    def _version(self, admin: Any, algorithm: Algorithm, bits: int) -> KeyVersion:
        cka_id = secrets.token_bytes(16)
        spki = admin.generate(algorithm, bits, cka_id, f"test-{cka_id.hex()}")
        return version(algorithm, cka_id, spki)

    def spec(self, **changes: Any) -> TokenSpec:
        """What a worker is sent, but for ``changes`` of its fields."""
        return replace(token_spec(self.settings, self.state), **changes)

    @contextmanager
    def pool(
        self,
        *,
        workers: int = 1,
        hang: float = 10.0,
        start: float = 60.0,
        queued: int = 200_000,
        serving: bool = True,
        **changes: Any,
    ) -> "Iterator[tuple[Pool, Record]]":
        """A pool on a loop of its own, which serves (unless not ``serving``), and its reports."""
        record = Record()
        loop = EventLoop()
        pool = Pool(
            self.spec(**changes),
            workers=workers,
            start_seconds=start,
            hang_seconds=hang,
            max_queued=queued,
            loop=loop,
            events=record.events,
            clock=SystemClock(),
        )
        pool.start()
        try:
            if serving:
                until(lambda: pool.serving == workers, "the workers serve")
            yield pool, record
        finally:
            pool.close()
            loop.close()


class SoftToken(TestedToken):
    """A fresh token of SoftHSM in ``folder``."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        """``changes`` are other settings of the token."""
        (folder / "token").mkdir(parents=True)
        conf = folder / "softhsm2.conf"
        conf.write_text(texts.SOFTHSM_CONF.format(tokens=folder / "token"))
        pin = secrets.token_hex(8)
        module = softhsm.find_module()
        serial = softhsm.init_token(module, conf, pin, so_pin=secrets.token_hex(8))
        values = {
            "label": softhsm.LABEL,
            "serial": serial,
            "module": str(module),
            "pin_file": str(pin_file(folder, pin)),
            "workers": 1,
            "session_copies": True,
            "environment": {"SOFTHSM2_CONF": str(conf)},
            **changes,
        }
        settings = TokenConfig.model_validate(values, context={"directory": folder})
        super().__init__(settings, folder / "state")


def pin_file(folder: Path, pin: str) -> Path:
    """Makes a file with a PIN."""
    file = folder / "pin"
    file.touch(0o600)
    file.write_text(pin)
    return file


class Record(Recorder):
    """What a pool has emitted."""

    @property
    def counts(self) -> Counter[str]:
        """Chunks, their items, checked and wrong signatures."""
        counts: Counter[str] = Counter()
        for chunk in self.of(ChunkEnded):
            counts.update(chunks=1, items=chunk.items, checked=chunk.checked, wrong=chunk.wrong)
        return counts

    @property
    def left(self) -> list[tuple[str, str]]:
        """Cause and text of each worker that has ended."""
        ends = (event for event in self.seen if isinstance(event, WorkerLeft | WorkerFailedAgain))
        return [(event.cause, event.text) for event in ends]

    @property
    def logins(self) -> list[str]:
        """The results of logins."""
        return [event.result for event in self.of(LoginEnded)]


def version(algorithm: Algorithm, cka_id: bytes, spki: bytes) -> KeyVersion:
    """A key version as the registry would know it."""
    return key_version(
        key=KeyName("test", cka_id.hex()[:16]),
        algorithm=algorithm,
        token=softhsm.LABEL,
        cka_id=cka_id,
        spki=spki,
        kid=cka_id[:8],
        thumbprint="",
    )


def job(
    key: KeyVersion,
    inputs: Sequence[bytes],
    *,
    owner: str = "a",
    weight: int = 1,
    check_every: int = 1,
    seconds: float = SECONDS,
) -> SignJob:
    return SignJob(key, inputs, owner, weight, check_every, time.monotonic() + seconds)


def sign(pool: Pool, job: SignJob) -> Signed:
    """Admits and signs a job on the pool's loop, and waits for it."""

    async def admit_and_sign() -> Signed:
        with pool.admit(job) as admission:
            return await pool.sign(admission)

    return pool._loop.run(admit_and_sign())


def inputs_for(key: KeyVersion, count: int) -> list[bytes]:
    """Digests of the key's hash, or messages where it takes those."""
    messages = [b"message %d" % number for number in range(count)]
    name = PROPERTIES[key.algorithm].hash_name
    return [hashlib.new(name, m).digest() for m in messages] if name else messages


def all_correct(key: KeyVersion, inputs: Sequence[bytes], signatures: Sequence[bytes]) -> bool:
    """Whether every input has its right signature, by our own check."""
    verifier = Verifier(key.algorithm, key.spki)
    return len(inputs) == len(signatures) and all(map(verifier.correct, inputs, signatures))


def public_key(key: KeyVersion) -> Any:
    return load_der_public_key(key.spki)

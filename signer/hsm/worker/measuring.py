"""What a token does in how much time: the orders of ``signer token bench`` to a worker.

All that is made is an object of the session: it goes with the worker, and the token holds
afterwards what it held before. Times are in milliseconds.
"""

import secrets
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import count
from typing import Any

from pkcs11 import Attribute, KeyType, MechanismFlag

from signer.algorithms import PROPERTIES, Algorithm
from signer.hsm.frames import LOGGED_IN
from signer.hsm.mechanisms import MECHANISMS
from signer.hsm.worker.administration import OPERATIONS
from signer.hsm.worker.cryptoki import CKA_ID, HotLoop
from signer.hsm.worker.pairs import STRICT, generate_pair
from signer.hsm.worker.token import Token
from signer.hsm.worker.wrapping import wrap_mechanism

SAMPLES = 1000  # times of single signatures that are reported of one measurement
FEWEST, MOST = 5, 200  # look-ups, and unwraps, of which the median is reported
_SESSION = STRICT | {Attribute.TOKEN: False}


class OpenTimes:
    """How long it takes to open a token: from the begin to the end, and C_Login alone."""

    def __init__(self, report: Callable[[bytes], object]) -> None:
        """``report`` is called as in ``log_in``."""
        self._report = report
        self._began = self._login_began = time.perf_counter()
        self.login = self.open = 0.0  # seconds

    def report(self, said: bytes) -> None:
        """Notes when C_Login is called and when it has succeeded."""
        if said == LOGGED_IN:
            self.login = time.perf_counter() - self._login_began
        self._report(said)
        if said != LOGGED_IN:
            self._login_began = time.perf_counter()

    def opened(self) -> None:
        """Notes that the token is open."""
        self.open = time.perf_counter() - self._began


class Measuring:
    """The orders to one worker, with the key that it has made for itself."""

    def __init__(self, token: Token, times: OpenTimes) -> None:
        self._token, self._times = token, times
        self._loop = HotLoop(token.spec.module, token.session.handle, token.heartbeat)
        self._key = 0

    def operations(self) -> Mapping[str, Callable[..., Any]]:
        return {
            "describe": OPERATIONS["describe"],
            "opened": self._opened,
            "make": self._make,
            "sign": self._sign,
            "look_up": self._look_up,
            "unwrap": self._unwrap,
        }

    def _opened(self, _: Token) -> dict[str, float]:
        return {"open_ms": 1e3 * self._times.open, "login_ms": 1e3 * self._times.login}

    def _make(self, token: Token, algorithm: str, bits: int) -> None:
        """Creates the key that this worker signs with."""
        with token.doing(f"create a session key for {algorithm}"):
            self._key = self._pair(Algorithm(algorithm), bits)

    def _pair(self, algorithm: Algorithm, bits: int, *, extractable: bool = False) -> int:
        """Returns the handle of a private key of the session."""
        template = _SESSION | {Attribute.EXTRACTABLE: extractable}
        objects, cka_id = self._token.objects, secrets.token_bytes(16)
        return generate_pair(
            objects, algorithm, bits, cka_id, "signer token bench", template=template
        )[1]

    def _sign(self, token: Token, algorithm: str, at: float, seconds: float) -> dict[str, Any]:
        """Signs one input after the other from ``at`` on, in seconds of CLOCK_MONOTONIC."""
        wanted = Algorithm(algorithm)
        mechanism, hash_name = MECHANISMS[wanted], PROPERTIES[wanted].hash_name
        size = {"sha256": 32, "sha384": 48}.get(hash_name or "", 32)
        while (left := at - time.monotonic()) > 0:
            token.beat()
            time.sleep(min(left, 0.1))
        sign, key, now = self._loop.sign, self._key, time.perf_counter
        times: list[float] = []
        with token.doing("sign"):
            began = last = now()
            while last - began < seconds:
                sign(key, mechanism, [secrets.token_bytes(size)])
                moment = now()
                times.append(moment - last)
                last = moment
        times.sort()
        step = max(1, len(times) // SAMPLES)
        return {
            "rate": len(times) / (last - began),
            "times_ms": [1e3 * each for each in times[step // 2 :: step]],
        }

    def _look_up(self, token: Token, seconds: float) -> dict[str, float | None]:
        """Searches for a CKA_ID that no key has, and for that of a key if the token has one."""
        with token.doing("look up keys"):
            missing = _median(
                lambda: token.objects.find({CKA_ID: secrets.token_bytes(16)}, most=2), seconds
            )
            some = token.objects.find({}, most=1)
            names = token.objects.names(some[0]) if some else None
            found = None
            if names is not None and names.cka_id:
                wanted = {CKA_ID: names.cka_id}
                found = _median(lambda: token.objects.find(wanted, most=2), seconds)
        return {"missing_ms": missing, "found_ms": found}

    def _unwrap(self, token: Token, seconds: float) -> dict[str, Any]:
        """Unwraps a P-256 key again and again; without a mechanism where the token has none."""
        with token.doing("wrap and unwrap a session key"):
            mechanism = wrap_mechanism(token)
            if mechanism is None:
                return {"mechanism": None}
            wrapping = token.session.generate_key(
                KeyType.AES,
                256,
                store=False,
                capabilities=MechanismFlag.WRAP | MechanismFlag.UNWRAP,
                template={Attribute.TOKEN: False, Attribute.SENSITIVE: True},
            )
            token.beat()
            key = self._pair(Algorithm.ES256, 0, extractable=True)
            blob = token.objects.wrap(mechanism, wrapping.handle, key)
            times = []
            for _ in _rounds(seconds):
                began = time.perf_counter()
                handle = token.objects.unwrap(
                    mechanism, wrapping.handle, blob, Algorithm.ES256, secrets.token_bytes(16)
                )
                times.append(time.perf_counter() - began)
                token.objects.destroy(handle)
        return {"mechanism": mechanism, "unwrap_ms": 1e3 * statistics.median(times)}


def _rounds(seconds: float) -> Iterator[int]:
    """Counts for these seconds, but FEWEST times at least and MOST at most."""
    end = time.perf_counter() + seconds
    for number in count():
        if number >= MOST or (number >= FEWEST and time.perf_counter() >= end):
            return
        yield number


def _median(work: Callable[[], object], seconds: float) -> float:
    """Returns the median of the times that the work takes."""
    times = []
    for _ in _rounds(seconds):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return 1e3 * statistics.median(times)

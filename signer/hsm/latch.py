"""A rejected PIN is remembered, so that no restart tries it again.

HSMs lock or erase themselves after a few wrong PINs. The record holds scrypt
fingerprints with a random salt (a plain hash of a short PIN would be the PIN)
and lies beside the daemon's other state, one file a token, mode 0600.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import secrets
from dataclasses import asdict, dataclass, replace
from pathlib import Path


@dataclass(frozen=True, slots=True)
class _Record:
    salt: str
    rejected: str | None = None  # fingerprint of the PIN that the token refused last
    accepted: str | None = None  # fingerprint of the PIN that worked last
    confirmed: bool = False  # an operator asked for one more attempt


class PinLatch:
    """What is known of the PINs tried on one token. Use it under the token's start lock."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._record = _read(path)

    @property
    def latched(self) -> bool:
        """Whether some PIN is latched."""
        return self._record.rejected is not None

    def rejected(self, pin: str) -> bool:
        """Whether the token has refused this PIN before."""
        return self.latched and self._record.rejected == self._fingerprint(pin)

    def accepted(self, pin: str) -> bool:
        """Whether this PIN was the last that worked."""
        return self._record.accepted == self._fingerprint(pin)

    @property
    def confirmed(self) -> bool:
        """Whether an operator has confirmed one attempt."""
        return self._record.confirmed

    def attempt(self, pin: str) -> None:
        """Notes that a login with this PIN is about to be tried.

        A PIN that has never worked counts as rejected from here on: an attempt
        whose outcome nobody saw must not be repeated by a restart.
        """
        if not self.accepted(pin):
            self.reject(pin)

    def reject(self, pin: str) -> None:
        """Notes that the token refuses this PIN."""
        self._write(rejected=self._fingerprint(pin), confirmed=False)

    def withdraw(self) -> None:
        """Takes the last attempt back: the token failed before it judged the PIN."""
        self._write(rejected=None)

    def accept(self, pin: str) -> None:
        """Notes that the PIN works."""
        if self.latched or self.confirmed or not self.accepted(pin):
            self._write(rejected=None, accepted=self._fingerprint(pin), confirmed=False)

    def release(self) -> None:
        """Lets the next start try the PIN once more (``signer token unlatch``)."""
        self._write(rejected=None, confirmed=True)

    def _fingerprint(self, pin: str) -> str:
        return _fingerprint(self._record.salt, pin)

    def _write(self, **changes: str | bool | None) -> None:
        self._record = replace(self._record, **changes)  # type: ignore[arg-type] # fields by name
        temporary = self._path.with_suffix(".new")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump(asdict(self._record), file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._path)


def latch_of(state: Path, token: str, serial: str) -> PinLatch:
    """Returns the latch of one token, by its label and serial number."""
    return PinLatch(state / f"pin-{token.encode().hex()}-{serial.encode().hex()}.json")


def _read(path: Path) -> _Record:
    try:
        return _Record(**json.loads(path.read_text()))
    except FileNotFoundError:
        return _Record(salt=secrets.token_hex(16))


@functools.lru_cache(maxsize=4)
def _fingerprint(salt: str, pin: str) -> str:
    """Computes scrypt (RFC 7914): slow on purpose, so it is computed once a process and PIN."""
    return hashlib.scrypt(pin.encode(), salt=bytes.fromhex(salt), n=2**14, r=8, p=1, dklen=32).hex()


def release(state: Path, token: str) -> bool:
    """Lets the next start try the PIN of a token (a label) once more; False if none was tried."""
    paths = list(state.glob(f"pin-{token.encode().hex()}-*.json"))
    for path in paths:
        PinLatch(path).release()
    return bool(paths)

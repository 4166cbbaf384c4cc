"""The latch: the record of rejected PINs, so that no restart tries one again.

HSMs lock or erase themselves after a few wrong PINs. The record contains scrypt
fingerprints with a random salt (a plain hash of a short PIN would reveal it). Each
token has one file, mode 0600, in the daemon's folder ``state``.
"""

import fcntl
import functools
import hashlib
import json
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from signer.errors import OperatorError
from signer.files import SECRET, open_lock, replace_file

_LOCK_SECONDS = 0.01  # so often is a start lock tried that another process holds
MAX_FAILED_LOGINS = 5
"""Logins in a row with a PIN that has worked that may end without a word about the PIN.

Codes are not portable: on some HSMs each of them may be a wrong PIN."""


@dataclass(frozen=True, slots=True)
class _Record:
    salt: str
    rejected: tuple[str, ...] = ()  # fingerprints of the PINs that the token refused
    accepted: str | None = None  # fingerprint of the PIN that worked last
    confirmed: bool = False  # an operator asked for one more attempt
    failures: int = 0  # logins in a row with the PIN that worked last, begun and not good


class PinLatch:
    """The record of the PINs tried on one token. Use it under the token's start lock."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._record = self._before = _read(path)

    def rejected(self, pin: str) -> bool:
        """Whether the token has refused this PIN before."""
        return bool(self._record.rejected) and self._fingerprint(pin) in self._record.rejected

    def accepted(self, pin: str) -> bool:
        """Whether this PIN is the last that worked."""
        return self._record.accepted == self._fingerprint(pin)

    @property
    def holds(self) -> bool:
        """Whether some PIN is not tried any more."""
        return bool(self._record.rejected)

    @property
    def confirmed(self) -> bool:
        return self._record.confirmed

    def attempt(self, pin: str) -> None:
        """Records that a login with this PIN is about to be tried.

        It counts as failed from here on: a worker may end in it, and no restart must repeat
        that without end. A PIN that has never worked is rejected, one that has worked is so
        with the last of MAX_FAILED_LOGINS in a row.
        """
        self._before = self._record
        if self.accepted(pin) and self._record.failures + 1 < MAX_FAILED_LOGINS:
            self._write(failures=self._record.failures + 1)
        else:
            self.reject(pin)

    def undo(self) -> None:
        """Takes the attempt back: the token has not looked at the PIN."""
        self._write(**asdict(self._before))

    def reject(self, pin: str) -> None:
        rejected = (*self._others(pin), self._fingerprint(pin))
        failures = 0 if self.accepted(pin) else self._record.failures
        self._write(rejected=rejected, confirmed=False, failures=failures)

    def accept(self, pin: str) -> None:
        known = self.accepted(pin) and not self._record.failures
        if self.rejected(pin) or self.confirmed or not known:
            accepted = self._fingerprint(pin)
            self._write(rejected=self._others(pin), accepted=accepted, confirmed=False, failures=0)

    def release(self) -> None:
        """Lets the next start try the PIN again (``signer token unlatch``)."""
        self._write(rejected=(), confirmed=True, failures=MAX_FAILED_LOGINS - 1)

    def _others(self, pin: str) -> tuple[str, ...]:
        fingerprint = self._fingerprint(pin)
        return tuple(other for other in self._record.rejected if other != fingerprint)

    def _fingerprint(self, pin: str) -> str:
        return _fingerprint(self._record.salt, pin)

    def _write(self, **changes: tuple[str, ...] | str | bool | int) -> None:
        self._record = replace(self._record, **changes)  # type: ignore[arg-type] # fields by name
        stored = asdict(self._record)
        if not stored["failures"]:  # older versions refuse a record with a field that is new
            del stored["failures"]
        replace_file(self._path, json.dumps(stored), SECRET, durable=True)


def make_state(folder: Path) -> None:
    """Creates the folder of latches and locks if it is missing; raises OperatorError."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise OperatorError(
            f"the folder of latches and locks cannot be created at {folder} "
            f"({error.strerror}): create it, or change `state` in the configuration"
        ) from error


def latch_of(state: Path, token: str, serial: str) -> PinLatch:
    """Returns the latch of one token, by its label and serial number."""
    return PinLatch(state / f"pin-{token.encode().hex()}-{serial.encode().hex()}.json")


def _read(path: Path) -> _Record:
    try:
        stored = json.loads(path.read_text())
        names = {field.name for field in fields(_Record)}
        if isinstance(stored, dict) and not stored.keys() <= names:
            raise OperatorError(
                f"{path}, the record of rejected PINs, was written by a newer version of signer:"
                " install that version, or restore the backup from before the upgrade;"
                " no login is tried"
            )
        record = _Record(**stored)
        bytes.fromhex(record.salt)
        rejected = tuple(map(str, record.rejected))
        return replace(record, rejected=rejected, failures=int(record.failures))
    except FileNotFoundError:
        return _Record(salt=secrets.token_hex(16))
    except (OSError, ValueError, TypeError) as error:
        raise OperatorError(
            f"{path}, the record of rejected PINs, cannot be read ({type(error).__name__}): no "
            "login is tried; check the PIN, then delete the file"
        ) from error


@functools.lru_cache(maxsize=4)
def _fingerprint(salt: str, pin: str) -> str:
    """Computes scrypt (RFC 7914): slow on purpose, so the result is cached."""
    return hashlib.scrypt(pin.encode(), salt=bytes.fromhex(salt), n=2**14, r=8, p=1, dklen=32).hex()


def release(state: Path, token: str) -> bool | None:
    """Lets the next start try the PIN of a token (a label), also where the token warns of that.

    Returns whether a PIN was latched; None if none was ever tried.
    """
    if not state.is_dir():
        return None
    with start_lock(state, token):
        latches = [PinLatch(p) for p in state.glob(f"pin-{token.encode().hex()}-*.json")]
        latched = any(latch.holds for latch in latches)
        for latch in latches:
            latch.release()
    return latched if latches else None


@contextmanager
def start_lock(
    state: Path, token: str, waiting: Callable[[], object] = lambda: None
) -> Iterator[None]:
    """Holds the lock under which workers open a token (a label): one process at a time.

    ``waiting`` is called again and again while another process holds it.
    """
    with os.fdopen(open_lock(_lock_file(state, token))) as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                waiting()
                time.sleep(_LOCK_SECONDS)
        yield


@contextmanager
def shared_start_lock(state: Path, token: str) -> Iterator[None]:
    """Prevents workers from opening a token in the block, for an inspection.

    Creates no lock file, because it could belong to another user than the daemon's:
    without one, no worker has opened the token yet.
    """
    try:
        lock = _lock_file(state, token).open()
    except FileNotFoundError:
        yield
        return
    with lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        yield


def _lock_file(state: Path, token: str) -> Path:
    return state / f"start-{token.encode().hex()}.lock"

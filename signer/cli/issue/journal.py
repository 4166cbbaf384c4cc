"""What was issued, in a folder: one line of JSON for each step, on disk before the next one.

A batch of certificates is one line, so that after a crash it is known as a whole or not at all.
What was sent and is not in the journal is sent again in the same batches under the same request
ids, and an appliance that signed it answers with what it signed then.
"""

import fcntl
import hashlib
import hmac
import json
import os
import secrets
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

from signer.errors import OperatorError
from signer.files import SECRET, create_file

JOURNAL = "issued.jsonl"


class IssuedCertificate(NamedTuple):
    """A certificate: ``text`` is that of its QR code, ``signed`` the facility's record (JWS).

    ``line`` is that of the record in the file of its run, ``audit_record`` the number of the
    intent in the log of the appliance.
    """

    record: str
    facility: str
    line: int
    content: str
    uvci: str
    signed: str
    text: str
    audit_record: int | None

    @property
    def stem(self) -> str:
        """The name of its files: the line and a part of the UVCI's hash, nothing of the person."""
        return f"{self.line:07}-{hashlib.sha256(self.uvci.encode()).hexdigest()[:12]}"


class FailedRecord(NamedTuple):
    """A record without a certificate; ``signed`` is the facility's record for ``uvci``, or ""."""

    record: str
    uvci: str
    signed: str


class _InForce(NamedTuple):
    """What the journal says of a record: the content and UVCI in force, certificates so far."""

    content: str
    uvci: str
    times: int


class Journal:
    """The journal of one folder, locked while it is open. Raises OperatorError.

    ``interrupted`` is what a run that has not ended was asked for, None if the last one ended;
    ``last`` is the time of the last step, in epoch seconds; ``revoked`` has the UVCIs that later
    certificates of the same records replaced.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self._descriptor = descriptor
        self._path = path
        self._secret = b""
        self._known: dict[str, _InForce] = {}
        self._failed: dict[str, tuple[int, FailedRecord]] = {}
        self.interrupted: Mapping[str, Any] | None = None
        self.last = 0
        self.revoked: list[str] = []

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Opens the journal of a folder, or begins one in a folder that is new or empty."""
        path = folder / JOURNAL
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            new = not path.exists()
            if new and any(folder.iterdir()):
                raise OperatorError(
                    f"{folder} has files, but not those of an earlier run: name a new folder"
                )
            if new:
                os.close(create_file(path, SECRET))
            flags = os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
            journal = cls(path, os.open(path, flags))
        except OSError as error:
            raise OperatorError(f"{error.filename} cannot be opened: {error.strerror}") from error
        try:
            journal._read(folder)
        except BaseException:
            journal.close()
            raise
        return journal

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes it, which also gives up the lock."""
        os.close(self._descriptor)

    # --- what it says ----------------------------------------------------------------------

    @property
    def people(self) -> int:
        """How many records have a certificate."""
        return len(self._known)

    def is_issued(self, record: str, content: str) -> bool:
        """Whether the certificate in force of a record says what the record says."""
        known = self._known.get(record)
        return known is not None and known.content == content

    def in_force(self, certificate: IssuedCertificate) -> bool:
        """Whether a certificate is the one in force of its record."""
        known = self._known.get(certificate.record)
        return known is not None and known.uvci == certificate.uvci

    def has(self, record: str) -> bool:
        """Whether a record has a certificate, which the next one replaces."""
        return record in self._known

    def identity(self, record: str, content: str) -> bytes:
        """Returns the digest of which the next certificate of a record gets its UVCI.

        It is keyed: nobody finds a person by trying names, and each certificate has another one.
        """
        known = self._known.get(record)
        text = f"{record}\0{known.times if known else 0}\0{content}"
        return hmac.digest(self._secret, text.encode(), "sha256")

    def signed_before(self, record: str, uvci: str) -> str:
        """Returns what the facility signed for a certificate that was not made then, else ""."""
        _, failed = self._failed.get(record, (0, None))
        return failed.signed if failed is not None and failed.uvci == uvci else ""

    def request_id(self, key: str, parts: Iterable[tuple[str, bytes]]) -> uuid.UUID:
        """Returns the request id of a call: the same for the same key, records and payloads.

        A record that failed gets another one, because a repetition fails again.
        """
        digest = hashlib.sha256(key.encode())
        for record, payload in parts:
            tries, _ = self._failed.get(record, (0, None))
            digest.update(b"%d %d\n" % (tries, len(payload)) + payload)
        return uuid.uuid5(uuid.UUID(bytes=self._secret[:16]), digest.hexdigest())

    def certificates(self) -> Iterator[IssuedCertificate]:
        """Yields all certificates, also those that were replaced, as they were issued."""
        with self._path.open("rb") as file:
            for line in file:
                for row in json.loads(line).get("issued", ()):
                    yield IssuedCertificate(**row)

    # --- what is added ---------------------------------------------------------------------

    def begin(self, asked: Mapping[str, Any]) -> None:
        """Begins a run; one that was interrupted goes on."""
        if self.interrupted is None:
            self._add({"run": asked})

    def add(self, issued: Sequence[IssuedCertificate], failed: Sequence[FailedRecord]) -> None:
        """Adds what became of a batch; on disk when this returns."""
        if issued or failed:
            self._add({"issued": _rows(issued), "failed": _rows(failed)})

    def end(self) -> None:
        """Ends the run: of each record it is known whether it has a certificate."""
        self._add({"ended": True})

    def _add(self, step: dict[str, Any]) -> None:
        step["time"] = int(time.time())
        line = json.dumps(step, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
        try:
            while line:
                line = line[os.write(self._descriptor, line) :]
            os.fsync(self._descriptor)
        except OSError as error:
            raise OperatorError(f"{self._path} cannot be written: {error.strerror}") from error
        self._take(step)

    # --- how it is read --------------------------------------------------------------------

    def _read(self, folder: Path) -> None:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OperatorError(f"another `signer issue` is at work in {folder}") from None
        whole = 0
        with self._path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    break  # of a crash: what follows was never relied on
                self._take(self._step(number, line))
                whole += len(line)
        os.ftruncate(self._descriptor, whole)
        if not whole:
            self._add({"journal": 1, "secret": secrets.token_hex(32)})
            _sync(folder)
            _sync(folder.parent)

    def _step(self, number: int, line: bytes) -> Mapping[str, Any]:
        step: Any
        try:
            step = json.loads(line)
        except ValueError:
            step = None
        match step:
            case {"time": int()} if (step.get("journal") == 1) is (number == 1):
                return dict(step)
        text = "it is not of a journal that this version writes"
        raise OperatorError(f"{self._path}, line {number}: {text}")

    def _take(self, step: Mapping[str, Any]) -> None:
        self.last = step["time"]
        match step:
            case {"journal": _, "secret": str(secret)}:
                self._secret = bytes.fromhex(secret)
            case {"run": asked}:
                self.interrupted = asked
            case {"ended": _}:
                self.interrupted = None
            case {"issued": issued, "failed": failed}:
                for row in issued:
                    self._take_issued(IssuedCertificate(**row))
                for row in failed:
                    one = FailedRecord(**row)
                    tries, _ = self._failed.get(one.record, (0, None))
                    self._failed[one.record] = (tries + 1, one)

    def _take_issued(self, certificate: IssuedCertificate) -> None:
        known = self._known.get(certificate.record)
        if known is not None:
            self.revoked.append(known.uvci)
        times = known.times + 1 if known else 1
        self._known[certificate.record] = _InForce(certificate.content, certificate.uvci, times)
        self._failed.pop(certificate.record, None)


def _rows(named: Sequence[IssuedCertificate | FailedRecord]) -> list[dict[str, Any]]:
    return [each._asdict() for each in named]


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""What was issued, in a folder: one line of JSON for each step, on disk before the next one.

Of a batch, what the facilities signed is one line, and what the ministry signed another, so that
after a crash each is known as a whole or not at all. What was sent and is not in the journal is
sent again in the same batches under the same request ids, and an appliance that signed it answers
with what it signed then.
"""

import fcntl
import hashlib
import hmac
import json
import os
import secrets
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple, Self

from signer.errors import OperatorError
from signer.files import SECRET, create_file

JOURNAL = "issued.jsonl"


class IssuedCertificate(NamedTuple):
    """A certificate: ``text`` is that of its QR code.

    ``line`` is that of the record in the file of its run, ``audit_record`` the number of the
    intent in the log of the appliance.
    """

    record: str
    facility: str
    line: int
    content: str
    uvci: str
    text: str
    audit_record: int | None

    @property
    def stem(self) -> str:
        """The name of its files: the line and a part of the UVCI's hash, nothing of the person."""
        return f"{self.line:07}-{hashlib.sha256(self.uvci.encode()).hexdigest()[:12]}"


class CosignedRecord(NamedTuple):
    """What a facility signed (JWS) for the certificate that is to have this UVCI."""

    record: str
    facility: str
    uvci: str
    signed: str


class SignedBefore(NamedTuple):
    """A JWS that is in the journal, and the step that has it, whose records are one batch."""

    step: int
    signed: str


class _InForce(NamedTuple):
    """What the journal says of a record: the content and UVCI in force, certificates so far."""

    content: str
    uvci: str
    times: int


class Journal:
    """The journal of one folder, locked while it is open; for any threads. Raises OperatorError.

    ``asked`` is what the last run was asked for; ``interrupted`` the same, None if it has ended;
    ``last`` is the time of the last step, in epoch seconds; ``revoked`` has the UVCIs that later
    certificates of the same records replaced; ``made`` counts all certificates; ``drawn`` says
    how the images and pages in the folder were drawn, by their suffix.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self._descriptor = descriptor
        self._path = path
        self._secret = b""
        self._known: dict[str, _InForce] = {}
        self._cosigned: dict[str, tuple[int, CosignedRecord]] = {}
        self._tries: Counter[str] = Counter()
        self._steps = self._size = 0
        self._broken = ""  # why nothing more can be added
        self.drawn: dict[str, str] = {}
        self.made = 0
        self._writing = Lock()
        self.interrupted: Mapping[str, Any] | None = None
        self.asked: Mapping[str, Any] = {}
        self.last = 0
        self.revoked: list[str] = []

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Opens the journal of a folder, or begins one in a folder that is new or empty."""
        path = folder / JOURNAL
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            new = not path.exists()
            if (new or not path.stat().st_size) and any(each != path for each in folder.iterdir()):
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

    def signed_before(self, record: str, uvci: str) -> SignedBefore | None:
        """Returns what the facility signed for a certificate that is not in the journal."""
        step, cosigned = self._cosigned.get(record, (0, None))
        if cosigned is None or cosigned.uvci != uvci:
            return None
        return SignedBefore(step, cosigned.signed)

    def request_id(self, key: str, parts: Iterable[tuple[str, bytes]]) -> uuid.UUID:
        """Returns the request id of a call: the same for the same key, records and payloads.

        A record that failed gets another one, because a repetition fails again.
        """
        digest = hashlib.sha256(key.encode())
        for record, payload in parts:
            digest.update(b"%d %d\n" % (self._tries[record], len(payload)) + payload)
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

    def add_cosigned(self, cosigned: Sequence[CosignedRecord], failed: Sequence[str]) -> None:
        """Adds what facilities signed of a batch, and the records that failed.

        It is on disk when this returns: only then may the certificates be asked for.
        """
        self._add({"cosigned": _rows(cosigned), "failed": failed})

    def add_issued(
        self,
        issued: Sequence[IssuedCertificate],
        failed: Sequence[str],
        refused: Sequence[str] = (),
    ) -> None:
        """Adds the certificates of a batch, and the records that failed; on disk on return.

        Of those that were ``refused``, the facility's signature is forgotten: it makes another.
        """
        self._add({"issued": _rows(issued), "failed": failed, "refused": refused})

    def draw(self, drawn: Mapping[str, str]) -> None:
        """Notes how files are drawn from now on, by their suffix."""
        self._add({"drawn": drawn})

    def end(self) -> None:
        """Ends the run: of each record it is known whether it has a certificate."""
        self._add({"ended": True})

    def _add(self, step: dict[str, Any]) -> None:
        step["time"] = int(time.time())
        line = json.dumps(step, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
        size = len(line)
        with self._writing:
            if self._broken:
                raise OperatorError(self._broken)
            try:
                while line:
                    line = line[os.write(self._descriptor, line) :]
                os.fsync(self._descriptor)
            except OSError as error:
                self._broken = f"{self._path} cannot be written: {error.strerror}"
                with suppress(OSError):  # else a next run does it, which finds a part of a line
                    os.ftruncate(self._descriptor, self._size)
                raise OperatorError(self._broken) from error
            self._size += size
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
                try:
                    self._take(self._step(number, line))
                except (AttributeError, KeyError, TypeError, ValueError):
                    raise self._unreadable(number) from None
                whole += len(line)
        os.ftruncate(self._descriptor, whole)
        self._size = whole
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
        raise self._unreadable(number)

    def _unreadable(self, number: int) -> OperatorError:
        text = "it is not of a journal that this version writes"
        return OperatorError(f"{self._path}, line {number}: {text}")

    def _take(self, step: Mapping[str, Any]) -> None:
        self.last = step["time"]
        self._steps += 1
        self._tries.update(step.get("failed", ()))
        match step:
            case {"journal": _, "secret": str(secret)}:
                self._secret = bytes.fromhex(secret)
            case {"run": asked}:
                self.interrupted = self.asked = asked
            case {"ended": _}:
                self.interrupted = None
            case {"cosigned": cosigned}:
                for row in cosigned:
                    self._cosigned[row["record"]] = (self._steps, CosignedRecord(**row))
            case {"drawn": drawn}:
                self.drawn |= drawn
            case {"issued": issued}:
                for row in issued:
                    self._take_issued(IssuedCertificate(**row))
                for record in step.get("refused", ()):
                    self._cosigned.pop(record, None)
            case _:
                raise ValueError("a step that is not known")

    def _take_issued(self, certificate: IssuedCertificate) -> None:
        known = self._known.get(certificate.record)
        if known is not None:
            self.revoked.append(known.uvci)
        times = known.times + 1 if known else 1
        self._known[certificate.record] = _InForce(certificate.content, certificate.uvci, times)
        self.made += 1
        self._cosigned.pop(certificate.record, None)


def _rows(named: Sequence[IssuedCertificate | CosignedRecord]) -> list[dict[str, Any]]:
    return [each._asdict() for each in named]


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

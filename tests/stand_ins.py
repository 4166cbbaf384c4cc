"""Stand-ins that several test files use: a clock, an HSM, reports, a log."""

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from signer import events
from signer.algorithms import Algorithm
from signer.audit.write.disk import Disk
from signer.audit.write.log import AuditLog
from signer.audit.write.recovery import open_audit_log
from signer.clock import FlooredClock, SystemClock
from signer.errors import CallError, Failure
from signer.events import Event, Events
from signer.formats.payloads import signature_length
from signer.hsm.front.chunks import Signed, SignJob
from signer.hsm.front.pool import Admission
from signer.model import KeyName, KeyState, KeyVersion

E = TypeVar("E", bound=Event)
EVENTS = [
    kind
    for kind in vars(events).values()
    if isinstance(kind, type) and hasattr(kind, "_fields") and kind is not events.TextEvent
]


_VERSION = KeyVersion(
    key=KeyName("f", "k"),
    number=1,
    algorithm=Algorithm.ES256,
    state=KeyState.ACTIVE,
    token="t",
    cka_id=b"id",
    spki=b"spki",
    certificate=None,
    kid=b"kid",
    thumbprint="thumb",
    created=0.0,
    activate_at=0.0,
    sign_until=None,
)


def key_version(**changes: Any) -> KeyVersion:
    """An active version for ES256, but for ``changes`` of its fields."""
    return replace(_VERSION, **changes)


class ManualClock(FlooredClock):
    """The system's clock, until a test sets ``time``: seconds since the epoch."""

    def __init__(self, time: float | None = None) -> None:
        super().__init__()
        self.time = time

    def now(self) -> float:
        return max(self.machine() if self.time is None else self.time, self._floor)

    def doubt(self) -> str:
        return ""


class SetClock(FlooredClock):
    """Moves only when a test says so: one time for now and for durations."""

    def __init__(self, time: float = 1_767_571_200.0) -> None:
        self.time, self.machine_ahead = time, 0.0
        super().__init__()

    def machine(self) -> float:
        return self.time + self.machine_ahead

    def asleep(self) -> float:
        return 0.0

    def monotonic(self) -> float:
        return self.time

    def forward(self, seconds: float) -> None:
        self.time += seconds


class Recorder:
    """Keeps the events of ``events``, from any thread."""

    def __init__(self) -> None:
        self.seen: list[Event] = []
        self.events = Events(dict.fromkeys(EVENTS, self._keep))
        self._changed = threading.Condition()

    def of(self, kind: type[E]) -> list[E]:
        """The events of a type so far, in their order."""
        return [event for event in self.seen if isinstance(event, kind)]

    def wait(self, condition: Callable[[], bool], seconds: float = 30) -> None:
        """Waits until a condition over the events holds."""
        with self._changed:
            assert self._changed.wait_for(condition, seconds)

    def _keep(self, event: Event) -> None:
        with self._changed:
            self.seen.append(event)
            self._changed.notify_all()


class FakeHsm:
    """An HSM that signs, fails with ``error``, or admits nothing because of ``refusal``.

    Every signature is another one, of the length that the key's signatures have.
    """

    def __init__(self) -> None:
        self.refusal: Failure | CallError | None = None
        self.error: Exception | None = None
        self.signed = 0
        self.attempts = 1
        self.length: int | None = None

    def admit(self, job: SignJob) -> Admission:
        if not job.inputs:
            return Admission(job)
        if isinstance(self.refusal, CallError):
            raise self.refusal
        return Admission(job, self.refusal)

    async def sign(self, admission: Admission) -> Signed:
        job = admission.job
        if self.error is not None:
            raise self.error
        length = signature_length(job.version) if self.length is None else self.length
        first, self.signed = self.signed + 1, self.signed + len(job.inputs)
        signatures = [n.to_bytes(length, "big") for n in range(first, self.signed + 1)]
        return Signed(signatures, {}, self.attempts)


class GatedDisk(Disk):
    """A disk that counts its syncs, which wait for ``gate``."""

    def __init__(self) -> None:
        self.syncs = 0
        self.gate = threading.Event()
        self.gate.set()
        self.waiting = threading.Event()

    def sync(self, descriptor: int) -> None:
        if not self.gate.is_set():
            self.waiting.set()
            assert self.gate.wait(30)
        self.syncs += 1
        super().sync(descriptor)


def small_log(folder: Path, **changes: Any) -> AuditLog:
    """Opens a log without a ballast, on a disk that may be full; see ``open_audit_log``."""
    usual: dict[str, Any] = {"clock": SystemClock(), "low_disk_bytes": 0, "ballast_bytes": 0}
    return open_audit_log(folder, **(usual | changes))

"""Checkpoints of the audit log: signed by the audit key in the HSM, stored and shipped."""

from signer.audit.format.checkpoint import Checkpoint, CheckpointError, NoteVerifier, sign
from signer.audit.format.segments import CHECKPOINTS
from signer.audit.write.checkpoints import Checkpointer, Folder, Shipper
from signer.audit.write.log import AuditLog
from signer.clock import Clock
from signer.config.models import AuditConfig
from signer.errors import CallError
from signer.event_loop import EventLoop
from signer.events import Events
from signer.hsm.front.chunks import APPLIANCE, SignJob
from signer.hsm.front.service import Hsm
from signer.model import KeyVersion

CLOSE_SECONDS = 5.0


class Sealing:
    """Signs the log as it grows. The audit key signs in a worker, as any other key does.

    ``checkpoint_time`` is when the newest checkpoint was signed, ``unsigned_since`` since when
    records have waited for the next one (seconds since the epoch); 0 for none.
    """

    def __init__(
        self,
        config: AuditConfig,
        log: AuditLog,
        key: KeyVersion,
        *,
        hsm: Hsm,
        loop: EventLoop,
        clock: Clock,
        events: Events,
    ) -> None:
        self.checkpoint_time = 0.0
        self.unsigned_since = 0.0
        self._signed_size = 0
        self._started = False
        self._origin, self._log, self._key, self._hsm = config.origin, log, key, hsm
        self._loop, self._clock = loop, clock
        self._verifier = NoteVerifier.from_spki(config.origin, key.spki)
        shippers = [Shipper(Folder(config.mirror, clock), events)] if config.mirror else []
        folder = Folder(config.directory / CHECKPOINTS, clock)
        self._checkpointer = Checkpointer(
            log.growth,
            self._head,
            self._seal,
            folder,
            shippers=shippers,
            events=events,
            clock=clock,
        )

    def start(self) -> None:
        """Begins to sign; the HSM must have been started."""
        self._started = True
        self._checkpointer.start()

    def close(self) -> None:
        """Signs the closed log once more and ends, if it was started."""
        if self._started:
            self._checkpointer.close(CLOSE_SECONDS)

    def newest_note(self) -> str:
        """Returns the newest checkpoint as a signed note; empty before the first of this start."""
        newest = self._checkpointer.newest
        return newest[1] if newest else ""

    def tick(self) -> None:
        """Updates ``unsigned_since``, which begins anew with each checkpoint of a busy log."""
        newest = self._checkpointer.newest
        size = newest[0].size if newest else 0
        if size >= self._log.size:
            self.unsigned_since = 0.0
        elif not self.unsigned_since or size > self._signed_size:
            self.unsigned_since = self._clock.now()
        self._signed_size = size

    def _head(self) -> Checkpoint:
        return Checkpoint(self._origin, *self._log.tree_head())

    def _seal(self, checkpoint: Checkpoint) -> str:
        """Returns the signed note; raises CheckpointError, CallError."""
        note = sign(checkpoint, self._verifier, self._sign)
        self.checkpoint_time = self._clock.now()
        return note

    def _sign(self, data: bytes) -> bytes:
        deadline = self._clock.monotonic() + 10
        job = SignJob(self._key, [data], APPLIANCE, 1, 1, deadline)
        try:
            signed = self._loop.run(self._hsm.sign_now(job))
        except CallError as error:
            raise CheckpointError(str(error)) from error
        for failure in signed.failures.values():
            raise CheckpointError(failure.message)
        return signed.signatures[0]

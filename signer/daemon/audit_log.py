"""The audit log's life in the daemon: begun, opened, fed, signed, shipped and closed.

The engine's part, intents and outcomes, is ``signer.signing.evidence``. Here is the rest:
which key signs checkpoints and through what, what else is recorded, and what
operators see of it.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from signer import __version__
from signer.audit.format import checkpoint as notes
from signer.audit.format.checkpoint import Checkpoint, CheckpointError, Verifier
from signer.audit.format.places import CHECKPOINTS, KEY_FILE, POLICIES
from signer.audit.format.record import Record, RecordKind, Value
from signer.audit.format.segments import list_segments
from signer.audit.write.checkpoints import (
    Checkpointer,
    CheckpointReports,
    Folder,
    Known,
    Shipper,
    read_newest,
    set_aside,
)
from signer.audit.write.disk import Disk, replace_durably
from signer.audit.write.inbox import AuditUnavailable
from signer.audit.write.log import AuditLog, Listener
from signer.audit.write.recovery import AuditRefused
from signer.clock import Clock
from signer.config.models import AuditConfig
from signer.errors import CallError, OperatorError
from signer.hsm.front.pool import Admission
from signer.keys.certificates import public_key_pem
from signer.keys.index import KeyIndex
from signer.model import KeyVersion, Signed, SignJob
from signer.policy.rules import Policy
from signer.signing.evidence import Evidence, Reports

FLUSH_SECONDS = 10.0
"""How long denials are added up before they are recorded."""
MAX_DENIALS = 1000
"""Different denials between two records; what is more is counted under one name."""
MAX_CHANGES = 100
"""Key versions named by one KEYS record."""
SLOW_SECONDS = 1.0
"""A commit that takes longer is told to operators while it lasts."""
_SEAL_SECONDS = 10.0
_CLOSE_SECONDS = 5.0


class TrailReports(CheckpointReports, Reports, Protocol):
    """Who counts and logs what happens to the log."""

    def audit_committed(self, seconds: float) -> None: ...
    def audit_recorded(self) -> None: ...
    def audit_stopped(self, text: str) -> None: ...
    def audit_slow(self, since: float) -> None: ...
    def audit_slow_over(self, seconds: float) -> None: ...
    def audit_problem(self, text: str) -> None: ...


class Sealer(Protocol):
    """The HSM as far as checkpoints need it."""

    def admit(self, job: SignJob) -> Admission: ...
    def sign(self, admission: Admission) -> Signed: ...


def refuse_second_log(config: AuditConfig) -> None:
    """Raises OperatorError where a log was begun before."""
    if list_segments(config.directory):
        raise OperatorError(f"{config.directory} holds an audit log: it is begun only once")


def begin(
    config: AuditConfig, key: KeyVersion, officers: Mapping[str, Value], clock: Clock
) -> Path:
    """Writes the public audit key's file, and begins a log with the key and the first officers.

    ``officers`` are what ``first_officers_fields`` gives. Returns the file. Raises
    OperatorError, AuditRefused.
    """
    path = config.directory / KEY_FILE
    try:
        config.directory.mkdir(mode=0o750, parents=True, exist_ok=True)
        path.write_text(public_key_pem(key.spki))
    except OSError as error:
        raise OperatorError(f"{path} cannot be written: {error.strerror}") from error
    log = AuditLog.open(
        config.directory,
        origin=config.origin,
        clock=clock,
        segment_bytes=config.segment_bytes,
        low_disk_bytes=config.low_disk_bytes,
        ballast_bytes=config.ballast_bytes,
        checkpoints=_known(config, _verifier(config, key)).newest,
    )
    try:
        log.append(RecordKind.KEYS, {"audit_key": key.spki, "algorithm": str(key.algorithm)})
        log.append(RecordKind.OFFICERS, officers)
    except AuditUnavailable as error:
        raise OperatorError(f"the audit log could not be begun: {error}") from error
    finally:
        log.close()
    return path


def _verifier(config: AuditConfig, key: KeyVersion) -> Verifier:
    return Verifier.from_spki(config.origin, key.spki)


def _folders(config: AuditConfig) -> list[Path]:
    return [config.directory / CHECKPOINTS, *([config.mirror] if config.mirror else [])]


def _known(config: AuditConfig, verifier: Verifier) -> Known:
    ours, *mirrors = _folders(config)
    directories = [ours] if ours.is_dir() else []  # a log just begun has none
    return read_newest(
        [*directories, *mirrors], lambda note: notes.parse_note(note, config.origin, verifier)
    )


class Trail:
    """The open log of a daemon, and everything that is recorded beside signatures."""

    def __init__(
        self,
        config: AuditConfig,
        key: KeyVersion,
        clock: Clock,
        reports: TrailReports,
        *,
        override: bool = False,
    ) -> None:
        """Verifies and opens the log. Raises AuditRefused and OperatorError, with the remedy.

        ``override`` goes on where the log is not whole: that is recorded, and the
        checkpoints that contradict what is left are put aside.
        """
        self._config, self._clock, self._reports = config, clock, reports
        self._key, self._verifier = key, _verifier(config, key)
        self._denials: Counter[tuple[str, str, str]] = Counter()
        self._denials_lock = threading.Lock()
        self._flushed = clock.monotonic()
        self._checkpointer: Checkpointer | None = None
        self._opened = False
        self._on_stop: Callable[[], object] = lambda: None
        self._slow_since = 0.0
        self.checkpoint_time = 0.0
        self.unsigned_since = 0.0
        self._signed_size = 0
        self.evidence = Evidence(clock, reports)
        if not list_segments(config.directory) and not override:
            raise AuditRefused(
                f"there is no audit log in {config.directory}: put it back from the backup, or "
                "begin one with `signer init --config FILE` where there never was one"
            )
        known = _known(config, self._verifier)
        for text in known.problems:
            reports.audit_problem(text)
        self.log = AuditLog.open(
            config.directory,
            origin=config.origin,
            clock=clock,
            segment_bytes=config.segment_bytes,
            low_disk_bytes=config.low_disk_bytes,
            ballast_bytes=config.ballast_bytes,
            checkpoints=known.newest,
            override=override,
            listeners=[Listener(self._recorded, snapshot=self.evidence.snapshot)],
            on_commit=self._committed,
            on_stop=self._stopped,
        )
        if override:
            self._set_aside()
        self._opened = True

    # --- life ------------------------------------------------------------------------------

    def start(self, hsm: Sealer, on_stop: Callable[[], object]) -> None:
        """Begins to make checkpoints: the audit key signs like any other.

        ``on_stop`` is called once nothing can be recorded any more, before any call
        is refused for that; it must not wait for one.
        """
        self._on_stop = on_stop
        shippers = []
        if self._config.mirror is not None:
            shippers.append(Shipper(Folder(self._config.mirror, self._clock), self._reports))
        self._checkpointer = Checkpointer(
            lambda: Checkpoint(self._config.origin, *self.log.tree_head()),
            lambda checkpoint: self._seal(hsm, checkpoint),
            Folder(self._config.directory / CHECKPOINTS, self._clock),
            shippers,
            self._reports,
        )
        self._checkpointer.start()

    def newest_note(self) -> str:
        """Returns the newest checkpoint as a signed note; empty before the first of this start."""
        newest = self._checkpointer.newest if self._checkpointer else None
        return newest[1] if newest else ""

    def tick(self) -> None:
        """Records the denials of the last seconds, and sees what hangs: a commit, the signing.

        To be called every now and then.
        """
        self._watch_commit()
        self._watch_signing()
        now = self._clock.monotonic()
        if now - self._flushed >= FLUSH_SECONDS:
            self._flushed = now
            self._flush()

    def close(self) -> None:
        """Records the end, closes the log, and signs it once more while the HSM is there."""
        self._flush()
        self.record(RecordKind.STOP, {"version": __version__})
        self.log.close()
        if self._checkpointer is not None:
            self._checkpointer.close(_CLOSE_SECONDS)

    def _watch_commit(self) -> None:
        since = self.log.committing_since
        if since and since != self._slow_since and self._clock.now() - since >= SLOW_SECONDS:
            self._slow_since = since
            self._reports.audit_slow(since)

    def _watch_signing(self) -> None:
        """Sees since when records have waited for the next checkpoint: 0 while none do.

        A log that is always busy is never signed as a whole; each checkpoint begins anew.
        """
        newest = self._checkpointer.newest if self._checkpointer else None
        size = newest[0].size if newest else 0
        if size >= self.log.size:
            self.unsigned_since = 0.0
        elif not self.unsigned_since or size > self._signed_size:
            self.unsigned_since = self._clock.now()
        self._signed_size = size

    # --- what is recorded ------------------------------------------------------------------

    def record(self, kind: RecordKind, fields: Mapping[str, Value]) -> None:
        """Hands over a record that nobody waits for.

        Where the log takes none, nothing is signed either, and its operator has been told.
        """
        with suppress(AuditUnavailable):
            self.log.note(kind, fields)

    def started(self, policy: Policy, keys: KeyIndex) -> None:
        """Records with what the daemon begins."""
        self.record(
            RecordKind.START,
            {
                "version": __version__,
                "policy": bytes.fromhex(policy.sha256),
                "registry_revision": keys.revision,
                "key_versions": len(keys),
            },
        )

    def policy(self, sha256: str, text: bytes, approval: Mapping[str, Value]) -> None:
        """Keeps the text of a policy by its hash, and records that it is in force from now on.

        ``approval`` is the operation that says so, with its signatures; empty for none.

        Raises OperatorError where it cannot be kept: what cannot be read later
        must not decide now.
        """
        folder = self._config.directory / POLICIES
        path = folder / sha256
        try:
            if not path.exists():
                folder.mkdir(mode=0o750, exist_ok=True)
                replace_durably(Disk(), path, text)
        except OSError as error:
            raise OperatorError(
                f"the policy cannot be kept in {folder} ({error.strerror}): make room there"
            ) from error
        self.record(RecordKind.POLICY, {"policy": bytes.fromhex(sha256), **approval})

    def keys_changed(self, before: KeyIndex, after: KeyIndex) -> None:
        """Records a new revision of the registry, and which versions are new or changed."""
        now = self._clock.now()
        changed = list(after.changed_since(before))
        self.record(
            RecordKind.KEYS,
            {
                "registry_revision": after.revision,
                "changed": {each.name: str(each.state_at(now)) for each in changed[:MAX_CHANGES]},
                "changes": len(changed),
            },
        )

    def worker_left(self, token: str, cause: str) -> None:
        self.record(RecordKind.WORKER, {"token": token, "cause": cause})

    def login(self, token: str, result: str) -> None:
        self.record(RecordKind.TOKEN, {"token": token, "login": result})

    def denied(self, principal: str, key: str, reason: str) -> None:
        """Counts a refused call; names are added up until the next record, and so bounded."""
        name = principal, key, reason
        with self._denials_lock:
            if name not in self._denials and len(self._denials) >= MAX_DENIALS:
                name = "", "", reason
            self._denials[name] += 1

    def _flush(self) -> None:
        with self._denials_lock:
            denials, self._denials = self._denials, Counter()
        if denials:
            rows: list[Value] = [[*name, count] for name, count in denials.items()]
            self.record(RecordKind.DENIALS, {"denials": rows})

    # --- the log's listeners ---------------------------------------------------------------

    def _recorded(self, record: Record) -> None:
        self.evidence.recorded(record)
        if self._opened:
            self._reports.audit_recorded()
        if self._checkpointer is not None:
            self._checkpointer.recorded(record)

    def _set_aside(self) -> None:
        """Puts away the checkpoints of records that this override has given up."""
        last = self.log.overridden
        if last is None:
            return  # the log was whole
        for directory in _folders(self._config):
            try:
                names = set_aside(
                    directory,
                    lambda note: notes.parse_note(note, self._config.origin, self._verifier),
                    lambda checkpoint: self._bears_out(checkpoint, last),
                )
            except OSError as error:
                raise OperatorError(
                    f"checkpoints in {directory} cannot be put aside ({error.strerror}): "
                    f"rename those of more than {last} records, and those that differ from "
                    "another of the same size, by hand"
                ) from error
            for name in names:
                self._reports.audit_problem(f"{directory / name} was overridden and put aside")

    def _bears_out(self, checkpoint: Checkpoint, last: int) -> bool:
        """Whether the log, of which ``last`` records were left, has the root of the checkpoint."""
        if checkpoint.size > last:
            return False
        try:
            return self.log.root_of(checkpoint.size) == checkpoint.root
        except LookupError:
            return True  # of what was archived before; nothing here speaks against it

    def _stopped(self, text: str) -> None:
        self._on_stop()
        self._reports.audit_stopped(text)

    def _committed(self, _size: int) -> None:
        if self._opened:
            seconds = self.log.commit_seconds
            self._reports.audit_committed(seconds)
            if seconds >= SLOW_SECONDS:
                self._reports.audit_slow_over(seconds)

    def _seal(self, hsm: Sealer, checkpoint: Checkpoint) -> str:
        """Signs a checkpoint in a worker; raises CheckpointError, CallError."""
        note = notes.sign(checkpoint, self._verifier, lambda data: self._sign(hsm, data))
        self.checkpoint_time = self._clock.now()
        return note

    def _sign(self, hsm: Sealer, data: bytes) -> bytes:
        deadline = self._clock.monotonic() + _SEAL_SECONDS
        job = SignJob(self._key, [data], self._key.key.facility, 1, 1, deadline)
        try:
            signed = hsm.sign(hsm.admit(job))
        except CallError as error:
            raise CheckpointError(str(error)) from error
        for failure in signed.failures.values():
            raise CheckpointError(failure.message)
        return signed.signatures[0]

"""The daemon's audit log: begun, opened, and written to beside the records of signatures.

Intents and outcomes are ``signer.signing.evidence``, the officers' records
``signer.officers.records``, checkpoints ``signer.daemon.sealing``.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from signer import __version__
from signer.algorithms import Algorithm
from signer.audit.format.checkpoint import Checkpoint, NoteVerifier
from signer.audit.format.record import Fields, Record, RecordError, RecordKind, Value
from signer.audit.format.segments import CHECKPOINTS, KEY_FILE, POLICIES, list_segments
from signer.audit.read.ledger import Ledger
from signer.audit.read.notes import KnownCheckpoints, read_newest
from signer.audit.write.checkpoints import set_aside
from signer.audit.write.disk import Disk, replace_durably
from signer.audit.write.inbox import AuditUnavailable
from signer.audit.write.log import SLOW_SECONDS, AuditLog, Listener, LogHooks
from signer.audit.write.recovery import AuditRefused, open_audit_log
from signer.clock import Clock, FlooredClock
from signer.config.models import AuditConfig
from signer.daemon.denials import Denials
from signer.errors import OperatorError
from signer.events import (
    AuditProblem,
    AuditSlow,
    AuditStopped,
    Bug,
    CallDenied,
    Events,
    Handlers,
    LoginEnded,
    RequestsForgotten,
    WorkerLeft,
)
from signer.files import replace_file
from signer.key_index import KeyIndex
from signer.keys.lifecycle import NewKey, TokenAdmin, create_key
from signer.keys.registry import Registry, RegistryState
from signer.model import AUDIT_KEY, KeyVersion
from signer.officers.keys_record import Joined, baseline_fields
from signer.officers.offline_check import ApprovalFold
from signer.officers.records import OfficersRecord
from signer.officers.standing_fold import StandingFold
from signer.policy.rules import Policy
from signer.x509 import public_key_pem

MOST_ALARMS = 20  # about records that no operation permits, at one start
AT_ONCE = 4  # records of changes in one commit, of up to 100 versions each
FLUSH_SECONDS = 10.0  # how long denials are added up before they are recorded


def ensure_audit_key(registry: Registry, admin: TokenAdmin, now: float) -> KeyVersion:
    """Returns the key of checkpoints, which no call can use; creates it if there is none.

    It is an Ed25519 key, or an ES256 key where the token does not have that mechanism.
    Raises OperatorError.
    """
    if registry.versions(AUDIT_KEY):
        return audit_key(registry, now)
    try:
        return create_key(registry, admin, NewKey(AUDIT_KEY, Algorithm.EDDSA), now)
    except OperatorError as error:
        if not error.unsupported:
            raise
    return create_key(registry, admin, NewKey(AUDIT_KEY, Algorithm.ES256), now)


def audit_key(registry: Registry, now: float) -> KeyVersion:
    """Returns the active version of the audit key; raises OperatorError if none is active."""
    version = KeyIndex(registry.versions(AUDIT_KEY)).primary(AUDIT_KEY, now)
    if version is None:
        raise OperatorError(
            "the registry has no audit key:"
            " `signer init --config FILE` creates it and starts the log"
        )
    return version


def refuse_second_log(config: AuditConfig) -> None:
    """Raises OperatorError if the directory has an audit log."""
    if list_segments(config.directory):
        raise OperatorError(f"{config.directory} holds an audit log: it is started only once")


def begin(
    config: AuditConfig,
    key: KeyVersion,
    state: RegistryState,
    clock: Clock,
    *,
    development: bool,
    joined: Joined | None = None,
) -> Path:
    """Writes the public audit key's file, and begins a log.

    It begins with the key, and with what is taken as given: the officers and the policy in
    force, and a baseline of the state of the registry, for a further appliance with what that was
    compared with (``joined``). Returns the path of the key's file.
    Raises OperatorError, AuditRefused.
    """
    policy = bytes.fromhex(state.policy or "")
    officers = OfficersRecord.first(state, development=development, policy=policy)
    path = config.directory / KEY_FILE
    try:
        config.directory.mkdir(mode=0o750, parents=True, exist_ok=True)
        replace_file(path, public_key_pem(key.spki))
    except OSError as error:
        raise OperatorError(f"{path} cannot be written: {error.strerror}") from error
    log = _opener(config, clock)(checkpoints=_known_checkpoints(config, key).newest)
    try:
        log.append(RecordKind.KEYS, {"audit_key": key.spki, "algorithm": str(key.algorithm)})
        log.append(RecordKind.OFFICERS, officers.to_fields())
        parts = baseline_fields(state, clock.now(), development=development, joined=joined)
        for part in parts:
            log.append(RecordKind.KEYS, part)
    except AuditUnavailable as error:
        raise OperatorError(f"the audit log could not be started: {error}") from error
    finally:
        log.close()
    return path


def open_log(
    config: AuditConfig,
    key: KeyVersion,
    clock: FlooredClock,
    events: Events,
    *,
    folds: Sequence[Ledger | ApprovalFold | StandingFold],
    confirmed: Callable[[Record], bool],
    on_stop: Callable[[], object],
    override: bool,
) -> AuditLog:
    """Verifies and opens the log of a daemon. Raises AuditRefused and OperatorError.

    ``on_stop`` is called when no more intents are accepted, before any call is refused for
    that reason; it must not wait for a call. ``confirmed`` returns whether officers have confirmed
    a CLOCK that the ``folds`` have. ``override`` opens a log that is not whole: that
    is recorded, and the checkpoints that contradict the remaining records are set aside.
    """
    if not list_segments(config.directory) and not override:
        raise AuditRefused(
            f"{config.directory} has no audit log: restore it from the backup, or, if it never "
            "had one, begin it with `signer init --config FILE`"
        )

    def stopped(text: str) -> None:
        on_stop()
        events.emit(AuditStopped(text))

    known = _known_checkpoints(config, key)
    for text in known.problems:
        events.emit(AuditProblem(text))
    log = _opener(config, clock)(
        checkpoints=known.newest,
        override=override,
        confirmed=confirmed,
        listeners=[Listener(fold.apply, fold.KINDS, fold.snapshot, fold.check) for fold in folds],
        hooks=LogHooks(
            on_commit=events.emit,
            on_time=clock.raise_floor,
            on_stop=stopped,
            on_error=lambda error: events.emit(Bug("answer for a durable record", error, {})),
            on_problem=lambda text: events.emit(AuditProblem(text)),
        ),
    )
    wrong = [text for fold in folds if not isinstance(fold, Ledger) for text in fold.problems]
    for text in wrong[:MOST_ALARMS]:  # somebody has appended records that count for nothing
        events.emit(AuditProblem(text))
    try:
        if log.overridden is not None:
            for path in _set_aside(config, key, log, log.overridden):
                events.emit(AuditProblem(f"{path} was overridden and put aside"))
    except BaseException:
        log.close()
        raise
    return log


class DaemonLog:
    """Writes what the daemon records beside signatures and operations.

    Nobody waits for these records. If the log accepts none, nothing is signed either.
    """

    def __init__(
        self, log: AuditLog, ledger: Ledger, directory: Path, clock: Clock, events: Events
    ) -> None:
        """``directory`` is that of the log; the texts of policies are kept in it."""
        self._ledger, self._forgotten = ledger, ledger.forgotten
        self._log, self._directory, self._clock = log, directory, clock
        self._events = events
        self._slow_since = 0.0
        self._denials = Denials()
        self._flushed = clock.monotonic()

    def tick(self) -> None:
        """Reports commits that hang and ids forgotten early; records denials when they are due."""
        since = self._log.committing_since
        if since and since != self._slow_since and self._clock.now() - since >= SLOW_SECONDS:
            self._slow_since = since
            self._events.emit(AuditSlow(since))
        if forgotten := self._ledger.forgotten - self._forgotten:
            self._forgotten += forgotten
            self._events.emit(RequestsForgotten(forgotten))
        now = self._clock.monotonic()
        # While the clock is in doubt, nothing is recorded that can wait.
        if now - self._flushed >= FLUSH_SECONDS and not self._clock.doubt():
            self._flushed = now
            self._flush()

    def close(self) -> None:
        """Records the end and closes the log."""
        self._flush()
        self._record(RecordKind.STOP, {"version": __version__})
        self._log.close()

    def started(self, policy: Policy, keys: KeyIndex) -> None:
        """Records what the daemon serves first."""
        self._record(
            RecordKind.START,
            {
                "version": __version__,
                "policy": bytes.fromhex(policy.sha256),
                "registry_revision": keys.revision,
                "key_versions": len(keys),
            },
        )

    def time_of(self, seq: int) -> int:
        """Returns the time of a record, in microseconds since the epoch; raises LookupError."""
        for record in self._log.records(seq, 1):
            return record.time_us
        raise LookupError(f"record {seq} does not exist")

    def keep_policy(self, sha256: str, text: bytes) -> None:
        """Stores a policy's text under its hash. Raises OperatorError.

        A policy that cannot be read later must not decide now.
        """
        folder = self._directory / POLICIES
        path = folder / sha256
        try:
            if path.is_symlink() or not path.exists():
                folder.mkdir(mode=0o750, exist_ok=True)
                replace_durably(Disk(), path, text)
        except OSError as error:
            raise OperatorError(
                f"the policy cannot be kept in {folder} ({error.strerror}): make room there"
            ) from error

    def kept_policy(self, sha256: str) -> bytes | None:
        """Returns the text of a policy that was in force here, None without it."""
        try:
            text = (self._directory / POLICIES / sha256).read_bytes()
        except OSError:
            return None
        return text if hashlib.sha256(text).hexdigest() == sha256 else None

    def account(self, records: Iterable[tuple[RecordKind, Fields]]) -> None:
        """Records what is served from here on, ahead of every intent that depends on it.

        It is not waited for: the log is in order, so what is signed under it is durable after
        it. Only of many records, each few are durable before the next: what callers record
        meanwhile comes in between. Raises OperatorError if the log accepts no records.
        """
        try:
            for number, (kind, fields) in enumerate(records, start=1):
                if number % AT_ONCE:
                    self._log.note(kind, fields)
                else:
                    self._log.append(kind, fields)
        except AuditUnavailable as error:
            raise OperatorError(f"the audit log accepts no records: {error}") from error
        except RecordError as error:
            raise OperatorError(f"this cannot be recorded: {error}") from error

    @property
    def handlers(self) -> Handlers:
        """What is recorded of events: ended workers, logins, and refused calls."""
        return {
            WorkerLeft: lambda event: self._record(
                RecordKind.WORKER, {"token": event.token, "cause": event.cause}
            ),
            LoginEnded: lambda event: self._record(
                RecordKind.TOKEN, {"token": event.token, "login": event.result}
            ),
            CallDenied: self._denials.add,
        }

    def _flush(self) -> None:
        if rows := self._denials.take():
            self._record(RecordKind.DENIALS, {"denials": rows})

    def _record(self, kind: RecordKind, fields: Mapping[str, Value]) -> None:
        with suppress(AuditUnavailable):
            self._log.note(kind, fields)


def _folders(config: AuditConfig) -> list[Path]:
    return [config.directory / CHECKPOINTS, *([config.mirror] if config.mirror else [])]


def _opener(config: AuditConfig, clock: Clock) -> Callable[..., AuditLog]:
    return partial(
        open_audit_log,
        config.directory,
        origin=config.origin,
        clock=clock,
        segment_bytes=config.segment_bytes,
        low_disk_bytes=config.low_disk_bytes,
        ballast_bytes=config.ballast_bytes,
    )


def _known_checkpoints(config: AuditConfig, key: KeyVersion) -> KnownCheckpoints:
    ours, *mirrors = _folders(config)
    directories = [ours] if ours.is_dir() else []  # a new log has none
    verifier = NoteVerifier.from_spki(config.origin, key.spki)
    return read_newest([*directories, *mirrors], verifier.parse)


def _set_aside(config: AuditConfig, key: KeyVersion, log: AuditLog, remaining: int) -> list[Path]:
    """Sets aside checkpoints that the ``remaining`` records contradict; returns their paths."""
    verifier = NoteVerifier.from_spki(config.origin, key.spki)

    def borne_out(checkpoint: Checkpoint) -> bool:
        if checkpoint.size > remaining:
            return False
        try:
            return log.root_of(checkpoint.size) == checkpoint.root
        except LookupError:
            return True  # of archived records: nothing here contradicts it

    paths: list[Path] = []
    for directory in _folders(config):
        try:
            names = set_aside(directory, verifier.parse, borne_out)
        except OSError as error:
            raise OperatorError(
                f"checkpoints in {directory} cannot be put aside ({error.strerror}): "
                f"rename those of more than {remaining} records, and those that differ from "
                "another of the same size, by hand"
            ) from error
        paths += [directory / name for name in names]
    return paths

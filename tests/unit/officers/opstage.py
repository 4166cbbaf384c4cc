"""Operations on one thread: real registry and daemon state around a token in memory.

``Fate`` ends the program at any point of its work, as a power cut would; ``Stage.start``
builds it anew from what was kept: the registry, the token and the log.
"""

import json
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor as Lanes
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from shutil import copyfile
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import Mock

import sqlalchemy as sa

from signer.audit.format.parse import parse
from signer.audit.format.record import DOUBTFUL, Fields, Record, RecordKind, Value, encode
from signer.audit.write.inbox import AuditUnavailable
from signer.clock import FlooredClock
from signer.config.models import Config, OperationsConfig
from signer.config.policy_documents import read_policy
from signer.daemon.accounts import Accounts
from signer.daemon.serving import Serving, begin_serving
from signer.errors import OperatorError
from signer.keys.lifecycle import TokenAdmin
from signer.keys.registry import Registry
from signer.keys.writing import Writing
from signer.model import KeyVersion, parse_key_or_version
from signer.officers.approval import Proposal
from signer.officers.emergency import EmergencyStops
from signer.officers.execution import Executor
from signer.officers.keys_record import baseline_fields
from signer.officers.kinds.base import OperationDependencies
from signer.officers.kinds.operation_context import OperationContext
from signer.officers.offline_check import ApprovalFold
from signer.officers.proposals import PreparedOperation, Proposals
from signer.officers.records import OfficersRecord, OperationRecords
from signer.officers.standing_fold import StandingFold
from signer.officers.store import OperationState, StoredOperation
from signer.policy.rules import Policy
from signer.signing.request import Served, Snapshot
from tests.stand_ins import Recorder, SetClock
from tests.unit.officers.people import OFFICERS, A, B, sign
from tests.unit.officers.softtoken import Fate, SoftToken

ORIGIN = "signer.example/log"
START = 1_767_571_200.0  # 2026-01-05T00:00:00Z
HOUR, DAY = 3600, 86_400
LIFE = 24 * HOUR

POLICY = """\
groups:
  "01": {name: Ha Noi, clients: []}
  "02": {name: Hue, clients: []}
profiles:
  clinic:
    formats: [JWS, MESSAGE]
    algorithms: [ES256, EdDSA, PS256]
    max_batch_items: 500
    quotas: [200 per second]
  ministry:
    formats: [HCERT, DIGEST]
    blind: [DIGEST]
    algorithms: [ES256]
    max_batch_items: 4096
    hcert: {issuer: VN, validity_days: 365}
  stored:
    formats: [JWS, MESSAGE]
    algorithms: [ES256]
    max_batch_items: 500
    storage: wrapped
  border:
    formats: [HCERT]
    algorithms: [ES256]
    max_batch_items: 10
    hcert: {issuer: VN, validity_days: 10}
  mixed:
    formats: [HCERT, DIGEST]
    blind: [DIGEST]
    algorithms: [ES256]
    max_batch_items: 10
    hcert: {issuer: VN, validity_days: 10}
facilities:
  01-001:
    profile: clinic
    group: "01"
    clients: [spiffe://signer.example/facility/01-001]
  02-001:
    profile: clinic
    group: "02"
    clients: [spiffe://signer.example/facility/02-001]
  03-001:
    profile: stored
    clients: [spiffe://signer.example/facility/03-001]
  moh:
    profile: ministry
    clients: [spiffe://signer.example/ministry]
    keys:
      dcc: {formats: [HCERT]}
      digest: {formats: [DIGEST]}
"""
CLINIC, MINISTRY = "facilities/01-001/keys/records", "facilities/moh/keys/dcc"


class MemoryLog:
    """Records in memory, each judged by the rules of dual control as it comes."""

    def __init__(self, clock: FlooredClock, fate: Fate) -> None:
        self._clock, self._fate = clock, fate
        self.control = ApprovalFold()
        self.standings = StandingFold(self.control)
        self.records: list[Record] = []
        self.full = False

    def append(
        self, kind: RecordKind, fields: Mapping[str, Value], *, time_us: int | None = None
    ) -> int:
        self._fate.at(f"before the record {kind}")
        if self.full:
            raise AuditUnavailable("the disk is full")
        seq = len(self.records)
        if time_us is None:
            time_us = round(self._clock.now() * 1_000_000)
        if self._clock.doubt():
            fields = {**fields, DOUBTFUL: round(self._clock.machine() * 1_000_000)}
        record = parse(encode(seq, time_us, kind, fields)[0])
        self.records.append(record)
        self._clock.raise_floor(time_us / 1e6)
        self.control.apply(record)
        self.standings.apply(record)
        self._fate.at(f"after the record {kind}")
        return seq

    def take(self, records: Sequence[Record]) -> None:
        """Takes records as they were written by another log."""
        for record in records:
            self.records.append(record)
            self.control.apply(record)
            self.standings.apply(record)

    def close(self) -> None:
        """Nothing is open."""

    def of(self, *kinds: RecordKind) -> list[Record]:
        return [each for each in self.records if each.kind in kinds]


class MortalRegistry(Registry):
    """A registry around whose transactions the program can end."""

    fate: Fate

    @contextmanager
    def writing(self, *, counts: bool = True) -> Iterator[Writing]:
        self.fate.at("before a transaction")
        with super().writing(counts=counts) as write:
            yield write
            self.fate.at("before a commit")
        self.fate.at("after a commit")


class Inline(Lanes):
    """Works at once, in the caller's thread."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(fn(*args, **kwargs))
        return done


class FakeDaemonLog:
    """The part of the daemon's log that serving writes to."""

    def __init__(self, log: MemoryLog, kept: dict[str, bytes]) -> None:
        self._log, self.kept = log, kept

    def keep_policy(self, sha256: str, text: bytes) -> None:
        self.kept[sha256] = text

    def time_of(self, seq: int) -> int:
        return self._log.records[seq].time_us

    def kept_policy(self, sha256: str) -> bytes | None:
        return self.kept.get(sha256)

    def account(self, records: Iterable[tuple[RecordKind, Fields]]) -> None:
        try:
            for kind, fields in records:
                self._log.append(kind, fields)
        except AuditUnavailable as error:
            raise OperatorError(f"the audit log accepts no records: {error}") from error


class Following:
    """What is served, where a thread follows the registry that is never late."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    @property
    def policy(self) -> Policy:
        return self._serving.policy

    def obey(self) -> bool:
        return self._serving.follow()


def empty_registry(path: Path) -> Path:
    """Makes a registry to copy: building the schema each time would be most of the time."""
    Registry.open(f"sqlite:///{path}", create=True).close()
    return path


def open_registry(path: Path, fate: Fate) -> MortalRegistry:
    registry = MortalRegistry.open(f"sqlite:///{path}")
    assert isinstance(registry, MortalRegistry)
    registry.fate = fate
    # No test cuts the power: what is written need not reach the disk.
    sa.event.listen(registry._engine, "connect", lambda c, _: c.execute("PRAGMA synchronous = OFF"))
    registry._engine.dispose()
    # Nor is a statement compiled anew for each registry, which would be half of the work.
    one = _first_engine(registry._engine)
    registry._engine.dialect, registry._engine._compiled_cache = one.dialect, one._compiled_cache
    return registry


_engines: list[sa.Engine] = []


def _first_engine(engine: sa.Engine) -> sa.Engine:
    if not _engines:
        engine.connect().close()
        engine.dispose()
        _engines.append(engine)
    return _engines[0]


class Stage:
    """One appliance; ``do`` is for operations with one thing changed."""

    def __init__(
        self,
        folder: Path,
        template: Path,
        *,
        officers: Mapping[str, bytes] = OFFICERS,
        needed: OperationsConfig | None = None,
        development: bool = False,
        log: Callable[[FlooredClock, Fate], Any] = MemoryLog,
        lanes: Lanes | None = None,
    ) -> None:
        self.fate, self.clock, self.seen = Fate(), SetClock(), Recorder()
        self.token, self.confirmed = SoftToken(self.fate), list[float]()
        self.tokens = {self.token.token: self.token}
        self.policy = folder / "policy"
        self.policy.mkdir(parents=True)
        (self.policy / "policy.yaml").write_text(POLICY)
        self.config = cast(
            "Config",
            SimpleNamespace(
                policy=self.policy,
                tokens=(SimpleNamespace(label=self.token.token),),
                operations=needed or OperationsConfig(),
            ),
        )
        self._development, self._kept = development, dict[str, bytes]()
        self._lanes = lanes or Inline()
        copyfile(template, folder / "registry.sqlite")
        self.registry = open_registry(folder / "registry.sqlite", self.fate)
        text = read_policy(self.policy)
        with self.registry.writing() as write:
            write.set_officers(officers)
            write.put_policy(text.text)
        self.log = log(self.clock, self.fate)
        sha256 = bytes.fromhex(text.policy.sha256)
        state = self.registry.state()
        first = OfficersRecord.first(state, development=development, policy=sha256)
        self.log.append(RecordKind.OFFICERS, first.to_fields())
        for part in baseline_fields(state, self.clock.now(), development=development):
            self.log.append(RecordKind.KEYS, part)
        self.start()

    def start(self, *, crash_after: int | None = None) -> None:
        """Begins anew, with what the registry, the token and the log hold."""
        self.fate.revive()
        if crash_after is not None:
            self.fate.crash_after(crash_after)
        self.hsm = Mock(pools={self.token.token: None})
        registry, events, development = self.registry, self.seen.events, self._development
        records = OperationRecords(cast("Any", self.log))
        self.daemon_log = FakeDaemonLog(self.log, self._kept)
        log = cast("Any", self.daemon_log)
        accounts = Accounts(
            registry,
            self.clock,
            events,
            standings=self.log.standings,
            approvals=self.log.control,
            needed=self.config.operations.all_needed(),
            development=development,
            looked=self.log.records[-1].time_us / 1e6,
        )
        begun = begin_serving(self.config, registry, accounts, log, events, development=development)
        self.served = Served(begun.snapshot())
        self.serving = Serving(
            self.config,
            registry,
            begun,
            served=self.served,
            hsm=self.hsm,
            log=log,
            clock=self.clock,
            events=events,
        )
        self.serving.begin()
        deps = OperationDependencies(
            registry=self.registry,
            serving=self.serving,
            admin=self._admin,
            records=records,
            events=self.seen.events,
            clock=self.clock,
            origin=ORIGIN,
            on_clock=self.confirmed.append,
        )
        self.executor = Executor(deps, self._lanes)
        self.proposals = Proposals(deps, self.executor, expire_hours=24)
        following = cast("Any", Following(self.serving))
        self.emergency = EmergencyStops(self.registry, records, following, self.clock)
        self.executor.sweep()

    def start_with(self, records: Sequence[Record]) -> None:
        """Begins anew with these records alone, as another appliance that was down since."""
        log = MemoryLog(self.clock, self.fate)
        log.take(records)
        self.log = log
        self.start()

    def add_token(self, label: str) -> SoftToken:
        """Begins anew with one more token, on which nothing is yet."""
        token = self.tokens[label] = SoftToken(self.fate, label)
        config: Any = self.config
        config.tokens = tuple(SimpleNamespace(label=each) for each in self.tokens)
        self.start()
        return token

    def close(self) -> None:
        self.registry.close()
        self.log.close()

    @contextmanager
    def _admin(self, label: str) -> Iterator[TokenAdmin]:
        self.fate.at("before the administrative worker")
        yield self.tokens[label]
        self.fate.at("after the administrative worker")

    # --- what is so ------------------------------------------------------------------------

    @property
    def snapshot(self) -> Snapshot:
        return self.served.snapshot

    @property
    def context(self) -> OperationContext:
        return self.serving.context()

    def version(self, name: str) -> KeyVersion:
        key, number = parse_key_or_version(name)
        found = self.registry.state().keys.version(key, number or 1)
        assert found is not None, f"there is no {name}"
        return found

    def states(self, key: str) -> list[str]:
        """The states of a key's versions, oldest first."""
        name, _ = parse_key_or_version(key)
        return [str(v.state_at(self.clock.now())) for v in self.registry.versions(name)]

    def operation(self, identity: str) -> StoredOperation:
        return self.proposals.get(identity)[0]

    # --- what officers do ------------------------------------------------------------------

    def prepare(
        self, kind: str, attachment: bytes = b"", *, by: str = A, **arguments: Any
    ) -> PreparedOperation:
        self.clock.forward(0.01)
        return self.proposals.prepare(by, kind, json.dumps(arguments), attachment)

    def problems(self, kind: str, attachment: bytes = b"", **arguments: Any) -> list[str]:
        return self.prepare(kind, attachment, **arguments).problems

    def propose(
        self, kind: str, attachment: bytes = b"", *, by: str = A, **arguments: Any
    ) -> StoredOperation:
        prepared = self.prepare(kind, attachment, by=by, **arguments)
        assert not prepared.problems, prepared.problems
        return self.put(prepared.content, attachment, by=by)

    def put(self, content: bytes, attachment: bytes = b"", *, by: str = A) -> StoredOperation:
        """Proposes bytes as they are."""
        return self.proposals.propose(by, content, sign(by, content), attachment)

    def crafted(self, kind: str, **members: Any) -> bytes:
        """The bytes of an operation as an officer might write them himself."""
        now = int(self.clock.now())
        proposal = Proposal(
            ORIGIN,
            str(uuid.uuid4()),
            kind,
            A,
            now,
            now + LIFE,
            2,
            members,
            self.registry.state().deployment,
        )
        return proposal.canonical()

    def approve(self, identity: str, *, by: str = B) -> StoredOperation:
        self.clock.forward(0.01)
        content = self.operation(identity).content
        return self.proposals.approve(by, identity, sign(by, content))

    def do(self, kind: str, attachment: bytes = b"", **arguments: Any) -> StoredOperation:
        """Proposes, approves and executes; returns it at its end, whichever that is."""
        identity = self.propose(kind, attachment, **arguments).id
        self.approve(identity)
        return self.operation(identity)

    def done(self, kind: str, attachment: bytes = b"", **arguments: Any) -> StoredOperation:
        operation = self.do(kind, attachment, **arguments)
        assert operation.state is OperationState.DONE, operation.note
        return operation

    def key(self, name: str = CLINIC, **arguments: Any) -> str:
        """Makes a key, active unless told otherwise; returns its first version's name."""
        defaults: dict[str, Any] = {"key": name, "algorithm": "ES256", "activate": True}
        self.done("create-key", **defaults | arguments)
        return f"{name}/versions/1"

"""Has the daemon serve what the registry and its files say, at the start and ever after.

The registry decides which keys there are, who the officers are, what is suspended and,
once there are officers, which policy is in force. Files decide the policy only where
there are none yet, and in development.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

from signer.clock import Clock
from signer.config.models import Config
from signer.config.policy_documents import (
    PolicyText,
    policy_sha256,
    read_policy,
    read_policy_text,
    write_policy_files,
)
from signer.daemon.audit_log import DaemonLog
from signer.daemon.catch_up import Decisions
from signer.errors import ConfigError, OperatorError, Violation
from signer.events import (
    Events,
    KeysChanged,
    PolicyChanged,
    PolicyFilesDiffer,
    RegistryUnreadable,
    SuspensionsChanged,
)
from signer.hsm.front.service import Hsm
from signer.keys.registry import Registry, RegistryState
from signer.model import KeyState, KeyVersion, Scope, Suspended
from signer.officers.kinds.base import OperationContext
from signer.policy.rules import Policy
from signer.signing.request import Served, Snapshot

_FOREVER = float("inf")
_PARSED = 4
"""Policies that are kept as they were read."""
_STOPPED = frozenset({KeyState.SUSPENDED, KeyState.COMPROMISED, KeyState.DESTROYED})
"""States in which nothing more leaves, not even of batches that began before."""


class Follower:
    """The state of the registry that is served, and its changes. Safe to call from any thread."""

    def __init__(
        self,
        config: Config,
        registry: Registry,
        clock: Clock,
        events: Events,
        *,
        development: bool,
    ) -> None:
        """Reads what is to be served; raises ConfigError and OperatorError."""
        self.config, self.registry = config, registry
        self.clock, self.events = clock, events
        self.development = development
        self.lock = threading.RLock()
        """Held while what is served changes."""
        self._needed = config.operations.all_needed()
        self.error = ""
        """Why the registry is not followed; empty while it is."""
        self._parsed: OrderedDict[str, PolicyText] = OrderedDict()
        self._next_end = _FOREVER
        self._ended_until = clock.now()  # copies of what ended before are gone
        self.hsm: Hsm
        self._served: Served
        self._log: DaemonLog
        self._decisions: Decisions
        state = registry.state()
        check_tokens(state.keys, config)
        self._text = self._in_force(state)
        self._state = registry.state(state.keys)
        self._refuse_clients(self._text.policy, self._state)

    # --- life ------------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """Returns what is to be served now."""
        state, policy = self._state, self._text.policy
        return Snapshot(policy.with_officers(state.officers), state.keys, _suspended(state, policy))

    def attach(self, hsm: Hsm, served: Served, log: DaemonLog, decisions: Decisions) -> None:
        """Tells whom to have serve it, and where changes are recorded."""
        self.hsm, self._served, self._log, self._decisions = hsm, served, log, decisions

    def begin(self) -> None:
        """Records what is served at the start, and stops what is suspended.

        Raises OperatorError where that cannot be kept or recorded.
        """
        self._decisions.record(self._state, self._text, files_decide=self.files_decide)
        self.hsm.suspend(self._served.snapshot.suspended, [])
        self._plan_ends()
        self._look_at_files()

    def follow(self) -> bool:
        """Serves what the registry holds now; the last state stays while it cannot be read.

        Returns whether all that the registry has stopped is stopped here: that does not
        wait for what else cannot be taken.
        """
        try:
            head = self.registry.head()
            self._parse_early(head.policy)
            with self.lock:
                known = self._state
                new = head.revision != known.keys.revision
                return self._serve(self.registry.state(known.keys) if new else known)
        except OperatorError as error:
            self._not_followed(error)
            return False

    def _serve(self, state: RegistryState) -> bool:
        """Serves a state of the registry; returns whether all that it stops is stopped."""
        stopped = False
        try:
            if state.keys.revision != self._state.keys.revision:
                self._stop(state)
                stopped = True
                self._take(state)
            stopped = True
            self._end_by_clock()
            self.error = ""
        except (OperatorError, ConfigError) as error:
            self._not_followed(error)
        return stopped

    def _not_followed(self, error: OperatorError | ConfigError) -> None:
        if not self.error:
            self.events.emit(RegistryUnreadable(str(error)))
        self.error = str(error)

    def draft(self) -> PolicyText | None:
        """Reads the files; None where they hold the policy in force. Raises ConfigError.

        Where there are officers, that is all that they may hold.
        """
        draft = self._in_files()
        if draft.policy.sha256 == self._text.policy.sha256:
            return None
        if not self.files_decide:
            raise ConfigError(
                str(self.config.policy),
                [
                    Violation(
                        "",
                        f"no approved operation puts {draft.policy.sha256} in force: propose"
                        " it with `signer operations propose policy`, or put the files back;"
                        f" {self._text.policy.sha256} stays in force",
                    )
                ],
            )
        self._refuse_clients(draft.policy, self._state)
        return draft

    def put(self, draft: PolicyText) -> None:
        """Puts a draft in force where files decide. Raises ConfigError."""
        with self.lock:
            try:
                with self.registry.writing() as write:
                    write.put_policy(draft.text)
                state = self.registry.state(self._state.keys)
                self._stop(state)
                self._take(state)
            except OperatorError as error:
                raise ConfigError(str(self.config.policy), [Violation("", str(error))]) from error

    def context(self) -> OperationContext:
        """Returns what operations depend on, read now. Raises OperatorError."""
        # Without the lock: a reader does not wait for a thread that waits for the database.
        return self._context(self.registry.state(self._state.keys))

    @contextmanager
    def locked(self, known: OperationContext | None = None) -> Iterator[OperationContext]:
        """Holds the lock for a block, at the registry's newest state; see ``ServedState``."""
        with self.lock:
            if known is None or known.state.keys.revision != self.registry.revision():
                known = self._context(self.registry.state(self._state.keys))
            self._serve(known.state)
            yield known

    def _context(self, state: RegistryState) -> OperationContext:
        text = self._text
        if state.policy not in (None, text.policy.sha256):
            text = self._kept(state)
        return OperationContext(
            now=self.clock.now(),
            state=state,
            policy=text,
            tokens=tuple(token.label for token in self.config.tokens),
            needed=self._needed,
            draft=self._in_files,
            read_policy=self._parse,
            document=self.registry.document,
            policy_folder=self.config.policy.is_dir(),
        )

    @property
    def policy(self) -> Policy:
        """The policy in force."""
        return self._text.policy

    @property
    def files_decide(self) -> bool:
        """Whether the policy's files are in force as they are: officers have no say."""
        return self._files_decide(self._state)

    # --- changes ---------------------------------------------------------------------------

    def _stop(self, state: RegistryState) -> None:
        """Stops what another state has stopped, before anything that could be refused."""
        now = self.clock.now()
        stopped = {
            new: f"{new.name} is {new.state_at(now)}"
            for new in state.keys.changed_since(self._state.keys)
            if new.state_at(now) in _STOPPED and new.token in self.hsm.pools
        }
        if stopped:
            self.hsm.stop_keys(stopped)
        snapshot = self._served.snapshot
        more = _suspended(state, self._text.policy)
        both = Suspended(
            snapshot.suspended.everything or more.everything,
            {**more.facilities, **snapshot.suspended.facilities},
        )
        if both != snapshot.suspended:
            self._suspend(snapshot, both)

    def _suspend(self, before: Snapshot, suspended: Suspended) -> None:
        """Puts other suspensions in force: no new job, then nothing that waits."""
        self._served.snapshot = replace(self._served.snapshot, suspended=suspended)
        halted = [
            each
            for each in before.keys
            if suspended.reason(each.key.facility)
            and not before.suspended.reason(each.key.facility)
        ]
        self.hsm.suspend(suspended, halted)
        suspensions = [str(each) for each in self._state.suspensions]
        self.events.emit(SuspensionsChanged(suspensions))

    def _take(self, state: RegistryState) -> None:
        """Has another state served: what is new after workers know it, what ends at once."""
        check_tokens(state.keys, self.config)
        before, text = self._served.snapshot, self._text
        if state.policy not in (None, text.policy.sha256):
            self._text = self._kept(state)
        changed = list(state.keys.changed_since(self._state.keys))
        made = any(self._state.keys.version(v.key, v.number) is None for v in changed)
        self._state = state
        if made or any(v.state is KeyState.DESTROYED for v in changed):
            # Workers must know a key before the first chunk that needs it, and forget what is gone.
            self.hsm.refresh()
        after = self.snapshot()
        self._served.snapshot = after
        self._enforce(before, after)
        self._plan_ends()
        if changed:
            self._log.keys_changed(before.keys, after.keys)
            self.events.emit(KeysChanged(len(after.keys), after.keys.revision))
        self._decisions.record(state, self._text, files_decide=self.files_decide)
        if self._text is not text:
            self._write_files(text)
            self.events.emit(PolicyChanged(self._text.policy.sha256))

    def _enforce(self, before: Snapshot, after: Snapshot) -> None:
        """Has sign what may, and lets go of what has ended; what was stopped is stopped already."""
        now = self.clock.now()
        ended: list[KeyVersion] = []
        resumed: list[KeyVersion] = []
        for new in after.keys.changed_since(before.keys):
            old = before.keys.version(new.key, new.number)
            state = new.state_at(now)
            if state is KeyState.ACTIVE:
                resumed.append(new)
            elif state not in _STOPPED and old is not None and old.active(now):
                ended.append(new)  # batches at work keep their right, as where the clock ends it
        if resumed:
            self.hsm.resume_keys(resumed)
        if ended:
            self.hsm.drop(ended)
        if before.suspended != after.suspended:
            self._suspend(before, after.suspended)

    def _plan_ends(self) -> None:
        ends = (v.ends_at for v in self._state.keys if v.ends_at is not None)
        self._next_end = min((at for at in ends if at > self._ended_until), default=_FOREVER)

    def _end_by_clock(self) -> None:
        """Drops the copies of versions that have just ended; batches at work keep their right."""
        now = self.clock.now()
        if now < self._next_end:
            return
        ended = [
            v
            for v in self._state.keys
            if v.ends_at is not None and self._ended_until < v.ends_at <= now
        ]
        self._ended_until = now
        self.hsm.drop(ended)
        self._plan_ends()

    # --- the policy ------------------------------------------------------------------------

    def _files_decide(self, state: RegistryState) -> bool:
        return self.development or not state.officers

    def _in_force(self, state: RegistryState) -> PolicyText:
        if not self._files_decide(state):
            return self._kept(state)
        text = read_policy(self.config.policy)
        if state.policy != text.policy.sha256:
            with self.registry.writing() as write:
                write.put_policy(text.text)
        return text

    def _kept(self, state: RegistryState) -> PolicyText:
        content = None if state.policy is None else self.registry.document(state.policy)
        if content is None:
            raise OperatorError(
                "the registry does not hold the policy in force: put it back from the backup"
            )
        try:
            return self._parse(content)
        except ValueError as error:
            raise OperatorError(f"the policy in force cannot be read: {error}") from error

    def _parse(self, content: bytes) -> PolicyText:
        """Reads a policy's text, each once: that of 15,000 facilities takes seconds."""
        known = self._parsed.get(hashlib.sha256(content).hexdigest())
        return self._keep(read_policy_text(content) if known is None else known)

    def _in_files(self) -> PolicyText:
        """Reads the files; what was read of the same ones before is not read again."""
        known = self._parsed.get(policy_sha256(self.config.policy))
        return self._keep(read_policy(self.config.policy) if known is None else known)

    def _keep(self, text: PolicyText) -> PolicyText:
        self._parsed[text.policy.sha256] = text
        if len(self._parsed) > _PARSED:
            self._parsed.popitem(last=False)
        return text

    def _parse_early(self, sha256: str | None) -> None:
        """Reads the policy that is to be taken, while nobody waits for the lock."""
        if sha256 is None or sha256 == self._text.policy.sha256 or sha256 in self._parsed:
            return
        with suppress(OperatorError, ConfigError, ValueError):  # told when it is taken
            content = self.registry.document(sha256)
            if content is not None:
                self._parse(content)

    def _write_files(self, before: PolicyText) -> None:
        """Has the files hold the policy in force, unless somebody is at work on another one."""
        try:
            written = policy_sha256(self.config.policy)
            if written == before.policy.sha256:
                write_policy_files(self.config.policy, self._text.text)
            elif written != self._text.policy.sha256:
                text = "the files are somebody's draft and were left alone: put what came into"
                text = f"{text} force into it before it is proposed"
                self.events.emit(PolicyFilesDiffer(text))
        except (ConfigError, OSError, ValueError) as error:
            self.events.emit(PolicyFilesDiffer(str(error)))

    def _look_at_files(self) -> None:
        """Tells at the start where the files are a draft, or no policy at all."""
        try:
            self.draft()
        except ConfigError as error:
            self.events.emit(PolicyFilesDiffer(str(error)))

    # --- checks ----------------------------------------------------------------------------

    def _refuse_clients(self, policy: Policy, state: RegistryState) -> None:
        if problems := policy.officer_problems(state.officers):
            raise ConfigError(str(self.config.policy), [Violation("", p) for p in problems])


def check_tokens(keys: Iterable[KeyVersion], config: Config) -> None:
    """Raises OperatorError where a key is on a token that the configuration does not name."""
    unknown = {version.token for version in keys} - {token.label for token in config.tokens}
    if unknown:
        raise OperatorError(
            f"the registry has keys on token {', '.join(sorted(unknown))}, which the "
            "configuration does not name: add it under `tokens`"
        )


def _suspended(state: RegistryState, policy: Policy) -> Suspended:
    """Returns what is suspended: everything, and each facility by itself or with its group."""
    names: dict[Scope, set[str]] = {scope: set() for scope in Scope}
    for suspension in state.suspensions:
        names[suspension.scope].add(suspension.name)
    reasons = {
        name: f"group {facility.terms.group} is suspended by the officers"
        for name, facility in policy.facilities.items()
        if facility.terms.group in names[Scope.GROUP]
    }
    for name in names[Scope.FACILITY]:
        reasons[name] = f"facility {name} is suspended by the officers"
    everything = "everything is suspended by the officers" if names[Scope.EVERYTHING] else ""
    return Suspended(everything, reasons)

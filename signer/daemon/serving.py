"""What is served now: keys, policy and suspensions, kept in step with the registry.

A change of the registry comes into force in two steps. What it stops is stopped at once
(``signer.daemon.enforcement``). The rest is judged and recorded, and served when it is durable in
the log: one change at a time, under ``Serving.lock``, which no stop waits for.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from signer.clock import FlooredClock
from signer.config.models import Config
from signer.config.policy_documents import PolicyText
from signer.daemon.accounts import Accounts
from signer.daemon.audit_log import DaemonLog
from signer.daemon.enforcement import Enforcement, snapshot_of
from signer.daemon.policy_in_force import PolicyInForce
from signer.errors import ConfigError, OperatorError
from signer.events import Bug, Events, PolicyChanged, RegistryUnreadable
from signer.hsm.front.service import Hsm
from signer.keys.registry import Registry, RegistryState
from signer.keys.rows import UnreadableError, UnreadableRow
from signer.model import KeyVersion, Suspension
from signer.officers.approval import Officers
from signer.officers.judgement import Judgement
from signer.officers.kinds.operation_context import OperationContext
from signer.policy.rules import Policy
from signer.signing.request import Served, Snapshot

COMPARED = 200  # versions that one comparison reads


class Begun(NamedTuple):
    """What the daemon serves first: the registry's state, what is accounted for, the policy."""

    state: RegistryState
    accounts: Accounts
    judged: Judgement
    policies: PolicyInForce

    def snapshot(self) -> Snapshot:
        return snapshot_of(self.judged.state, self.policies.text.policy)


class _Problem(NamedTuple):
    """Why the registry is not followed; ``defect`` is for what must not be, and was."""

    text: str = ""
    defect: str = ""


class Serving:
    """Makes the daemon serve the registry's newest state. Safe to call from any thread.

    Where the database does not answer, what was served last is served on. Where it answers and
    nothing can be followed, because its row of ``revision`` cannot be read, nothing is signed.
    """

    def __init__(
        self,
        config: Config,
        registry: Registry,
        begun: Begun,
        *,
        served: Served,
        hsm: Hsm,
        log: DaemonLog,
        clock: FlooredClock,
        events: Events,
    ) -> None:
        """``begun`` is what ``served`` holds."""
        self.lock = threading.RLock()  # held while a change is recorded and then served
        self.changed = threading.Event()  # set when there is something to serve
        self._unread, self._unserved = _Problem(), _Problem()  # of the last look, the last change
        self._registry, self._state = registry, begun.state
        self._accounts, self._first = begun.accounts, begun.judged
        self._policies, self._served = begun.policies, served
        self._enforcement = Enforcement(
            registry, begun.state, served=served, hsm=hsm, clock=clock, events=events
        )
        self._log, self._clock, self._events = log, clock, events
        self._tokens = tuple(token.label for token in config.tokens)
        self._needed = config.operations.all_needed()
        self._compared, self._seen = 0, 0  # the rows of versions that were compared in this pass

    @property
    def error(self) -> str:
        """Why the registry is not followed; empty while it is."""
        return self._unread.text or self._unserved.text

    @property
    def policy(self) -> Policy:
        """The policy in force."""
        return self._policies.text.policy

    @property
    def officers(self) -> Officers:
        """The officers in force, by the registry's state that is served."""
        return self._state.officers

    @property
    def suspensions(self) -> Sequence[Suspension]:
        """What is suspended besides keys, recorded or not."""
        served, newest = self._accounts.state.suspensions, self._enforcement.newest.suspensions
        return sorted({(flag.scope, flag.name): flag for flag in (*served, *newest)}.values())

    @property
    def files_decide(self) -> bool:
        """Whether the policy's files are in force as they are, without an approval."""
        return self._accounts.files_decide

    @property
    def reason(self) -> str:
        """Why the registry is not served as it is; empty where it is."""
        defect = self._unread.defect or self._unserved.defect
        return self._enforcement.halted or defect or self._accounts.reason()

    @property
    def unreadable(self) -> Sequence[UnreadableRow]:
        """Rows of the registry that cannot be read; what they are about is not served."""
        return self._accounts.unreadable

    @property
    def refused(self) -> Sequence[str]:
        """What of the registry is not served, because nothing accounts for it."""
        return self._accounts.refused

    def begin(self) -> None:
        """Records what is served first, and stops what is suspended. Raises OperatorError."""
        self._accounts.record(self._first, self._policies.text, self._log)
        self._enforcement.begin()
        self._policies.begin_files(self._accounts.state)

    def obey(self) -> bool:
        """Stops what the registry has stopped; returns whether all of that is stopped here.

        It depends on no other change, and waits for none. The last state stays where the
        registry cannot be read.
        """
        try:
            newest = self._enforcement.obey()
        except Exception as error:  # noqa: BLE001 - suspensions are missed: that must be seen
            self._unread = self._failed(error, self._unread)
            return isinstance(error, UnreadableError)  # then everything is stopped
        self._unread = _Problem()
        if newest is not self._state:
            self.changed.set()
        return True

    def serve(self) -> None:
        """Serves the state that ``obey`` has read; leaves it to another thread that does so."""
        self.changed.clear()
        self._policies.parse_early(self._enforcement.newest.policy)
        if self.lock.acquire(blocking=False):
            try:
                self._serve()
            finally:
                self.lock.release()

    def follow(self) -> bool:
        """Does both; returns what ``obey`` does."""
        if stopped := self.obey():
            self.serve()
        return stopped

    def compare(self) -> None:
        """Compares a part of the registry with the rows that were read, whatever its revision.

        So a change by hand that did not raise the revision is found, too. All of a small
        registry is one part.
        """
        known = self._enforcement.newest
        try:
            newest, page = self._registry.state_and_page(known.keys, self._compared, COMPARED)
            # What has raised the revision since is served as it is read, and does not count.
            moved = newest.keys.revision != known.keys.revision
            differs = (
                (newest != known and not moved)
                or not {*page.unreadable} <= {*newest.unreadable}
                or any(newest.keys.version(v.key, v.number) != v for v in page.versions)
            )
            self._seen += len(page.versions)
            if page.last is None:
                differs = differs or self._seen != len(newest.keys)
                self._seen = 0
            self._compared = page.last or 0
            # Rows of operations are not compared: look again whether they can be read now.
            if not (differs or moved or self._accounts.unreadable):
                return
            self._enforcement.obey(again=True, whole=differs)
        except Exception as error:  # noqa: BLE001 - suspensions are missed: that must be seen
            self._unread = self._failed(error, self._unread)
        else:
            self.serve()

    def draft(self) -> PolicyText | None:
        """Returns the policy in the files if it is another one; see ``PolicyInForce.draft``."""
        return self._policies.draft(self._accounts.state)

    def put(self, draft: PolicyText) -> None:
        """Puts a draft in force where the files decide. Raises ConfigError."""
        with self.lock:
            try:
                # Kept first: what cannot be kept must not be in force after a restart either.
                self._log.keep_policy(draft.policy.sha256, draft.text)
                with self._registry.writing() as write:
                    write.put_policy(draft.text)
                self._enforcement.obey(again=True)
                self._take(from_files=True)
            except OperatorError as error:
                raise self._policies.refusal(str(error)) from error

    def context(self) -> OperationContext:
        """Returns what operations depend on, read now. Raises OperatorError."""
        state = self._registry.state(self._state.keys)
        if state.keys.revision != self._state.keys.revision:
            # Officers and policy are those that are served: serve this state first. Otherwise
            # without the lock: a reader does not wait for a thread that waits for the log.
            with self.lock:
                state = self._enforcement.obey()
                self._serve()
        return self._context(state)

    @contextmanager
    def locked(self, known: OperationContext | None = None) -> Iterator[OperationContext]:
        """Holds the lock for a block, at the registry's newest state; see ``ServedState``."""
        with self.lock:
            revision = self._registry.revision()
            read = [self._state] if known is None else [self._state, known.state]
            if any(state.keys.revision != revision for state in read):
                state = self._enforcement.obey()
                self._serve()
                known = self._context(state)
            yield known or self._context(self._state)

    def _context(self, state: RegistryState) -> OperationContext:
        """Returns the context at a state of the registry.

        Keys and suspensions are the registry's, because operations change them there. Officers,
        policy and wrapping keys are those that are accounted for: a row alone makes nobody an
        officer.
        """
        policies, served = self._policies, self._accounts.state
        return OperationContext(
            now=self._clock.now(),
            state=state._replace(
                officers=served.officers,
                officers_since=served.officers_since,
                policy=served.policy,
                policy_since=served.policy_since,
                deployment=served.deployment,
                wrapping_keys=self._accounts.usable(state.wrapping_keys),
            ),
            stored=state,
            policy=policies.text,
            tokens=self._tokens,
            needed=self._needed,
            draft=policies.in_files,
            read_policy=policies.parse,
            document=self._registry.document,
            clock=self._clock.reading(),
            record_time=self._log.time_of,
            clock_confirmed=self._accounts.clock_confirmed,
            changed_by=self._accounts.changed_by,
            unaccounted=frozenset(self._accounts.unaccounted),
            wrapped_since=self._accounts.wrapped_since,
            policy_folder=policies.folder.is_dir(),
            files_problem=policies.files_problem,
        )

    # --- changes ---------------------------------------------------------------------------

    def _serve(self) -> None:
        """Serves the newest state that was read. For the thread that has the lock."""
        try:
            newest, looked = self._enforcement.latest()
            if newest is not self._state or self._enforcement.pending:
                self._take()
            if newest.keys.revision < self._accounts.latest:  # it was put back from a backup
                self._registry.raise_revision(self._accounts.latest)
            self._enforcement.end_by_clock()
            if newest is self._state:
                self._accounts.look(looked)
            self._unserved = _Problem()
        except Exception as error:  # noqa: BLE001 - as in `obey`
            self._unserved = self._failed(error, self._unserved)

    def _failed(self, error: Exception, before: _Problem) -> _Problem:
        """Reports why the registry is not followed, once; stops everything if nothing can be."""
        defect = ""
        if not isinstance(error, OperatorError | ConfigError):
            self._events.emit(Bug("follow the registry", error, {}))
            defect = f"the registry is not followed: {type(error).__name__}, see the log"
        if str(error) != before.text:
            self._events.emit(RegistryUnreadable(str(error)))
        if isinstance(error, UnreadableError):
            self._enforcement.halt(f"the registry cannot be followed, nothing is signed: {error}")
        return _Problem(str(error) or defect, defect)

    def _take(self, *, from_files: bool = False) -> None:
        """Serves the newest state that was read, once it is recorded.

        The files that a policy came from are not written: they may hold the next draft.
        """
        state, ahead = self._enforcement.begin_change()
        try:
            judged = self._accounts.judge(state)
            before_text = self._policies.text
            text = self._policies.of(judged.state)
            # What cannot be recorded is not served, and is tried again at the next look.
            self._accounts.record(judged, text, self._log)
            self._policies.text = text
            after = snapshot_of(judged.state, text.policy)
            self._enforcement.serve(after, ahead, judged.state.suspensions)
        except BaseException:
            self._enforcement.give_up(ahead)
            raise
        self._state = state
        if text is not before_text:
            if not from_files:
                self._policies.write_files(before_text)
            self._events.emit(PolicyChanged(text.policy.sha256))


def begin_serving(
    config: Config,
    registry: Registry,
    accounts: Accounts,
    log: DaemonLog,
    events: Events,
    *,
    development: bool,
) -> Begun:
    """Returns what is served at the start. Raises ConfigError and OperatorError."""
    registry.raise_revision(accounts.latest)  # it was put back from a backup
    read = registry.state()
    judged = accounts.begin(read)
    policies = PolicyInForce(
        config.policy, registry, judged.state, events, kept=log.kept_policy, development=development
    )
    state = registry.state(read.keys)
    if state != read:  # a policy from the files was put into it
        judged = accounts.begin(state)
    return Begun(state, accounts, judged, policies)


def check_audit_token(audit_key: KeyVersion, config: Config) -> None:
    """Raises OperatorError if the audit key is on a token that the configuration does not name.

    Other keys may be: an appliance may lack a token that others of its deployment have.
    """
    if not any(audit_key.cka_id_on(token.label) for token in config.tokens):
        raise OperatorError(
            f"the audit key is on token {audit_key.token}, which the configuration does not name:"
            " add it under `tokens`"
        )

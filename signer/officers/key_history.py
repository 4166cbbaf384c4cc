"""What a log says of the states of key versions, and of what officers have stopped.

Pure: a fold over records, in the order of the log. A stop is an officer's act; only an
operation that enough officers have signed lifts it. From a log's first baseline on, every
version and every suspension is in a record with what made it.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from signer.keys.lifecycle import reachable
from signer.model import KeyName, KeyState
from signer.officers.approval import Proposal
from signer.officers.records import ActRecord
from signer.officers.signings import IntentNames, Seen
from signer.officers.standing import Standing, flag_text
from signer.officers.standing_fold import Accounted, StandingFold

CALL_US = 300_000_000
"""How long after a change the intent of a call may be recorded that began before it."""
EVERYTHING = "everything"
_HALTED = frozenset({KeyState.SUSPENDED, KeyState.COMPROMISED, KeyState.DESTROYED})
"""States that also end batches which began before."""
_OVER = frozenset({KeyState.DEACTIVATED, KeyState.DESTROY_SCHEDULED})
"""States in which batches that began before may be finished."""
_FINAL = frozenset({KeyState.COMPROMISED, KeyState.DESTROYED})
_COMPROMISE = "compromised"
_LIFTING = frozenset({"resume", "activate"})


class Stop(NamedTuple):
    """From record ``seq`` on, at ``time_us``, a version may not sign; ``text`` says why.

    ``at_once``: nothing is signed for later intents at all. Otherwise calls that began before
    may still be finished.
    """

    seq: int
    time_us: int
    text: str
    at_once: bool = True

    def contradicted(self, last_us: int, signed: int | None) -> str:
        """Returns what was done in spite of the stop; empty if it was obeyed.

        ``last_us`` is the time of the last intent, ``signed`` the last one with a signature.
        """
        if self.at_once and signed is not None and signed > self.seq:
            return f"signed intent {signed}"
        return "is to sign" if last_us > self.time_us + CALL_US else ""


class _LastState(NamedTuple):
    """A version's state, the state before it if that is known, and the record that says it.

    ``standing`` is there from a baseline on: the clock moves the state on.
    """

    state: KeyState
    came_from: KeyState | None
    seq: int
    time_us: int
    standing: Standing | None = None

    def state_at(self, time_us: int) -> KeyState:
        return self.standing.state_at(time_us) if self.standing else self.state

    def before(self) -> KeyState | None:
        return self.standing.came_from if self.standing else self.came_from


class KeyHistory:
    """States by version, and stops by what they stop, as of the last record.

    ``complete``: since a baseline every version is known. Before that an operation that another
    appliance executed is in no record; ``operations_elsewhere`` says that there are some, so
    that what an officer suspended may sign again.
    """

    def __init__(self, standings: StandingFold, *, operations_elsewhere: bool = False) -> None:
        """``standings`` is the result of the records of keys, up to the same record."""
        self.complete = False
        self._standings = standings
        self._begun = (0, 0)  # the record of the baseline or snapshot, and its time
        self._elsewhere = operations_elsewhere
        self._states: dict[str, _LastState] = {}
        self._stops: dict[str, Stop] = {}
        self._lifted: dict[str, dict[str, Stop]] = {}  # by the operation that is under way
        self._reported: set[str] = set()  # versions that no record knows

    # --- records of changes ----------------------------------------------------------------

    def begin(self, seq: int, time_us: int, taken: Accounted | None = None) -> None:
        """Begins with what a first part of a baseline, or a snapshot of standings, has taken.

        Of a snapshot the names of versions are not known; ``standings`` are.
        """
        self._states.clear()
        self._stops.clear()
        self._begun = (seq, time_us)
        self.complete = True
        self.account(taken or Accounted(suspended=self._standings.flags), seq, time_us)

    def account(self, taken: Accounted, seq: int, time_us: int, who: str = "") -> None:
        """Takes what counts of a record of keys; ``who`` is the officer whose act it records."""
        for row in taken.rows:
            state = row.standing.state_at(time_us)
            came_from = row.standing.came_from
            self._states[row.name] = _LastState(state, came_from, seq, time_us, row.standing)
        for key in taken.lifted:
            self._stops.pop(flag_text(key), None)
        if taken.permit is not None:
            self.begun(taken.permit.proposal)
            self.ended(taken.permit.proposal.id, done=True)
        for key in taken.suspended:
            flag = flag_text(key)
            text = f"{who} did suspend {flag}" if who else f"{flag} suspended"
            self._stops[flag] = Stop(seq, time_us, f"{text} in record {seq}")

    def changed(self, states: Mapping[str, str], seq: int, time_us: int) -> Iterator[str]:
        """Takes states of versions from a record without rows; yields what is wrong with them."""
        for version, name in states.items():
            if name not in list(KeyState):
                yield f"{version} has the state {name}, which does not exist"
                continue
            state, known = KeyState(name), self._states.get(version)
            if known is not None and known.state is state:
                continue
            yield from self._moved(version, state, time_us)
            came_from = known.state if known else None
            self._states[version] = _LastState(state, came_from, seq, time_us)
            if state is KeyState.ACTIVE and (stop := self._stops.pop(version, None)):
                yield f"{version} becomes ACTIVE: {stop.text}, and no approved operation lifts that"

    def acted(self, act: ActRecord, seq: int, time_us: int) -> Iterator[str]:
        """Takes an officer's act; yields what is wrong with it."""
        why = f"{act.officer} did {act.act} {act.target} in record {seq}"
        stop = Stop(seq, time_us, why)
        if self.complete or act.act == _COMPROMISE or not self._elsewhere:
            self._stops |= dict.fromkeys(act.changed or (act.target,), stop)
        if not self.complete:
            yield from self.changed(act.changed, seq, time_us)

    def begun(self, proposal: Proposal) -> None:
        """Takes an approved operation whose execution begins: it lifts what it names."""
        if proposal.kind in _LIFTING:
            lifted = {
                target: stop
                for target, stop in self._stops.items()
                if _names(proposal, target) and not self._final(target)
            }
            for target in lifted:
                del self._stops[target]
            self._lifted[proposal.id] = {**self._lifted.get(proposal.id, {}), **lifted}

    def ended(self, operation: str, *, done: bool) -> None:
        """Takes the end of an operation; one that is not done has lifted nothing."""
        lifted = self._lifted.pop(operation, {})
        if not done:
            self._stops = {**lifted, **self._stops}

    def forget(self) -> None:
        """Forgets the states that may have changed without a record of this log."""
        if not self.complete:
            self._states = {
                version: known for version, known in self._states.items() if known.state in _FINAL
            }

    # --- signatures ------------------------------------------------------------------------

    def stops(self, names: IntentNames, key: KeyName) -> Iterator[tuple[str, Stop]]:
        """Yields what stops the version, with the name under which ``reported`` drops it."""
        facility = f"facility {key.facility}"
        for target in (EVERYTHING, f"group {names.group}", facility, names.version, str(key)):
            if (stop := self._stops.get(target)) is not None:
                yield target, stop
        known = self._known(names.version)
        if known is None or names.version in self._stops:
            return
        # Without rows a version may be active again a moment before a record says so.
        halted = known.state in (_HALTED if known.standing else _FINAL)
        if halted or known.state in (_OVER if known.standing else {KeyState.DEACTIVATED}):
            text = f"it is {known.state} since record {known.seq}"
            yield names.version, Stop(known.seq, known.time_us, text, halted)

    def reported(self, target: str) -> None:
        """Drops a stop that was not obeyed: it is reported once."""
        self._stops.pop(target, None)
        if self._known(target) is not None:
            self._reported.add(target)
        self._states.pop(target, None)

    def unfit(self, names: IntentNames, seen: Seen) -> str:
        """Returns why a version may not sign by the clock, or because no record knows it."""
        if not self.complete or names.version in self._reported:
            return ""
        known = self._known(names.version)
        text = ""
        if known is None:
            text = "is in no record of keys"
        elif known.state_at(seen.first_us) is KeyState.PRE_ACTIVE:
            text = "is not active yet"
        elif known.state not in _OVER and known.state_at(seen.last_us - CALL_US) in _OVER:
            text = f"was to end more than {CALL_US // 60_000_000} minutes before"
        if text:
            self._reported.add(names.version)
        return text

    # --- one version -----------------------------------------------------------------------

    def _moved(self, version: str, state: KeyState, time_us: int) -> Iterator[str]:
        """Yields what is wrong with a state that follows the known one."""
        known = self._states.get(version)
        if known is None:
            return
        before = known.state_at(time_us)
        if state is not before and state not in reachable(before, known.before()):
            yield f"{version} becomes {state} and was {before} in record {known.seq}"

    def _known(self, version: str) -> _LastState | None:
        """Returns what is known of a version; None if nothing is."""
        known = self._states.get(version)
        if known is not None or not self.complete or version in self._reported:
            return known
        if (found := self._standings.standings.get(version)) is None:
            return None
        seq, time_us = self._begun
        return _LastState(found.state_at(time_us), found.came_from, seq, time_us, found)

    def _final(self, version: str) -> bool:
        known = self._states.get(version)
        return known is not None and known.state in _FINAL


def _names(proposal: Proposal, target: str) -> bool:
    """Whether an operation names what a stop has stopped."""
    if proposal.kind == "activate":
        return proposal.details.get("version") == target
    if proposal.kind != "resume":
        return False
    named = str(proposal.details.get("target"))
    head, _, name = named.partition("/")
    if head == "groups":
        return target == f"group {name}"
    if head == "facilities" and "/" not in name:
        return target == f"facility {name}"
    return target == named or target.startswith(f"{named}/versions/")

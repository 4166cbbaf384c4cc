"""What a log says of the states of key versions, and of what officers have stopped.

Pure: a fold over records, in the order of the log. A stop is an officer's act; only an
operation that enough officers have signed lifts it.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from signer.keys.lifecycle import reachable
from signer.model import KeyName, KeyState
from signer.officers.approval import Proposal
from signer.officers.records import ActRecord
from signer.officers.signings import IntentNames

EVERYTHING = "everything"
_HALTED = frozenset({KeyState.SUSPENDED, KeyState.COMPROMISED, KeyState.DESTROYED})
"""States that also end batches which began before."""
_OVER = frozenset({KeyState.DEACTIVATED, KeyState.DESTROY_SCHEDULED})
"""States in which batches that began before may be finished."""
_FINAL = frozenset({KeyState.COMPROMISED, KeyState.DESTROYED})
_LIFTING = frozenset({"resume", "activate"})


class Stop(NamedTuple):
    """X not sign; ``text`` says why.

    ``at_once``: nothing is signed for later intents at all. Otherwise calls that began before
    may still be finished.
    """

    seq: int
    time_us: int
    text: str
    at_once: bool = True


class _LastState(NamedTuple):
    """A version's state, the state before it if that is known, and the record that says it."""

    state: KeyState
    came_from: KeyState | None
    seq: int
    time_us: int


class KeyHistory:
    """States by version, and stops by what they stop, as of the last record."""

    def __init__(self) -> None:
        self._states: dict[str, _LastState] = {}
        self._stops: dict[str, Stop] = {}
        self._lifted: dict[str, dict[str, Stop]] = {}  # by the operation that is under way

    def changed(self, states: Mapping[str, object], seq: int, time_us: int) -> Iterator[str]:
        """Takes new states of versions; yields what is wrong with them."""
        for version, name in states.items():
            try:
                state = KeyState(str(name))
            except ValueError:
                yield f"{version} has the state {name}, which does not exist"
                continue
            before = self._states.get(version)
            came_from = before.state if before else None
            if before is not None and before.state is state:
                continue
            if before is not None and state not in reachable(before.state, before.came_from):
                yield f"{version} becomes {state} and was {before.state} in record {before.seq}"
            self._states[version] = _LastState(state, came_from, seq, time_us)
            if state is KeyState.ACTIVE and (stop := self._stops.pop(version, None)):
                yield f"{version} becomes ACTIVE: {stop.text}, and no approved operation lifts that"

    def acted(self, act: ActRecord, seq: int, time_us: int) -> Iterator[str]:
        """Takes an officer's act; yields what is wrong with it."""
        why = f"{act.officer} did {act.act} {act.target} in record {seq}"
        stop = Stop(seq, time_us, why)
        for target in act.changed or (act.target,):
            self._stops[target] = stop
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
            self._lifted[proposal.id] = lifted

    def ended(self, operation: str, *, done: bool) -> None:
        """Takes the end of an operation; one that is not done has lifted nothing."""
        lifted = self._lifted.pop(operation, {})
        if not done:
            self._stops = {**lifted, **self._stops}

    def forget(self) -> None:
        """Forgets the states that may have changed without a record of this log."""
        self._states = {
            version: known for version, known in self._states.items() if known.state in _FINAL
        }

    def stops(self, names: IntentNames, key: KeyName) -> Iterator[tuple[str, Stop]]:
        """Yields what stops the version, with the name under which ``reported`` drops it."""
        facility = f"facility {key.facility}"
        for target in (EVERYTHING, f"group {names.group}", facility, names.version, str(key)):
            if (stop := self._stops.get(target)) is not None:
                yield target, stop
        known = self._states.get(names.version)
        if (
            known is not None
            and known.state in _HALTED | _OVER
            and names.version not in self._stops
        ):
            text = f"it is {known.state} since record {known.seq}"
            yield names.version, Stop(known.seq, known.time_us, text, known.state in _HALTED)

    def reported(self, target: str) -> None:
        """Drops a stop that was not obeyed: it is reported once."""
        self._stops.pop(target, None)
        self._states.pop(target, None)

    def _final(self, version: str) -> bool:
        known = self._states.get(version)
        return known is not None and known.state in _FINAL


def _names(proposal: Proposal, target: str) -> bool:
    """Whether an operation names what a stop has stopped."""
    if proposal.kind == "activate":
        return proposal.details.get("version") == target
    named = str(proposal.details.get("target"))
    head, _, name = named.partition("/")
    if head == "groups":
        return target == f"group {name}"
    if head == "facilities" and "/" not in name:
        return target == f"facility {name}"
    return target == named or target.startswith(f"{named}/versions/")

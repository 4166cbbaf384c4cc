"""Registry and token compared: the keys that only one of them has, and those that are there twice.

Nothing is repaired here. A key on the token that the registry does not know never signs;
a version whose key is not on the token, or twice, fails its callers with HSM_UNAVAILABLE, as do
all versions whose wrapping key is not there. What an interrupted operation has left is completed
by that operation.
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

from signer.clock import Clock
from signer.errors import OperatorError
from signer.events import Bug, Events, TokenDiffers
from signer.hsm.front.service import Hsm
from signer.hsm.spec import HeldWrappingKey
from signer.keys.wrapping_use import WrappingUse, wrapping_uses
from signer.model import KeyState, KeyVersion, TokenObject, inventory_digest
from signer.signing.request import Served
from signer.text import count

MOST_NAMED = 100  # differences of a token; the rest is counted
LOOK_AGAIN_SECONDS = 24 * 3600.0  # after a comparison
DIFFERS_SECONDS = 3600.0  # after one that has found differences, which may be repaired meanwhile
RETRY_SECONDS = 600.0  # after one that failed
TICK_SECONDS = 1.0
RESTS = 4
"""How many times as long as it works a comparison rests: others use the HSM meanwhile."""


class TokenList(Protocol):
    """One token of which the keys can be listed."""

    def inventory(self, rest: Callable[[float], object]) -> list[TokenObject]:
        """Returns every private key; raises OperatorError.

        After each part, ``rest`` is called with the seconds that it took.
        """

    def wrapping_keys(self, ids: Sequence[str]) -> list[HeldWrappingKey]:
        """Returns what it holds under the id of each wrapping key; raises OperatorError."""


class WrappingFault(NamedTuple):
    """What is wrong with a wrapping key on a token, as long as it is, or is not, destroyed."""

    destroyed: bool
    text: str


class Comparison(NamedTuple):
    """What one comparison of a token has found; ``problem``: why there was none."""

    missing: frozenset[bytes] = frozenset()  # ids that only the registry has
    twice: frozenset[bytes] = frozenset()  # ids of two keys
    unknown: Mapping[bytes, str] = {}  # ids that only the token has, with their labels
    wrapping: Mapping[str, WrappingFault] = {}  # by the ids of wrapping keys
    problem: str = ""

    def lines(
        self, token: str, expected: Mapping[bytes, KeyVersion], wrapping: Mapping[str, WrappingUse]
    ) -> list[str]:
        """Returns a line for each difference that the registry of now still has."""
        lines = [self.problem] if self.problem else []
        lines += [
            f"token {token} {fault.text}"
            for identity, fault in self.wrapping.items()
            if identity in wrapping and wrapping[identity].destroyed == fault.destroyed
        ]
        lines += [
            f"token {token} does not hold the key of {expected[cka_id].name}: restore the"
            " token's backup, or schedule the destruction of the version"
            for cka_id in sorted(self.missing & expected.keys())
        ]
        lines += [
            f"token {token} holds two private keys with the CKA_ID {cka_id.hex()}, so that"
            " neither signs: remove the wrong one with the HSM's own tool"
            for cka_id in sorted(self.twice)
        ]
        lines += [
            f"token {token} holds a key that the registry does not know: CKA_ID {cka_id.hex()},"
            f" label {label[:200]!r}; an operation that is not ended may have created it (list"
            " them: `signer operations list --state FAILED`), else remove it with the HSM's own"
            " tool"
            for cka_id, label in self.unknown.items()
            if cka_id not in expected
        ]
        return lines


def wrapping_faults(
    seen: Iterable[tuple[WrappingUse, HeldWrappingKey]],
) -> dict[str, WrappingFault]:
    """Returns what is wrong with the wrapping keys that a token should hold, or should not."""
    texts = ((use, _wrapping_fault(use, here)) for use, here in seen)
    return {use.id: WrappingFault(use.destroyed, text) for use, text in texts if text}


def _wrapping_fault(use: WrappingUse, here: HeldWrappingKey) -> str:
    if use.destroyed:
        if not here.held:
            return ""
        return (
            f"holds the wrapping key {use.id}, which officers have destroyed: if that operation has"
            " failed, `signer operations retry` ends it, else remove the key with the HSM's own"
            " tool"
        )
    if not here.held:
        return (
            f"does not hold the wrapping key {use.id}, so that"
            f" {count(use.versions, 'key version does', 'key versions do')} not sign there:"
            " restore it from the token's backup"
        )
    if here.held > 1:
        return (
            f"holds {here.held} keys with the CKA_ID {use.cka_id.hex()} of the wrapping key"
            f" {use.id}, so that it unwraps nothing: remove the wrong one with the HSM's own tool"
        )
    if not here.wrong:
        return ""
    return (
        f"holds the wrapping key {use.id} with another {', '.join(here.wrong)} than it was created"
        " with: what it wraps could be read there. Create another one, then `rewrap`, and destroy"
        " this one"
    )


def compared(present: Sequence[TokenObject], expected: Iterable[bytes]) -> Comparison:
    """Compares the keys on a token with the ids that the registry expects there."""
    labels = {key.cka_id: key.label for key in present}
    ids, wanted = Counter(key.cka_id for key in present), set(expected)
    return Comparison(
        missing=frozenset(wanted - labels.keys()),
        twice=frozenset(cka_id for cka_id, count in ids.items() if count > 1 and cka_id),
        unknown={cka_id: label for cka_id, label in labels.items() if cka_id not in wanted},
    )


class Inventory:
    """Compares each token once it serves and then every day, in a thread of its own.

    It reads a part of the token at a time and rests between the parts, so that it holds up
    nothing: neither callers nor operations nor the follower of the registry.
    """

    def __init__(
        self,
        hsm: Hsm,
        served: Served,
        audit_key: KeyVersion,
        *,
        open_list: Callable[[str], AbstractContextManager[TokenList]],
        events: Events,
        clock: Clock,
    ) -> None:
        self._hsm, self._served, self._audit_key = hsm, served, audit_key
        self._open_list, self._events, self._clock = open_list, events, clock
        self._due = dict.fromkeys(hsm.pools, clock.monotonic())
        self._found: dict[str, Comparison] = {}
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="inventory", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Ends the comparison in progress; does not wait for an HSM that hangs."""
        self._closing.set()

    @property
    def differences(self) -> list[str]:
        """A line for each difference that was found and that the registry still has."""
        found = dict(self._found)
        return [
            line for token, one in found.items() for line in _named(token, self._lines(token, one))
        ]

    def counts(self) -> dict[str, int]:
        """Returns how many differences each token has that was compared."""
        found = dict(self._found)
        return {token: len(self._lines(token, one)) for token, one in found.items()}

    def compare(self) -> None:
        """Compares the tokens that serve and are due."""
        for token, due in self._due.items():
            if due <= self._clock.monotonic() and self._hsm.pools[token].serving:
                self._compare(token)

    def _compare(self, token: str) -> None:
        self._due[token] = self._clock.monotonic() + RETRY_SECONDS
        before, wrapping = self._expected(token), self._wrapping(token)
        known = inventory_digest(TokenObject(i, v.name) for i, v in before.items())
        # By what the workers have read at their start.
        same = token not in self._found and self._hsm.pools[token].inventory == known
        comparison = _NOTHING
        if wrapping or not same:
            try:
                with self._open_list(token) as admin:
                    if not same:
                        comparison = compared(admin.inventory(self._rest), before)
                    here = admin.wrapping_keys(list(wrapping))
                    seen = zip(wrapping.values(), here, strict=True)
                    comparison = comparison._replace(wrapping=wrapping_faults(seen))
            except _Closing:
                return
            except OperatorError as error:
                text = f"token {token} could not be compared with the registry: {error}"
                comparison = Comparison(problem=text)
        self._found[token] = comparison
        lines = _named(token, self._lines(token, comparison))
        if not comparison.problem:
            pause = DIFFERS_SECONDS if lines else LOOK_AGAIN_SECONDS
            self._due[token] = self._clock.monotonic() + pause
        if lines:
            self._events.emit(TokenDiffers(lines))

    def _lines(self, token: str, found: Comparison) -> list[str]:
        if found == _NOTHING:
            return []
        return found.lines(token, self._expected(token), self._wrapping(token))

    def _expected(self, token: str) -> Mapping[bytes, KeyVersion]:
        return {
            cka_id: version
            for version in [*self._served.snapshot.keys, self._audit_key]
            if version.state is not KeyState.DESTROYED and version.wrapped is None
            if (cka_id := version.cka_id_on(token)) is not None
        }

    def _wrapping(self, token: str) -> dict[str, WrappingUse]:
        """Returns the wrapping keys that a token should hold, or held once, by their ids."""
        snapshot = self._served.snapshot
        uses = wrapping_uses(snapshot.wrapping_keys, snapshot.keys)
        return {use.id: use for use in uses if token in use.tokens}

    def _rest(self, seconds: float) -> None:
        if self._closing.wait(RESTS * seconds):
            raise _Closing

    def _run(self) -> None:
        while not self._closing.wait(TICK_SECONDS):
            try:
                self.compare()
            except Exception as error:  # noqa: BLE001 - the next token is compared anyway
                self._events.emit(Bug("compare a token with the registry", error, {}))


def _named(token: str, lines: list[str]) -> list[str]:
    """Returns the first differences of a token, and how many more there are."""
    if (more := len(lines) - MOST_NAMED) > 0:
        return [*lines[:MOST_NAMED], f"token {token}: {count(more, 'more difference')}"]
    return lines


class _Closing(Exception):
    """The daemon ends: the comparison is not finished."""


_NOTHING = Comparison()

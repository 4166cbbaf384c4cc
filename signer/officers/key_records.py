"""The records of keys as a verifier reads them: what is served from there on, and why.

Older records name only states. Since there are baselines, a record has a row for each version
that changed, the suspensions that began and ended, and the operation or the act that made it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from signer.algorithms import Algorithm
from signer.audit.format.record import Fields, RecordError, Value, number, text
from signer.model import KeyName, KeyState, KeyVersion, Scope, Suspension
from signer.officers.records import ActRecord

_STATES = {str(state): state for state in KeyState}
_ANY_VERSION = KeyVersion(
    key=KeyName("f", "k"),
    number=1,
    algorithm=Algorithm.ES256,
    state=KeyState.PRE_ACTIVE,
    token="",
    cka_id=b"",
    spki=b"",
    certificate=None,
    kid=b"",
    thumbprint="",
    created=0.0,
    activate_at=None,
    sign_until=None,
)


class VersionRow(NamedTuple):
    """A version as it is from a record on: times are in seconds since the epoch.

    ``version`` has its state and times, and no more. ``identity`` is a hash of what never
    changes, ``certificate`` one of the certificate.
    """

    name: str
    version: KeyVersion
    cka_id: bytes
    identity: bytes
    certificate: bytes

    @classmethod
    def read(cls, row: Value) -> "VersionRow":
        """Reads one of a record's ``versions``; raises RecordError."""
        match row:
            case [
                str(name), str(state), str(came_from), *times,
                int(), bytes(cka_id), bytes(identity), bytes(certificate),
            ] if state in _STATES and len(times) == 4:  # fmt: skip
                activate_at, sign_until, deactivate_at, destroy_at = map(_seconds, times)
                version = replace(
                    _ANY_VERSION,
                    state=_STATES[state],
                    came_from=_STATES.get(came_from),
                    activate_at=activate_at,
                    sign_until=sign_until,
                    deactivate_at=deactivate_at,
                    destroy_at=destroy_at,
                )
                return cls(name, version, cka_id, identity, certificate)
        raise RecordError("a version of it cannot be read")

    def state_at(self, time_us: int) -> KeyState:
        """Returns the state in force at a time in microseconds since the epoch."""
        return self.version.state_at(time_us / 1_000_000)

    def allows_more_than(self, before: "VersionRow") -> str:
        """Returns what this row allows and ``before`` did not; empty if nothing."""
        old, new = before.version, self.version
        if new.state is KeyState.ACTIVE and old.state is not KeyState.ACTIVE:
            return f"becomes ACTIVE and was {old.state}"
        returned = {KeyState.DESTROY_SCHEDULED, KeyState.DESTROYED, KeyState.COMPROMISED}
        if old.state is KeyState.DESTROY_SCHEDULED and new.state not in returned:
            return f"becomes {new.state} and was to be destroyed"
        if new.state is KeyState.ACTIVE and (new.activate_at or 0) < (old.activate_at or 0):
            return "is active earlier"
        lives = new.state in {KeyState.ACTIVE, KeyState.SUSPENDED} and old.ends_at is not None
        if lives and (new.ends_at is None or new.ends_at > (old.ends_at or 0)):
            return "signs longer"
        return "" if self.certificate == before.certificate else "has another certificate"


class KeysChange(NamedTuple):
    """A record of keys. ``states`` are by name; ``named_all``: no other version has changed.

    ``rows`` is None in older records. ``baseline`` is the number of the part, 0 if the record
    belongs to none, of ``parts``. ``unaccounted`` are texts about what the appliance did not
    serve.
    """

    states: Mapping[str, str]
    named_all: bool
    rows: Sequence[VersionRow] | None
    suspended: Sequence[Suspension]
    lifted: Sequence[Suspension]
    operation: str
    act: ActRecord | None
    act_id: str
    unaccounted: Sequence[str]
    baseline: int
    parts: int

    @classmethod
    def from_fields(cls, fields: Fields) -> "KeysChange":
        changed = fields.get("changed")
        states = changed if isinstance(changed, Mapping) else {}
        rows = fields.get("versions")
        baseline = fields.get("baseline") is True
        act = _act(fields.get("act"))
        return cls(
            states={name: str(state) for name, state in states.items()},
            named_all=number(fields, "changes", 0) <= len(states),
            rows=None if rows is None else [VersionRow.read(row) for row in _rows(rows)],
            suspended=_flags(fields.get("suspensions" if baseline else "suspended")),
            lifted=_flags(fields.get("lifted")),
            operation=text(fields, "operation", ""),
            act=act[1],
            act_id=act[0],
            unaccounted=[str(said) for said in _rows(fields.get("unaccounted"))],
            baseline=number(fields, "part") if baseline else 0,
            parts=number(fields, "parts", 1) if baseline else 0,
        )


def _rows(rows: Value) -> Iterable[Value]:
    return rows if isinstance(rows, list | tuple) else ()


def _seconds(at: Value) -> float | None:
    if at is None:
        return None
    if type(at) is not int:
        raise RecordError("a time of a version is not a number")
    return at / 1_000_000


def _flags(rows: Value) -> list[Suspension]:
    flags = []
    for row in _rows(rows):
        match row:
            case [str(scope), str(name), int(since)] if scope in list(Scope):
                flags.append(Suspension(Scope(scope), name, since / 1_000_000, "", ""))
            case _:
                raise RecordError("a suspension of it cannot be read")
    return flags


def _act(row: Value) -> tuple[str, ActRecord | None]:
    """Reads an act and its id."""
    match row:
        case None:
            return "", None
        case [str(identity), str(act), str(target), str(officer), str(reason), int()]:
            return identity, ActRecord(act, target, officer, reason, {})
    raise RecordError("its act cannot be read")

"""What must be so, told without the code that does it: effects from an operation's bytes alone.

``expected`` takes what the registry held, an operation and what the registry holds now; it
returns what the registry must hold. From the latter it takes only what nobody can know
before: the public keys, and times between two looks at the clock.
"""

import base64
import hashlib
import json
import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from signer.keys.registry import Registry
from signer.model import KeyState, KeyVersion

S = KeyState


_HELD = ("key_versions", "keys", "officers", "suspensions", "revision")
_last: dict[str, Any] = {}
_connections: dict[str, sqlite3.Connection] = {}


def rows_of(registry: Registry, *tables: str) -> list[Any]:
    """Returns all rows of some tables, read past the code under test, and quickly."""
    path = str(registry._engine.url.database)
    if path not in _connections:
        for old in _connections.values():
            old.close()
        _connections.clear()
        _connections[path] = sqlite3.connect(path, isolation_level=None)
    read = _connections[path].execute
    return [path, *(read(f"SELECT * FROM {table}").fetchall() for table in tables)]


@dataclass(frozen=True)
class Shadow:
    """A copy of what the registry holds: versions by name, flags by scope and name."""

    versions: Mapping[str, KeyVersion] = field(default_factory=dict)
    officers: Mapping[str, bytes] = field(default_factory=dict)
    flags: frozenset[tuple[str, str]] = frozenset()
    policy: str | None = None

    @classmethod
    def of(cls, registry: Registry) -> "Shadow":
        """Reads all of it; where no row has changed since the last time, that copy again."""
        rows = rows_of(registry, *_HELD)
        if _last.get("rows") == rows:
            return cast("Shadow", _last["shadow"])
        read = cls._read(registry)
        _last["rows"], _last["shadow"] = rows, read
        return read

    @classmethod
    def _read(cls, registry: Registry) -> "Shadow":
        state = registry.state()
        return cls(
            {each.name: each for each in state.keys},
            dict(state.officers),
            frozenset((str(each.scope), each.name) for each in state.suspensions),
            state.policy,
        )


@dataclass(frozen=True)
class Between:
    """Two looks at the clock, before and after something was done."""

    first: float
    last: float

    def check(self, time: float | None) -> float:
        assert time is not None
        assert self.first <= time <= self.last, f"{time} was never now"
        return time


def state_of(version: KeyVersion, now: float) -> KeyState:
    """The state in force, computed independently of the product."""
    ends = [at for at in (version.sign_until, version.deactivate_at) if at is not None]
    ended = any(now >= at for at in ends)
    match version.state:
        case S.ACTIVE if version.activate_at is None or now < version.activate_at:
            return S.PRE_ACTIVE
        case S.ACTIVE | S.SUSPENDED if ended:
            return S.DEACTIVATED if version.destroy_at is None else S.DESTROY_SCHEDULED
    return version.state


def end_of(der: bytes) -> float:
    """When a certificate ends; it has begun long ago."""
    return x509.load_der_x509_certificate(der).not_valid_after_utc.timestamp()


def only_renews(content: bytes, officers: Mapping[str, bytes], at: float) -> bool:
    """Whether an operation replaces certificates that have ended, and nothing else."""
    members = json.loads(content[content.index(b"{") :])
    told = members["details"].get("officers")
    if members["kind"] != "officers" or sorted(told) != sorted(officers):
        return False
    others = [who for who in officers if base64.b64decode(told[who]) != officers[who]]
    return all(end_of(officers[who]) < at for who in others)


def signers_of(
    content: bytes, signatures: Iterable[Any], officers: Mapping[str, bytes], *, valid: bool = False
) -> set[str]:
    """The officers whose signatures over these bytes are good; ``valid``: by valid certificates."""
    found = set()
    for who, signature, at in signatures:
        if who not in officers:
            continue
        key = x509.load_der_x509_certificate(officers[who]).public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        ended = at > end_of(officers[who])
        if ended and (valid or not only_renews(content, officers, at)):
            continue
        try:
            key.verify(signature, content, ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            continue
        found.add(who)
    return found


def cka_id(operation: str, place: int) -> bytes:
    return hashlib.sha256(f"signer.v1 key\0{operation}\0{place}".encode()).digest()[:16]


class Oracle:
    """What one operation may make of the registry."""

    def __init__(
        self, content: bytes, before: Shadow, after: Shadow, when: Between, document: Any
    ) -> None:
        _, _, self.id, deployment, text = content.decode().split("\n", 4)
        assert deployment.startswith("deployment ")
        members = json.loads(text)
        self.kind, self.details = members["kind"], members["details"]
        self.before, self.after, self.when = before, after, when
        self.document = document

    def expected(self, *, done: bool) -> Shadow:
        """Returns what the registry must hold where the operation is done, or was broken off."""
        partly = self.kind in ("enrol", "rotate")
        if not done and not partly:
            return self.before
        versions = dict(self.before.versions)
        effect = getattr(self, "_" + self.kind.replace("-", "_"))
        changed: Mapping[str, Any] = effect(versions, done) or {}
        return replace(self.before, versions=versions, **changed)

    # --- keys that are made ----------------------------------------------------------------

    def _made(self, name: str, place: int, algorithm: str) -> KeyVersion | None:
        """A version that this operation made, as it was made."""
        there = self.after.versions.get(name)
        if there is None or there.cka_id != cka_id(self.id, place):
            return None
        assert there.algorithm == algorithm
        assert there.token == "soft"
        return replace(
            there,
            state=S.PRE_ACTIVE,
            activate_at=None,
            sign_until=None,
            deactivate_at=None,
            destroy_at=None,
            came_from=None,
            certificate=None,
            kid=hashlib.sha256(there.spki).digest()[:8],
            created=self.when.check(there.created),
        )

    def _create_key(self, versions: dict[str, KeyVersion], _done: bool) -> None:
        name = f"{self.details['key']}/versions/1"
        assert name not in versions
        made = self._made(name, 0, self.details["algorithm"])
        assert made is not None
        if self.details["activate"]:
            made = self._active(made, 0, self.details["sign_until"] or None)
        versions[name] = made

    def _new_version(self, versions: dict[str, KeyVersion], _done: bool) -> None:
        name = self.details["version"]
        assert name not in versions
        made = self._made(name, 0, self.details["algorithm"])
        assert made is not None
        versions[name] = made

    def _active(self, version: KeyVersion, at: float, until: float | None) -> KeyVersion:
        told = self.after.versions[version.name].activate_at
        start = at if at > self.when.last else max(at, self.when.check(told))
        return replace(version, state=S.ACTIVE, activate_at=start, sign_until=until, came_from=None)

    def _enrol(self, versions: dict[str, KeyVersion], done: bool) -> Mapping[str, Any]:
        lines = self.document(self.details["csv_sha256"]).decode().splitlines()[1:]
        for place, line in enumerate(lines):
            facility, _, _, _, key, algorithm, _ = line.split(",")
            name = f"facilities/{facility}/keys/{key}/versions/1"
            if name in versions:
                continue
            made = self._made(name, place, algorithm)
            assert made is not None or not done
            if made is not None:
                versions[name] = self._active(made, 0, None)
        return {"policy": self.details["policy_sha256"]} if done else {}

    def _rotate(self, versions: dict[str, KeyVersion], _done: bool) -> None:
        for place, (key, old, new, algorithm, _) in enumerate(
            json.loads(self.document(self.details["plan_sha256"]))
        ):
            name = f"{key}/versions/{new}"
            there = versions.get(name)
            if there is not None and there.cka_id != cka_id(self.id, place):
                continue  # another one's: nothing is done to it
            if there is None:
                there = self._made(name, place, algorithm)
            if there is None:
                continue
            versions[name] = self._certified(there)
            self._take_over(versions, name, f"{key}/versions/{old}")

    def _certified(self, version: KeyVersion) -> KeyVersion:
        """A certificate that came while the operation waited, by the one authority named."""
        now = self.after.versions[version.name]
        if now.certificate == version.certificate or version.certificate is not None:
            return version
        assert self.details["issuers"]
        issuer = x509.load_der_x509_certificate(base64.b64decode(self.details["issuers"][0]))
        assert now.certificate is not None
        x509.load_der_x509_certificate(now.certificate).verify_directly_issued_by(issuer)
        kid = hashlib.sha256(now.certificate).digest()[:8]
        return replace(version, certificate=now.certificate, kid=kid)

    def _take_over(self, versions: dict[str, KeyVersion], new: str, old: str) -> None:
        """The new version is activated by the plan, once, and the one before it is ended."""
        version, now = versions[new], self.after.versions[new]
        fresh = version.state is S.PRE_ACTIVE and version.came_from is None
        if not fresh:
            self._end_after_others(versions, new, old)
            return
        if now.state is not S.ACTIVE:
            return
        assert version.certificate is not None or not self.details["issuers"]
        told = now.activate_at
        assert told is not None
        span = self.details["sign_for_seconds"]
        at = self.details["activate_at"]
        versions[new] = self._active(version, at, told + span if span else None)
        before = versions[old]
        assert state_of(before, self.when.first) is not S.SUSPENDED
        if state_of(before, self.when.last) is not S.ACTIVE:
            return
        ends = [e for e in (before.sign_until, before.deactivate_at) if e is not None]
        self._end(versions, old, min([told + self.details["overlap_seconds"], *ends]))

    def _end_after_others(self, versions: dict[str, KeyVersion], new: str, old: str) -> None:
        """Officers have activated the new version by an operation: the one before it is ended."""
        before, end = versions[old], self.after.versions[old].deactivate_at
        active = state_of(versions[new], self.when.last) is S.ACTIVE
        endless = before.sign_until is None and before.deactivate_at is None
        if end is None or not (active and endless and before.state is S.ACTIVE):
            return
        told = end - self.details["overlap_seconds"]
        assert self.when.first - 0.001 <= told <= self.when.last + 0.001
        self._end(versions, old, end)

    def _end(self, versions: dict[str, KeyVersion], old: str, end: float) -> None:
        """A version ends now, or by the clock; it may be destroyed later."""
        before, rest = versions[old], self.details["destroy_after_seconds"]
        ended = self.after.versions[old]
        versions[old] = replace(
            before,
            # At once where there is no overlap, or by the clock.
            state=ended.state if end <= self.when.last else before.state,
            came_from=ended.came_from if end <= self.when.last else before.came_from,
            deactivate_at=end if end > self.when.last else ended.deactivate_at,
            destroy_at=end + rest if rest else None,
        )
        assert ended.state in (S.ACTIVE, S.DEACTIVATED, S.DESTROY_SCHEDULED)

    # --- the life of versions --------------------------------------------------------------

    def _activate(self, versions: dict[str, KeyVersion], _done: bool) -> None:
        name, until = self.details["version"], self.details["sign_until"] or None
        assert state_of(versions[name], self.when.first) is S.PRE_ACTIVE
        versions[name] = self._active(versions[name], self.details["at"], until)

    def _at(self, told: float | None) -> float:
        at: float = self.details["at"]
        return at if at > self.when.last else max(at, self.when.check(told))

    def _deactivate(self, versions: dict[str, KeyVersion], _done: bool) -> None:
        name = self.details["version"]
        before, now = versions[name], self.after.versions[name]
        assert state_of(before, self.when.last) in (S.ACTIVE, S.SUSPENDED)
        at = self._at(now.deactivate_at)
        state = S.DEACTIVATED if at <= self.when.last else before.state
        versions[name] = replace(before, state=state, deactivate_at=at, destroy_at=None)

    def _schedule_destruction(self, versions: dict[str, KeyVersion], _done: bool) -> None:
        name = self.details["version"]
        before, now = versions[name], self.after.versions[name]
        came_from = state_of(before, self.when.last)
        assert came_from in (S.PRE_ACTIVE, S.SUSPENDED, S.DEACTIVATED, S.COMPROMISED)
        versions[name] = replace(
            before,
            state=S.DESTROY_SCHEDULED,
            came_from=came_from,
            destroy_at=self._at(now.destroy_at),
        )

    def _restore(self, versions: dict[str, KeyVersion], _done: bool) -> None:
        name = self.details["version"]
        before = versions[name]
        assert state_of(before, self.when.last) is S.DESTROY_SCHEDULED
        back = before.came_from or S.DEACTIVATED
        assert back is not S.ACTIVE
        new = replace(before, state=back, came_from=None, destroy_at=None)
        if back is S.PRE_ACTIVE:
            new = replace(new, activate_at=None, came_from=S.DESTROY_SCHEDULED)
        versions[name] = new

    def _destroy(self, versions: dict[str, KeyVersion], _done: bool) -> None:
        name = self.details["version"]
        before = versions[name]
        assert state_of(before, self.when.last) is S.DESTROY_SCHEDULED
        assert before.destroy_at is not None
        assert before.destroy_at <= self.when.last
        versions[name] = replace(before, state=S.DESTROYED)

    def _import_certificate(self, versions: dict[str, KeyVersion], _done: bool) -> None:
        name, der = self.details["version"], base64.b64decode(self.details["certificate"])
        kid = hashlib.sha256(der).digest()[:8]
        versions[name] = replace(versions[name], certificate=der, kid=kid)

    def _resume(self, versions: dict[str, KeyVersion], _done: bool) -> Mapping[str, Any]:
        target = self.details["target"]
        head, _, rest = target.partition("/")
        scope = {"everything": "everything", "groups": "group", "facilities": "facility"}[head]
        if "/keys/" not in target:
            assert (scope, rest) in self.before.flags
            return {"flags": self.before.flags - {(scope, rest)}}
        meant = [
            name
            for name, version in versions.items()
            if (name == target or name.startswith(f"{target}/versions/")) and self._halted(version)
        ]
        assert meant
        for name in meant:
            if versions[name].state is S.SUSPENDED:
                versions[name] = replace(versions[name], state=S.ACTIVE)
            else:
                versions[name] = replace(versions[name], came_from=None)
        return {}

    def _halted(self, version: KeyVersion) -> bool:
        """Whether one officer has stopped a version, in use or before its activation."""
        state = state_of(version, self.when.last)
        return state is S.SUSPENDED or (state is S.PRE_ACTIVE and version.came_from is S.ACTIVE)

    # --- people and rules ------------------------------------------------------------------

    def _officers(self, _versions: dict[str, KeyVersion], _done: bool) -> Mapping[str, Any]:
        told = self.details["officers"]
        return {"officers": {who: base64.b64decode(text) for who, text in told.items()}}

    def _policy(self, _versions: dict[str, KeyVersion], _done: bool) -> Mapping[str, Any]:
        return {"policy": self.details["policy_sha256"]}

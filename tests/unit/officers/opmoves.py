"""Operations that can be proposed now, found from what the registry holds."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from signer.config.policy_files import policy_files, policy_text
from signer.model import KeyState
from tests.unit.officers.opmodel import S, Shadow, end_of, state_of
from tests.unit.officers.opstage import DAY, HOUR, Stage
from tests.unit.officers.people import Authority, D, E, certificate_of, pem

FACILITIES = ("01-001", "02-001")


class Move(NamedTuple):
    """One operation to propose; ``renews``: it only replaces certificates that have ended."""

    kind: str
    arguments: Mapping[str, Any]
    attachment: bytes = b""
    renews: bool = False


class Moves:
    """Every operation that is possible now, by kind. Numbers make names new."""

    def __init__(self, stage: Stage, authority: Authority) -> None:
        self._stage, self._authority = stage, authority
        self._number = 0
        self.kinds: Mapping[str, Callable[[], Iterator[Move]]] = {
            "activate": self._activate,
            "add-placement": lambda: iter(()),  # there is one token
            "clock": lambda: iter(()),  # it is never in doubt here
            "create-key": self._create_key,
            "create-wrapping-key": lambda: iter(()),  # its keys are on the token
            "destroy-wrapping-key": lambda: iter(()),
            "place-wrapping-key": lambda: iter(()),
            "rewrap": lambda: iter(()),
            "deactivate": lambda: self._timed("deactivate", S.ACTIVE, S.SUSPENDED),
            "destroy": self._destroy,
            "enrol": self._enrol,
            "import-certificate": self._import_certificate,
            "new-version": self._new_version,
            "officers": self._officers,
            "policy": self._policy,
            "remove-placement": lambda: iter(()),
            "restore": lambda: self._plain("restore", S.DESTROY_SCHEDULED),
            "resume": self._resume,
            "rotate": self._rotate,
            "schedule-destruction": lambda: self._timed(
                "schedule-destruction", S.PRE_ACTIVE, S.SUSPENDED, S.DEACTIVATED, S.COMPROMISED
            ),
        }

    def of(self, kind: str) -> list[Move]:
        return list(self.kinds[kind]())

    # --- looking ---------------------------------------------------------------------------

    @property
    def _now(self) -> float:
        return self._stage.clock.now()

    def _fresh(self) -> int:
        self._number += 1
        return self._number

    def _in(self, *states: KeyState) -> list[str]:
        versions = Shadow.of(self._stage.registry).versions
        return [name for name, v in versions.items() if state_of(v, self._now) in states]

    def _keys(self) -> dict[str, set[KeyState]]:
        keys: dict[str, set[KeyState]] = {}
        for name, version in Shadow.of(self._stage.registry).versions.items():
            keys.setdefault(name.partition("/versions/")[0], set()).add(
                state_of(version, self._now)
            )
        return keys

    # --- moves -----------------------------------------------------------------------------

    def _plain(self, kind: str, *states: KeyState) -> Iterator[Move]:
        yield from (Move(kind, {"version": name}) for name in self._in(*states))

    def _timed(self, kind: str, *states: KeyState) -> Iterator[Move]:
        for name in self._in(*states):
            for at in (0, int(self._now) + HOUR):
                yield Move(kind, {"version": name, "at": at})

    def _activate(self) -> Iterator[Move]:
        later = int(self._now) + HOUR
        for name in self._in(S.PRE_ACTIVE):
            yield Move("activate", {"version": name})
            yield Move("activate", {"version": name, "at": later, "sign_until": later + 10 * DAY})

    def _destroy(self) -> Iterator[Move]:
        versions = Shadow.of(self._stage.registry).versions
        for name in self._in(S.DESTROY_SCHEDULED):
            destroy_at = versions[name].destroy_at
            if destroy_at is not None and destroy_at <= self._now:
                yield Move("destroy", {"version": name})

    def _create_key(self) -> Iterator[Move]:
        number = self._fresh()
        for facility in FACILITIES:
            for algorithm, activate in (("ES256", True), ("EdDSA", False)):
                key = f"facilities/{facility}/keys/key-{number}"
                members = {"key": key, "algorithm": algorithm, "activate": activate}
                yield Move("create-key", members)

    def _new_version(self) -> Iterator[Move]:
        yield from (Move("new-version", {"key": key}) for key in self._keys())

    def _import_certificate(self) -> Iterator[Move]:
        versions = Shadow.of(self._stage.registry).versions
        for name in self._in(S.PRE_ACTIVE, S.ACTIVE, S.SUSPENDED):
            certificate = self._authority.certify(versions[name].spki)
            members = {"certificate": pem(certificate), "issuers": [self._authority.pem]}
            yield Move("import-certificate", {"version": name, "replace": True, **members})

    def _resume(self) -> Iterator[Move]:
        versions = Shadow.of(self._stage.registry).versions
        targets = self._in(S.SUSPENDED)
        # Also what was stopped before it signed.
        targets += [n for n in self._in(S.PRE_ACTIVE) if versions[n].came_from is S.ACTIVE]
        targets += sorted({name.partition("/versions/")[0] for name in targets})
        for scope, name in sorted(Shadow.of(self._stage.registry).flags):
            heads = {"everything": "everything", "group": f"groups/{name}"}
            targets.append(heads.get(scope, f"facilities/{name}"))
        yield from (Move("resume", {"target": target}) for target in targets)

    def _officers(self) -> Iterator[Move]:
        officers = Shadow.of(self._stage.registry).officers
        valid, ended = self.valid(), self.ended()
        for who in sorted({*valid, D, E} - {*ended}):
            yield Move("officers", {"add": [self._certificate(who)]})
        for some in _some(ended):
            yield Move("officers", {"add": [*map(self._certificate, some)]}, renews=True)
        for who in sorted(officers):
            if len(officers) > 2 and {*valid} - {who}:
                yield Move("officers", {"remove": [who]})

    def valid(self) -> list[str]:
        """The officers whose certificates do not end in the next moments."""
        officers = Shadow.of(self._stage.registry).officers
        return sorted(who for who, der in officers.items() if end_of(der) > self._now + 5)

    def ended(self) -> list[str]:
        officers = Shadow.of(self._stage.registry).officers
        return sorted(who for who, der in officers.items() if end_of(der) < self._now)

    def _certificate(self, who: str) -> str:
        ends = datetime.fromtimestamp(int(self._now) + 200 * DAY, UTC)
        return pem(certificate_of(who, ends=ends))

    def _policy(self) -> Iterator[Move]:
        """A policy from an officer's desk; those from files are in test_policy_change."""
        files = policy_files(self._stage.context.policy.text)
        remark = b"# draft %d\n" % self._fresh()
        changed = [
            file._replace(content=file.content.partition(b"#")[0] + remark)
            if file.name == "policy.yaml"
            else file
            for file in files
        ]
        yield Move("policy", {}, policy_text(changed))

    def _enrol(self) -> Iterator[Move]:
        number = self._fresh()
        lines = ["facility,group,profile,clients,key,algorithm,bits"]
        for place in range(3):
            facility = f"f{number}-{place}"
            client = f"spiffe://signer.example/facility/{facility}"
            lines.append(f"{facility},01,clinic,{client},records,ES256,")
        yield Move("enrol", {}, ("\n".join(lines) + "\n").encode())

    def _rotate(self) -> Iterator[Move]:
        ready = [
            key
            for key, states in self._keys().items()
            if S.ACTIVE in states and not states & {S.SUSPENDED, S.PRE_ACTIVE}
        ]
        if not ready:
            return
        later = int(self._now) + HOUR
        plain = {"activate_at": 0, "overlap_seconds": 0}
        full = {
            "activate_at": later,
            "overlap_seconds": DAY,
            "sign_for_seconds": 30 * DAY,
            "destroy_after_seconds": DAY,
        }
        certified = {"subject": "CN={facility} {version}", "issuers": [self._authority.pem]}
        for keys in _some(ready):
            attachment = "\n".join(keys).encode()
            yield Move("rotate", plain, attachment)
            yield Move("rotate", full, attachment)
            yield Move("rotate", full | certified, attachment)


def _some(names: Sequence[str]) -> Iterator[Sequence[str]]:
    if names:
        yield names[:1]
    if len(names) > 1:
        yield names[-1:]
        yield names

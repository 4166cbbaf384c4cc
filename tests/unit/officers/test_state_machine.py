"""Officers at work in any order, with crashes, a full HSM and jumps of the clock.

After every step everything that differs in the registry must be what the bytes of one
operation say, that enough officers have signed, or one officer's act that only stops.
"""

from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, rule, run_state_machine_as_test

from signer.errors import CallError, Reason
from signer.model import KeyVersion, Scope
from signer.officers.execution import KINDS
from signer.officers.store import OperationState
from tests.unit.officers.opmachine import AUTHORITY, OTHER, Appliance, stopped
from tests.unit.officers.opmodel import S, Shadow, cka_id, signers_of
from tests.unit.officers.opmoves import Move
from tests.unit.officers.opstage import DAY, HOUR, START, MemoryLog, Stage
from tests.unit.officers.people import A, B, C, D, E, certificate_of, der_of, key_of, pem, sign
from tests.unit.officers.reallog import DiskLog
from tests.unit.officers.softtoken import spki_of

EVERYBODY = (A, B, C, D, E)
OPEN, ENDS = (
    OperationState.PROPOSED,
    (OperationState.DONE, OperationState.FAILED, OperationState.WAITING),
)
CRASHES = st.none() | st.integers(0, 45)
LIFE = ("activate", "deactivate", "schedule-destruction", "restore", "destroy", "resume", "rotate")
PARTS = 10
WAITS = (0, 2 * HOUR, 3 * DAY)
FIRST = {A: der_of(A)} | {
    who: certificate_of(who, ends=datetime.fromtimestamp(START + days * DAY, UTC)).public_bytes(
        Encoding.DER
    )
    for who, days in ((B, 20), (C, 50))
}
"""The first officers: the certificates of two end before long."""


class Officers(Appliance):
    """All that officers, the context and the machine can do."""

    @initialize()
    def keys(self) -> None:
        """Two keys to begin with; two officers have agreed to them."""
        self.stage.key()
        self.stage.key("facilities/02-001/keys/records", activate=False)

    # --- proposing and deciding ------------------------------------------------------------

    def pick(self, data: st.DataObject, kind: str) -> Move | None:
        moves = self.moves.of(kind)
        return data.draw(st.sampled_from(moves)) if moves else None

    @rule(data=st.data(), kind=st.sampled_from(sorted(KINDS)), who=st.sampled_from(EVERYBODY))
    def propose(self, data: st.DataObject, kind: str, who: str) -> None:
        move = self.pick(data, kind)
        if move is None:
            return
        officers = Shadow.of(self.stage.registry).officers
        with self.step():
            prepared = self.stage.prepare(move.kind, move.attachment, by=who, **move.arguments)
            assert not prepared.problems
            signed = who, sign(who, prepared.content), self.stage.clock.now()
            if signers_of(prepared.content, [signed], officers):
                self.stage.put(prepared.content, move.attachment, by=who)
                return
            with pytest.raises(CallError) as refused:
                self.stage.put(prepared.content, move.attachment, by=who)
            assert refused.value.reason is Reason.APPROVAL_INVALID

    @rule(
        data=st.data(),
        kind=st.sampled_from(sorted(KINDS)),
        crashes=st.tuples(CRASHES, CRASHES),
        full=st.sampled_from([False] * 9 + [True]),
    )
    def decide(
        self, data: st.DataObject, kind: str, crashes: tuple[int | None, int | None], full: bool
    ) -> None:
        """Two officers agree; the program may end at any point of the execution, twice."""
        if (move := self.pick(data, kind)) is not None:
            self.agree(move, crashes, full=full)

    @rule(crashes=st.tuples(CRASHES, CRASHES))
    def renew(self, crashes: tuple[int | None, int | None]) -> None:
        """All certificates that have ended are renewed: one valid officer is enough for it."""
        renewals = [move for move in self.moves.of("officers") if move.renews]
        if renewals:
            self.agree(renewals[-1], crashes)

    @rule(data=st.data(), crashes=st.tuples(CRASHES, CRASHES), wait=st.sampled_from(WAITS))
    def live(self, data: st.DataObject, crashes: tuple[int | None, int | None], wait: int) -> None:
        """A version goes on in its life, and time passes."""
        moves = [move for kind in LIFE for move in self.moves.of(kind)]
        if moves:
            self.agree(data.draw(st.sampled_from(moves)), crashes)
        self.time_passes(wait)

    @rule(data=st.data(), wait=st.sampled_from(WAITS))
    def live_on(self, data: st.DataObject, wait: int) -> None:
        """The same without crashes, or most would never come far."""
        self.live(data, (None, None), wait)

    def agree(
        self, move: Move, crashes: tuple[int | None, int | None], *, full: bool = False
    ) -> None:
        able = self.moves.valid()
        if move.renews:
            able = [*able[:1], *self.moves.ended()]
        if len(able) < 2 or not self.moves.valid():
            return  # that it is not possible is seen by those who try
        one, other = able[:2]
        with self.step():
            identity = self.stage.propose(move.kind, move.attachment, by=one, **move.arguments).id
        with self.step(*crashes, full=full):
            try:
                self.stage.approve(identity, by=other)
            except CallError:
                assert full
        ended = self.stage.operation(identity)
        assert ended.state in (*ENDS, OPEN), ended.note
        assert ended.state is not OPEN or crashes[0] is not None
        if ended.state is OperationState.DONE and not full:
            assert ended.recorded

    @rule(data=st.data(), who=st.sampled_from(EVERYBODY), what=st.sampled_from([0, 0, 0, 1, 2, 3]))
    def approve(self, data: st.DataObject, who: str, what: int) -> None:
        """A signature, or what is none, by anybody over anything that was ever proposed."""
        operations = self.operations()
        if not operations:
            return
        operation = data.draw(st.sampled_from(operations))
        other = data.draw(st.sampled_from(operations))
        signature = (
            sign(who, operation.content),
            sign(who, operation.content[:-1] + b" "),
            sign(who, other.content),
            sign(A if who != A else B, operation.content),
        )[what]
        officers = Shadow.of(self.stage.registry).officers
        at = self.stage.clock.now() + 0.01
        counts = (
            operation.state_at(at) is OPEN
            and who not in {operation.proposal.proposer, *operation.signers}
            and bool(signers_of(operation.content, [(who, signature, at)], officers))
        )
        with self.step():
            try:
                self.stage.proposals.approve(who, operation.id, signature)
                heard = True
            except CallError:
                heard = False
        assert heard is counts
        after = self.stage.operation(operation.id)
        if counts:
            signers, valid = (
                signers_of(operation.content, after.signatures, officers, valid=valid)
                for valid in (False, True)
            )
            complete = len(signers) >= operation.proposal.officers and bool(valid)
            assert (after.state is not OPEN) is complete
        assert (who in after.signers) is (counts or who in operation.signers)

    @rule(data=st.data(), who=st.sampled_from(EVERYBODY))
    def reject(self, data: st.DataObject, who: str) -> None:
        operations = self.operations()
        if not operations:
            return
        operation = data.draw(st.sampled_from(operations))
        with self.step():
            try:
                self.stage.proposals.reject(who, operation.id, "no")
            except CallError:
                assert operation.state_at(self.stage.clock.now()) is not OPEN
                return
        self.over.add(operation.id)

    @rule(data=st.data(), crashes=st.tuples(CRASHES, CRASHES))
    def retry(self, data: st.DataObject, crashes: tuple[int | None, int | None]) -> None:
        failed = self.operations(OperationState.FAILED)
        if not failed:
            return
        operation = data.draw(st.sampled_from(failed))
        with self.step(*crashes):
            try:
                self.stage.proposals.retry(self.one(), operation.id)
            except CallError:  # only what has changed a key goes on after its time
                versions = Shadow.of(self.stage.registry).versions.values()
                begun = any(_is_made_by(version, operation.id) for version in versions)
                if begun or self.stage.clock.now() < operation.proposal.expires_at:
                    raise

    @rule(data=st.data(), crash=CRASHES, wrong=st.booleans())
    def certify(self, data: st.DataObject, crash: int | None, wrong: bool) -> None:
        """The authority, or another one, answers a rotation's requests; not always all of them."""
        waiting = self.operations(OperationState.WAITING)
        if not waiting:
            return
        operation = data.draw(st.sampled_from(waiting))
        versions = [
            v
            for v in Shadow.of(self.stage.registry).versions.values()
            if v.request and v.certificate is None and v.activate_at is None
            if _is_made_by(v, operation.id)
        ]
        if not versions:
            return
        some = versions[: data.draw(st.integers(1, len(versions)))]
        issuer = OTHER if wrong else AUTHORITY
        certificates = [pem(issuer.certify(v.spki)).encode() for v in some]
        with self.step(crash, at=operation.id):
            try:
                self.stage.proposals.import_certificates(
                    operation.proposal.proposer, operation.id, certificates
                )
            except CallError:
                officers = Shadow.of(self.stage.registry).officers
                signers = signers_of(operation.content, operation.signatures, officers)
                proposed = operation.proposal.proposer in signers
                assert wrong or len(signers) < 2 or not proposed
        if wrong:
            held = Shadow.of(self.stage.registry).versions
            assert all(held[v.name].certificate is None for v in some)

    @rule(data=st.data(), fault=st.sampled_from(["another key", "expired", "another authority"]))
    def wrong_certificate(self, data: st.DataObject, fault: str) -> None:
        versions = self.in_state(S.PRE_ACTIVE, S.ACTIVE, S.SUSPENDED)
        if not versions:
            return
        version = data.draw(st.sampled_from(versions))
        spki, changed, issuer = version.spki, {}, AUTHORITY
        if fault == "another key":
            spki = spki_of(key_of("nobody"))
        elif fault == "expired":
            changed = {"ends": _at(self.stage.clock.now() - DAY)}
        else:
            issuer = OTHER
        text = pem(issuer.certify(spki, **changed))
        with self.step():
            arguments: dict[str, Any] = {
                "version": version.name,
                "certificate": text,
                "replace": True,
            }
            made = self.stage.prepare("import-certificate", **arguments, issuers=[AUTHORITY.pem])
        assert made.problems
        assert not made.content

    @rule(data=st.data(), kind=st.sampled_from(sorted(set(LIFE) - {"resume", "rotate"})))
    def wrong_move(self, data: st.DataObject, kind: str) -> None:
        """What the table has not for a version's state cannot even be proposed."""
        able = {str(move.arguments["version"]) for move in self.moves.of(kind)}
        others = sorted(Shadow.of(self.stage.registry).versions.keys() - able)
        if others:
            name = data.draw(st.sampled_from(others))
            assert self.stage.prepare(kind, version=name).problems

    # --- acts of one officer ---------------------------------------------------------------

    @rule(data=st.data(), whole=st.booleans(), end=st.booleans(), crash=CRASHES)
    def stop(self, data: st.DataObject, whole: bool, end: bool, crash: int | None) -> None:
        """One officer suspends, or marks as compromised, a version or a whole key."""
        versions = list(Shadow.of(self.stage.registry).versions.values())
        version = data.draw(st.sampled_from(versions))
        name = str(version.key) if whole else version.name
        meant = [v for v in versions if v.key == version.key and (whole or v == version)]
        before = Shadow.of(self.stage.registry)
        now = self.stage.clock.now() + 0.01
        halted = {v.name: after for v in meant if (after := stopped(v, now, end=end))}
        act = self.stage.emergency.compromise if end else self.stage.emergency.suspend_key
        with self.acting(before, replace(before, versions={**before.versions, **halted}), crash):
            try:
                act(self.one(), name, "it was seen elsewhere")
            except CallError as error:
                if halted or error.reason is not Reason.OPERATION_REFUSED:
                    raise

    @rule(data=st.data(), end=st.booleans(), points=st.integers(0, 30), wait=st.sampled_from(WAITS))
    def stop_in_rotation(self, data: st.DataObject, end: bool, points: int, wait: int) -> None:
        """One officer stops a key while a rotation of it is at any of its steps."""
        move, able = self.pick(data, "rotate"), self.moves.valid()
        if move is None or len(able) < 2:
            return
        key = data.draw(st.sampled_from(move.attachment.decode().split()))
        act = self.stage.emergency.compromise if end else self.stage.emergency.suspend_key

        def stop() -> None:
            before, now = Shadow.of(self.stage.registry), self.stage.clock.now() + 0.01
            meant = [v for v in before.versions.values() if str(v.key) == key]
            halted = {v.name: after for v in meant if (after := stopped(v, now, end=end))}
            wanted = replace(before, versions={**before.versions, **halted})
            with self.acting(before, wanted, None):
                try:
                    act(able[-1], key, "it was seen elsewhere")
                except CallError:
                    if halted:
                        raise

        with self.step():
            identity = self.stage.propose(
                move.kind, move.attachment, by=able[0], **move.arguments
            ).id
        with self.step(at=identity, meanwhile=(points, stop)):
            self.stage.approve(identity, by=able[1])
        self.time_passes(wait)

    @rule(
        scope=st.sampled_from(
            [
                (Scope.EVERYTHING, ""),
                (Scope.GROUP, "01"),
                (Scope.FACILITY, "01-001"),
                (Scope.FACILITY, "02-001"),
            ]
        ),
        crash=CRASHES,
    )
    def stop_many(self, scope: tuple[Scope, str], crash: int | None) -> None:
        before = Shadow.of(self.stage.registry)
        flags = before.flags | {(str(scope[0]), scope[1])}
        with self.acting(before, replace(before, flags=flags), crash):
            self.stage.emergency.suspend(self.one(), *scope, "a break-in")

    # --- the world around ------------------------------------------------------------------

    @rule(seconds=st.sampled_from([1, 60, HOUR, 2 * HOUR, DAY, 25 * HOUR, 11 * DAY, 40 * DAY]))
    def time_passes(self, seconds: int) -> None:
        with self.step():
            self.stage.clock.forward(seconds)
        # For good only by the log's time: behind that no clock goes back.
        now = self.stage.log.records[-1].time_us / 1e6
        self.over |= {o.id for o in self.operations() if o.state_at(now) is OperationState.EXPIRED}

    @rule(seconds=st.sampled_from([1, DAY, 400 * DAY]))
    def clock_set_back(self, seconds: int) -> None:
        with self.step():
            self.stage.clock.time -= seconds
            assert self.stage.clock.now() >= self.stage.log.records[-1].time_us / 1e6

    @rule(room=st.none() | st.integers(0, 2))
    def room_on_the_token(self, room: int | None) -> None:
        self.stage.token.room = room

    @rule(crash=CRASHES)
    def restart(self, crash: int | None) -> None:
        with self.step(crash):
            self.stage.start(crash_after=crash)


def _is_made_by(version: KeyVersion, operation: str) -> bool:
    return version.cka_id in {cka_id(operation, place) for place in range(20)}


def _at(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def run(folder: Path, template: Path, examples: int, steps: int, *, disk: bool = False) -> int:
    """Runs so many examples of up to so many steps; returns how many steps passed."""
    numbers, passed = count(), 0

    class Counted(Officers):
        @invariant()
        def count_this_step(self) -> None:
            nonlocal passed
            passed += 1

    def make() -> Stage:
        place = folder / str(next(numbers))
        log = partial(DiskLog, place / "audit") if disk else MemoryLog
        return Stage(place, template, officers=FIRST, log=log)

    limits = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.reuse, Phase.generate],  # shrinking takes minutes
        report_multiple_bugs=False,
        print_blob=True,
    )
    run_state_machine_as_test(lambda: Counted(make), settings=limits)  # type: ignore[arg-type]
    return passed


def test_officers_at_work(tmp_path: Path, template: Path) -> None:
    run(tmp_path, template, 12, 50)


def test_officers_at_work_with_the_real_log(tmp_path: Path, template: Path) -> None:
    run(tmp_path, template, 4, 30, disk=True)


@pytest.mark.torture
@pytest.mark.parametrize("part", range(PARTS))
def test_officers_at_work_for_long(tmp_path: Path, template: Path, part: int) -> None:
    """100,000 steps, in parts that several processes share."""
    passed = 0
    for turn in count():
        passed += run(tmp_path / str(turn), template, 20, 100)
        print(f"part {part}: {passed} steps passed", flush=True)
        if passed >= 100_000 // PARTS:
            break

"""What a pool stops, packs, blames and refuses, with workers that answer when the test says so."""

import asyncio
import time
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from signer.clock import SystemClock
from signer.errors import CallError, Reason
from signer.event_loop import EventLoop
from signer.events import ChunkEnded, WrongSignatures
from signer.hsm.frames import (
    FrameError,
    FrameKind,
    ResultFrame,
    ResultPart,
    SignFrame,
    Verdict,
    unpack_ids,
    unpack_sign,
)
from signer.hsm.front.chunks import LATE, Chunk, Signed, SignJob
from signer.hsm.front.dispatcher import AWAY_SECONDS, NOT_SERVING
from signer.hsm.front.pool import Admission, Pool
from signer.hsm.front.service import Hsm
from signer.hsm.front.slot import Slot, WorkerEnd
from signer.hsm.spec import FailureKind, TokenSpec
from signer.model import AUDIT_KEY, KeyName, KeyVersion, Suspended
from tests.stand_ins import Recorder, key_version

SIGNATURE = b"s" * 64
HALTED = Suspended(facilities={"a": "a is suspended"})
BUSY_US = 400  # for an item, so that a chunk has 15, and a batch many chunks


class FakeLink:
    """Remembers what a worker was sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[FrameKind, bytes]] = []
        self.open = True

    def send(self, kind: FrameKind, *parts: bytes) -> bool:
        if self.open:
            self.sent.append((kind, b"".join(parts)))
        return self.open

    def of_kind(self, kind: FrameKind) -> list[bytes]:
        return [body for sent, body in self.sent if sent is kind]

    @property
    def frames(self) -> list[SignFrame]:
        """The chunks that it was sent."""
        return [unpack_sign(memoryview(body)) for body in self.of_kind(FrameKind.SIGN)]


class Driven:
    """A pool with fake workers, and callers on its loop."""

    def __init__(
        self, loop: EventLoop, label: str = "t", queued: int = 10**6, workers: int = 1
    ) -> None:
        spec = TokenSpec(label, None, "", "", "", session_copies=True, environment={})
        self.record = Recorder()
        self.pool = Pool(
            spec,
            workers=workers,
            start_seconds=60.0,
            hang_seconds=9.0,
            max_queued=queued,
            loop=loop,
            events=self.record.events,
            clock=SystemClock(),
        )
        self.loop = loop
        self.slots = self.pool._dispatcher.slots
        self.links = [self.bring_up(slot) for slot in self.slots]
        self.slot, self.link = self.slots[0], self.links[0]

    def bring_up(self, slot: Slot) -> FakeLink:
        link = FakeLink()
        slot.link = link  # type: ignore[assignment]
        slot.state = "serving"
        return link

    def admit(self, job: SignJob) -> Admission:
        return self.loop.call(self.pool.admit, job)

    def sign(self, key: KeyVersion, count: int, **changes: Any) -> "Future[Signed]":
        """Signs on the loop; returns when the batch is queued."""
        return self.submit(self.admit(job(key, count, **changes)))

    def submit(self, admission: Admission) -> "Future[Signed]":
        call = self.later(admission)
        self.settle()
        return call

    def later(self, admission: Admission) -> "Future[Signed]":
        return asyncio.run_coroutine_threadsafe(self.pool.sign(admission), self.loop.loop)

    def sign_together(self, *jobs: SignJob) -> "list[Future[Signed]]":
        """Signs jobs that come in one round of the loop."""

        def start() -> "list[Future[Signed]]":
            return [self.later(self.pool.admit(each)) for each in jobs]

        calls = self.loop.call(start)
        self.settle()
        return calls

    def settle(self) -> None:
        """Lets the loop do what is due."""
        for _ in range(4):
            self.loop.run(asyncio.sleep(0))

    def answer(self, slot: Slot | None = None, **changes: Any) -> None:
        """Answers the oldest chunk that a worker has."""
        slot = slot or self.slot
        number, chunk = next(iter(slot.in_flight.items()))
        self.loop.call(self.pool._dispatcher.result, slot, answer_to(number, chunk, **changes))
        self.settle()

    def answer_all(self) -> None:
        while any(slot.in_flight for slot in self.slots):
            for slot in self.slots:
                if slot.in_flight:
                    self.answer(slot)

    def die(self, slot: Slot | None = None) -> None:
        """A worker dies, and another serves in its slot."""
        slot = slot or self.slot

        def die() -> None:
            slot.state = "failed"
            self.pool._dispatcher.lost(slot)

        self.loop.call(die)
        self.settle()
        self.links[self.slots.index(slot)] = link = self.bring_up(slot)
        if slot is self.slot:
            self.link = link
        self.loop.call(self.pool._dispatcher.wake)
        self.settle()


def answer_to(number: int, chunk: Chunk, **changes: Any) -> ResultFrame:
    parts = []
    for part in chunk.parts:
        blob = SIGNATURE * part.items
        result = ResultPart(Verdict.SIGNED, BUSY_US * part.items, 0, 64, (), blob)
        parts.append(result._replace(**changes))
    return ResultFrame(number, parts)


def key(facility: str, number: int = 0, label: str = "t") -> KeyVersion:
    return key_version(
        key=KeyName(facility, f"k{number}"), token=label, cka_id=f"{facility}-{number}".encode()
    )


def job(
    version: KeyVersion, count: int, *, seconds: float = 20.0, weight: int = 1, check_every: int = 1
) -> SignJob:
    inputs = [bytes(32)] * count
    deadline = time.monotonic() + seconds
    return SignJob(version, inputs, version.key.facility, weight, check_every, deadline)


@pytest.fixture
def driven(loop: EventLoop) -> Driven:
    return Driven(loop)


def messages(signed: Signed) -> set[str]:
    reasons = {failure.reason for failure in signed.failures.values()}
    assert reasons <= {Reason.KEY_VERSION_NOT_ACTIVE}
    return {failure.message for failure in signed.failures.values()}


def test_nothing_of_a_suspended_facility_leaves_after_it(driven: Driven) -> None:
    call = driven.sign(key("a"), 500)
    driven.answer()
    batch = next(iter(driven.slot.in_flight.values())).portions[0].batch
    assert driven.pool.waiting(), "and others wait"
    driven.pool.suspend(HALTED, [key("a")])
    assert driven.pool.waiting() == []
    left = list(batch.signatures)
    sent = len(driven.link.of_kind(FrameKind.SIGN))
    driven.answer_all()
    signed = call.result(20)
    assert signed.signatures == left
    assert 0 < left.count(SIGNATURE) < 100
    assert len(signed.failures) == left.count(b"")
    assert messages(signed) == {"a is suspended"}
    assert len(driven.link.of_kind(FrameKind.SIGN)) == sent
    with pytest.raises(CallError, match="a is suspended") as refused:
        driven.admit(job(key("a", 7), 1))
    assert refused.value.reason is Reason.KEY_VERSION_NOT_ACTIVE


def test_others_go_on_and_lifting_lets_it_sign_again(driven: Driven) -> None:
    stopped, other = driven.sign(key("a"), 200), driven.sign(key("b"), 200)
    driven.pool.suspend(HALTED, [key("a")])
    driven.answer_all()
    assert messages(stopped.result(20)) == {"a is suspended"}
    assert other.result(20).signatures == [SIGNATURE] * 200
    driven.pool.suspend(Suspended(facilities={"b": "b is suspended"}), [key("b")])
    again = driven.sign(key("a"), 200)
    driven.answer_all()
    assert again.result(20).signatures == [SIGNATURE] * 200
    with pytest.raises(CallError, match="b is suspended"):
        driven.admit(job(key("b"), 1))


def test_when_everything_is_suspended_only_the_audit_key_signs(driven: Driven) -> None:
    driven.pool.suspend(Suspended(everything="all is suspended"), [])
    with pytest.raises(CallError, match="all is suspended"):
        driven.admit(job(key("a"), 1))
    audit = driven.sign(replace(key("b"), key=AUDIT_KEY), 1)
    driven.answer_all()
    assert audit.result(20).failures == {}


def test_a_chunk_of_a_suspended_facility_goes_to_no_second_worker(driven: Driven) -> None:
    call = driven.sign(key("a"), 10)
    driven.pool.suspend(HALTED, [key("a")])
    driven.die()
    assert messages(call.result(20)) == {"a is suspended"}
    assert driven.link.frames == []


def test_lifting_a_suspension_leaves_a_stopped_key_stopped(driven: Driven) -> None:
    driven.pool.stop_keys({key("a"): "it is revoked", key("a", 1): ""})
    driven.pool.suspend(HALTED, [])
    driven.pool.suspend(Suspended(), [])
    with pytest.raises(CallError, match="it is revoked"):
        driven.admit(job(key("a"), 1))
    with pytest.raises(CallError, match="is stopped"):
        driven.admit(job(key("a", 1), 1))
    assert driven.admit(job(key("a", 2), 1)).refused is None
    driven.pool.resume_keys([key("a"), key("a", 1)])
    assert driven.admit(job(key("a"), 1)).refused is None
    assert driven.admit(job(key("a", 1), 1)).refused is None


def test_many_keys_stop_in_one_pass_each_for_its_reason(driven: Driven) -> None:
    keys = [key("a", number) for number in range(6)]
    calls = [driven.sign(each, 150) for each in keys]
    asked: list[object] = []
    remove = driven.pool._dispatcher.scheduler.remove

    def remove_counted(wanted: Any) -> Any:
        asked.append(wanted)
        return remove(wanted)

    driven.pool._dispatcher.scheduler.remove = remove_counted  # type: ignore[method-assign]
    driven.pool.stop_keys({each: f"{each.key.key} stops" for each in keys[:5]})
    assert len(asked) == 1
    driven.answer_all()
    for each, call in zip(keys[:5], calls[:5], strict=True):
        assert messages(call.result(20)) == {f"{each.key.key} stops"}
    assert calls[5].result(20).failures == {}


@pytest.mark.parametrize("count", [0, 1, 100])
@pytest.mark.parametrize("how", ["suspend", "stop"])
def test_the_copies_of_what_stops_are_dropped(driven: Driven, count: int, how: str) -> None:
    stopped = [key("a", number) for number in range(count)]
    if how == "suspend":
        driven.pool.suspend(HALTED, stopped)
    else:
        driven.pool.stop_keys(dict.fromkeys(stopped, "stopped"))
    bodies = driven.link.of_kind(FrameKind.DROP)
    if not count:
        assert bodies == []
        return
    [body] = bodies
    assert unpack_ids(memoryview(body)) == [each.cka_id for each in stopped]


def test_dropping_copies_stops_nothing(driven: Driven) -> None:
    hsm = Hsm({"t": driven.pool})
    hsm.drop([key("a"), key("b")])
    [body] = driven.link.of_kind(FrameKind.DROP)
    assert unpack_ids(memoryview(body)) == [b"a-0", b"b-0"]
    empty = driven.loop.run(hsm.sign(Admission(job(key("a"), 0))))
    assert empty == Signed([], {}, 0)
    assert driven.admit(job(key("a"), 1)).refused is None


def test_a_copy_that_was_made_behind_the_order_is_dropped_again(driven: Driven) -> None:
    call = driven.sign(key("a"), 10)
    driven.pool.suspend(HALTED, [key("a")])
    before = len(driven.link.sent)
    driven.answer_all()
    call.result(20)
    [(kind, body)] = driven.link.sent[before:]
    assert (kind, unpack_ids(memoryview(body))) == (FrameKind.DROP, [key("a").cka_id])


def test_a_suspension_holds_on_every_token_and_drops_copies_on_their_own(loop: EventLoop) -> None:
    pools = {label: Driven(loop, label) for label in ("t", "u")}
    hsm = Hsm({label: each.pool for label, each in pools.items()})
    hsm.suspend(HALTED, [key("a", 1, "t"), key("a", 2, "u")])
    for label, number in (("t", 1), ("u", 2)):
        with pytest.raises(CallError, match="a is suspended"):
            hsm.admit(job(key("a", number, label), 1))
        [body] = pools[label].link.of_kind(FrameKind.DROP)
        assert unpack_ids(memoryview(body)) == [key("a", number).cka_id]
    hsm.suspend(Suspended(), [])
    hsm.stop_keys({key("a", 1, "t"): "one", key("a", 2, "u"): "two"})
    for label, number, text in (("t", 1, "one"), ("u", 2, "two")):
        with pytest.raises(CallError, match=text):
            hsm.admit(job(key("a", number, label), 1))
    hsm.resume_keys([key("a", 1, "t"), key("a", 2, "u")])
    for label, number in (("t", 1), ("u", 2)):
        assert hsm.admit(job(key("a", number, label), 1)).refused is None


# --- admission ---------------------------------------------------------------------------------


def test_what_is_admitted_and_not_yet_queued_takes_room_in_the_queue(loop: EventLoop) -> None:
    driven = Driven(loop, queued=100)
    with driven.admit(job(key("a"), 60)) as admission:
        assert admission.room == 60
        with pytest.raises(CallError, match="60 items wait already") as refused:
            driven.admit(job(key("b"), 41))
        assert refused.value.reason is Reason.OVERLOADED
        with driven.admit(job(key("b"), 40)):
            pass
    assert driven.admit(job(key("b"), 1000)).room == 1000, "all room is free again"


def test_room_is_given_back_once_whatever_happens(driven: Driven) -> None:
    with pytest.raises(ZeroDivisionError), driven.admit(job(key("a"), 60)):
        raise ZeroDivisionError
    with driven.admit(job(key("a"), 60)) as admission:
        call = driven.submit(admission)
        driven.answer_all()
        assert call.result(20).failures == {}
    assert driven.pool._scheduler.admitted == 0


def test_an_admitted_job_whose_key_stops_before_it_is_queued_is_refused(driven: Driven) -> None:
    admission = driven.admit(job(key("a"), 3))
    driven.pool.suspend(HALTED, [key("a")])
    with pytest.raises(CallError, match="a is suspended") as refused:
        driven.later(admission).result(20)
    assert refused.value.reason is Reason.KEY_VERSION_NOT_ACTIVE
    assert driven.link.of_kind(FrameKind.SIGN) == []
    assert driven.pool._scheduler.admitted == 0


def test_an_admitted_job_fails_where_the_token_serves_no_more(driven: Driven) -> None:
    admission = driven.admit(job(key("a"), 3))
    driven.pool._dispatcher.halt("the token is stopped")
    for refused in (admission, driven.admit(job(key("a"), 3))):
        signed = driven.later(refused).result(20)
        assert {failure.reason for failure in signed.failures.values()} == {Reason.HSM_UNAVAILABLE}
        assert (signed.signatures, signed.attempts) == ([b""] * 3, 0)


def test_an_empty_job_is_admitted_even_where_nothing_serves(driven: Driven) -> None:
    driven.pool.suspend(HALTED, [])
    assert driven.admit(job(key("a"), 0)).refused is None


# --- the backlog -------------------------------------------------------------------------------


def learn(driven: Driven) -> None:
    """Lets the pool measure what an item costs: 400 us."""
    call = driven.sign(key("a"), 16)
    driven.answer_all()
    assert call.result(20).failures == {}


def test_an_estimate_alone_refuses_nothing(driven: Driven) -> None:
    """One stall must not make an idle HSM refuse until its cost is forgotten."""
    call = driven.sign(key("a"), 1)
    driven.answer(busy_us=4_000_000)
    assert call.result(20).failures == {}
    with driven.admit(job(key("a"), 100, seconds=5.0)) as admission:
        call = driven.submit(admission)
        driven.answer_all()
    assert call.result(20).failures == {}
    driven.sign(key("a"), 500)
    driven.admit(job(key("b"), 100, seconds=1.0)).release()  # 0.2 s, by what came later


def test_a_deadline_that_has_passed_is_too_short(driven: Driven) -> None:
    with pytest.raises(CallError, match="no time is left") as refused:
        driven.admit(job(key("a"), 1, seconds=0.0))
    assert refused.value.reason is Reason.DEADLINE_TOO_SHORT


def test_a_backlog_beyond_the_deadline_is_overload_with_an_honest_hint(driven: Driven) -> None:
    learn(driven)
    flood = driven.sign(key("a"), 5000)  # 2 s
    with pytest.raises(CallError, match="what waits already") as refused:
        driven.admit(job(key("a"), 250, seconds=1.0))
    assert refused.value.reason is Reason.OVERLOADED
    hint = refused.value.retry_after or 0.0
    assert hint == pytest.approx(2.0 - (1.0 - 0.1) / 2, abs=0.1)
    # Once so much of it is done, and not before, the same batch is admitted.
    while driven.pool._scheduler.seconds() > 2.0 - (hint - 0.1):
        driven.answer()
    with pytest.raises(CallError):
        driven.admit(job(key("a"), 250, seconds=1.0))
    while driven.pool._scheduler.seconds() > 2.0 - (hint + 0.1):
        driven.answer()
    driven.admit(job(key("a"), 250, seconds=1.0)).release()
    driven.pool.suspend(HALTED, [])
    driven.answer_all()
    assert flood.result(20).failures


def test_a_batch_that_is_too_long_by_itself_hears_so_while_others_wait(driven: Driven) -> None:
    learn(driven)
    driven.sign(key("a"), 500)
    with pytest.raises(CallError, match="these items alone take about 2") as refused:
        driven.admit(job(key("b"), 5000, seconds=1.0))
    assert refused.value.reason is Reason.OVERLOADED
    driven.answer_all()
    driven.admit(job(key("b"), 5000, seconds=1.0)).release()


def test_another_owner_waits_for_its_share_only(driven: Driven) -> None:
    learn(driven)
    driven.sign(key("a"), 50_000)  # 20 s
    driven.admit(job(key("b"), 1000, seconds=1.3)).release()  # 0.4 s, and as much of a twice
    with pytest.raises(CallError, match="what waits already"):
        driven.admit(job(key("b"), 1000, seconds=1.1))
    driven.admit(job(key("b"), 1000, seconds=1.1, weight=4)).release()
    driven.pool.suspend(HALTED, [])


def test_what_is_admitted_and_not_queued_is_backlog_of_its_owner(driven: Driven) -> None:
    learn(driven)
    admissions = [driven.admit(job(key("a"), 1000, seconds=1.25)) for _ in range(2)]
    with pytest.raises(CallError, match="what waits already"):
        driven.admit(job(key("a"), 1000, seconds=1.25))
    driven.admit(job(key("b"), 1000, seconds=1.25)).release()
    for admission in admissions:
        admission.release()
        admission.release()
    assert (driven.pool._scheduler.admitted, driven.pool._scheduler.backlog()) == (0, 0)
    driven.admit(job(key("a"), 1000, seconds=1.25)).release()


def test_batches_of_many_owners_that_come_at_once_are_ahead_of_each_other(driven: Driven) -> None:
    """None of them is queued yet: each waits until its intent is durable."""
    learn(driven)
    admitted = 0
    for facility in range(40):
        try:
            driven.admit(job(key(f"f{facility}"), 250, seconds=1.0))  # 0.1 s
            admitted += 1
        except CallError as error:
            assert error.reason is Reason.OVERLOADED
    assert admitted == 5, "what the HSM signs in half of the deadline"


ROOM = 60
ASKED = st.tuples(st.integers(0, 40), st.integers(1, 20), st.integers(0, 9).map(lambda n: not n))
SHARES = [(0, ROOM, False), *((n, ROOM // (n + 2), False) for n in range(1, 20))]
"""One owner fills the queue, and each of those who come takes its share of then."""


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(asked=st.lists(ASKED, min_size=1, max_size=100))
@example(asked=SHARES)
def test_whoever_comes_the_queue_has_at_most_twice_its_items(
    loop: EventLoop, asked: list[tuple[int, int, bool]]
) -> None:
    """Each job is one of an owner; some give back the oldest room before they come."""
    driven = Driven(loop, queued=ROOM)
    held: list[tuple[int, Admission]] = []
    for owner, count, frees in asked:
        if held and frees:
            held.pop(0)[1].release()
        waiting = driven.pool._scheduler.admitted
        own = sum(admission.room for who, admission in held if who == owner)
        owners = {who for who, _ in held} | {owner}
        try:
            held.append((owner, driven.admit(job(key(f"f{owner}"), count))))
        except CallError as error:
            assert error.reason is Reason.OVERLOADED
            assert waiting + count > ROOM
            assert waiting + count > 2 * ROOM or own + count > ROOM // (len(owners) + 1)
        assert driven.pool._scheduler.admitted <= 2 * ROOM
    for _, admission in held:
        admission.release()
    assert driven.pool._scheduler.admitted == 0


def test_owners_that_fill_the_queue_do_not_keep_another_out_of_its_share(loop: EventLoop) -> None:
    driven = Driven(loop, queued=1000)
    greedy = [driven.admit(job(key(f"g{number}"), 500)) for number in range(2)]
    for facility in ("g0", "g1"):
        with pytest.raises(CallError, match="wait already") as refused:
            driven.admit(job(key(facility), 1))
        assert refused.value.reason is Reason.OVERLOADED
    shares = [driven.admit(job(key("small"), 200)), driven.admit(job(key("late"), 100))]
    with pytest.raises(CallError, match="wait already"):
        driven.admit(job(key("small"), 200))
    for share in [*shares, *greedy]:
        share.release()
    assert driven.pool._scheduler.admitted == 0


# --- deadlines and callers that are gone -------------------------------------------------------


def test_at_its_deadline_a_batch_leaves_the_queue(driven: Driven) -> None:
    call = driven.sign(key("a"), 40, seconds=0.2)
    with pytest.raises(CallError, match="40 of 40 items were not signed") as refused:
        call.result(20)
    assert refused.value.reason is Reason.DEADLINE_TOO_SHORT
    assert driven.pool.waiting() == []
    driven.answer_all()
    assert len(driven.link.frames) == 2, "what was with the worker, and nothing after it"


def test_at_the_deadline_of_several_calls_those_that_are_signed_stay_so(driven: Driven) -> None:
    learn(driven)
    lot = job(key("a"), 40, seconds=0.2)._replace(cuts=list(range(1, 40)))
    [call] = driven.sign_together(lot)
    driven.answer()
    signed = call.result(20)
    late = signed.failures
    assert 0 < len(late) < 40
    assert set(late.values()) == {LATE}
    assert [bool(made) for made in signed.signatures] == [i not in late for i in range(40)]


def test_nothing_is_queued_after_its_deadline(driven: Driven) -> None:
    admission = driven.admit(job(key("a"), 3, seconds=0.05))
    time.sleep(0.1)
    with pytest.raises(CallError, match="3 of 3 items"):
        driven.later(admission).result(20)
    assert driven.link.frames == []


def test_what_a_caller_that_is_gone_left_is_not_signed(driven: Driven) -> None:
    other = key("b")
    gone, kept = driven.sign(key("a"), 500), driven.sign(other, 20)
    with_worker = sum(map(len, (part.inputs for f in driven.link.frames for part in f.parts)))
    assert gone.cancel()
    driven.settle()
    assert {waiting.owner for waiting in driven.pool.waiting()} <= {"b"}
    driven.answer_all()
    assert kept.result(20).failures == {}
    signed = [part for frame in driven.link.frames for part in frame.parts]
    of_gone = sum(len(part.inputs) for part in signed if part.cka_id != other.cka_id)
    assert of_gone <= with_worker < 500
    assert driven.pool._scheduler.admitted == 0


def test_cancelling_raises_in_the_waiting_task(driven: Driven) -> None:
    async def cancelled() -> bool:
        with driven.pool.admit(job(key("a"), 500)) as admission:
            task = asyncio.ensure_future(driven.pool.sign(admission))
            await asyncio.sleep(0.01)
            task.cancel()
            await asyncio.wait([task])
            return task.cancelled()

    assert driven.loop.run(cancelled())
    assert driven.pool.waiting() == []


def test_a_lost_chunk_of_a_caller_that_is_gone_goes_to_nobody(driven: Driven) -> None:
    gone, kept = driven.sign_together(job(key("a"), 5), job(key("b"), 5))
    gone.cancel()
    driven.settle()
    driven.die()
    assert [[part.cka_id for part in frame.parts] for frame in driven.link.frames] == [[b"b-0"]]
    driven.answer_all()
    assert kept.result(20).failures == {}


# --- what goes together ------------------------------------------------------------------------


def test_what_comes_in_one_round_goes_in_one_frame(driven: Driven) -> None:
    calls = driven.sign_together(*(job(key("abc"[n % 3]), 1) for n in range(6)))
    [frame] = driven.link.frames
    assert sum(len(part.inputs) for part in frame.parts) == 6
    assert {part.cka_id for part in frame.parts} == {b"a-0", b"b-0", b"c-0"}
    driven.answer()
    for call in calls:
        assert call.result(20) == Signed([SIGNATURE], {}, 1)
    [chunk] = driven.record.of(ChunkEnded)
    assert chunk.items == 6
    assert chunk.busy == pytest.approx(6 * BUSY_US / 1e6)


def test_one_version_has_one_part_whoever_called(driven: Driven) -> None:
    version = key("a")
    calls = driven.sign_together(*(job(version, 2) for _ in range(5)))
    [frame] = driven.link.frames
    assert [len(part.inputs) for part in frame.parts] == [10]
    driven.answer()
    for call in calls:
        assert call.result(20).signatures == [SIGNATURE] * 2


def test_a_busy_worker_gets_a_second_chunk_only_when_it_is_full(driven: Driven) -> None:
    learn(driven)
    first = driven.sign(key("a"), 1)
    more = [driven.sign(key("a"), 1) for _ in range(14)]
    assert len(driven.slot.in_flight) == 1
    more.append(driven.sign(key("a"), 1))
    assert [chunk.items for chunk in driven.slot.in_flight.values()] == [1, 15]
    last = driven.sign(key("a"), 100)
    assert len(driven.slot.in_flight) == 2, "two chunks are with a worker at most"
    driven.answer_all()
    assert all(call.result(20).failures == {} for call in (first, *more, last))


def test_idle_workers_share_what_waits(loop: EventLoop) -> None:
    driven = Driven(loop, workers=32)
    calls = driven.sign_together(*(job(key("a", number), 1) for number in range(16)))
    assert sorted(len(slot.in_flight) for slot in driven.slots) == [0] * 16 + [1] * 16
    driven.answer_all()
    calls += driven.sign_together(*(job(key("a"), 1) for number in range(80)))
    sizes = [chunk.items for slot in driven.slots for chunk in slot.in_flight.values()]
    assert sorted(sizes) == [2] * 16 + [3] * 16
    driven.answer_all()
    assert all(call.result(20).failures == {} for call in calls)


def test_each_part_has_its_own_verdict(driven: Driven) -> None:
    jobs = [job(key("a"), 2), job(key("b"), 2), job(key("c"), 2)]
    calls = driven.sign_together(*jobs)
    number, chunk = next(iter(driven.slot.in_flight.items()))
    one, two, three = answer_to(number, chunk).parts
    two = ResultPart(Verdict.NO_KEY, 0, 0, 0, (), b"")
    three = three._replace(wrong=(1,), checked=2)
    frame = ResultFrame(number, [one, two, three])
    driven.loop.call(driven.pool._dispatcher.result, driven.slot, frame)
    signed = [call.result(20) for call in calls]
    assert signed[0] == Signed([SIGNATURE] * 2, {}, 1)
    assert {failure.message for failure in signed[1].failures.values()} == {
        f"the HSM does not hold the key of {jobs[1].version.name}"
    }
    assert signed[2].signatures == [SIGNATURE, b""]
    assert list(signed[2].failures) == [1]
    [wrong] = driven.record.of(WrongSignatures)
    assert wrong.key_version == jobs[2].version.name
    with pytest.raises(CallError, match="wrong signature"):
        driven.admit(job(key("c"), 1))
    driven.admit(job(key("b"), 1)).release()


@pytest.mark.parametrize("wrong", ["chunk", "parts", "items"])
def test_a_result_that_fits_no_chunk_changes_nothing(driven: Driven, wrong: str) -> None:
    call = driven.sign_together(job(key("a"), 2), job(key("b"), 2))[0]
    number, chunk = next(iter(driven.slot.in_flight.items()))
    frame = answer_to(number, chunk)
    if wrong == "chunk":
        frame = frame._replace(chunk=number + 1)
    elif wrong == "parts":
        frame = frame._replace(parts=frame.parts[:1])
    else:
        frame = frame._replace(
            parts=[frame.parts[0], frame.parts[1]._replace(signatures=SIGNATURE)]
        )
    with pytest.raises(FrameError, match="belongs to no chunk"):
        driven.loop.call(driven.pool._dispatcher.result, driven.slot, frame)
    assert not call.done()
    driven.answer()
    assert call.result(20).failures == {}


# --- blame -------------------------------------------------------------------------------------


def parts_sent(driven: Driven) -> list[list[bytes]]:
    """The keys of each chunk that the present worker was sent."""
    return [[part.cka_id for part in frame.parts] for frame in driven.link.frames]


def test_what_was_packed_with_poison_does_not_fail(driven: Driven) -> None:
    calls = driven.sign_together(*(job(key("a", number), 1) for number in range(5)))
    for _ in range(20):
        if not driven.slot.in_flight:
            break
        first = next(iter(driven.slot.in_flight.values()))
        if any(part.version == key("a", 2) for part in first.parts):
            driven.die()
        else:
            driven.answer()
    signed = [call.result(20) for call in calls]
    assert [bool(each.failures) for each in signed] == [False, False, True, False, False]
    assert "two workers died" in signed[2].failures[0].message
    assert signed[2].attempts == 2


def test_after_a_death_each_portion_goes_alone(driven: Driven) -> None:
    driven.sign_together(job(key("a"), 2), job(key("b"), 1), job(key("c"), 1))
    driven.die()
    driven.sign_together(job(key("d"), 1), job(key("e"), 1))
    while driven.slot.in_flight:
        driven.answer()
    assert parts_sent(driven) == [[b"a-0"], [b"b-0"], [b"c-0"], [b"d-0", b"e-0"]]


def test_of_calls_that_are_one_job_only_the_one_with_the_poison_fails(driven: Driven) -> None:
    [call] = driven.sign_together(job(key("a"), 6)._replace(cuts=[1, 4]))
    for deaths in (0, 1):
        for _ in range(deaths):
            driven.answer()  # the first call's item
        driven.die()
    while driven.slot.in_flight:
        driven.answer()
    signed = call.result(20)
    assert signed.failures.keys() == {1, 2, 3}
    assert all("two workers died" in failure.message for failure in signed.failures.values())


def test_a_second_chunk_is_not_blamed_and_goes_on_as_it_was(driven: Driven) -> None:
    learn(driven)
    first = driven.sign(key("a"), 1)
    seconds = driven.sign_together(*(job(key("a", number), 1) for number in range(15)))
    assert len(driven.slot.in_flight) == 2
    for _ in range(2):  # the first one kills two workers
        driven.die()
    assert "two workers died" in first.result(20).failures[0].message
    driven.answer_all()
    assert [len(keys) for keys in parts_sent(driven)] == [15]
    assert {call.result(20).attempts for call in seconds} == {3}


def test_a_chunk_that_no_worker_got_is_not_blamed(driven: Driven) -> None:
    driven.link.open = False  # it has gone, and nobody knows yet
    call = driven.sign(key("a"), 1)
    driven.die()
    driven.die()
    driven.answer_all()
    assert call.result(20).failures == {}


def test_a_token_without_workers_fails_what_waits(driven: Driven) -> None:
    call = driven.sign(key("a"), 100)
    driven.slot.state = "failed"
    end = WorkerEnd(FailureKind.PIN_LATCHED, "the PIN is latched")
    driven.loop.call(driven.pool._dispatcher.lost, driven.slot)
    driven.loop.call(driven.pool._dispatcher.left, driven.slot, end, 1)
    assert {f.reason for f in call.result(20).failures.values()} == {Reason.HSM_UNAVAILABLE}
    assert driven.pool.reason == "the PIN is latched"
    assert driven.pool.pin_latched
    assert driven.pool.wait_for_outcome(0)[0] is FailureKind.PIN_LATCHED


# --- no worker serves ----------------------------------------------------------------------


def test_what_waits_fails_once_no_worker_has_served_for_long(driven: Driven) -> None:
    dispatcher = driven.pool._dispatcher
    driven.slot.state = "starting"
    call = driven.sign(key("a"), 3)
    driven.loop.call(dispatcher._look_for_service)
    assert not call.done(), "a worker may be back in a moment"
    dispatcher._served_at -= AWAY_SECONDS
    driven.loop.call(dispatcher._look_for_service)
    assert call.result(20).failures == dict.fromkeys(range(3), NOT_SERVING)
    assert driven.admit(job(key("a"), 1)).refused is NOT_SERVING
    assert driven.pool.reason == "starting"
    driven.loop.call(dispatcher.ready, driven.slot)
    assert driven.admit(job(key("a"), 1)).refused is None


def test_a_start_does_not_wait_for_a_token_that_hangs_while_another_serves(
    loop: EventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("signer.hsm.front.service.OTHERS_SECONDS", 0.0)
    serving, hung = Driven(loop, "t"), Driven(loop, "u")
    hung.slot.state = "starting"
    loop.call(serving.pool._dispatcher.ready, serving.slot)
    hsm = Hsm({"t": serving.pool, "u": hung.pool})
    assert hsm.wait_for_outcomes(1e9) == {"t": (None, ""), "u": (None, "starting")}
    assert (hsm.reasons(), hsm.away(), hsm.serving()) == ([], {"u": "starting"}, ["t"])
    serving.slot.state = "failed"
    assert hsm.reasons() == ["token t: starting", "token u: starting"]

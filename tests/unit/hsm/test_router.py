"""Which tokens sign a batch, and where goes what one of them loses."""

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from signer.errors import CallError, Reason
from signer.event_loop import EventLoop
from signer.events import BreakerClosed, BreakerOpened
from signer.hsm.frames import FrameKind, Verdict
from signer.hsm.front.breaker import LONGEST_PAUSE_SECONDS, PAUSE_SECONDS, Breaker, pauses
from signer.hsm.front.chunks import Signed
from signer.hsm.front.dispatcher import NOT_SERVING, TWO_WORKERS_DIED
from signer.hsm.front.router import LEAST_SHARE, NOT_HERE, divide
from signer.hsm.front.service import Hsm
from signer.hsm.front.slot import WorkerEnd
from signer.hsm.spec import FailureKind
from signer.model import KeyVersion, Placement, Suspended
from tests.unit.hsm.test_pool import HALTED, SIGNATURE, Driven, job, key

BOTH = replace(key("a"), other_placements=(Placement("u", b"on u"),))
ALONE = key("b")


class Pair:
    """Two tokens, t and u, whose workers answer when the test says so."""

    def __init__(self, loop: EventLoop) -> None:
        self.loop = loop
        self.tokens = {label: Driven(loop, label) for label in ("t", "u")}
        self.hsm = Hsm({label: each.pool for label, each in self.tokens.items()})
        self.t, self.u = self.tokens.values()

    def sign(self, version: KeyVersion, count: int) -> "Future[Signed]":
        admission = self.loop.call(self.hsm.admit, job(version, count))
        call = asyncio.run_coroutine_threadsafe(self.hsm.sign(admission), self.loop.loop)
        self.settle()
        return call

    def settle(self) -> None:
        for _ in range(3):
            self.t.settle()

    def at(self, count: int = 1) -> tuple[Driven, Driven, "Future[Signed]"]:
        """Signs so few that one token gets all: returns that, the other one, and the call."""
        call = self.sign(BOTH, count)
        here, other = (self.t, self.u) if self.t.slot.in_flight else (self.u, self.t)
        assert not other.slot.in_flight
        return here, other, call

    def lose(self, token: Driven) -> None:
        """The only worker of a token is lost, and none comes instead."""

        def lose() -> None:
            token.slot.state = "failed"
            token.pool._dispatcher.lost(token.slot)

        self.loop.call(lose)
        self.settle()

    def answer_all(self) -> None:
        for token in (self.t, self.u, self.t):
            token.answer_all()
        self.settle()

    def finish(self, *calls: "Future[Signed]") -> None:
        """Answers until all calls have ended."""
        for _ in range(10_000):
            if all(call.done() for call in calls):
                return
            self.answer_all()
        raise AssertionError("a call does not end")


@pytest.fixture
def pair(loop: EventLoop) -> Pair:
    return Pair(loop)


@pytest.fixture
def loop() -> Iterator[EventLoop]:
    loop = EventLoop()
    yield loop
    loop.close()


# --- which token ---------------------------------------------------------------------------


def test_tokens_without_work_take_turns_and_each_by_its_own_id(pair: Pair) -> None:
    calls = [pair.sign(BOTH, 1) for _ in range(2)]
    for token, cka_id in ((pair.t, b"a-0"), (pair.u, b"on u")):
        [frame] = token.link.frames
        assert [part.cka_id for part in frame.parts] == [cka_id]
    pair.answer_all()
    assert [call.result(20).signatures for call in calls] == [[SIGNATURE]] * 2


def test_the_token_with_less_work_signs(pair: Pair) -> None:
    waiting = pair.sign(ALONE, 40)  # only t holds it
    calls = [pair.sign(BOTH, 1) for _ in range(6)]
    assert sum(len(frame.parts) for frame in pair.u.link.frames) >= 1
    assert not any(part.cka_id == b"a-0" for f in pair.t.link.frames for part in f.parts)
    pair.finish(waiting, *calls)
    assert all(call.result(0).failures == {} for call in [waiting, *calls])


def test_a_large_batch_is_signed_by_both(pair: Pair) -> None:
    call = pair.sign(BOTH, 400)
    while not call.done():
        assert pair.t.slot.in_flight or pair.u.slot.in_flight
        pair.answer_all()
    assert call.result(0).signatures == [SIGNATURE] * 400
    shares = [sum(len(p.inputs) for f in d.link.frames for p in f.parts) for d in (pair.t, pair.u)]
    assert sum(shares) == 400
    assert min(shares) > 100


def test_a_key_of_no_token_here_fails_at_once_with_a_hint(pair: Pair) -> None:
    signed = pair.sign(key("a", label="elsewhere"), 2).result(20)
    assert set(signed.failures.values()) == {NOT_HERE}
    assert NOT_HERE.reason is Reason.HSM_UNAVAILABLE
    assert NOT_HERE.retry_after


def test_a_batch_that_is_refused_keeps_no_place_at_any_token(loop: EventLoop) -> None:
    pools = {label: Driven(loop, label, queued=150) for label in ("t", "u")}
    hsm = Hsm({label: each.pool for label, each in pools.items()})
    held = loop.call(hsm.admit, job(key("c", label="u"), 100))
    with pytest.raises(CallError, match="items wait already"):
        loop.call(hsm.admit, job(BOTH, 400))
    loop.call(held.release)
    for driven in pools.values():
        assert driven.pool._scheduler.admitted == 0


@given(
    count=st.integers(1, 5000),
    tokens=st.lists(st.tuples(st.floats(0, 30), st.floats(1, 10_000)), min_size=1, max_size=4),
)
def test_shares_add_up_and_none_is_tiny(count: int, tokens: list[tuple[float, float]]) -> None:
    ahead, rates = zip(*sorted(tokens), strict=True)
    shares = divide(count, ahead, rates)
    assert sum(shares) == count
    assert all(share == 0 or share >= min(LEAST_SHARE, count) for share in shares)


def test_shares_end_at_the_same_time() -> None:
    assert divide(1000, [0, 0], [100, 100]) == [500, 500]
    assert divide(1000, [0, 0], [300, 100]) == [750, 250]
    assert divide(1000, [0, 5], [100, 100]) == [750, 250]
    assert divide(1000, [0, 60], [100, 100]) == [1000, 0]


# --- what a token loses --------------------------------------------------------------------


def test_what_a_lost_worker_had_is_signed_by_the_other_token(pair: Pair) -> None:
    here, other, call = pair.at()
    pair.lose(here)
    assert [len(frame.parts) for frame in other.link.frames] == [1]
    other.answer_all()
    assert call.result(20) == Signed([SIGNATURE], {}, 2)
    assert here.record.of(BreakerOpened) == [BreakerOpened(here.pool.token)]


def test_what_waits_goes_with_it_and_what_the_other_lacks_waits_on(pair: Pair) -> None:
    alone = pair.sign(ALONE, 40)
    call = pair.sign(BOTH, 400)
    pair.lose(pair.t)
    assert {waiting.owner for waiting in pair.t.pool.waiting()} == {"b"}
    while not call.done():
        pair.u.answer_all()
        pair.settle()
    assert call.result(0).signatures == [SIGNATURE] * 400
    assert call.result(0).failures == {}
    assert not alone.done()
    pair.t.bring_up(pair.t.slot)
    pair.loop.call(pair.t.pool._dispatcher.wake)
    pair.finish(alone)
    assert alone.result(0).failures == {}


def test_an_item_that_kills_a_worker_of_each_token_fails(pair: Pair) -> None:
    here, other, call = pair.at()
    pair.lose(here)
    pair.lose(other)
    assert call.result(20).failures == {0: TWO_WORKERS_DIED}


def test_of_calls_that_are_one_job_only_the_one_with_the_poison_fails(pair: Pair) -> None:
    inputs = [bytes([i]) * 32 for i in range(5)]
    lot = job(BOTH, 5)._replace(inputs=inputs, cuts=[2, 3])  # the poison is the third item
    admission = pair.loop.call(pair.hsm.admit, lot)
    call = asyncio.run_coroutine_threadsafe(pair.hsm.sign(admission), pair.loop.loop)
    pair.settle()
    here, other = (pair.t, pair.u) if pair.t.slot.in_flight else (pair.u, pair.t)
    here.die()  # and another worker comes
    pair.settle()
    while not call.done():
        [token] = [each for each in (here, other) if each.slot.in_flight][:1]
        if inputs[2] in token.link.frames[-1].parts[0].inputs:
            token.die()
        else:
            token.answer()
        pair.settle()
    signed = call.result(20)
    assert (signed.failures, signed.attempts) == ({2: TWO_WORKERS_DIED}, 2)


@given(st.integers(1, 40), st.sets(st.integers(1, 39)), st.data())
def test_a_part_of_a_job_knows_its_calls(count: int, cut: set[int], data: st.DataObject) -> None:
    cuts = sorted(each for each in cut if each < count)
    whole = job(BOTH, count)._replace(inputs=[bytes([i]) for i in range(count)], cuts=cuts)
    call_of = {bytes([i]): sum(i >= each for each in cuts) for i in range(count)}
    indexes = sorted(data.draw(st.sets(st.integers(0, count - 1), min_size=1)))
    part = whole.some(indexes)
    assert part.inputs == [bytes([i]) for i in indexes]
    pieces = [part.inputs[start:stop] for start, stop in part.calls(0, len(part.inputs))]
    assert [item for piece in pieces for item in piece] == part.inputs
    calls = [{call_of[item] for item in piece} for piece in pieces]
    assert all(len(each) == 1 for each in calls)
    assert len(calls) == len(set.union(*calls))


def test_while_both_are_down_items_wait_and_are_signed_by_the_first_that_is_back(
    pair: Pair,
) -> None:
    call = pair.sign(BOTH, 400)
    here = pair.t if pair.t.slot.in_flight else pair.u
    other = pair.u if here is pair.t else pair.t
    pair.lose(other)
    pair.lose(here)
    assert not call.done()
    for token in (here, other):
        token.bring_up(token.slot)
        pair.loop.call(token.pool._dispatcher.wake)
        pair.settle()
    pair.finish(call)
    assert not set(call.result(0).failures.values()) - {TWO_WORKERS_DIED}
    assert len(call.result(0).failures) < 64


def test_what_one_token_lacks_or_refuses_the_other_signs(pair: Pair) -> None:
    for verdict in (Verdict.NO_KEY, Verdict.REFUSED):
        here, other, call = pair.at()
        here.answer(verdict=verdict, signatures=b"")
        pair.settle()
        other.answer_all()
        assert call.result(20).failures == {}


def test_a_wrong_signature_stops_the_key_at_its_token_and_the_other_signs(pair: Pair) -> None:
    here, other, call = pair.at()
    here.answer(wrong=(0,))
    pair.settle()
    other.answer_all()
    assert call.result(20) == Signed([SIGNATURE], {}, 2)
    for _ in range(4):
        again = pair.sign(BOTH, 1)
        assert not here.slot.in_flight
        other.answer_all()
        assert again.result(20).failures == {}
    # Where no other token has the key, it is stopped as ever.
    here, _, call = pair.at()
    here.answer(wrong=(0,))
    pair.settle()
    assert call.result(20).failures[0].reason is Reason.HSM_UNAVAILABLE
    with pytest.raises(CallError, match="returned a wrong signature"):
        pair.loop.call(pair.hsm.admit, job(BOTH, 1))


def test_a_stop_reaches_every_token_and_what_moves(pair: Pair) -> None:
    here, other, call = pair.at()
    pair.hsm.suspend(HALTED, [BOTH])
    for token, cka_id in ((pair.t, b"a-0"), (pair.u, b"on u")):
        [body] = token.link.of_kind(FrameKind.DROP)
        assert cka_id in body
    pair.lose(here)
    assert not other.link.frames
    assert {f.reason for f in call.result(20).failures.values()} == {Reason.KEY_VERSION_NOT_ACTIVE}
    pair.hsm.suspend(Suspended(), [])


def test_where_no_other_token_serves_items_wait_for_their_own(pair: Pair) -> None:
    pair.lose(pair.u)
    here, _, call = pair.at(count=1)
    assert here is pair.t
    pair.lose(pair.t)
    assert not call.done()


def test_items_fail_once_no_token_can_start(pair: Pair) -> None:
    pair.lose(pair.u)
    here, other, call = pair.at(count=1)
    pair.lose(here)
    for token in (other, here):
        end = WorkerEnd(FailureKind.TOKEN_ABSENT, "gone")
        pair.loop.call(token.pool._dispatcher.left, token.slot, end, 1)
        pair.settle()
    assert call.result(20).failures == {0: NOT_SERVING}
    signed = pair.sign(BOTH, 3).result(20)
    assert set(signed.failures.values()) == {NOT_SERVING}


# --- the breaker ---------------------------------------------------------------------------


def test_a_breaker_opens_with_the_last_worker_or_with_two_at_work() -> None:
    breaker = Breaker()
    assert not breaker.lost(at_work=False, serving=True)
    assert not breaker.lost(at_work=True, serving=True)
    breaker.signed()
    assert not breaker.lost(at_work=True, serving=True)
    assert breaker.lost(at_work=True, serving=True)
    assert breaker.is_open
    assert not breaker.lost(at_work=True, serving=False), "it is open already"
    assert Breaker().lost(at_work=False, serving=False)


def test_canaries_come_less_and_less_often_and_not_at_the_same_time_everywhere() -> None:
    drawn = [[pause for pause, _ in zip(pauses(), range(2000), strict=False)] for _ in range(5)]
    for each in drawn:
        assert PAUSE_SECONDS / 2 <= each[0] <= PAUSE_SECONDS
        assert all(LONGEST_PAUSE_SECONDS / 2 <= p <= LONGEST_PAUSE_SECONDS for p in each[3:])
    assert len({each[0] for each in drawn}) == 5


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Canaries follow each other at once."""
    monkeypatch.setattr("signer.hsm.front.breaker.PAUSE_SECONDS", 0.001)
    monkeypatch.setattr("signer.hsm.front.breaker.LONGEST_PAUSE_SECONDS", 0.001)


def until(pair: Pair, true: Callable[[], Any]) -> None:
    for _ in range(20_000):
        if pair.loop.call(true):
            return
        pair.settle()
    raise AssertionError("it does not become true")


@pytest.mark.usefixtures("quick")
def test_a_token_gets_work_again_once_it_has_signed_a_canary(pair: Pair) -> None:
    pair.loop.call(lambda: pair.loop.loop.create_task(keep(pair.t, BOTH)))
    pair.lose(pair.t)
    pair.t.link = pair.t.bring_up(pair.t.slot)
    until(pair, lambda: pair.t.slot.in_flight)
    [frame] = pair.t.link.frames
    [part] = frame.parts
    assert (part.cka_id, part.check_every, len(part.inputs)) == (b"a-0", 1, 1)
    # A canary that fails leaves it open; no other work comes.
    pair.t.answer(verdict=Verdict.REFUSED, signatures=b"")
    call = pair.sign(BOTH, 1)
    assert pair.u.slot.in_flight
    pair.u.answer_all()
    assert call.result(20).failures == {}
    until(pair, lambda: pair.t.slot.in_flight)
    assert pair.hsm.breakers_open() == ["t"]
    pair.t.answer()
    until(pair, lambda: not pair.t.pool.breaker.is_open)
    assert pair.hsm.breakers_open() == []
    assert pair.t.record.of(BreakerClosed) == [BreakerClosed("t")]


@pytest.mark.usefixtures("quick")
def test_a_token_without_a_key_that_may_sign_needs_no_canary(pair: Pair) -> None:
    pair.loop.call(lambda: pair.loop.loop.create_task(keep(pair.t)))
    pair.lose(pair.t)
    for _ in range(50):
        pair.settle()
    assert pair.t.pool.breaker.is_open, "no worker serves"
    pair.t.bring_up(pair.t.slot)
    until(pair, lambda: not pair.t.pool.breaker.is_open)


async def keep(token: Driven, *keys: KeyVersion) -> None:
    """Keeps a token's breaker, as its pool does once it is started."""
    pool = token.pool
    pool._keys = lambda: keys
    await pool.breaker.keep(pool._sign_canary, pool._work_again)


def test_a_wrong_signature_after_the_admission_sends_items_to_another_token() -> None:
    loop = EventLoop()
    pair = Pair(loop)
    admission = loop.call(pair.hsm.admit, job(BOTH, 1))
    assert admission.pool is not None
    loop.call(admission.pool._dispatcher._distrust, BOTH)
    signing = asyncio.run_coroutine_threadsafe(pair.hsm.sign(admission), loop.loop)
    while not signing.done():
        pair.settle()
        pair.answer_all()
    assert signing.result().failures == {}
    loop.close()

"""What a pool stops, with workers that answer when the test says so."""

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from signer.clock import SystemClock
from signer.errors import CallError, Reason
from signer.events import Events
from signer.hsm.frames import FrameKind, ResultFrame, Verdict, unpack_ids, unpack_sign
from signer.hsm.front.pool import COPIES_DROPPED_SINGLY, Admission, Pool
from signer.hsm.front.service import Hsm
from signer.hsm.front.slot import WorkerEnd
from signer.hsm.spec import FailureKind, TokenSpec
from signer.model import AUDIT_KEY, KeyName, KeyVersion, Signed, SignJob, Suspended
from tests.stand_ins import key_version

SIGNATURE = b"s" * 64
HALTED = Suspended(facilities={"a": "a is suspended"})


class FakeChannel:
    """Remembers what a worker was sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[FrameKind, bytes]] = []

    def send(self, kind: FrameKind, *parts: bytes) -> None:
        self.sent.append((kind, b"".join(parts)))

    def of_kind(self, kind: FrameKind) -> list[bytes]:
        return [body for sent, body in self.sent if sent is kind]


class Driven:
    """A pool with one fake worker, and callers in threads."""

    def __init__(self, threads: ThreadPoolExecutor, label: str = "t", queued: int = 10**6) -> None:
        spec = TokenSpec(label, None, "", "", "", session_copies=True, environment={})
        self.pool = Pool(
            spec,
            workers=1,
            hang_seconds=9.0,
            max_queued=queued,
            events=Events(),
            clock=SystemClock(),
        )
        self.channel = FakeChannel()
        [self.slot] = self.pool._slots
        self.slot.process = SimpleNamespace(channel=self.channel)  # type: ignore[assignment]
        self.slot.state = "serving"
        self._threads = threads

    def sign(self, key: KeyVersion, count: int) -> Future[Signed]:
        """Signs in a thread; returns when the batch is queued."""
        return self.submit(self.pool.admit(job(key, count)))

    def submit(self, admission: Admission) -> Future[Signed]:
        call = self._threads.submit(self.pool.sign, admission)
        until(lambda: call.done() or (not admission.room and self.slot.in_flight))
        return call

    def answer(self) -> None:
        """Answers the oldest chunk that the worker has."""
        until(lambda: self.slot.in_flight)
        number, chunk = next(iter(self.slot.in_flight.items()))
        blob = memoryview(SIGNATURE * len(chunk))
        busy_us = 400 * len(chunk)  # so that a chunk has 15 items, and a batch many chunks
        self.pool.result(self.slot, ResultFrame(number, Verdict.SIGNED, busy_us, 0, 64, (), blob))

    def answer_all(self) -> None:
        while self.slot.in_flight:
            self.answer()


def until(true: Any) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.001)


def key(facility: str, number: int = 0, label: str = "t") -> KeyVersion:
    return key_version(
        key=KeyName(facility, f"k{number}"), token=label, cka_id=f"{facility}-{number}".encode()
    )


def job(version: KeyVersion, count: int) -> SignJob:
    inputs = [bytes(32)] * count
    return SignJob(version, inputs, version.key.facility, 1, 1, time.monotonic() + 20)


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as made:
        yield made


@pytest.fixture
def driven(threads: ThreadPoolExecutor) -> Driven:
    return Driven(threads)


def messages(signed: Signed) -> set[str]:
    reasons = {failure.reason for failure in signed.failures.values()}
    assert reasons <= {Reason.KEY_VERSION_NOT_ACTIVE}
    return {failure.message for failure in signed.failures.values()}


def test_nothing_of_a_suspended_facility_leaves_after_it(driven: Driven) -> None:
    call = driven.sign(key("a"), 500)
    driven.answer()
    batch = next(iter(driven.slot.in_flight.values())).batch
    assert driven.pool.waiting(), "and others wait"
    driven.pool.suspend(HALTED, [key("a")])
    assert driven.pool.waiting() == []
    left = list(batch.signatures)
    sent = len(driven.channel.of_kind(FrameKind.SIGN))
    driven.answer_all()
    signed = call.result(20)
    assert signed.signatures == left
    assert 0 < left.count(SIGNATURE) < 100
    assert len(signed.failures) == left.count(b"")
    assert messages(signed) == {"a is suspended"}
    assert len(driven.channel.of_kind(FrameKind.SIGN)) == sent
    with pytest.raises(CallError, match="a is suspended") as refused:
        driven.pool.admit(job(key("a", 7), 1))
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
        driven.pool.admit(job(key("b"), 1))


def test_when_everything_is_suspended_only_the_audit_key_signs(driven: Driven) -> None:
    driven.pool.suspend(Suspended(everything="all is suspended"), [])
    with pytest.raises(CallError, match="all is suspended"):
        driven.pool.admit(job(key("a"), 1))
    audit = driven.sign(replace(key("b"), key=AUDIT_KEY), 1)
    driven.answer_all()
    assert audit.result(20).failures == {}


def test_a_chunk_of_a_suspended_facility_goes_to_no_second_worker(driven: Driven) -> None:
    call = driven.sign(key("a"), 10)
    driven.pool.suspend(HALTED, [key("a")])
    driven.pool.left(driven.slot, WorkerEnd(FailureKind.DIED, "it died", served=True), 0)
    assert messages(call.result(20)) == {"a is suspended"}
    assert len(driven.channel.of_kind(FrameKind.SIGN)) == 1


def test_lifting_a_suspension_leaves_a_stopped_key_stopped(driven: Driven) -> None:
    driven.pool.stop_keys({key("a"): "it is revoked", key("a", 1): ""})
    driven.pool.suspend(HALTED, [])
    driven.pool.suspend(Suspended(), [])
    with pytest.raises(CallError, match="it is revoked"):
        driven.pool.admit(job(key("a"), 1))
    with pytest.raises(CallError, match="is stopped"):
        driven.pool.admit(job(key("a", 1), 1))
    assert driven.pool.admit(job(key("a", 2), 1)).refused is None
    driven.pool.resume_keys([key("a"), key("a", 1)])
    assert driven.pool.admit(job(key("a"), 1)).refused is None
    assert driven.pool.admit(job(key("a", 1), 1)).refused is None


def test_many_keys_stop_in_one_pass_each_for_its_reason(driven: Driven) -> None:
    keys = [key("a", number) for number in range(6)]
    calls = [driven.sign(each, 150) for each in keys]
    asked: list[object] = []
    remove = driven.pool._scheduler.remove

    def remove_counted(wanted: Any) -> Any:
        asked.append(wanted)
        return remove(wanted)

    driven.pool._scheduler.remove = remove_counted  # type: ignore[method-assign]
    driven.pool.stop_keys({each: f"{each.key.key} stops" for each in keys[:5]})
    assert len(asked) == 1
    driven.answer_all()
    for each, call in zip(keys[:5], calls[:5], strict=True):
        assert messages(call.result(20)) == {f"{each.key.key} stops"}
    assert calls[5].result(20).failures == {}


@pytest.mark.parametrize("count", [0, 1, COPIES_DROPPED_SINGLY, COPIES_DROPPED_SINGLY + 1])
@pytest.mark.parametrize("how", ["suspend", "stop"])
def test_the_copies_of_what_stops_are_dropped(driven: Driven, count: int, how: str) -> None:
    stopped = [key("a", number) for number in range(count)]
    if how == "suspend":
        driven.pool.suspend(HALTED, stopped)
    else:
        driven.pool.stop_keys(dict.fromkeys(stopped, "stopped"))
    bodies = driven.channel.of_kind(FrameKind.DROP)
    if not count:
        assert bodies == []
        return
    [body] = bodies
    wanted = [each.cka_id for each in stopped] if count <= COPIES_DROPPED_SINGLY else []
    assert unpack_ids(memoryview(body)) == wanted


def test_dropping_copies_stops_nothing(driven: Driven) -> None:
    hsm = Hsm({"t": driven.pool})
    hsm.drop([key("a"), key("b")])
    [body] = driven.channel.of_kind(FrameKind.DROP)
    assert unpack_ids(memoryview(body)) == [b"a-0", b"b-0"]
    assert hsm.admit(job(key("a"), 1)).refused is None


def test_a_copy_that_was_made_behind_the_order_is_dropped_again(driven: Driven) -> None:
    call = driven.sign(key("a"), 10)
    driven.pool.suspend(HALTED, [key("a")])
    before = len(driven.channel.sent)
    driven.answer_all()
    call.result(20)
    [(kind, body)] = driven.channel.sent[before:]
    assert (kind, unpack_ids(memoryview(body))) == (FrameKind.DROP, [key("a").cka_id])


def test_a_suspension_holds_on_every_token_and_drops_copies_on_their_own(
    threads: ThreadPoolExecutor,
) -> None:
    pools = {label: Driven(threads, label) for label in ("t", "u")}
    hsm = Hsm({label: each.pool for label, each in pools.items()})
    hsm.suspend(HALTED, [key("a", 1, "t"), key("a", 2, "u")])
    for label, number in (("t", 1), ("u", 2)):
        with pytest.raises(CallError, match="a is suspended"):
            hsm.admit(job(key("a", number, label), 1))
        [body] = pools[label].channel.of_kind(FrameKind.DROP)
        assert unpack_ids(memoryview(body)) == [key("a", number).cka_id]
    hsm.suspend(Suspended(), [])
    hsm.stop_keys({key("a", 1, "t"): "one", key("a", 2, "u"): "two"})
    for label, number, text in (("t", 1, "one"), ("u", 2, "two")):
        with pytest.raises(CallError, match=text):
            hsm.admit(job(key("a", number, label), 1))
    hsm.resume_keys([key("a", 1, "t"), key("a", 2, "u")])
    for label, number in (("t", 1), ("u", 2)):
        assert hsm.admit(job(key("a", number, label), 1)).refused is None


def test_a_chunk_is_packed_with_its_items_only(driven: Driven) -> None:
    version = key("a")
    call = driven.sign(version, 40)
    driven.answer_all()
    assert call.result(20).failures == {}
    frames = [unpack_sign(memoryview(body)) for body in driven.channel.of_kind(FrameKind.SIGN)]
    assert sum(len(frame.inputs) for frame in frames) == 40
    assert {(frame.cka_id, frame.spki, frame.check_every) for frame in frames} == {
        (version.cka_id, version.spki, 1)
    }


# --- admission ---------------------------------------------------------------------------------


def test_what_is_admitted_and_not_yet_queued_takes_room_in_the_queue(
    threads: ThreadPoolExecutor,
) -> None:
    pool = Driven(threads, queued=100).pool
    with pool.admit(job(key("a"), 60)) as admission:
        assert admission.room == 60
        with pytest.raises(CallError, match="60 items wait already") as refused:
            pool.admit(job(key("b"), 41))
        assert refused.value.reason is Reason.OVERLOADED
        with pool.admit(job(key("b"), 40)):
            pass
    assert pool.admit(job(key("b"), 1000)).room == 1000, "all room is free again"


def test_room_is_given_back_once_whatever_happens(driven: Driven) -> None:
    with pytest.raises(ZeroDivisionError), driven.pool.admit(job(key("a"), 60)):
        raise ZeroDivisionError
    with driven.pool.admit(job(key("a"), 60)) as admission:
        call = driven.submit(admission)
        driven.answer_all()
        assert call.result(20).failures == {}
    assert driven.pool._reserved == 0


def test_an_admitted_job_whose_key_stops_before_it_is_queued_is_refused(driven: Driven) -> None:
    admission = driven.pool.admit(job(key("a"), 3))
    driven.pool.suspend(HALTED, [key("a")])
    with pytest.raises(CallError, match="a is suspended") as refused:
        driven.pool.sign(admission)
    assert refused.value.reason is Reason.KEY_VERSION_NOT_ACTIVE
    assert driven.channel.of_kind(FrameKind.SIGN) == []
    assert driven.pool._reserved == 0


def test_an_admitted_job_fails_where_the_token_serves_no_more(driven: Driven) -> None:
    admission = driven.pool.admit(job(key("a"), 3))
    driven.pool._halt("the token is stopped")
    for refused in (admission, driven.pool.admit(job(key("a"), 3))):
        signed = driven.pool.sign(refused)
        assert {failure.reason for failure in signed.failures.values()} == {Reason.HSM_UNAVAILABLE}
        assert (signed.signatures, signed.attempts) == ([b""] * 3, 0)


def test_an_empty_job_is_admitted_even_where_nothing_serves(driven: Driven) -> None:
    driven.pool.suspend(HALTED, [])
    assert driven.pool.admit(job(key("a"), 0)).refused is None

"""The core of ``sign_one``: no item lost, none twice, limits kept, whatever happens to calls."""

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from signer.client._cutting import BATCH_BYTES, LARGEST_BATCH, output_bound
from signer.client._errors import (
    DeniedError,
    ExhaustedError,
    InvalidRequestError,
    ItemError,
    UnavailableError,
)
from signer.client._gathering import SMALLEST, Gathering, Next, Parcel, Single
from signer.client._pipeline import Answer
from signer.errors import Violation
from signer.model import Format

CALLS = 2
LOST = UnavailableError("UNAVAILABLE", "UNAVAILABLE", "lost")
DENIED = DeniedError("PERMISSION_DENIED", "POLICY_DENIED", "no")
TOO_MANY = InvalidRequestError(
    "INVALID_ARGUMENT", "FIELD_INVALID", "", violations=[Violation("payloads", "has 9 items")]
)
TOO_LONG = ExhaustedError(
    "RESOURCE_EXHAUSTED",
    "RESOURCE_EXHAUSTED",
    "CLIENT: Sent message larger than max (5000000 vs. 4194304)",
)
DROPPED = ItemError("UNAVAILABLE", "HSM_UNAVAILABLE", "dropped", retry_after=0.5)
BAD = ItemError("INVALID_ARGUMENT", "PAYLOAD_INVALID", "bad")


def signed(parcel: Parcel, failures: dict[int, ItemError] | None = None) -> Answer:
    failures = failures or {}
    signatures = [
        b"" if index in failures else b"sig:" + payload
        for index, payload in enumerate(parcel.payloads)
    ]
    return Answer("version", signatures, failures, 7)


def core(limit: int = LARGEST_BATCH, calls: int = CALLS) -> Gathering:
    made = Gathering(Format.MESSAGE, calls=calls)
    made.limit_known(limit)
    return made


def add(gathering: Gathering, *payloads: bytes, deadline: float = 30.0) -> list[Single]:
    items = [Single(payload, deadline) for payload in payloads]
    for item in items:
        gathering.add(item)
    return items


def due(gathering: Gathering) -> Parcel:
    parcel = gathering.due()
    assert parcel is not None
    return parcel


def test_the_first_goes_at_once_and_the_rest_together() -> None:
    gathering = core()
    add(gathering, b"1")
    first = due(gathering)
    add(gathering, b"2")
    second = due(gathering)
    add(gathering, b"3", b"4", b"5")
    assert gathering.due() is None
    results = gathering.answered(first, signed(first), 1.0)
    assert [result for _, result in results.results] == [b"sig:1"]
    assert due(gathering).payloads == [b"3", b"4", b"5"]
    assert second.payloads == [b"2"]
    assert first.request_id != second.request_id


def test_until_the_limit_is_known_items_go_alone() -> None:
    gathering = Gathering(Format.MESSAGE)
    add(gathering, b"1")
    due(gathering)
    assert not gathering.asks_limit()
    add(gathering, b"2", b"3")
    assert due(gathering).payloads == [b"2"]
    assert gathering.asks_limit()
    assert not gathering.asks_limit()


@pytest.mark.parametrize(("allowed", "limit"), [(3, 3), (0, LARGEST_BATCH), (4096, LARGEST_BATCH)])
def test_a_call_has_no_more_items_than_allowed(allowed: int, limit: int) -> None:
    gathering = core(allowed)
    add(gathering, *[b"x"] * (2 * LARGEST_BATCH + 1))
    assert len(due(gathering).items) == limit


@pytest.mark.parametrize(
    ("there", "sizes"), [(1, [1]), (SMALLEST, [SMALLEST]), (40, [20, 20]), (33, [17, 16])]
)
def test_calls_share_what_is_there(there: int, sizes: list[int]) -> None:
    gathering = core()
    add(gathering, *[b"x"] * there)
    sent = [len(due(gathering).items) for _ in sizes]
    assert sent == sizes
    assert gathering.due() is None


def test_a_small_call_is_not_all_that_a_large_one_leaves() -> None:
    """As after the first item, which went alone."""
    gathering = core()
    add(gathering, b"x")
    first = due(gathering)
    add(gathering, *[b"x"] * 63)
    assert len(due(gathering).items) == 32
    assert gathering.due() is None
    gathering.answered(first, signed(first), 0.0)
    assert len(due(gathering).items) == 31


def test_a_call_that_is_lost_goes_again_as_it_is() -> None:
    gathering = core()
    short, _ = [*add(gathering, b"1", deadline=1.0), *add(gathering, b"2", deadline=30.0)]
    parcel = due(gathering)
    before = parcel.request_id, parcel.payloads
    then = gathering.failed(parcel, LOST, 0.999999)
    assert then.again is not None
    assert then.results == [(short, LOST)]  # its time is over before the next attempt
    assert (parcel.request_id, parcel.payloads) == before
    then = gathering.answered(parcel, signed(parcel), 2.0)
    assert [result for _, result in then.results] == [b"sig:2"]


def test_items_that_an_hsm_dropped_go_again_alone_under_another_id() -> None:
    gathering = core()
    one, two, three, four = add(gathering, b"1", b"2", b"3", b"4")
    four.deadline = 0.2
    parcel = due(gathering)
    first_id = parcel.request_id
    answer = signed(parcel, {1: DROPPED, 2: BAD, 3: DROPPED})
    then = gathering.answered(parcel, answer, 0.0)
    assert then.again is not None
    assert then.again >= 0.5
    assert then.results == [(one, b"sig:1"), (three, BAD), (four, DROPPED)]
    assert parcel.payloads == [b"2"]
    assert parcel.request_id != first_id
    assert gathering.answered(parcel, signed(parcel), 1.0) == Next([(two, b"sig:2")], None)


def test_a_refusal_that_holds_for_all_reaches_each() -> None:
    gathering = core()
    items = add(gathering, b"1", b"2")
    then = gathering.failed(due(gathering), DENIED, 0.0)
    assert then == Next([(item, DENIED) for item in items], None)


@pytest.mark.parametrize("error", [TOO_MANY, TOO_LONG])
def test_a_refusal_for_one_item_is_that_items(error: Exception) -> None:
    """The bad one is found by halves; the others are signed."""
    gathering = core()
    items = add(gathering, b"1", b"2", b"bad", b"4", b"5")
    results: dict[Single, Any] = {}
    while parcel := gathering.due():
        bad = b"bad" in parcel.payloads
        then = (
            gathering.failed(parcel, error, 0.0)
            if bad
            else gathering.answered(parcel, signed(parcel), 0.0)
        )
        assert then.again is None
        results.update(then.results)
    assert [results[item] for item in items] == [b"sig:1", b"sig:2", error, b"sig:4", b"sig:5"]
    assert not gathering.asks_limit()  # nothing waits


@pytest.mark.parametrize("lost", [True, False])
def test_what_may_have_been_signed_is_not_sent_under_another_id(lost: bool) -> None:
    busy = ExhaustedError("RESOURCE_EXHAUSTED", "OVERLOADED", "busy")
    gathering = core()
    items = add(gathering, b"1", b"2")
    parcel = due(gathering)
    assert gathering.failed(parcel, LOST if lost else busy, 0.0).again is not None
    then = gathering.failed(parcel, TOO_MANY, 1.0)
    assert then.results == ([(item, TOO_MANY) for item in items] if lost else [])
    assert (gathering.due() is None) == lost


def test_an_item_that_is_left_is_not_sent() -> None:
    gathering = core(calls=1)
    add(gathering, b"1")
    parcel = due(gathering)
    gone, _ = add(gathering, b"gone", b"3")
    assert gathering.leave(gone) is None
    gathering.answered(parcel, signed(parcel), 0.0)
    assert due(gathering).payloads == [b"3"]


def test_an_item_that_is_left_while_its_half_waits_is_not_sent() -> None:
    gathering = core()
    gone, *_ = add(gathering, b"gone", b"2", b"3", b"4")
    gathering.failed(due(gathering), TOO_MANY, 0.0)
    assert gathering.leave(gone) is None
    assert due(gathering).payloads == [b"2"]
    assert due(gathering).payloads == [b"3", b"4"]


def test_a_parcel_that_all_have_left_is_named() -> None:
    gathering = core()
    one, two = add(gathering, b"1", b"2")
    parcel = due(gathering)
    assert gathering.leave(one) is None
    assert gathering.leave(one) is None
    assert gathering.leave(two) is parcel
    assert gathering.left(parcel) == Next([], None)


class Machine(RuleBasedStateMachine):
    """Items come and go, calls end in every way, time passes: in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.core = Gathering(Format.MESSAGE, calls=CALLS)
        self.limit = 1
        self.now = 0.0
        self.items: list[Single] = []
        self.gone: set[Single] = set()
        self.results: Counter[Single] = Counter()
        self.flying: list[Parcel] = []
        self.pausing: list[Parcel] = []
        self.sent: dict[str, list[Single]] = {}
        self.signed_under: dict[Single, str] = {}

    def take(self, parcel: Parcel, then: Next) -> None:
        self.flying.remove(parcel)
        for item, result in then.results:
            assert item not in self.gone
            self.results[item] += 1
            if isinstance(result, bytes):
                assert result == b"sig:" + item.payload
        if then.again is not None:
            assert parcel.living
            self.pausing.append(parcel)
        self.send()

    def send(self) -> None:
        while parcel := self.core.due():
            self.fly(parcel)

    def fly(self, parcel: Parcel) -> None:
        self.flying.append(parcel)
        known = self.sent.setdefault(parcel.request_id, list(parcel.items))
        assert known == list(parcel.items)  # one id, one content
        assert len(parcel.items) <= self.limit
        if len(parcel.items) > 1:
            assert sum(map(len, parcel.payloads)) <= BATCH_BYTES
            assert (
                sum(output_bound(len(payload), Format.MESSAGE) for payload in parcel.payloads)
                <= BATCH_BYTES
            )

    @rule(
        sizes=st.lists(st.sampled_from([0, 1, 900_000, 2_000_000]), max_size=8),
        time=st.floats(0.1, 40),
    )
    def come(self, sizes: list[int], time: float) -> None:
        for size in sizes:
            item = Single(b"%d" % len(self.items) + bytes(size), self.now + time)
            self.items.append(item)
            self.core.add(item)
        self.send()

    @rule(allowed=st.sampled_from([0, 2, 3, 100]))
    def learn(self, allowed: int) -> None:
        self.core.limit_known(allowed)
        self.limit = max(self.limit, allowed or LARGEST_BATCH)

    @precondition(lambda self: self.items)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        item = data.draw(st.sampled_from(self.items))
        if not self.results[item]:
            self.gone.add(item)
        abandoned = self.core.leave(item)
        if abandoned is not None:
            assert abandoned.living == 0
            if abandoned in self.pausing:
                self.pausing.remove(abandoned)
                self.flying.append(abandoned)
            self.take(abandoned, self.core.left(abandoned))

    @precondition(lambda self: self.flying)
    @rule(data=st.data(), passed=st.floats(0, 3))
    def answer(self, data: st.DataObject, passed: float) -> None:
        self.now += passed
        parcel = data.draw(st.sampled_from(self.flying))
        failures = data.draw(
            st.dictionaries(
                st.integers(0, len(parcel.items) - 1), st.sampled_from([BAD, DROPPED]), max_size=3
            )
        )
        for index, item in enumerate(parcel.items):
            if self.signed_under.get(item) == parcel.request_id:
                failures.pop(index, None)  # it was signed: a repetition gives the same
            if index not in failures:
                assert item not in self.signed_under or self.signed_under[item] == parcel.request_id
                self.signed_under[item] = parcel.request_id
        self.take(parcel, self.core.answered(parcel, signed(parcel, failures), self.now))

    @precondition(lambda self: self.flying)
    @rule(
        data=st.data(),
        passed=st.floats(0, 3),
        error=st.sampled_from([LOST, DENIED, TOO_MANY, TOO_LONG]),
        signed_before=st.booleans(),
    )
    def fail(
        self, data: st.DataObject, passed: float, error: Exception, signed_before: bool
    ) -> None:
        self.now += passed
        parcel = data.draw(st.sampled_from(self.flying))
        if error is LOST and signed_before:  # only the answer was lost
            for item in parcel.items:
                assert self.signed_under.get(item, parcel.request_id) == parcel.request_id
                self.signed_under[item] = parcel.request_id
        self.take(parcel, self.core.failed(parcel, error, self.now))

    @precondition(lambda self: self.pausing)
    @rule()
    def repeat(self) -> None:
        self.fly(self.pausing.pop())

    @invariant()
    def calls_are_few(self) -> None:
        assert len(self.flying) + len(self.pausing) <= CALLS
        assert all(count == 1 for count in self.results.values())

    def teardown(self) -> None:
        while self.flying or self.pausing:
            self.flying += self.pausing
            self.pausing = []
            for parcel in list(self.flying):
                self.take(parcel, self.core.answered(parcel, signed(parcel), self.now))
        for item in self.items:
            assert self.results[item] == (0 if item in self.gone else 1)


TestMachine = settings(stateful_step_count=40, derandomize=True)(Machine).TestCase


@given(count=st.integers(0, 20), out=st.integers(0, 20), error=st.sampled_from([LOST, BAD]))
def test_a_close_ends_all_that_wait(count: int, out: int, error: Exception) -> None:
    gathering = core(limit=3)
    items = add(gathering, *[b"x"] * count)
    while out and gathering.due():
        out -= 1
    assert Counter(gathering.close(error)) == Counter((item, error) for item in items)
    assert gathering.due() is None

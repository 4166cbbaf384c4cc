from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from signer.audit.format.parse import parse
from signer.audit.format.record import (
    MAX_BODY,
    Column,
    Record,
    RecordError,
    RecordKind,
    Value,
    encode,
)
from signer.audit.read.ledger import MAX_REQUESTS, REQUEST_LIFE_US, WINDOW_SECONDS, Earlier, Ledger
from signer.officers.offline_check import MAX_OFFICERS_BYTES, ApprovalFold
from signer.officers.operation_memory import MAX_OPERATIONS
from signer.policy.lifetime import KeyItems, VersionCharge
from signer.policy.usage import Usage
from signer.policy.values import WINDOWS, Quota

MONDAY = 1_767_571_200  # 2026-01-05T00:00:00Z, seconds
START_US = MONDAY * 1_000_000
ISSUER = "spiffe://signer.example/facility/01-001"


def intent(
    seq: int,
    *,
    request_id: str = "",
    principal: str = ISSUER,
    facility: str = "01-001",
    key: str = "records",
    version: int = 1,
    items: int = 1,
    time_us: int = START_US,
    now: int = MONDAY,
) -> Record:
    fields: dict[str, Value] = {
        "principal": principal,
        "key_version": f"facilities/{facility}/keys/{key}/versions/{version}",
        "facility": facility,
        "request_id": request_id,
        "now": now,
    }
    return Record(seq, time_us, RecordKind.INTENT, fields, Column(32, bytes(32 * items)))


def closing(kind: RecordKind, seq: int, of: int, time_us: int = START_US) -> Record:
    return Record(seq, time_us, kind, {"intent": of})


def fold(records: Sequence[Record], ledger: Ledger | None = None) -> Ledger:
    ledger = ledger or Ledger()
    for record in records:
        ledger.apply(record)
    return ledger


@dataclass(frozen=True)
class Step:
    """What the next record is: an intent, or the closing of one of those that are open."""

    seconds: int
    set_back: int
    principal: str
    request_id: str
    facility: str
    version: int
    items: int
    closes: int | None
    lost: bool


# Steps as long as an hour, so that histories of 60 records outlive 24 hours.
STEPS = st.lists(
    st.builds(
        Step,
        seconds=st.sampled_from([0, 1, 30, 3000, 12_000]),
        set_back=st.sampled_from([0, 0, 0, 5, 90_000]),
        principal=st.sampled_from([ISSUER, "spiffe://signer.example/province/01"]),
        request_id=st.sampled_from(["", "a", "b", "c"]),
        facility=st.sampled_from(["01-001", "01-002"]),
        version=st.sampled_from([1, 1, 2]),
        items=st.integers(1, 5),
        closes=st.none() | st.integers(0, 3),
        lost=st.booleans(),
    ),
    max_size=60,
)


def history(steps: Sequence[Step]) -> list[Record]:
    records: list[Record] = []
    opened: list[int] = []
    time_us = START_US
    for step in steps:
        seq, time_us = len(records), time_us + step.seconds * 1_000_000
        if step.closes is not None and step.closes < len(opened):
            kind = RecordKind.INDETERMINATE if step.lost else RecordKind.OUTCOME
            records.append(closing(kind, seq, opened.pop(step.closes), time_us))
            continue
        opened.append(seq)
        records.append(
            intent(
                seq,
                request_id=step.request_id,
                principal=step.principal,
                facility=step.facility,
                version=step.version,
                items=step.items,
                time_us=time_us,
                now=time_us // 1_000_000 - step.set_back,
            )
        )
    return records


def loaded(fields: Mapping[str, Value], capacity: int = MAX_REQUESTS) -> Ledger:
    ledger = Ledger(capacity)
    ledger.apply(Record(7, START_US, RecordKind.SNAPSHOT, fields))
    return ledger


def reopened(ledger: Ledger, capacity: int = MAX_REQUESTS) -> Ledger:
    """The ledger after its snapshot went through the log as a record."""
    body, _ = encode(
        7, START_US, RecordKind.SNAPSHOT, {**ledger.snapshot(), "frontier": [bytes(32)]}
    )
    return loaded(parse(body).fields, capacity)


def known(ledger: Ledger, records: Sequence[Record], time_us: int) -> list[object]:
    """Everything that can be asked of a ledger about the requests in a history."""
    asked = sorted(
        {(str(r.fields["principal"]), str(r.fields["request_id"])) for r in records if r.column}
    )
    return [
        [ledger.find(principal, request_id, time_us) for principal, request_id in asked],
        len(ledger._open),
        ledger.windows(),
        ledger.totals(),
        ledger.keys(),
    ]


@given(STEPS, st.integers(0, 60), st.sampled_from([1, 2, 3, MAX_REQUESTS]))
def test_a_snapshot_and_the_rest_fold_to_the_same_as_all(
    steps: list[Step], cut: int, capacity: int
) -> None:
    records = history(steps)
    whole = fold(records, Ledger(capacity))
    before = fold(records[:cut], Ledger(capacity))
    continued = fold(records[cut:], reopened(before, capacity))
    assert continued.snapshot() == whole.snapshot()
    now = records[-1].time_us if records else START_US
    assert known(continued, records, now) == known(whole, records, now)


@given(STEPS, st.integers(0, 60))
def test_opening_from_a_snapshot_record_and_from_the_start_agree(
    steps: list[Step], cut: int
) -> None:
    records = history(steps)
    snapshot = Record(0, START_US, RecordKind.SNAPSHOT, fold(records[:cut]).snapshot())
    from_snapshot = fold([snapshot, *records[cut:]])
    from_start = fold([*records[:cut], snapshot, *records[cut:]])
    assert from_snapshot.snapshot() == from_start.snapshot() == fold(records).snapshot()


@given(STEPS)
def test_requests_are_those_that_a_plain_search_of_the_log_finds(steps: list[Step]) -> None:
    records = history(steps)
    now = records[-1].time_us if records else START_US
    closed = {r.fields["intent"]: r for r in records if r.kind is not RecordKind.INTENT}
    expected: dict[tuple[str, str], Earlier] = {}
    latest: dict[tuple[str, str], int] = {}  # when the remembered intent was written
    for record in records:
        if record.kind is RecordKind.INDETERMINATE:
            expected = {
                who: e for who, e in expected.items() if e.intent != record.fields["intent"]
            }
        if record.kind is not RecordKind.INTENT or not record.fields["request_id"]:
            continue
        who = (str(record.fields["principal"]), str(record.fields["request_id"]))
        if who in expected and record.time_us - latest[who] < REQUEST_LIFE_US:
            continue
        end = closed.get(record.seq)
        outcome = end.seq if end and end.kind is RecordKind.OUTCOME else None
        expected[who], latest[who] = Earlier(record.seq, outcome), record.time_us
    ledger = fold(records)
    for who in {(p, i) for p in (ISSUER, "spiffe://signer.example/province/01") for i in "abc"}:
        alive = who in expected and now - latest[who] < REQUEST_LIFE_US
        assert ledger.find(*who, now) == (expected[who] if alive else None)


@given(STEPS)
def test_restored_usage_is_what_was_charged(steps: list[Step]) -> None:
    quotas = tuple(Quota(10**6, seconds) for seconds in WINDOWS.values())
    charged, restored = Usage(), Usage()
    ledger = Ledger()
    latest = 0
    for record in history(steps):
        ledger.apply(record)
        if record.kind is RecordKind.INTENT and record.column:
            latest = max(latest, int(str(record.fields["now"])))
            facility, items = str(record.fields["facility"]), record.column.count
            number = int(str(record.fields["key_version"]).rpartition("/")[2])
            version = VersionCharge("records", number, items, limit=10**6)
            assert charged.charge(facility, quotas, items, latest, version) is None
    restored.restore(ledger.windows(), ledger.keys())
    for facility in ("01-001", "01-002"):
        for later in (0, 1, 60, 3600, 86_400):
            left = charged.remaining(facility, quotas, latest + later)
            assert restored.remaining(facility, quotas, latest + later) == left
        for number in (1, 2):
            signed = charged.signed(facility, "records", number)
            assert restored.signed(facility, "records", number) == signed
    assert restored.busiest(5) == charged.busiest(5)


def test_times_that_were_wrong_are_moved_to_the_present() -> None:
    """The same as ``policy.usage`` does, so that a restart finds the same."""
    years = 3 * 365 * 86_400
    wrong_us = START_US + years * 1_000_000
    usage, quotas = Usage(), [Quota(10, length) for length in (60, 86_400)]
    records = [
        intent(0, request_id="early", items=2, facility="other"),
        intent(1, request_id="late", items=4, time_us=wrong_us, now=MONDAY + years),
        closing(RecordKind.OUTCOME, 2, 1, wrong_us),
        Record(3, START_US + 1, RecordKind.CLOCK, {"wrong_from": 1, "right_until": START_US}),
    ]
    usage.charge("other", quotas, 2, MONDAY)
    usage.charge("01-001", quotas, 4, MONDAY + years)
    usage.set_back(MONDAY)
    ledger = fold(records)
    restored = Usage()
    restored.restore(ledger.windows(), {})
    for facility in ("other", "01-001"):
        for now in (MONDAY, MONDAY + 60, MONDAY + 86_400):
            left = usage.remaining(facility, quotas, now)
            assert restored.remaining(facility, quotas, now) == left
    # A request id lives for 24 hours from then on.
    assert ledger.find(ISSUER, "late", START_US + 2) == Earlier(1, 2)
    assert ledger.find(ISSUER, "late", START_US + 1 + REQUEST_LIFE_US) is None
    confirmed = Record(4, START_US + 9, RecordKind.CLOCK, {"wrong_from": 0, "right_until": 0})
    before = ledger.snapshot()
    ledger.apply(confirmed)
    assert ledger.snapshot() == before


def test_windows_are_those_that_quotas_may_have() -> None:
    assert set(WINDOW_SECONDS) == set(WINDOWS.values())


def test_request_in_flight_then_done() -> None:
    ledger = fold([intent(3, request_id="a")])
    assert ledger.find(ISSUER, "a", START_US) == Earlier(3, None)
    assert len(ledger._open) == 1
    ledger.apply(closing(RecordKind.OUTCOME, 4, of=3))
    assert ledger.find(ISSUER, "a", START_US) == Earlier(3, 4)
    assert len(ledger._open) == 0
    assert ledger.find(ISSUER, "b", START_US) is None
    assert ledger.find("spiffe://signer.example/other", "a", START_US) is None


def test_first_of_two_in_flight_under_one_id_counts() -> None:
    ledger = fold([intent(0, request_id="a"), intent(1, request_id="a")])
    assert ledger.find(ISSUER, "a", START_US) == Earlier(0, None)
    ledger.apply(closing(RecordKind.OUTCOME, 2, of=1))
    assert ledger.find(ISSUER, "a", START_US) == Earlier(0, None)
    ledger.apply(closing(RecordKind.OUTCOME, 3, of=0))
    assert ledger.find(ISSUER, "a", START_US) == Earlier(0, 3)


def test_indeterminate_request_may_be_signed_again() -> None:
    ledger = fold([intent(0, request_id="a"), closing(RecordKind.INDETERMINATE, 1, of=0)])
    assert ledger.find(ISSUER, "a", START_US) is None
    fold([intent(2, request_id="a"), closing(RecordKind.OUTCOME, 3, of=2)], ledger)
    assert ledger.find(ISSUER, "a", START_US) == Earlier(2, 3)


def test_request_lives_24_hours() -> None:
    ledger = fold([intent(0, request_id="a"), closing(RecordKind.OUTCOME, 1, of=0)])
    assert ledger.find(ISSUER, "a", START_US + REQUEST_LIFE_US - 1) == Earlier(0, 1)
    assert ledger.find(ISSUER, "a", START_US + REQUEST_LIFE_US) is None
    ledger.apply(intent(2, request_id="a", time_us=START_US + REQUEST_LIFE_US))
    assert ledger.find(ISSUER, "a", START_US + REQUEST_LIFE_US) == Earlier(2, None)


def test_outcome_of_a_request_that_expired_in_flight_is_passed_over() -> None:
    late = START_US + REQUEST_LIFE_US
    ledger = fold([intent(0, request_id="a"), intent(1, request_id="b", time_us=late)])
    assert len(ledger._open) == 1
    ledger.apply(closing(RecordKind.OUTCOME, 2, of=0, time_us=late))
    assert ledger.find(ISSUER, "a", late) is None


def test_intents_without_an_id_are_counted_and_not_remembered() -> None:
    ledger = fold([intent(0, items=5), closing(RecordKind.OUTCOME, 1, of=0)])
    assert ledger.find(ISSUER, "", START_US) is None
    assert ledger.totals() == {"01-001": {"records": 5}}


def test_keys_are_counted_over_their_versions_and_apart_from_each_other() -> None:
    records = [intent(0, items=2), intent(1, items=2, version=2), intent(2, key="other", items=7)]
    ledger = fold(records)
    assert ledger.totals() == {"01-001": {"records": 4, "other": 7}}
    versions = {"records": {1: 2, 2: 2}, "other": {1: 7}}
    assert {key: each.versions for key, each in ledger.keys()["01-001"].items()} == versions


def test_items_of_a_snapshot_that_knows_no_versions_count_for_each_of_them() -> None:
    """No version gets a new lifetime with an upgrade; of several, each seems to be older."""
    ledger = loaded({"requests": b"", "used": {"01-001": ROW_OF_NINE}})
    fold([intent(8, items=5, version=2)], ledger)
    counted = ledger.keys()["01-001"]["records"]
    assert [counted.of(number) for number in (1, 2, 3)] == [9, 14, 9]
    assert counted.total == 14
    assert reopened(ledger).keys() == ledger.keys()


@pytest.mark.parametrize("version", ["", "x", "0", "1" * 10, "-1", "\u0661"])
def test_items_of_a_version_that_has_no_number_count_for_each(version: str) -> None:
    fields = {**intent(0, items=3).fields, "key_version": f"facilities/f/keys/k/versions/{version}"}
    record = Record(0, START_US, RecordKind.INTENT, fields, Column(32, bytes(32 * 3)))
    assert fold([record]).keys() == {"01-001": {"k": KeyItems(3)}}


@pytest.mark.parametrize(
    ("said", "contradicts"),
    [
        ([[1, 4, 2, 6]], False),
        ([1], True),
        ([0], True),
        ([True], True),
        ([[1, 5, 2, 5]], True),  # what version 2 signed is said of version 1
        ([[1, 10]], True),
        ([[2, 6]], False),  # 4 of unknown versions count for both
        ([[]], False),
        (None, False),  # written by an earlier release
        ([[1, 4, 2]], True),
        ([[1, 4, 1, 6]], True),
        ([[1, 4, 2, 7]], True),  # more than the key has
        ([[1, 4, 2, -6]], True),
        ([[1, 4, 2, True]], True),
        ([], True),
        ("x", True),
    ],
)
def test_a_snapshot_may_say_more_of_a_version_and_never_less(
    said: Value, contradicts: bool
) -> None:
    ledger = fold([intent(0, items=4), intent(1, items=6, version=2)])
    fields = {**ledger.snapshot(), "versions": said}
    if said is None:
        del fields["versions"]
    assert ledger.contradicts(fields) == contradicts


def remembered(ledger: Ledger, principal: str, ids: range) -> list[int]:
    return [each for each in ids if ledger.find(principal, str(each), START_US)]


def test_one_principal_alone_takes_half_and_forgets_its_own_oldest() -> None:
    ledger = fold([intent(seq, request_id=str(seq)) for seq in range(100)], Ledger(capacity=60))
    assert remembered(ledger, ISSUER, range(100)) == list(range(70, 100))
    assert ledger.forgotten == 70


def test_a_flood_takes_nothing_from_others_and_makes_room_for_those_who_come() -> None:
    ledger = fold([intent(seq, principal="few", request_id=str(seq)) for seq in range(10)])
    ledger = loaded(ledger.snapshot(), capacity=100)
    for seq in range(1000):
        fold([intent(10 + seq, principal="flood", request_id=str(seq))], ledger)
    assert remembered(ledger, "few", range(10)) == list(range(10))
    assert remembered(ledger, "flood", range(1000)) == list(range(955, 1000))  # (100 - 10) / 2
    for seq in range(1000):
        fold([intent(2000 + 2 * seq, principal="other", request_id=str(seq))], ledger)
        fold([intent(2001 + 2 * seq, principal="flood", request_id=str(1000 + seq))], ledger)
    assert remembered(ledger, "few", range(10)) == list(range(10))
    for principal, ids in (("flood", range(2000)), ("other", range(1000))):
        held = remembered(ledger, principal, ids)
        assert 29 <= len(held) <= 31  # (100 - 10) / 3
        assert held == list(ids)[-len(held) :]


def test_where_all_is_taken_by_many_the_oldest_of_all_goes() -> None:
    seqs = range(50)
    ledger = fold(
        [intent(seq, principal=str(seq), request_id="a") for seq in seqs], Ledger(capacity=20)
    )
    known = [seq for seq in seqs if ledger.find(str(seq), "a", START_US)]
    assert known == list(range(30, 50))


def test_a_request_that_made_room_in_flight_is_passed_over() -> None:
    ledger = fold([intent(seq, request_id=str(seq)) for seq in range(3)], Ledger(capacity=2))
    assert len(ledger._open) == 1
    ledger.apply(closing(RecordKind.OUTCOME, 3, of=0))
    ledger.apply(closing(RecordKind.INDETERMINATE, 4, of=1))
    ledger.apply(closing(RecordKind.OUTCOME, 5, of=2))
    assert remembered(ledger, ISSUER, range(3)) == [2]


def test_memory_is_bounded_over_many_days() -> None:
    ledger = Ledger(capacity=100)
    for seq in range(5000):
        time_us = START_US + seq * 60_000_000  # one a minute: 1,440 in 24 hours
        ledger.apply(intent(seq, request_id=str(seq), time_us=time_us))
        assert len(ledger._requests) <= 50
        assert len(ledger._open) <= 50
    assert ledger.forgotten == 4950
    assert len(ledger._held) == 1


def test_room_is_made_for_nothing_that_is_expired_or_known() -> None:
    ledger = fold([intent(seq, request_id=str(seq)) for seq in range(10)], Ledger(capacity=20))
    ledger.apply(intent(10, request_id="3"))
    ledger.apply(intent(11, request_id="new", time_us=START_US + REQUEST_LIFE_US))
    assert ledger.forgotten == 0
    assert len(ledger._requests) == 1


def full_control() -> ApprovalFold:
    """As many operations and officers as are known at once: they share the record."""
    control = ApprovalFold()
    officers: list[Value] = [
        [f"{n:0512d}", bytes(MAX_OFFICERS_BYTES // 96 - 512)] for n in range(96)
    ]
    first: dict[str, Value] = {"officers": officers, "policy": bytes(32), "development": False}
    control.apply(Record(0, START_US, RecordKind.OFFICERS, first))
    assert control.problems == ()
    for number in range(MAX_OPERATIONS + 1):
        fields: dict[str, Value] = {"operation": str(UUID(int=number)), "content": b""}
        control.apply(Record(number + 1, START_US, RecordKind.EXECUTION, fields))
    return control


def test_full_ledger_fits_into_one_record_and_comes_back() -> None:
    ledger = Ledger()
    for number in range(15_000):
        facility = f"{number:063d}"
        ledger.apply(intent(number, facility=facility, key="k" * 63, items=1000))
    for number in range(MAX_REQUESTS):
        principal = f"spiffe://signer.example/{number % 15_000:0300d}"
        ledger.apply(intent(15_000 + number, principal=principal, request_id=str(number)))
    both = {**ledger.snapshot(), **full_control().snapshot()}
    body, _ = encode(200_000, START_US, RecordKind.SNAPSHOT, {**both, "frontier": [bytes(32)] * 64})
    assert len(body) < MAX_BODY
    assert loaded(parse(body).fields).snapshot() == ledger.snapshot()


ROW_OF_NINE: Value = [MONDAY, [9, 9, 9, 9], {"records": 9}]
ROW: Value = [MONDAY, [1, 1, 1, 1], {"records": 1}]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"requests": "", "used": {}},
        {"requests": bytes(55), "used": {}},
        {"requests": b"", "used": []},
        {"requests": b"", "used": {"f": [1, [1, 1, 1], {}]}},
        {"requests": b"", "used": {"f": [1, [1, 1, 1, "1"], {}]}},
        {"requests": b"", "used": {"f": [1, [1, 1, 1, 1], {"k": "1"}]}},
        {"requests": b"", "used": {"f": "row"}},
        {"requests": b"", "used": {"f": [1, [1, 1, 1, 1], {"k": 1}]}, "versions": []},
        {"requests": b"", "used": {"f": [1, [1, 1, 1, 1], {"k": 1}]}, "versions": [[1, 2]]},
        {"requests": b"", "used": {"f": [1, [1, 1, 1, 1], {"k": 1}]}, "versions": [[0, 1]]},
        {"requests": b"", "used": {"f": [1, [1, 1, 1, 1], {"k": 1}]}, "versions": ["11"]},
    ],
)
def test_snapshot_that_holds_no_ledger_is_refused(fields: Mapping[str, Value]) -> None:
    with pytest.raises(RecordError):
        loaded(fields)
    assert loaded({"requests": b"", "used": {"f": ROW}}).totals() == {"f": {"records": 1}}


@pytest.mark.parametrize("name", ["principal", "facility", "now", "request_id", "key_version"])
def test_intent_with_a_field_of_another_type_is_refused(name: str) -> None:
    good = intent(0, request_id="a")
    bad = Record(0, START_US, RecordKind.INTENT, {**good.fields, name: [1]}, good.column)
    with pytest.raises(RecordError, match=name):
        Ledger().apply(bad)


def test_other_kinds_say_nothing_here() -> None:
    ledger = fold(
        [
            Record(0, START_US, kind, {})
            for kind in (RecordKind.START, RecordKind.STOP, RecordKind.WORKER)
        ]
    )
    assert ledger.snapshot() == Ledger().snapshot()

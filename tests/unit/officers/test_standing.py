"""What the log holds of versions and suspensions: written, read, added up, packed."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from signer.audit.format.parse import parse
from signer.audit.format.record import Record, RecordError, RecordKind, Value, encode
from signer.key_index import KeyIndex
from signer.keys.registry import RegistryState
from signer.model import KeyName, KeyState, KeyVersion, Scope, Suspension
from signer.officers.keys_record import KeysRecord, VersionRow, baseline_fields
from signer.officers.offline_check import ApprovalFold
from signer.officers.records import ApprovedOperation
from signer.officers.standing import standing_of
from signer.officers.standing_fold import StandingFold
from tests.stand_ins import key_version
from tests.unit.officers.test_offline_check import History, Operation

TIMES = st.none() | st.floats(-1e300, 1e300) | st.floats(1e9, 2e9) | st.just(-1e-6)
VERSIONS = st.builds(
    lambda number, state, came_from, times, certificate: key_version(
        number=number,
        state=state,
        came_from=came_from,
        activate_at=times[0],
        sign_until=times[1],
        deactivate_at=times[2],
        destroy_at=times[3],
        certificate=certificate,
        revision=number + 7,
    ),
    st.integers(1, 9),
    st.sampled_from(KeyState),
    st.none() | st.sampled_from(KeyState),
    st.tuples(TIMES, TIMES, TIMES, TIMES),
    st.none() | st.binary(max_size=9),
)
OPERATION = "6a9b7d3e-0000-4000-8000-000000000001"


def record(fields: dict[str, Value], kind: RecordKind = RecordKind.KEYS) -> Record:
    return parse(encode(0, 0, kind, fields)[0])


def state(*versions: KeyVersion, flags: tuple[Suspension, ...] = ()) -> RegistryState:
    return RegistryState(KeyIndex(versions, 5), {}, flags, None, deployment="d" * 32)


@given(VERSIONS)
def test_a_record_gives_the_standing_of_a_version(version: KeyVersion) -> None:
    [fields] = KeysRecord(5, [VersionRow.of(version)]).to_fields(1000.0)
    rows: Any = record(fields).fields["versions"]
    [row] = rows
    read = VersionRow.read(row)
    assert read == (version.name, version.cka_id, standing_of(version))
    assert read.standing.version().state_at(1e9) is read.standing.state_at(10**15)


def lifting() -> tuple[StandingFold, Operation, list[Record]]:
    """A fold whose log knows officers, and an operation of theirs that lifts a suspension."""
    history = History()
    history.named = "d" * 32
    operation = history.propose("resume", target="groups/01", since=3_250_000)
    approvals = ApprovalFold()
    for each in history.records:
        approvals.apply(each)
    return StandingFold(approvals), operation, history.records


@given(st.lists(VERSIONS, max_size=5, unique_by=lambda version: version.number))
def test_a_snapshot_holds_what_the_records_come_to(versions: list[KeyVersion]) -> None:
    flags = (Suspension(Scope.GROUP, "01", 3.25, "o", "r"),)
    fold, operation, records = lifting()
    for part in baseline_fields(state(*versions, flags=flags), 1000.0, development=False):
        fold.apply(record(part))
    assert fold.flags == {("group", "01"): 3_250_000}
    used = ApprovedOperation.from_fields(operation.approved())
    changed = KeysRecord(6, lifted={("group", "01"): 3_250_000}, approved=used)
    [fields] = changed.to_fields(1000.0)
    fold.apply(record(fields)._replace(time_us=records[-1].time_us))
    assert fold.problems == []
    loaded = StandingFold(ApprovalFold())
    snapshot = record(fold.snapshot(), RecordKind.SNAPSHOT)
    loaded.apply(snapshot)
    assert loaded.snapshot() == fold.snapshot()
    assert (loaded.deployment, loaded.revision, loaded.flags) == ("d" * 32, 6, {})
    assert loaded.standings.has_used(operation.id)
    assert loaded.standings.checked(operation.id, operation.content)
    assert not loaded.standings.checked(operation.id, b"other bytes")
    assert len(loaded.standings.rows) == len(versions)
    for version in versions:
        assert loaded.standings.get(version.name) == standing_of(version)
    fold.check(snapshot)


def test_a_snapshot_that_says_something_else_is_refused() -> None:
    fold = StandingFold(ApprovalFold())
    for part in baseline_fields(state(key_version()), 1000.0, development=False):
        fold.apply(record(part))
    said: Any = fold.snapshot()["standings"]
    older: Any = {name: value for name, value in said.items() if name != "places"}
    fold.check(record({"standings": older}, RecordKind.SNAPSHOT))
    loaded = StandingFold(ApprovalFold())
    loaded.apply(record({"standings": older}, RecordKind.SNAPSHOT))
    known = loaded.standings.get(key_version().name)
    assert known is not None
    assert known == standing_of(key_version())._replace(place=b"")
    assert known.same(standing_of(key_version()))
    for name in said:
        other = said[name] + 1 if name == "revision" else b"x" + bytes(said["versions"])
        changed: Any = {"standings": {**said, name: other}}
        nothing: dict[str, Value] = {}
        for fields in (changed, nothing):
            with pytest.raises(RecordError, match=r"the standings|places cannot be read"):
                fold.check(record(fields, RecordKind.SNAPSHOT))


def test_many_versions_take_several_records_and_each_has_the_approval() -> None:
    versions = [VersionRow.of(key_version(key=KeyName("f", f"k{n}"))) for n in range(201)]
    used = ApprovedOperation(OPERATION, b"bytes")
    parts = list(KeysRecord(5, versions, approved=used).to_fields(1000.0))
    assert [part["changes"] for part in parts] == [100, 100, 1], (
        "callers wait while one is added up"
    )
    assert {part["content"] for part in parts} == {b"bytes"}
    assert {part["operation"] for part in parts} == {OPERATION}


def test_parts_of_a_baseline_follow_each_other_and_come_once() -> None:
    versions = [key_version(key=KeyName("f", f"k{n}")) for n in range(2001)]
    parts = baseline_fields(state(*versions), 1000.0, development=False)
    fold = StandingFold(ApprovalFold())
    for part in (parts[0], parts[2], parts[1], parts[2], parts[1], parts[2], parts[0]):
        fold.apply(record(part))
    assert len(fold.standings.rows) == 2001
    wrong = [text.partition(": ")[2] for text in fold.problems]
    assert wrong == [
        "part 3 of a baseline does not continue one: it is not taken",
        "part 2 of a baseline does not continue one: it is not taken",
        "part 3 of a baseline does not continue one: it is not taken",
        "states are taken as given again: it is not taken",
    ]


def test_records_from_before_say_nothing() -> None:
    fold = StandingFold(ApprovalFold())
    fold.apply(record({"registry_revision": 3, "changed": {"n": "ACTIVE"}, "changes": 1}))
    fold.apply(record({}, RecordKind.SNAPSHOT))
    assert (len(fold.standings.rows), fold.snapshot(), fold.deployment) == (0, {}, "")

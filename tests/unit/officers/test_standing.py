"""What the log holds of versions and suspensions: written, read, added up, packed."""

from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from signer.audit.format.parse import parse
from signer.audit.format.record import Record, RecordKind, Value, encode
from signer.keys.registry import RegistryState
from signer.model import KeyIndex, KeyName, KeyState, KeyVersion, Scope, Suspension
from signer.officers.records import ApprovedOperation
from signer.officers.standing import (
    KeysRecord,
    StandingFold,
    baseline_fields,
    read_row,
    standing_of,
)
from tests.stand_ins import key_version

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
    [fields] = KeysRecord(5, [version]).to_fields(1000.0)
    rows: Any = record(fields).fields["versions"]
    [row] = rows
    assert read_row(row) == (version.name, standing_of(version))


@given(VERSIONS)
def test_a_version_at_its_own_standing_is_itself(version: KeyVersion) -> None:
    standing = standing_of(version)
    again = standing.of(replace(version, state=KeyState.DESTROYED, activate_at=1.0))
    assert standing_of(again) == standing


@given(st.lists(VERSIONS, max_size=5, unique_by=lambda version: version.number))
def test_a_snapshot_holds_what_the_records_come_to(versions: list[KeyVersion]) -> None:
    flags = (Suspension(Scope.GROUP, "01", 3.25, "o", "r"),)
    fold = StandingFold()
    for part in baseline_fields(state(*versions, flags=flags), 1000.0, development=False):
        fold.apply(record(part))
    used = ApprovedOperation(OPERATION, b"bytes")
    changed = KeysRecord(6, lifted={("group", "01"): 3_250_000}, approved=used)
    [fields] = changed.to_fields(1000.0)
    assert fold.flags == {("group", "01"): 3_250_000}
    fold.apply(record(fields))
    loaded = StandingFold()
    loaded.apply(record(fold.snapshot(), RecordKind.SNAPSHOT))
    assert loaded.snapshot() == fold.snapshot()
    assert (loaded.deployment, loaded.revision, loaded.flags) == ("d" * 32, 6, {})
    assert loaded.used(OPERATION)
    assert loaded.checked(OPERATION, b"bytes")
    assert not loaded.checked(OPERATION, b"other bytes")
    assert len(loaded) == len(versions)
    for version in versions:
        assert loaded.standing(version.name) == standing_of(version)


def test_many_versions_take_several_records_and_one_approval() -> None:
    versions = [key_version(key=KeyName("f", f"k{n}")) for n in range(2001)]
    used = ApprovedOperation(OPERATION, b"bytes")
    parts = list(KeysRecord(5, versions, approved=used).to_fields(1000.0))
    assert [part["changes"] for part in parts] == [1000, 1000, 1]
    assert ["content" in part for part in parts] == [True, False, False]
    assert {part["operation"] for part in parts} == {OPERATION}
    fold = StandingFold()
    for part in parts:
        fold.apply(record(part))
    assert len(fold) == 2001


def test_records_from_before_say_nothing() -> None:
    fold = StandingFold()
    fold.apply(record({"registry_revision": 3, "changed": {"n": "ACTIVE"}, "changes": 1}))
    fold.apply(record({}, RecordKind.SNAPSHOT))
    assert (len(fold), fold.snapshot(), fold.deployment) == (0, {}, "")

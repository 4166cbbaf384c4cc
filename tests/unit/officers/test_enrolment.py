"""Many facilities from a CSV: every mistake in it, what it makes, and its interruptions."""

import hashlib
from typing import Any

import pytest

from signer.errors import CallError
from signer.model import KeyState
from signer.officers.kinds.enrolment import MAX_ROWS
from signer.officers.store import OperationState
from tests.unit.officers.opstage import CLINIC, Stage
from tests.unit.officers.people import C
from tests.unit.officers.softtoken import Crash

HEAD = "facility,group,profile,clients,key,algorithm,bits"
CLIENT = "spiffe://signer.example/facility/n-1"


def row(**changed: str) -> str:
    """A good line but for what a test changes."""
    cells = {
        "facility": "n-1",
        "group": "01",
        "profile": "clinic",
        "clients": CLIENT,
        "key": "records",
        "algorithm": "ES256",
        "bits": "",
    }
    return ",".join((cells | changed).values())


def table(*rows: str, head: str = HEAD) -> bytes:
    return "\n".join((head, *rows, "")).encode()


def facilities(count: int) -> bytes:
    rows = [
        row(facility=f"n-{n}", clients=f"spiffe://signer.example/facility/n-{n}")
        for n in range(count)
    ]
    return table(*rows)


def test_facilities_are_enrolled(stage: Stage) -> None:
    content = table(row(), row(key="second", algorithm="EdDSA"), row(facility="n-2", group=""))
    shown = stage.prepare("enrol", content).difference
    assert shown[:2] == [
        f"+ 2 facilities in the policy, in the new file {name_of(content)}",
        "+ 3 keys on token soft, ACTIVE at once",
    ]
    assert f"+ 2 keys with profile clinic, group 01, for {CLIENT}" in shown
    assert "+ facilities/n-1/keys/records, ES256" in shown
    assert f"+ facility n-1, profile clinic, group 01, for {CLIENT}" in shown
    assert f"+ facility n-2, profile clinic, for {CLIENT}, rules as facility n-1" in shown
    assert "+ facility n-1: quotas 200 per second" in shown
    operation = stage.done("enrol", content)
    assert operation.result == {"policy_sha256": stage.snapshot.policy.sha256, "keys": 3}
    assert (operation.done, operation.total) == (3, 3)
    assert stage.states("facilities/n-1/keys/second") == ["ACTIVE"]
    assert stage.snapshot.policy.facilities["n-1"].clients == {CLIENT}
    assert stage.snapshot.policy.facilities["n-2"].terms.group is None
    assert stage.snapshot.policy.groups["01"].facilities == frozenset()
    file = (stage.policy / name_of(content)).read_text()
    assert file.startswith("# Facilities that were enrolled")


def name_of(content: bytes) -> str:
    return f"enrolled-{hashlib.sha256(content).hexdigest()[:16]}.yaml"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "the first line must be facility,group"),
        (table(row(), head="facility;group"), "the first line must be"),
        (table(row(), head=HEAD.upper()), "the first line must be"),
        (table(), "has 0 rows"),
        (table(row() + ",x"), "line 2: has 8 cells, expected 7"),
        (table("n-1"), "line 2: has 1 cell"),
        (table(row(facility="N-1")), "line 2: facility must have 1 to 63"),
        (table(row(facility="")), "line 2: facility must have 1 to 63"),
        (table(row(facility="_audit")), "line 2: facility must have 1 to 63"),
        (table(row(facility="../../x")), "line 2: facility must have 1 to 63"),
        (table(row(facility="=1+1")), "line 2: facility must have 1 to 63"),
        (table(row(key="a" * 64)), "line 2: key must have 1 to 63"),
        (table(row(group="99")), "line 2: group 99 is not in the policy"),
        (table(row(group="=cmd()")), "line 2: group =cmd() is not in the policy"),
        (table(row(profile="hospital")), "facilities.n-1.profile"),
        (table(row(profile="🏥")), "facilities.n-1"),
        (table(row(profile='"a: [b"')), "facilities.n-1.profile"),
        (table(row(profile="border")), "n-1/keys/records signs HCERT"),
        (table(row(clients="")), "line 2: clients is empty"),
        (table(row(clients="=HYPERLINK(1)")), "is not a principal"),
        (table(row(clients="spiffe://signer.example/*")), "is not a principal"),
        (table(row(clients="spiffe://signer.example/é")), "is not a principal"),
        (table(row(clients=f"{CLIENT} {CLIENT}")), " twice"),
        (table(row(algorithm="es256")), "line 2: algorithm must be one of"),
        (table(row(algorithm="ES384")), "line 2: ES384 is not allowed with profile clinic"),
        (table(row(bits="256")), "line 2: ES256 has a fixed key length"),
        (table(row(algorithm="PS256")), "line 2: PS256 needs a modulus"),
        (table(row(algorithm="PS256", bits="99")), "line 2: PS256 needs a modulus"),
        (table(row(bits="1e3")), "line 2: bits is not a number"),
        (table(row(bits="²")), "line 2: bits is not a number"),
        (table(row(bits="123456")), "line 2: bits is not a number"),
        (table(row(), row()), "line 2: facilities/n-1/keys/records is in the file twice"),
        (table(row(), row(key="b", group="02")), "line 3: facility n-1 has another group"),
        (table(row(), row(key="b", profile="x")), "line 3: facility n-1 has another group"),
        (table(row(), row(key="b", clients="c")), "line 3: facility n-1 has another group"),
        (table(row(facility="01-001")), "line 2: facility 01-001 is in the policy already"),
        (table(row(), '"n-2,01'), "is not a CSV in UTF-8"),
        (table(row(), 'n-2,"0"1'), "is not a CSV in UTF-8"),
        (table(row()).decode().encode("utf-16"), "is not a CSV in UTF-8"),
        (b"\xff" + table(row()), "is not a CSV in UTF-8"),
        (table(row(clients="x" * 200_000)), "is not a CSV in UTF-8"),
        (table(row(clients="a\0b")), ""),
        (table(*([row()] * (MAX_ROWS + 1))), f"has {MAX_ROWS + 1} rows, expected"),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else value[:50],
)
def test_a_csv_is_refused(stage: Stage, content: bytes, told: str) -> None:
    problems = stage.problems("enrol", content)
    assert problems
    assert told in "\n".join(problems)
    assert stage.token.keys == {}


def test_every_line_that_is_wrong_is_told_up_to_a_bound(stage: Stage) -> None:
    wrong = [row(facility=f"N-{n}") for n in range(3)]
    assert [p[:7] for p in stage.problems("enrol", table(*wrong))] == [
        "line 2:",
        "line 3:",
        "line 4:",
    ]
    many = stage.problems("enrol", table(*(row(facility=f"N-{n}") for n in range(5000))))
    assert len(many) == 201
    assert many[-1] == "... and 4800 more problems"


@pytest.mark.parametrize(
    "content",
    [
        table(row(clients=f'"{CLIENT}"', facility='"n-1"')),
        b"\xef\xbb\xbf" + table(row()),
        table(row()).replace(b"\n", b"\r\n"),
        table(row()).replace(b"\n", b"\n\n"),
        table(row(facility=" n-1 ")),
        table(row(facility="null")),
        table(row(facility="1e3")),
    ],
)
def test_what_spreadsheets_write_is_read(stage: Stage, content: bytes) -> None:
    assert stage.done("enrol", content).result


def test_an_empty_attachment_is_told(stage: Stage) -> None:
    assert stage.problems("enrol")


@pytest.mark.parametrize(
    "changed",
    [{"facilities": 1}, {"keys": 1}, {"file": "../x.yaml"}, {"csv_sha256": ""}, {"token": ""}],
)
def test_what_an_officer_has_written_otherwise(stage: Stage, changed: dict[str, Any]) -> None:
    """The counts that others read, and the name of the file, are those of the CSV."""
    content = facilities(3)
    good = stage.propose("enrol", content).proposal.details
    with pytest.raises(CallError, match="OPERATION_REFUSED"):
        stage.put(stage.crafted("enrol", **{**good, **changed}), content)
    with pytest.raises(CallError, match="is not the CSV that the operation names"):
        stage.put(stage.crafted("enrol", **good), facilities(4))
    assert stage.put(stage.crafted("enrol", **good), content).state is OperationState.PROPOSED


def test_a_policy_that_was_put_in_force_since(stage: Stage) -> None:
    first, second = facilities(2), table(row(facility="z-1"))
    late = stage.propose("enrol", first).id
    stage.done("enrol", second)
    stage.approve(late)
    assert "another policy was put in force since" in stage.operation(late).note
    stage.done("enrol", first)
    assert {"n-0", "n-1", "z-1"} <= stage.snapshot.policy.facilities.keys()


def test_a_csv_is_enrolled_once(stage: Stage) -> None:
    stage.done("enrol", facilities(2))
    assert "facility n-0 is in the policy already" in stage.problems("enrol", facilities(2))[0]


def test_a_key_that_is_there_already(stage: Stage) -> None:
    stage.key("facilities/n-1/keys/records", activate=False)
    [problem] = stage.problems("enrol", table(row()))
    assert problem == "line 2: facilities/n-1/keys/records exists already"


def test_a_full_token_halfway_names_what_is_there_and_goes_on_from_it(stage: Stage) -> None:
    stage.token.room = 60
    operation = stage.do("enrol", facilities(70))
    assert operation.state is OperationState.FAILED
    assert "the token is full" in operation.note
    assert (operation.done, operation.total) == (60, 70)
    registered = {v.cka_id for v in stage.registry.state().keys}
    assert registered == {each.cka_id for each in stage.token.inventory()}
    assert "n-1" not in stage.snapshot.policy.facilities
    stage.token.room = None
    stage.proposals.retry(C, operation.id)
    assert stage.operation(operation.id).state is OperationState.DONE
    assert stage.token.generated == 70
    assert len(stage.registry.state().keys) == 70


@pytest.mark.parametrize("points", [5, 60, 110, 160, 270])
def test_a_crash_at_any_point_neither_loses_nor_repeats(stage: Stage, points: int) -> None:
    identity = stage.propose("enrol", facilities(120)).id
    stage.fate.crash_after(points)
    with pytest.raises(Crash):
        stage.approve(identity)
    stage.start()
    if stage.operation(identity).state is OperationState.PROPOSED:
        stage.approve(identity)
    assert stage.operation(identity).state is OperationState.DONE
    assert stage.token.generated == 120
    keys = stage.registry.state().keys
    assert {v.cka_id for v in keys} == stage.token.keys.keys()
    assert {v.state for v in keys} == {KeyState.ACTIVE}


def test_a_key_of_another_operation_in_between(stage: Stage) -> None:
    identity = stage.propose("enrol", facilities(3)).id
    stage.key("facilities/n-1/keys/records", activate=False)
    stage.approve(identity)
    assert "n-1/keys/records exists already" in stage.operation(identity).note
    assert len(stage.token.keys) == 1
    assert CLINIC not in map(str, stage.registry.state().keys.names())
